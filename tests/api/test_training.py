"""A training run by the API: started, watched, refused, deleted, and its adapter used."""

from __future__ import annotations

import json
import shutil

import httpx
import pytest

from tests.api.conftest import wait_until
from tests.conftest import ROOT
from tests.training.conftest import SETTINGS, counting_rows


@pytest.mark.slow
def test_a_run_from_its_start_to_the_use_of_its_adapter(serve, tiny_llama_folder):
    server = serve()
    root = server.app.root
    (server.app.models.folder / "tiny-llama").symlink_to(tiny_llama_folder)
    shutil.copytree(ROOT / "training" / "formats", root / "training" / "formats")
    (root / "training" / "datasets").mkdir()
    (root / "training" / "datasets" / "counting.json").write_text(json.dumps(counting_rows(20)))
    jobs = f"{server.url}/v1/internal/training/jobs"
    wrong = server.post("/v1/internal/training/jobs", {"config": {**SETTINGS, "rank": 0}})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "config.rank")
    started = server.post("/v1/internal/training/jobs", {"config": {**SETTINGS, "name": "counter", "max_steps": 3}})
    assert started.status_code == 200, started.text
    job = started.json()["id"]
    assert wait_until(lambda: httpx.get(f"{jobs}/{job}").json()["state"] in ("done", "failed"), 150)
    ended = httpx.get(f"{jobs}/{job}").json()
    assert (ended["state"], ended["step"], ended["name"]) == ("done", 3, "counter"), ended
    told = httpx.get(f"{jobs}/{job}/events").json()
    assert [event["step"] for event in told["events"] if event["event"] == "stepped"] == [1, 2, 3]
    assert httpx.get(f"{jobs}/{job}/events", params={"start": told["next"]}).json()["events"] == []
    assert [entry["id"] for entry in httpx.get(jobs).json()["jobs"]] == [job]
    server.post("/v1/internal/model/load", {"model": "tiny-llama"}).raise_for_status()
    server.post("/v1/internal/adapters/load", {"name": "counter"}).raise_for_status()
    reply = server.post("/v1/completions", {"prompt": "x", "model": "counter", "max_tokens": 2})
    assert reply.json()["model"] == "counter"
    assert httpx.delete(f"{jobs}/{job}").json() == {"deleted": job}
    assert httpx.get(f"{jobs}/{job}").status_code == 404
