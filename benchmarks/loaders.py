"""Load seconds, peak memory and tokens/s of every loader, beside the library it uses, bare, in the same run.

python benchmarks/loaders.py                        all kinds of weights, on the processor with the starter model
python benchmarks/loaders.py --only 8-bit,GPTQ      some of them
python benchmarks/loaders.py --gptq FOLDER          a GPTQ folder of your own instead of the starter rounded to 4 bits

Every figure comes from a process of its own; ours and the library take turns, with the same number format for what is not
quantised, and the table shows medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

STARTER = ROOT / "models" / "SmolLM2-135M-Instruct"
GGUF = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "The history of the sea is a history of people who left the shore."
CACHE_TOKENS = 16_384
"""What the starter's GGUF gets by default: 2,048 tokens for each of eight slots."""
OPTIONS: dict[str, dict[str, Any]] = {
    "16-bit": {},
    "8-bit": {"load_in_8bit": True},
    "4-bit": {"load_in_4bit": True},
    "GPTQ": {},
    "GGUF": {},
}


@dataclass(frozen=True)
class Figures:
    """load_seconds: until the first token can be asked for; peak_mib: of the process that holds the weights.

    beside_mib: of our own process, where the weights are in another.
    """

    load_seconds: float
    peak_mib: float
    tokens_per_second: float
    beside_mib: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(OPTIONS), help="kinds of weights, with commas between")
    parser.add_argument("--gptq", type=Path, help="a GPTQ folder")
    parser.add_argument("--tokens", type=int, default=64, help="length of the reply that is timed")
    parser.add_argument("--repeat", type=int, default=3, help="how often each figure is taken")
    parser.add_argument("--child", nargs=3, metavar=("WHO", "KIND", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        who, kind, path = given.child
        figures = (_ours if who == "ours" else BARE[kind])(kind, Path(path), given.tokens)
        print(json.dumps(asdict(figures)), flush=True)
        return
    with tempfile.TemporaryDirectory() as place:
        print(f"{'':8}{'load s':>9}{'bare':>9}{'peak MiB':>10}{'bare':>9}{'ratio':>8}{'tokens/s':>10}{'bare':>9}{'ratio':>8}")
        for kind in given.only.split(","):
            path = _path_of(kind, given.gptq, Path(place))
            _print_line(kind, *_measured(kind, path, given.tokens, given.repeat))


def _path_of(kind: str, gptq: Path | None, place: Path) -> Path:
    if kind == "GGUF":
        return GGUF
    if kind != "GPTQ":
        return STARTER
    if gptq is None:
        from tests.loaders.gptq_folder import write_gptq

        gptq = place / "starter-GPTQ"
        write_gptq(STARTER, gptq)
    return gptq


def _measured(kind: str, path: Path, tokens: int, repeat: int) -> tuple[Figures, Figures]:
    """Medians of ours and of the bare library, taken in turn."""
    taken: dict[str, list[Figures]] = {"ours": [], "bare": []}
    for _ in range(repeat):
        for who, figures in taken.items():
            figures.append(_in_a_process(who, kind, path, tokens))
    ours, bare = (
        Figures(*(statistics.median(column) for column in zip(*(asdict(one).values() for one in figures), strict=True)))
        for figures in taken.values()
    )
    return ours, bare


def _in_a_process(who: str, kind: str, path: Path, tokens: int) -> Figures:
    command = [sys.executable, __file__, "--child", who, kind, str(path), "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise SystemExit(f"{who} {kind} failed:\n{done.stderr[-2000:]}")
    return Figures(**json.loads(done.stdout.strip().splitlines()[-1]))


def _print_line(kind: str, ours: Figures, bare: Figures) -> None:
    memory, speed = ours.peak_mib / bare.peak_mib, ours.tokens_per_second / bare.tokens_per_second
    print(
        f"{kind:8}{ours.load_seconds:9.1f}{bare.load_seconds:9.1f}{ours.peak_mib:10.0f}{bare.peak_mib:9.0f}{memory:8.2f}"
        f"{ours.tokens_per_second:10.1f}{bare.tokens_per_second:9.1f}{speed:8.2f}",
        flush=True,
    )
    if ours.beside_mib:
        print(f"{'':8}Beside llama.cpp's process: our own, {ours.beside_mib:.0f} MiB, whatever the model.", flush=True)


# --- in the process that is measured


def _ours(kind: str, path: Path, tokens: int) -> Figures:
    from modules.generation.llamacpp.model import LlamacppModel
    from modules.generation.sampling import SamplingParams
    from modules.generation.types import Finished, GenerationRequest
    from modules.library.models import describe
    from modules.loaders.choose import load
    from modules.loaders.options import LoadOptions

    started = time.perf_counter()
    model = load(describe(path), LoadOptions(cpu=True, **OPTIONS[kind]), lambda sentence: None)
    seconds = time.perf_counter() - started
    speed = 0.0
    for length in (4, tokens):  # the first reply warms up
        sampling = SamplingParams(temperature=0, max_tokens=length, ban_eos=True)
        for event in model.stream(GenerationRequest(PROMPT, sampling)):
            if isinstance(event, Finished):
                speed = event.timings.tokens_per_second(event.usage.completion_tokens) or 0.0
    own = Figures(seconds, _peak_mib(), speed)
    figures = replace(own, peak_mib=_peak_mib(model.pid), beside_mib=own.peak_mib) if isinstance(model, LlamacppModel) else own
    model.close()
    return figures


def _bare_transformers(kind: str, path: Path, tokens: int) -> Figures:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from modules.library.models import describe
    from modules.loaders.local import dtype_for
    from modules.loaders.options import LoadOptions

    dtype = dtype_for(describe(path), LoadOptions(cpu=True))
    more: dict[str, Any] = {}
    if kind == "8-bit":
        more["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    if kind == "4-bit":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map={"": "cpu"}, **more).eval()
    with torch.inference_mode():
        return _generated(model, path, tokens, time.perf_counter() - started)


def _bare_gptqmodel(kind: str, path: Path, tokens: int) -> Figures:
    from gptqmodel import GPTQModel

    from modules.library.models import describe
    from modules.loaders.local import dtype_for
    from modules.loaders.options import LoadOptions

    dtype = dtype_for(describe(path), LoadOptions(cpu=True))
    started = time.perf_counter()
    model = GPTQModel.load(str(path), device="cpu", dtype=dtype)
    return _generated(model, path, tokens, time.perf_counter() - started)


def _generated(model: Any, path: Path, tokens: int, load_seconds: float) -> Figures:
    from transformers import AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(path)(PROMPT, return_tensors="pt")
    times: list[float] = []

    class Clock:
        """Takes the tokens as they come, as a streamer."""

        def put(self, value: Any) -> None:
            times.append(time.perf_counter())

        def end(self) -> None: ...

    for length in (4, tokens):
        times.clear()
        model.generate(**prompt, max_new_tokens=length, min_new_tokens=length, do_sample=False, streamer=Clock())
    # The first time is that of the prompt itself, the second that of the first token.
    return Figures(load_seconds, _peak_mib(), (tokens - 1) / (times[-1] - times[1]))


def _bare_llama_cpp(kind: str, path: Path, tokens: int) -> Figures:
    import os
    from importlib import import_module

    from modules.loaders.options import LoadOptions

    xllamacpp: Any = import_module("xllamacpp")  # its compiled part has no types
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.verbosity = str(path), 0
    # As many slots and as large a cache as ours has.
    parameters.n_parallel, parameters.n_ctx, parameters.kv_unified = LoadOptions().max_parallel, CACHE_TOKENS, True
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = os.cpu_count() or 1
    started = time.perf_counter()
    server = xllamacpp.Server(parameters)
    seconds = time.perf_counter() - started
    answer: dict[str, Any] = {}
    for length in (4, tokens):
        answer = server.handle_completions({"prompt": PROMPT, "max_tokens": length, "temperature": 0, "ignore_eos": True})
    return Figures(seconds, _peak_mib(), answer["timings"]["predicted_per_second"])


BARE: dict[str, Callable[[str, Path, int], Figures]] = {
    "16-bit": _bare_transformers,
    "8-bit": _bare_transformers,
    "4-bit": _bare_transformers,
    "GPTQ": _bare_gptqmodel,
    "GGUF": _bare_llama_cpp,
}


def _peak_mib(pid: int | None = None) -> float:
    """The most memory that this process had, or another."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
