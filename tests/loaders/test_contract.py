"""What every loader promises, held against the library that it uses: a new loader joins with one row in ROWS."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modules.errors import ContextTooLong, Unavailable
from modules.generation.local.model import give_memory_back
from modules.generation.sampling import SamplingParams
from modules.generation.types import Finished, GenerationRequest, LoadedModel, Message, Started, TextDelta
from modules.library.model_spec import ModelSpec
from modules.library.models import describe
from modules.loaders.choose import choose, load
from modules.loaders.options import LoadOptions
from tests.engines import llama_server
from tests.loaders.four_bit import compute_as_asked
from tests.loaders.gptq_folder import write_gptq
from tests.tiny import write_tiny_llama

pytestmark = pytest.mark.slow
PROMPT, LENGTH, CONTEXT = "The lighthouse stood", 24, 2048
REAL_LENGTH = 12
"""Tokens of a reply of the real model, which is slow in 16 bits on most processors."""
MIB = 1 << 20


@dataclass(frozen=True)
class Files:
    """The same random Llama of 70 MiB in the forms that the loaders take: large enough to see its memory come and go.

    starter: a real model's folder.
    """

    folder: Path
    gguf: Path
    gptq: Path
    starter: Path


@dataclass(frozen=True)
class Case:
    """What is loaded, and the greedy text that the loader's library makes of it by itself.

    real: where random weights are too undecided for their number format, the folder whose text is compared instead.
    """

    spec: ModelSpec
    options: LoadOptions
    reference: Callable[[], str]
    real: Path | None = None


@dataclass(frozen=True)
class Row:
    """One way of loading. weights_here: how much of the .gguf file's size its weights take of our memory; 0 where elsewhere."""

    name: str
    loader: str
    case: Callable[[Files], AbstractContextManager[Case]]
    weights_here: float = 1.0


def _llamacpp(files: Files) -> AbstractContextManager[Case]:
    return nullcontext(Case(describe(files.gguf), LoadOptions(threads=1, no_mmap=True), lambda: bare_llama_cpp(files.gguf)))


def _transformers(dtype: str) -> Callable[[Files], AbstractContextManager[Case]]:
    def case(files: Files) -> AbstractContextManager[Case]:
        options = LoadOptions.read({"cpu": True, "dtype": dtype})
        real = None if dtype == "float32" else files.starter
        length = REAL_LENGTH if real else LENGTH
        reference = partial(bare_transformers, real or files.folder, dtype, length=length)
        return nullcontext(Case(describe(files.folder), options, reference, real))

    return case


def _bitsandbytes(**kind: Any) -> Callable[[Files], AbstractContextManager[Case]]:
    def case(files: Files) -> AbstractContextManager[Case]:
        options = LoadOptions.read({"cpu": True, "dtype": "float32", **kind})
        quantization = _bits(kind)
        return nullcontext(
            Case(describe(files.folder), options, lambda: bare_transformers(files.folder, quantization=quantization))
        )

    return case


def _gptq(files: Files) -> AbstractContextManager[Case]:
    options = LoadOptions(cpu=True, dtype="float32")
    return nullcontext(Case(describe(files.gptq), options, lambda: bare_gptqmodel(files.gptq)))


@contextmanager
def _remote(files: Files) -> Iterator[Case]:
    with llama_server(files.gguf, "key") as address:
        spec = ModelSpec("far", Path("far.yaml"), "remote", 0, endpoint=address)
        yield Case(spec, LoadOptions(remote_api_key="key"), lambda: bare_llama_cpp(files.gguf))


ROWS = [
    Row("GGUF", "llamacpp", _llamacpp),
    Row("32-bit", "transformers", _transformers("float32")),
    Row("16-bit", "transformers", _transformers("bfloat16"), weights_here=0.5),
    Row("8-bit", "bitsandbytes", _bitsandbytes(load_in_8bit=True), weights_here=0.25),
    Row("nf4", "bitsandbytes", _bitsandbytes(load_in_4bit=True), weights_here=0.15),
    Row("fp4", "bitsandbytes", _bitsandbytes(load_in_4bit=True, quant_type="fp4"), weights_here=0.15),
    Row("GPTQ", "gptq", _gptq, weights_here=0.15),
    Row("remote", "remote", _remote, weights_here=0),
]

BARE_LLAMA_CPP = """
import json, sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.verbosity = sys.argv[1], 2048, 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
asked = {"prompt": sys.argv[2], "max_tokens": int(sys.argv[3]), "temperature": 0, "logit_bias": [[259, False]]}
print(json.dumps(server.handle_completions(asked)["choices"][0]["text"]))
"""


def bare_llama_cpp(gguf: Path) -> str:
    command = [sys.executable, "-c", BARE_LLAMA_CPP, str(gguf), PROMPT, str(LENGTH)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)


def _bits(kind: dict[str, Any]) -> Any:
    from transformers import BitsAndBytesConfig

    if kind.get("load_in_8bit"):
        return BitsAndBytesConfig(load_in_8bit=True)
    form = kind.get("quant_type", "nf4")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=form, bnb_4bit_compute_dtype="float32")


def bare_gptqmodel(folder: Path) -> str:
    """transformers with GPTQModel's layers."""
    from modules.loaders.quiet_imports import import_gptqmodel

    import_gptqmodel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optimum and GPTQModel use what is old, and leave folders to the collector
        return bare_transformers(folder)


def bare_transformers(folder: Path, dtype: str = "float32", quantization: Any = None, length: int = LENGTH) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    more = {} if quantization is None else {"quantization_config": quantization}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), device_map={"": "cpu"}, **more)
    if dtype == "float32":
        compute_as_asked(model)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        made = model.generate(**prompt, max_new_tokens=length, do_sample=False, suppress_tokens=[259])
    return tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, starter_folder: Path) -> Files:
    from tests.tiny_gguf import write_gguf

    place = tmp_path_factory.mktemp("contract")
    folder = write_tiny_llama(place / "folder", seed=7, layers=12, hidden=512, heads=8, kv_heads=4, context=CONTEXT)
    write_gptq(folder, place / "gptq")
    return Files(folder, write_gguf(folder, place / "file.gguf"), place / "gptq", starter_folder)


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def case(row: Row, files: Files) -> Iterator[Case]:
    with row.case(files) as case:
        yield case


@pytest.fixture(scope="module")
def model(case: Case) -> Iterator[LoadedModel]:
    model = load(case.spec, case.options, lambda progress: None)
    yield model
    model.close()


def ask(prompt: Any = PROMPT, **sampling: Any) -> GenerationRequest:
    values = {"max_tokens": LENGTH, "do_sample": False, "ban_eos": True, **sampling}
    return GenerationRequest(prompt, SamplingParams(**values))


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def memory() -> int:
    """Bytes of main memory that this process and all that it started hold."""
    pages = 0
    todo = [Path("/proc/self")]
    while todo:
        process = todo.pop()
        try:
            pages += int((process / "statm").read_text().split()[1])
            for thread in (process / "task").iterdir():
                todo += [Path("/proc") / child for child in (thread / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * 4096


def test_it_is_the_loader_that_the_files_call_for(row: Row, case: Case) -> None:
    assert choose(case.spec, case.options) == row.loader


def test_greedy_text_is_that_of_its_library_used_directly(model: LoadedModel, case: Case) -> None:
    # Bytes that are no character are left out of our text; a library shows a mark for them.
    expected = case.reference().replace("\ufffd", "")
    assert len(expected) > 10
    if case.real is None:
        assert text_of(model.stream(ask())) == expected
        return
    real = load(describe(case.real), case.options, lambda progress: None)
    try:
        assert text_of(real.stream(ask(max_tokens=REAL_LENGTH))) == expected
    finally:
        real.close()


def test_it_counts_tokens(model: LoadedModel) -> None:
    events = list(model.stream(ask()))
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("length", LENGTH)
    assert end.usage.prompt_tokens == len(PROMPT) == len(model.tokenize(PROMPT))
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.prompt_tokens == len(PROMPT)
    assert sum(event.tokens for event in events if isinstance(event, TextDelta)) <= LENGTH
    assert model.detokenize(model.tokenize(PROMPT)) == PROMPT


def test_a_conversation_is_answered(model: LoadedModel) -> None:
    assert model.context_length == CONTEXT
    assert model.chat_template
    events = list(model.stream(ask((Message("user", "Hello"),))))
    assert isinstance(events[-1], Finished) and events[-1].usage.prompt_tokens > len("Hello")


def test_what_it_promises_are_settings_that_exist(model: LoadedModel) -> None:
    assert model.capabilities.samplers <= set(SamplingParams.model_fields)
    assert {"max_tokens", "temperature", "stop", "seed"} <= model.capabilities.samplers
    assert model.capabilities.max_parallel >= 1


def test_several_replies_at_once_do_not_mix(model: LoadedModel) -> None:
    prompts = [f"{PROMPT} {number}" for number in range(4)]
    alone = [text_of(model.stream(ask(prompt))) for prompt in prompts]
    streams = [model.stream(ask(prompt)) for prompt in prompts]
    assert [text_of(events)[:6] for events in streams] == [text[:6] for text in alone]


def test_a_prompt_that_is_too_long_is_refused(model: LoadedModel) -> None:
    with pytest.raises(ContextTooLong, match=f"{CONTEXT}"):
        list(model.stream(ask("x" * (CONTEXT + 10))))


def test_closing_stops_it(model: LoadedModel) -> None:
    events = model.stream(ask(max_tokens=1900))
    while not isinstance(events.get(timeout=60), TextDelta):
        pass
    start = time.monotonic()
    events.close()
    while model.status().running:
        assert time.monotonic() < start + 3
        time.sleep(0.01)


def test_unloading_gives_the_memory_back_and_it_loads_again(row: Row, case: Case, files: Files) -> None:
    def load_and_use() -> LoadedModel:
        model = load(case.spec, case.options, lambda progress: None)
        assert text_of(model.stream(ask(max_tokens=4))) is not None
        return model

    load_and_use().close()  # what is imported and set up once stays
    weights, kept = files.gguf.stat().st_size, []
    for _ in range(3):
        give_memory_back()  # of what ran before: what is free there would be used again, and hide what this load takes
        before = memory()
        model = load_and_use()
        loaded = memory()
        model.close()
        model.close()
        with pytest.raises(Unavailable):
            model.stream(ask())
        del model
        give_memory_back()
        if row.weights_here:
            assert loaded - before > 0.7 * weights * row.weights_here
        kept.append(memory() - before)
        if kept[-1] < 0.2 * weights:
            return
    pytest.fail(f"after each of three loads there was more memory in use than before: {kept}")  # once may be the allocator's
