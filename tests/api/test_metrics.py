"""Counters that tell what happened."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modules.api import metrics
from modules.errors import Unavailable
from modules.library.hardware import Gpu, Machine
from tests.api.conftest import wait_until
from tests.fakes import EchoModel

HI = [{"role": "user", "content": "hello"}]


@pytest.fixture
def idle() -> None:
    """Each server counts from nothing."""


def read(server) -> dict[tuple, float]:
    reply = httpx.get(server.url + "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_replies_tokens_and_times_are_counted(server):
    for _ in range(3):
        server.post("/v1/chat/completions", {"messages": HI}).raise_for_status()
    server.post("/v1/chat/completions", {"messages": HI, "max_tokens": 2}).raise_for_status()
    told = read(server)
    assert told["textloom_replies_total", ("end", "stop")] == 3
    assert told["textloom_replies_total", ("end", "length")] == 1
    assert told["textloom_completion_tokens_total",] == 3 * len("hello") + 2
    assert told["textloom_cached_prompt_tokens_total",] == 4
    assert told["textloom_first_token_seconds_count",] == 4
    assert told["textloom_token_seconds_count",] == 4
    assert told["textloom_model_loaded", ("model", "echo")] == 1
    assert told["process_resident_memory_bytes",] > 10_000_000


def test_requests_are_counted_by_route_and_status_but_not_by_path(server):
    server.post("/v1/chat/completions", {"messages": []})
    for name in ("a", "b"):
        httpx.get(server.url + f"/v1/models/{name}")
        httpx.get(server.url + f"/v1/{name}")
    told = read(server)
    route = ("textloom_http_requests_total", ("method", "POST"), ("route", "/v1/chat/completions"), ("status", "400"))
    assert told[route] == 1
    routes = {dict(labels[1:])["route"] for labels in told if labels[0] == "textloom_http_requests_total"}
    assert routes == {"/v1/chat/completions", "/v1/models/{name:path}", "/v1/{path:path}"}


def test_what_was_cut_off_and_what_failed_is_told_apart(serve):
    model = EchoModel(lambda request: "abc" * 100, pace=0.01, fails_after=20, failure=Unavailable("The memory is full."))
    server = serve(model)
    with httpx.stream("POST", server.url + "/v1/chat/completions", json={"messages": HI, "stream": True}) as reply:
        next(reply.iter_lines())
    server.post("/v1/chat/completions", {"messages": HI})
    assert wait_until(lambda: ("textloom_replies_total", ("end", "cancelled")) in read(server))
    assert read(server)["textloom_replies_total", ("end", "error")] == 1


def test_without_a_model_there_are_still_metrics(serve):
    assert ("textloom_running_replies",) not in read(serve(empty=True))


def test_memory_of_the_machine_its_gpus_and_its_children_is_told(server, monkeypatch):
    gpus = (Gpu("A", 80 << 30, 30 << 30), Gpu("B", 24 << 30, 24 << 30))
    monkeypatch.setattr(metrics, "this_machine", lambda: Machine(64 << 30, 8 << 30, gpus))
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        memory_allocated=lambda gpu: (gpu + 1) * 100,
        memory_reserved=lambda gpu: (gpu + 1) * 200,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert wait_until(lambda: read(server)["textloom_child_memory_bytes",] > 1_000_000)
        told = read(server)
    finally:
        child.communicate(b"\n")
    assert told["textloom_memory_bytes", ("kind", "free")] == 8 << 30
    assert told["textloom_gpu_memory_bytes", ("gpu", "0"), ("kind", "free")] == 30 << 30
    assert told["textloom_gpu_memory_bytes", ("gpu", "1"), ("kind", "total")] == 24 << 30
    assert told["textloom_torch_memory_bytes", ("gpu", "1"), ("kind", "allocated")] == 200
    assert told["textloom_torch_memory_bytes", ("gpu", "0"), ("kind", "reserved")] == 200


@pytest.mark.parametrize("cuda", [None, SimpleNamespace(is_initialized=lambda: False)])
def test_without_a_gpu_in_use_torch_is_left_alone(server, monkeypatch, cuda):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda) if cuda else None)
    assert not [name for name in read(server) if name[0] == "textloom_torch_memory_bytes"]


def test_the_documents_list_every_metric(server):
    server.post("/v1/chat/completions", {"messages": HI}).raise_for_status()
    told = httpx.get(server.url + "/metrics").text
    families = {family.name for family in text_string_to_metric_families(told)}
    families = {name for name in families if name.startswith("textloom_") and not name.endswith("_created")}
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {name.removesuffix("_total") for name in re.findall(r"`(textloom_\w+)`", text)}
    assert listed == families
