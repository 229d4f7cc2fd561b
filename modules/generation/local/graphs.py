"""Decode steps on CUDA as captured graphs: one launch for a step of up to so many rows, so that Python does not limit them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from modules.generation.local.kv_cache import STEP, Layout, Piece, Store
from modules.generation.local.llama import Decoder

log = logging.getLogger(__name__)
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 224, 256)
"""Graphs are captured for these numbers of rows; a step takes the next larger one."""
SHAPES = ((8, 512, 4), (16, 256, 4), (4, 1024, 8), (2, 2048, 8), (1, 4096, 8), (16, 512, 8))
"""What is tried for the product of a single row: (outputs of a program, inputs at a time, warps)."""


class Table:
    """Where each row's keys and values are, in device memory, so that a graph reads it anew each time.

    keys, values [layers, rows] addresses; capacities, places [rows]: the store's length, and where the new token goes.
    """

    def __init__(self, layers: int, rows: int, device: torch.device) -> None:
        self._whole = torch.zeros(2 * layers + 3, rows, dtype=torch.int64, device=device)
        self._host = torch.zeros(2 * layers + 3, rows, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._layers = layers
        self.keys = self._whole[:layers]
        self.values = self._whole[layers : 2 * layers]
        self.capacities, self.places, self.tokens = self._whole[2 * layers :]
        self._seen: list[int] = []

    def fill(self, pieces: Sequence[Piece], tokens: Sequence[int], spare: Store) -> None:
        """Note `pieces` and their tokens; rows beyond them write into `spare`."""
        rows = self._whole.shape[1]
        stores = [piece.store for piece in pieces] + [spare] * (rows - len(pieces))
        ends = self._host[2 * self._layers :]
        ends[1] = torch.tensor([piece.start for piece in pieces] + [0] * (rows - len(pieces)))
        ends[2] = torch.tensor([*tokens] + [0] * (rows - len(pieces)))
        seen = [store.place for store in stores]
        if seen != self._seen:
            self._host[: 2 * self._layers] = torch.tensor(
                [[store.keys[layer].data_ptr() for store in stores] for layer in range(self._layers)]
                + [[store.values[layer].data_ptr() for store in stores] for layer in range(self._layers)]
            )
            ends[0] = torch.tensor([store.capacity for store in stores])
            self._seen = seen
            self._whole.copy_(self._host, non_blocking=True)
        else:
            self._whole[2 * self._layers :].copy_(ends, non_blocking=True)


class Step:
    """One decode step of `rows` rows: eager the first time, a graph afterwards."""

    def __init__(self, decoder: Decoder, layout: Layout, rows: int, products: Products) -> None:
        self._decoder = decoder
        self._products = products
        self._device = layout.layers[0].device
        self.table = Table(len(layout.layers), rows, self._device)
        self.scores: Tensor | None = None
        self._graph: Any = None

    def run(self) -> Tensor:
        """Scores [rows, vocabulary] for what is in the table. They are overwritten by the next run."""
        if self._device.type != "cuda":
            return self.compute()
        if self._graph is None:
            self._capture()
        assert self._graph is not None and self.scores is not None
        self._graph.replay()
        return self.scores

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.compute()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.scores = self.compute()

    def compute(self) -> Tensor:
        from modules.generation.local import kernels

        decoder, table = self._decoder, self.table
        x = decoder.embed(table.tokens)
        cos, sin = decoder.rotary(x[None], position_ids=table.places[None])
        cos, sin = cos[0].contiguous(), sin[0].contiguous()
        change: Tensor | None = None
        product = self._products
        processors = product.processors
        for layer in decoder.layers:
            read = kernels.add_and_norm(x, change, layer.before_attention.weight, layer.before_attention.least)
            mixed = product(layer.qkv, read)
            if layer.query_norm is not None and layer.key_norm is not None:
                self._norm_heads(layer, mixed)
            queries = kernels.turn_and_place(mixed, cos, sin, table, layer.index, layer.heads, layer.key_heads, layer.dim)
            seen = kernels.look(queries, table, layer.index, layer.key_heads, layer.scaling, layer.window, processors)
            read = kernels.add_and_norm(x, product(layer.out, seen), layer.before_mlp.weight, layer.before_mlp.least)
            change = product(layer.down, kernels.silu_and_multiply(product(layer.gate_up, read)))
        return product(decoder.head, kernels.add_and_norm(x, change, decoder.norm.weight, decoder.norm.least))

    def _norm_heads(self, layer: Any, mixed: Tensor) -> None:
        rows = mixed.shape[0]
        queries, keys = mixed.view(rows, -1, layer.dim)[:, : layer.heads + layer.key_heads].split(
            (layer.heads, layer.key_heads), 1
        )
        queries.copy_(layer.query_norm(queries))
        keys.copy_(layer.key_norm(keys))


class Products:
    """x · weightᵀ by whatever is fastest here for a single row, measured once for each size; several rows are the library's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._best: dict[tuple[int, int], tuple[int, int, int] | None] = {}
        self.processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4

    def __call__(self, projection: Any, x: Tensor) -> Tensor:
        weight = projection.weight
        if x.shape[0] != 1 or weight is None or projection.bias is not None or self._device.type != "cuda":
            return projection(x)
        shape = (weight.shape[0], weight.shape[1])
        if shape not in self._best:
            self._best[shape] = self._measured(projection, x)
        best = self._best[shape]
        return projection(x) if best is None else _product(x, weight, best)

    def _measured(self, projection: Any, x: Tensor) -> tuple[int, int, int] | None:
        truth = projection(x).float()
        times: dict[tuple[int, int, int] | None, float] = {None: _seconds(lambda: projection(x))}
        for shape in SHAPES:
            made = _product(x, projection.weight, shape).float()
            if (made - truth).norm() < 0.02 * truth.norm() + 1e-6:
                times[shape] = _seconds(lambda shape=shape: _product(x, projection.weight, shape))
        best = min(times, key=lambda shape: times[shape])
        log.info("product %s: library %.1f µs, best %.1f µs by %s", tuple(projection.weight.shape), *_figures(times, best))
        return best


def _figures(times: dict[Any, float], best: Any) -> tuple[float, float, Any]:
    return times[None] * 1e6, times[best] * 1e6, best or "the library"


def _product(x: Tensor, weight: Tensor, shape: tuple[int, int, int]) -> Tensor:
    from modules.generation.local import kernels

    return kernels.product(x, weight, *shape)


def _seconds(work: Callable[[], object]) -> float:
    """Median of device times, with the cache cleared in between as in a real step."""
    sweep = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    work()
    times = []
    for _ in range(7):
        sweep.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[3]


class Graphs:
    """Steps of all sizes. `scores` answers decode steps; others are for the caller to compute."""

    def __init__(self, decoder: Decoder, layout: Layout) -> None:
        self._decoder = decoder
        self._layout = layout
        self._steps: dict[int, Step] = {}
        self._products = Products(layout.layers[0].device)
        self._spare = Store(layout, STEP)

    def scores(self, pieces: Sequence[Piece], tokens: Sequence[int]) -> Tensor:
        """Scores [len(pieces), vocabulary] of one new token for each piece."""
        rows = next((size for size in SIZES if size >= len(pieces)), len(pieces))
        step = self._steps.get(rows)
        if step is None:
            step = self._steps[rows] = Step(self._decoder, self._layout, rows, self._products)
        step.table.fill(pieces, tokens, self._spare)
        return step.run()[: len(pieces)]


def can_capture(decoder: Decoder, layout: Layout) -> bool:
    """Whether the device, the layers and the number format allow it."""
    from importlib.util import find_spec

    first = layout.layers[0]
    return (
        first.device.type == "cuda"
        and len({layer.device for layer in layout.layers}) == 1
        and first.dtype in (torch.bfloat16, torch.float16)
        and first.key_dim == first.value_dim
        and first.key_dim & (first.key_dim - 1) == 0
        and find_spec("triton") is not None
    )
