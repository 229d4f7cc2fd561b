"""Decode attention of many rows in one call: the same as row by row, in every number format and shape, or not used at all."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modules.generation.local import attention, decode_attention
from modules.generation.local.attention import Pieces, look
from modules.generation.local.decode_attention import TOLERANCE, DecodeAttention, NoKernel, Rows, kernel_for
from modules.generation.local.kernel_cache import cache_folder
from modules.generation.local.kv_cache import LayerLayout, Layout, Piece, Store
from modules.generation.local.model_runner import batched_runner
from modules.generation.local.threads import OneThread
from tests.generation.local.test_kinds import random_model

CPU = torch.device("cpu")
LENGTHS = (1, 2, 127, 128, 129, 700, 5000)
# (number format, key heads, query heads for each, dimension of keys, dimension of values)
SHAPES = [
    (torch.float32, 3, 3, 64, 64),
    (torch.float32, 1, 1, 16, 16),
    (torch.float32, 2, 8, 80, 48),
    (torch.float16, 2, 4, 64, 64),
    (torch.bfloat16, 2, 2, 128, 128),
]
HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scaling": 0.3},
    "window": {"window": 100},
    "wide window": {"window": 1000},
    "softcap": {"softcap": 3.0, "scaling": 1.0},
    "window and softcap": {"softcap": 20.0, "window": 130},
}


class Step:
    """Rows of those lengths, their queries, and their new keys and values."""

    def __init__(self, shape: tuple[torch.dtype, int, int, int, int], lengths: Sequence[int]) -> None:
        dtype, key_heads, groups, key_dim, value_dim = shape
        torch.manual_seed(3)
        self.layout = Layout((LayerLayout(key_heads, key_dim, value_dim, dtype, CPU),) * 2)
        self.pieces = [Piece(Store(self.layout, (length // 256 + 1) * 256), length - 1, 1) for length in lengths]
        for piece in self.pieces:
            for cache in piece.store.keys + piece.store.values:
                cache.copy_(torch.randn(cache.shape))
        count = len(lengths)
        self.query = torch.randn(count, key_heads * groups, key_dim).to(dtype)
        self.key = torch.randn(count, key_heads, key_dim).to(dtype)
        self.value = torch.randn(count, key_heads, value_dim).to(dtype)

    def at_once(self, which: Sequence[int] | None = None, **how: Any) -> Tensor:
        which = range(len(self.pieces)) if which is None else which
        query, key, value = (x[list(which)] for x in (self.query, self.key, self.value))
        out = torch.full((*query.shape[:2], value.shape[-1]), torch.nan, dtype=query.dtype)
        rows = Rows([self.pieces[index] for index in which])
        DecodeAttention(self.layout).attend(rows, 1, query, key, value, out, **how)
        return out

    def row_by_row(self, **how: Any) -> Tensor:
        cache = Pieces(self.pieces)
        cache.update(self.key.transpose(0, 1)[None], self.value.transpose(0, 1)[None], 1)
        queries = self.query.transpose(0, 1)[None]
        rows = [look(cache, index, 1, queries[:, :, index : index + 1], **how) for index in range(len(self.pieces))]
        return torch.cat([row[0].transpose(0, 1) for row in rows])


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_rows_at_once_are_what_each_is_by_itself(shape: Any, how: dict[str, Any]) -> None:
    step = Step(shape, LENGTHS)
    seen = step.at_once(**how)
    stored = [torch.cat((piece.store.keys[1], piece.store.values[1]), -1).clone() for piece in step.pieces]
    expected = step.row_by_row(**how)
    assert (seen - expected).abs().max() < TOLERANCE[shape[0]]
    for piece, written in zip(step.pieces, stored, strict=True):
        assert torch.equal(written, torch.cat((piece.store.keys[1], piece.store.values[1]), -1))


def test_sinks_take_their_share() -> None:
    step = Step(SHAPES[0], LENGTHS)
    sinks = torch.randn(9)
    assert torch.allclose(step.at_once(sinks=sinks), step.row_by_row(sinks=sinks), atol=1e-5)


def test_queries_and_keys_get_their_positions() -> None:
    step = Step(SHAPES[0], LENGTHS)
    cos, sin = torch.randn(2, len(LENGTHS), 64)
    seen = step.at_once(rotation=(cos, sin))
    step.query, step.key = (x * cos[:, None] + x.roll(32, -1) * sin[:, None] for x in (step.query, step.key))
    assert torch.allclose(seen, step.row_by_row(), atol=1e-5)


def test_a_row_is_the_same_in_any_company_and_on_any_number_of_threads() -> None:
    step = Step(SHAPES[0], [*LENGTHS, *range(1, 60)])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        together = step.at_once()
        torch.set_num_threads(1)
        for index in (0, 4, 6, 30):
            assert torch.equal(step.at_once([index])[0], together[index])
    finally:
        torch.set_num_threads(threads)


class Team:
    """Stands for OpenMP: notes how many threads are asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, address: int, fields: Any, threads: int, flags: int) -> None:
        self.asked.append(threads)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(ctypes.addressof(fields))


def test_it_computes_on_as_many_threads_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team()
    monkeypatch.setattr(decode_attention, "_start_team", lambda: team)
    step = Step(SHAPES[0], [700] * 8)
    step.at_once()
    team.asked.clear()  # the kernel's own check was among it, where this process had not made it yet
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = step.at_once()
        with OneThread():
            assert torch.equal(step.at_once(), several)
        assert team.asked == [3]
        step.at_once([0])
        assert team.asked == [3, 3]
    finally:
        torch.set_num_threads(threads)


def test_little_work_wakes_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team()
    monkeypatch.setattr(decode_attention, "_start_team", lambda: team)
    step = Step(SHAPES[0], [5])
    step.at_once()
    team.asked.clear()  # the kernel's own check was among it
    step.at_once()
    assert team.asked == []


def test_several_threads_may_compute_at_the_same_time() -> None:
    steps = [Step(SHAPES[0], LENGTHS) for _ in range(4)]
    expected = steps[0].row_by_row()
    found: list[Tensor] = []
    workers = [threading.Thread(target=lambda step=step: found.extend(step.at_once() for _ in range(20))) for step in steps]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 80
    assert all(torch.allclose(seen, expected, atol=1e-5) for seen in found)


FORKED = """
import os, threading, torch
torch.set_num_threads(2)
from tests.generation.local.test_decode_attention import SHAPES, Step
step = Step(SHAPES[0], [700] * 8)
expected = step.at_once()
child = os.fork()
if child == 0:
    found = []
    thread = threading.Thread(target=lambda: found.append(step.at_once()))
    thread.start()
    thread.join(60)
    os._exit(0 if found and torch.equal(found[0], expected) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(step.at_once(), expected)
"""


def test_it_works_in_a_forked_process_and_in_the_one_that_forked() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=240, cwd=Path(__file__).parents[3])


def test_numba_is_imported_by_a_model_and_not_before() -> None:
    code = "import sys, modules.generation.local.model, modules.loaders.choose; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240, cwd=Path(__file__).parents[3])


# --- whole models


def computed(kind: str) -> Any:
    model = random_model(kind).float()
    found = batched_runner(model)
    assert not isinstance(found, str)
    return found


def scores(compute: Any) -> Tensor:
    """Of two rows that decode while a third prompt is read."""
    stores = [compute.new_store(256) for _ in range(3)]
    prompts = [[(7 * place + index) % 200 for place in range(20 + 9 * index)] for index in range(3)]
    first = [Piece(store, 0, len(prompt)) for store, prompt in zip(stores, prompts[:2], strict=False)]
    found = [compute.logits(first, [*prompts[0], *prompts[1]], [0, 1])]
    for step in range(3):
        pieces = [Piece(store, len(prompt) + step, 1) for store, prompt in zip(stores, prompts[:2], strict=False)]
        if step == 1:
            pieces.insert(1, Piece(stores[2], 0, len(prompts[2])))
            found.append(compute.logits(pieces, [5, *prompts[2], 6], [0, 3, len(prompts[2]) + 1]))
        else:
            found.append(compute.logits(pieces, [8 + step, 9], [0, 1]))
    return torch.cat(found)


KINDS = ("llama", "mistral with a window", "qwen3", "gemma2 with windows and bounded scores", "gpt-2", "phi3")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_a_model_gives_the_same_scores_with_kernels_and_without(kind: str) -> None:
    compute = computed(kind)
    assert compute.decode_attention is not None
    quick = scores(compute)
    compute.use_kernels(None)
    slow = scores(compute)
    assert (quick - slow).abs().max() < 1e-4 * slow.std()


def test_many_rows_are_one_call_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = computed("llama")
    calls = []
    run = DecodeAttention.run
    monkeypatch.setattr(DecodeAttention, "run", lambda self, *args, **how: (calls.append(args[2]), run(self, *args, **how))[1])
    monkeypatch.setattr(attention, "look", None)
    with torch.inference_mode():
        compute.logits([Piece(compute.new_store(256), 0, 1) for _ in range(64)], [3] * 64, range(64))
    assert calls == [0, 1, 2]


# --- where there is no kernel


@torch.inference_mode()
def without_kernels(why: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        compute = computed("llama")
    assert compute.decode_attention is None
    assert why in caplog.text
    assert scores(compute).isfinite().all()


def test_a_model_works_without_numba(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(decode_attention, "find_spec", lambda name: None)
    without_kernels("numba is not installed", caplog)


def test_a_model_works_where_threads_cannot_be_shared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decode_attention.ctypes, "CDLL", lambda path: object())
    without_kernels("threads cannot be shared", caplog)


@pytest.mark.parametrize("wrong", ["does nothing", "forgets a head's dimension"])
def test_a_wrong_kernel_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    compiled = decode_attention._compiled
    nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda fields: None)

    def broken(dtype: torch.dtype, groups: int, key_dim: int, value_dim: int, folder: Path | None) -> Any:
        made = compiled(dtype, groups, key_dim, value_dim, folder)
        if wrong == "does nothing":
            return replace(made, call=nothing, address=ctypes.cast(nothing, ctypes.c_void_p).value)
        return replace(compiled(dtype, groups, key_dim // 2, value_dim, folder), partial=made.partial, scratch=made.scratch)

    kernel_for.cache_clear()
    monkeypatch.setattr(decode_attention, "_compiled", broken)
    with pytest.raises(NoKernel, match="differ"):
        kernel_for(torch.float32, 1, 16, 16)
    without_kernels("differ", caplog)
    kernel_for.cache_clear()


@pytest.mark.parametrize("shape", [(torch.float32, 64, 64, 64), (torch.float32, 1, 512, 512), (torch.float32, 1, 15, 16)])
def test_shapes_that_no_kernel_is_made_for_are_refused(shape: Any) -> None:
    with pytest.raises(NoKernel, match="no kernel"):
        kernel_for(*shape)


def test_numbers_that_no_kernel_is_made_for_are_refused() -> None:
    with pytest.raises(NoKernel, match="float64"):
        DecodeAttention(Layout((LayerLayout(1, 16, 16, torch.float64, CPU),)))


def test_compiled_code_is_kept_only_where_nobody_else_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, source = tmp_path / "cache", tmp_path / "kernel.py"
    source.write_text("1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    folder = cache_folder([source])
    assert folder is not None and folder.parent == cache / "textloom" / "kernels"
    assert folder.stat().st_mode & 0o777 == 0o700
    for open_one in (folder, folder.parent, folder.parent.parent, cache):
        before = open_one.stat().st_mode
        open_one.chmod(0o777)
        assert cache_folder([source]) is None
        open_one.chmod(before)
    assert cache_folder([source]) == folder
    source.write_text("2")
    assert cache_folder([source]) not in (None, folder)
    source.write_text("1")
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert cache_folder([source]) is None
