"""GET /metrics: what the server does, in the form that Prometheus collects."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, FastAPI, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.api.auth import key_of_api
from modules.api.errors import REFUSALS, is_of_api
from modules.generation.model_manager import ModelManager
from modules.generation.stream import EventStream
from modules.generation.types import Finished
from modules.library.hardware import this_machine

if TYPE_CHECKING:
    from modules.app import App

FIRST_TOKEN_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1)


class Metrics:
    """The counters of one server. Replies of the page count as well as those of the API."""

    def __init__(self, manager: ModelManager) -> None:
        self.registry = CollectorRegistry()
        make = {"registry": self.registry, "namespace": "textloom"}
        self._replies = Counter("replies", "Replies, by how they ended.", ["end"], **make)
        self._prompt = Counter("prompt_tokens", "Tokens of prompts.", **make)
        self._cached = Counter("cached_prompt_tokens", "Tokens of prompts that were not computed again.", **make)
        self._written = Counter("completion_tokens", "Tokens of replies that came to their end.", **make)
        self._queued = Histogram("queue_seconds", "Waiting for a slot.", buckets=FIRST_TOKEN_BUCKETS, **make)
        self._first = Histogram(
            "first_token_seconds", "From the request to the first token.", buckets=FIRST_TOKEN_BUCKETS, **make
        )
        self._token = Histogram("token_seconds", "Mean time of each further token.", buckets=TOKEN_BUCKETS, **make)
        self._http = Counter(
            "http_requests", "Requests of the API, by route and status.", ["method", "route", "status"], **make
        )
        self.registry.register(_ModelGauges(manager))
        self.registry.register(_MemoryGauges())
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        manager.on_finished.append(self._reply_is_over)

    def _reply_is_over(self, events: EventStream) -> None:
        match events.last:
            case Finished(reason=reason, usage=usage, timings=timings):
                self._replies.labels("cancelled" if reason == "abort" else reason).inc()
                self._prompt.inc(usage.prompt_tokens)
                self._cached.inc(usage.cached_tokens)
                self._written.inc(usage.completion_tokens)
                self._queued.observe(timings.queued)
                self._first.observe(timings.first_token)
                if speed := timings.tokens_per_second(usage.completion_tokens):
                    self._token.observe(1 / speed)
            case _:
                self._replies.labels("error" if events.error else "cancelled").inc()

    def request_is_over(self, method: str, route: str, status: int) -> None:
        self._http.labels(method, route, str(status)).inc()


class _ModelGauges(Collector):
    """What the loaded model is busy with at the moment of asking."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def collect(self) -> Iterator[GaugeMetricFamily]:
        model = self._manager.loaded
        loaded = GaugeMetricFamily("textloom_model_loaded", "1 for the model that is loaded.", labels=["model"])
        if model is not None:
            loaded.add_metric([model.name], 1)
        yield loaded
        if model is None:
            return
        busy = model.status()
        yield GaugeMetricFamily("textloom_running_replies", "Replies that are being made.", busy.running)
        yield GaugeMetricFamily("textloom_waiting_replies", "Replies that wait for a slot.", busy.waiting)
        yield GaugeMetricFamily("textloom_cache_bytes", "Memory of the key-value cache.", busy.cache_bytes)
        yield GaugeMetricFamily("textloom_cached_tokens", "Tokens in the key-value cache.", busy.cached_tokens)


class _MemoryGauges(Collector):
    """Memory at the moment of asking: of the machine, of its GPUs, and of the processes that the server started."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        machine = this_machine()
        memory = GaugeMetricFamily("textloom_memory_bytes", "Memory of the machine, or the container's share.", labels=["kind"])
        memory.add_metric(["total"], machine.memory_total)
        memory.add_metric(["free"], machine.memory_free)
        yield memory
        yield GaugeMetricFamily(
            "textloom_child_memory_bytes", "Memory of the engines and training runs in processes of their own.", _of_children()
        )
        gpus = GaugeMetricFamily("textloom_gpu_memory_bytes", "Memory of each GPU.", labels=["gpu", "kind"])
        for number, gpu in enumerate(machine.gpus):
            gpus.add_metric([str(number), "total"], gpu.total)
            gpus.add_metric([str(number), "free"], gpu.free)
        yield gpus
        own = GaugeMetricFamily(
            "textloom_torch_memory_bytes", "What torch holds of each GPU in this process.", labels=["gpu", "kind"]
        )
        for number, allocated, reserved in _of_torch():
            own.add_metric([str(number), "allocated"], allocated)
            own.add_metric([str(number), "reserved"], reserved)
        yield own


def _of_children() -> int:
    import psutil

    total = 0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += child.memory_info().rss
    return total


def _of_torch() -> Iterator[tuple[int, int, int]]:
    """(GPU, bytes allocated, bytes reserved); nothing where no model has brought torch into the process: it is not imported here."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    for number in range(torch.cuda.device_count()):
        yield number, torch.cuda.memory_allocated(number), torch.cuda.memory_reserved(number)


class CountRequests:
    """ASGI middleware that counts the requests of the API by their route, never by their whole path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_of_api(scope):
            await self._app(scope, receive, send)
            return
        status = 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.request_is_over(scope["method"], route, status)


def install(web: FastAPI, app: App) -> None:
    """Count what `app` does, and show it at /metrics to whoever has a key of the API."""
    metrics = Metrics(app.manager)
    web.add_middleware(CountRequests, metrics=metrics)
    web.include_router(_router(metrics), dependencies=[Depends(key_of_api(app.access))])


def _router(metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["server"], responses=REFUSALS)

    @routes.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    )
    def read_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes
