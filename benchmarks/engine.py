"""Speed of the local engine: ratios of figures taken in one run, ours and the reference in turn, medians of several.

python benchmarks/engine.py                         the table of the engine's bars, on the processor with the starter model
python benchmarks/engine.py --only streams,samplers some rows of it
python benchmarks/engine.py --model DIR             of another folder
python benchmarks/engine.py --cuda                  Llama-2-7B shapes with random weights on a GPU
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.generation.sampling import SamplingParams  # noqa: E402
from modules.generation.types import Finished, GenerationRequest, Message, TextDelta  # noqa: E402

STARTER = ROOT / "models" / "SmolLM2-135M-Instruct"
TEXT = "The history of the sea is a history of people who left the shore without knowing what lay beyond it. "
ALL_SAMPLERS: dict[str, Any] = {
    "temperature": 0.9, "top_p": 0.95, "top_k": 80, "min_p": 0.02, "top_n_sigma": 3.0, "typical_p": 0.98, "top_a": 0.05,
    "tfs": 0.98, "epsilon_cutoff": 3.0, "eta_cutoff": 3.0, "repetition_penalty": 1.1, "presence_penalty": 0.1,
    "frequency_penalty": 0.1, "no_repeat_ngram_size": 6, "dry_multiplier": 0.8, "xtc_probability": 0.3,
    "smoothing_factor": 0.1, "encoder_repetition_penalty": 1.05,
}  # fmt: skip
SCHEMA = (
    '{"type": "object", "properties": {"lines": {"type": "array", "minItems": 40, "items": {"type": "string", "minLength": 30}}},'
    ' "required": ["lines"], "additionalProperties": false}'
)


@dataclass(frozen=True)
class Line:
    """One row of the table: two figures and their ratio, and what the ratio should be at least or at most."""

    what: str
    ours: float
    reference: float
    unit: str
    bar: float
    at_most: bool = False

    @property
    def ratio(self) -> float:
        return self.ours / self.reference

    def __str__(self) -> str:
        good = self.ratio <= self.bar if self.at_most else self.ratio >= self.bar
        sign = "≤" if self.at_most else "≥"
        return (
            f"| {self.what} | {self.ours:.4g} {self.unit} | {self.reference:.4g} {self.unit} | {self.ratio:.3f} | {sign} {self.bar:.3g} "
            f"| {'yes' if good else 'no'} |"
        )


HEADER = "| what | ours | reference | ratio | bar | met |\n|---|---|---|---|---|---|"


def greedy(count: int, **more: Any) -> SamplingParams:
    return SamplingParams(do_sample=False, max_tokens=count, ban_eos=True, **more)


def finished(events: Any) -> Finished:
    end = list(events)[-1]
    assert isinstance(end, Finished)
    return end


def speed(end: Finished) -> float:
    """Tokens per second after the first token."""
    return end.timings.tokens_per_second(end.usage.completion_tokens) or 0.0


def fresh(index: int, tokens: int) -> tuple[int, ...]:
    """A prompt that shares no beginning with the others."""
    return tuple((index * 7919 + place * 31 + place * place) % 20_000 + 300 for place in range(tokens))


class Bench:
    """Our engine and transformers' own on two copies of one model, so that both are measured in turn."""

    def __init__(
        self, ours: Any, reference: Any, tokenizer: Any, rounds: int, threads: int = 0, folder: Path = STARTER
    ) -> None:
        self.ours = ours
        self.reference = reference
        self.tokenizer = tokenizer
        self.rounds = rounds
        self.threads = threads
        self.folder = folder
        self._prompts = 0

    def prompt(self, tokens: int) -> tuple[int, ...]:
        self._prompts += 1
        return fresh(self._prompts, tokens)

    def run(self, prompt: Any, sampling: SamplingParams) -> Finished:
        return finished(self.ours.stream(GenerationRequest(prompt, sampling)))

    def together(self, count: int, tokens: int, prompt_tokens: int = 64) -> float:
        """Tokens per second of `count` streams at once, from the time that all decode to the first end."""
        streams = [self.ours.stream(GenerationRequest(self.prompt(prompt_tokens), greedy(tokens))) for _ in range(count)]
        times: list[list[float]] = [[] for _ in streams]

        def read(index: int) -> None:
            for event in streams[index]:
                if isinstance(event, TextDelta):
                    times[index] += [time.perf_counter()] * event.tokens

        readers = [threading.Thread(target=read, args=(index,)) for index in range(count)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        start, end = max(stamps[0] for stamps in times), min(stamps[-1] for stamps in times)
        return sum(start < stamp <= end for stamps in times for stamp in stamps) / (end - start)

    def generate(self, prompt: tuple[int, ...], tokens: int) -> float:
        """Tokens per second of transformers' generate with its own streamer, after the first token."""
        import torch
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True)
        stamps: list[float] = []
        put = streamer.put
        streamer.put = lambda value: (stamps.append(time.perf_counter()), put(value))[1]  # type: ignore[method-assign]
        ids = torch.tensor([prompt], device=self.reference.device)
        thread = threading.Thread(
            target=lambda: self.reference.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                do_sample=False, streamer=streamer,
            )
        )  # fmt: skip
        thread.start()
        for _ in streamer:
            pass
        thread.join()
        # The first put is the prompt, the second the first token.
        return (len(stamps) - 2) / (stamps[-1] - stamps[1])

    def median(self, *works: Callable[[], float]) -> list[float]:
        """The medians of several figures, measured in turn."""
        found = [[work() for work in works] for _ in range(self.rounds)]
        return [statistics.median(column) for column in zip(*found, strict=True)]


def one_stream(bench: Bench) -> Iterator[Line]:
    ours, theirs = bench.median(
        lambda: speed(bench.run(bench.prompt(64), greedy(96))), lambda: bench.generate(bench.prompt(64), 96)
    )
    yield Line("one stream, decode", ours, theirs, "tokens/s", 1.15)


def streams(bench: Bench) -> Iterator[Line]:
    eight, one = bench.median(lambda: bench.together(8, 64), lambda: bench.together(1, 64))
    yield Line("8 streams together", eight, one, "tokens/s", 4)


def turns(bench: Bench) -> Iterator[Line]:
    def first_tokens() -> tuple[float, float]:
        chat = bench.prompt(200)
        for _ in range(19):
            chat += bench.prompt(190)
            bench.run(chat, greedy(2))
        chat += bench.prompt(60)
        return bench.run(chat, greedy(2)).timings.first_token, bench.run(bench.prompt(len(chat)), greedy(2)).timings.first_token

    found = [first_tokens() for _ in range(max(1, bench.rounds // 2))]
    ours, whole = (statistics.median(column) for column in zip(*found, strict=True))
    yield Line("first token of turn 20 of a 4,000-token chat, against reading it whole", ours, whole, "s", 1 / 15, at_most=True)


def overflow(bench: Bench) -> Iterator[Line]:
    """A chat in a context of 2,048 tokens: each of its last turns leaves the oldest out."""
    with engine(bench.threads, bench.folder, context_length=2048) as ours:
        said = (Message("system", "Answer briefly."),)
        moved, anew = [], []
        for turn in range(28):
            said += (
                Message("user", f"{turn} {TEXT}" * 3),
                Message("assistant", f"{turn} {TEXT}"),
                Message("user", "And then?"),
            )
            request = GenerationRequest(said, greedy(2), overflow="drop_oldest")
            end = finished(ours.stream(request))
            if ours.render(request).dropped_messages:
                moved.append(end.timings.first_token)
                whole = GenerationRequest(bench.prompt(end.usage.prompt_tokens), greedy(2))
                anew += [finished(ours.stream(whole)).timings.first_token] if len(anew) < bench.rounds else []
    yield Line(
        "first token of a turn beyond the context, against reading what stays of it anew",
        statistics.median(moved), statistics.median(anew), "s", 1 / 5, at_most=True,
    )  # fmt: skip


def company(bench: Bench) -> Iterator[Line]:
    def beside() -> float:
        with bench.ours.stream(GenerationRequest(bench.prompt(4000), greedy(2))) as long:
            next(iter(long))
            return bench.run(bench.prompt(24), greedy(2)).timings.first_token

    def alone() -> float:
        return bench.run(bench.prompt(24), greedy(2)).timings.first_token

    slow, quick = bench.median(beside, alone)
    yield Line(
        "first token of a short prompt while another of 4,000 tokens is read, against alone", slow, quick, "s", 3, at_most=True
    )
    disturbed, undisturbed = [], []
    for _ in range(max(1, bench.rounds // 2)):
        before, during = _disturbed(bench)
        undisturbed.append(before)
        disturbed.append(during)
    yield Line(
        "decode of others while a 4,000-token prompt is read, against undisturbed",
        statistics.median(disturbed), statistics.median(undisturbed), "tokens/s", 0.5,
    )  # fmt: skip


def _disturbed(bench: Bench) -> tuple[float, float]:
    """Tokens per second of a running reply (before, while) a long prompt is read beside it."""
    stamps: list[float] = []
    running = bench.ours.stream(GenerationRequest(bench.prompt(64), greedy(4000)))

    def read() -> None:
        for event in running:
            if isinstance(event, TextDelta):
                stamps.extend([time.perf_counter()] * event.tokens)

    reader = threading.Thread(target=read)
    reader.start()
    while len(stamps) < 48:
        time.sleep(0.01)
    begin = time.perf_counter()
    with bench.ours.stream(GenerationRequest(bench.prompt(4000), greedy(1))) as long:
        list(long)
    end = time.perf_counter()
    running.close()
    reader.join()
    before = [stamp for stamp in stamps if stamp < begin][8:]
    during = [stamp for stamp in stamps if begin <= stamp <= end]
    return (len(before) - 1) / (before[-1] - before[0]), len(during) / (end - begin)


def samplers(bench: Bench) -> Iterator[Line]:
    def per_token(sampling: SamplingParams) -> float:
        return 1000 / speed(bench.run(bench.prompt(64), sampling))

    busy, plain = bench.median(
        lambda: per_token(SamplingParams(max_tokens=64, ban_eos=True, seed=1, **ALL_SAMPLERS)), lambda: per_token(greedy(64))
    )
    yield Line("all samplers on, per token, against greedy", busy, plain, "ms", 1.15, at_most=True)


def schema(bench: Bench) -> Iterator[Line]:
    prompt = TEXT + "As JSON:"
    bench.run(prompt, greedy(2, json_schema=SCHEMA))
    bound, free = bench.median(
        lambda: speed(bench.run(prompt, SamplingParams(do_sample=False, max_tokens=64, json_schema=SCHEMA))),
        lambda: speed(bench.run(prompt, greedy(64))),
    )
    yield Line("bound to a JSON schema, against free", bound, free, "tokens/s", 0.85)


TABLE = {function.__name__: function for function in (one_stream, streams, turns, overflow, company, samplers, schema)}


@contextlib.contextmanager
def engine(threads: int, folder: Path, **limits: Any) -> Iterator[Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from modules.generation.local.model import Limits, LocalModel

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    ours = LocalModel(
        "starter", model, AutoTokenizer.from_pretrained(folder), Limits(threads=threads, max_parallel=8, **limits)
    )
    try:
        yield ours
    finally:
        ours.close()


@contextlib.contextmanager
def on_processor(threads: int, rounds: int, folder: Path) -> Iterator[Bench]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with engine(threads, folder) as ours:
        yield Bench(ours, reference, AutoTokenizer.from_pretrained(folder), rounds, threads, folder)


def quantised(kind: str, chosen: argparse.Namespace) -> Iterator[Line]:
    """One stream of weights quantised like that, against the same weights in the library's own generate."""
    with tempfile.TemporaryDirectory() as place:
        folder = chosen.model
        if kind == "GPTQ":
            from tests.loaders.gptq_folder import write_gptq

            folder = Path(place) / "GPTQ"
            write_gptq(chosen.model, folder)
        with _quantised(kind, folder, chosen) as bench:
            bench.run(bench.prompt(16), greedy(4))
            bench.generate(bench.prompt(16), 4)
            own, theirs = bench.median(
                lambda: speed(bench.run(bench.prompt(32), greedy(48))), lambda: bench.generate(bench.prompt(32), 48)
            )
            yield Line(f"{kind}, one stream, against the library's own generate", own, theirs, "tokens/s", 1.1)


@contextlib.contextmanager
def _quantised(kind: str, folder: Path, chosen: argparse.Namespace) -> Iterator[Bench]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from modules.library.models import describe
    from modules.loaders.choose import load
    from modules.loaders.options import LoadOptions

    torch.set_num_threads(chosen.threads)
    wish: dict[str, Any] = {"8-bit": {"load_in_8bit": True}, "4-bit": {"load_in_4bit": True}, "GPTQ": {}}[kind]
    ours: Any = load(describe(folder), LoadOptions(cpu=True, threads=chosen.threads, **wish), lambda sentence: None)
    dtype = ours._runner.model.dtype
    try:
        if kind == "GPTQ":
            from gptqmodel import GPTQModel

            reference: Any = GPTQModel.load(str(folder), device="cpu", dtype=dtype)
        else:
            more = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype} if kind == "4-bit" else {}
            reference = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, device_map={"": "cpu"}, quantization_config=BitsAndBytesConfig(**wish, **more)
            )
        yield Bench(ours, reference, AutoTokenizer.from_pretrained(folder), chosen.rounds, chosen.threads, folder)
    finally:
        ours.close()


QUANTISED = {"eight_bit": "8-bit", "four_bit": "4-bit", "gptq": "GPTQ"}


def on_cuda(rounds: int, layers: int) -> Iterator[Line]:
    """Llama-2-7B shapes with random weights in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from modules.generation.local.model import Limits, LocalModel

    config = LlamaConfig(
        vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip

    def build() -> Any:
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        model.generation_config.eos_token_id = None
        return model.eval()

    copy = _copy_bandwidth()
    reference, own = build(), build()
    weights = sum(parameter.numel() * 2 for parameter in own.parameters()) - own.get_input_embeddings().weight.numel() * 2
    limit = copy / weights
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies {copy / 1e12:.2f} TB/s, {weights / 1e9:.2f} GB per token"
    )
    print(f"at most {limit:.0f} tokens/s for one stream", flush=True)
    tokenizer = _words(32_000)
    ours = LocalModel("llama", own, tokenizer, Limits(max_parallel=64))
    compute = getattr(ours, "_runner")  # noqa: B009 - the benchmark looks inside
    print(f"our layers: {compute.decoder is not None}, captured: {compute.graphs is not None}", flush=True)
    if compute.graphs is not None:
        _check_graphs(ours, compute)
    bench = Bench(ours, reference, tokenizer, rounds)
    bench.run(bench.prompt(64), greedy(16))
    bench.generate(bench.prompt(64), 16)
    one, theirs = bench.median(
        lambda: speed(bench.run(bench.prompt(128), greedy(256))), lambda: bench.generate(bench.prompt(128), 128)
    )
    yield Line("bf16, one stream, against the memory's limit", one, limit, "tokens/s", 0.75)
    yield Line("bf16, one stream, against generate", one, theirs, "tokens/s", 4)
    bench.together(64, 32)
    many = bench.median(lambda: bench.together(64, 160))[0]
    yield Line("bf16, 64 streams, against one", many, one, "tokens/s", 25)
    sampled = SamplingParams(max_tokens=128, ban_eos=True, seed=1, temperature=0.8, top_p=0.95, top_k=40)
    bench.run(bench.prompt(128), sampled)
    drawn = bench.median(lambda: speed(bench.run(bench.prompt(128), sampled)))[0]
    yield Line("bf16, one stream with temperature, top-p and top-k, against greedy", drawn, one, "tokens/s", 0.87)
    if compute.graphs is not None:
        _profile(compute)
    ours.close()


def _copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy on the device."""
    import torch

    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * source.numel() / statistics.median(times)


def _check_graphs(ours: Any, compute: Any) -> None:
    """Greedy tokens, and the scores of the same tokens, by captured steps and by plain ones."""
    import torch

    from modules.generation.local.kv_cache import Piece

    @torch.inference_mode()
    def compare() -> None:
        prompts = [list(fresh(900 + index, 20 + 90 * index)) for index in range(5)]
        stores = [compute.new_store(1024) for _ in prompts]
        for store, prompt in zip(stores, prompts, strict=True):
            compute.logits([Piece(store, 0, len(prompt))], prompt, [len(prompt) - 1], [None])
        tokens, graphs, worst, same = [1] * len(prompts), compute.graphs, 0.0, 0
        for step in range(32):
            pieces = [Piece(store, len(prompt) + step, 1) for store, prompt in zip(stores, prompts, strict=True)]
            every = list(range(len(pieces)))
            captured = compute.logits(pieces, tokens, every, ()).float().clone()
            compute.graphs = None
            plain = compute.logits(pieces, tokens, every, ()).float()
            compute.graphs = graphs
            worst = max(worst, float((captured - plain).norm() / plain.norm()))
            same += int((captured.argmax(-1) == plain.argmax(-1)).sum())
            tokens = plain.argmax(-1).tolist()
        print(
            f"captured against plain steps: scores differ by {worst:.2%} at most, {same} of {32 * len(prompts)} tokens are the same"
        )

    ours._loop.call(compare)


def _profile(compute: Any) -> None:
    """What a captured step of one row takes by itself, and the products in it."""
    import torch

    for rows, step in sorted(compute.graphs._steps.items()):
        if step._graph is None:
            continue
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        step.run()
        begin.record()
        for _ in range(20):
            step.run()
        end.record()
        torch.cuda.synchronize()
        print(f"the captured step of {rows} rows: {begin.elapsed_time(end) / 20:.3f} ms")
    print(f"products of one row: {compute.graphs._products._best}")


def _words(count: int) -> Any:
    """A tokenizer of `count` words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(count)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", unk_token="w0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = [*TABLE, *QUANTISED]
    parser.add_argument("--only", default=",".join(rows), help=f"some of: {', '.join(rows)}")
    parser.add_argument("--rounds", type=int, default=5, help="figures are medians of so many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--layers", type=int, default=32, help="of the model on CUDA")
    parser.add_argument("--verbose", action="store_true")
    chosen = parser.parse_args()
    if chosen.verbose:
        import logging

        logging.basicConfig(level=logging.INFO)
    print(HEADER, flush=True)
    names = chosen.only.split(",")
    if chosen.cuda:
        for line in on_cuda(chosen.rounds, chosen.layers):
            print(line, flush=True)
        return
    if any(name in TABLE for name in names):
        with on_processor(chosen.threads, chosen.rounds, chosen.model) as bench:
            bench.run(bench.prompt(16), greedy(4))
            for name in names:
                for line in TABLE[name](bench) if name in TABLE else ():
                    print(line, flush=True)
    for name in names:
        for line in quantised(QUANTISED[name], chosen) if name in QUANTISED else ():
            print(line, flush=True)


if __name__ == "__main__":
    main()
