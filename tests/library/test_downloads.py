"""Downloads from a Hub-compatible server on loopback: whole or not at all, resumed, checked, and refused in sentences."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modules.errors import Conflict, NotAllowed, NotFound, Unavailable, UserError
from modules.library.download_jobs import DownloadJob, DownloadJobs
from modules.library.downloads import DownloadPlan, download, plan_download
from modules.library.fetching import DownloadProgress, Fetching
from modules.library.file_selection import Wanted
from modules.library.hub import RepositoryName, parse_name
from modules.library.manifest import check_folder, read_manifest
from modules.library.models import ModelLibrary
from tests.library.hub_server import Hub, running_hub

BIG = random.Random(1).randbytes(3_000_000)
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "README.md": b"# A model",
    "model.safetensors": BIG,
    "pytorch_model.bin": b"p" * 5000,
    "tokenizer.json": b"{}",
    "onnx/model.onnx": b"o" * 5000,
    ".gitattributes": b"*.bin lfs",
}
TAKEN = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        hub.repositories["org/name"] = {"main": dict(MODEL), "gptq-4bit": {**MODEL, "quantize_config.json": b"{}"}}
        yield hub


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def planned(models: Path, name: str = "org/name", *, clean: bool = False, **wanted: Any) -> DownloadPlan:
    choice = Wanted(**wanted)
    return plan_download(parse_name(name), choice, models=models, loras=models.with_name("loras"), clean=clean)


def fetch(models: Path, name: str = "org/name", **wanted: Any) -> Path:
    plan = planned(models, name, **wanted)
    list(download(plan))
    return plan.target


def contents(folder: Path) -> list[str]:
    return sorted(
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")
    )


# --- what arrives


def test_a_model_arrives_whole_under_its_name(hub: Hub, models: Path) -> None:
    folder = fetch(models)
    assert folder == models / "org_name" and contents(folder) == TAKEN
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert sorted(path.name for path in models.iterdir()) == ["org_name"]


def test_a_branch_is_in_the_name(hub: Hub, models: Path) -> None:
    assert fetch(models, "org/name:gptq-4bit").name == "org_name_gptq-4bit"
    assert contents(models / "org_name_gptq-4bit") == sorted([*TAKEN, "quantize_config.json"])


def test_an_adapter_goes_to_the_adapters(hub: Hub, models: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.bin": b"b" * 2000, "adapter_model.safetensors": b"s" * 2000}
    hub.repositories["org/lora"] = {"main": files}
    assert fetch(models, "org/lora") == models.with_name("loras") / "org_lora"
    assert contents(models.with_name("loras") / "org_lora") == ["adapter_config.json", "adapter_model.safetensors"]


def test_pickled_weights_come_where_there_is_nothing_better(hub: Hub, models: Path) -> None:
    hub.repositories["org/old"] = {"main": {"config.json": b"{}", "pytorch_model.bin": b"p" * 2000, "training_args.bin": b"t"}}
    assert contents(fetch(models, "org/old")) == ["config.json", "pytorch_model.bin"]


def test_progress_adds_up(hub: Hub, models: Path) -> None:
    hub.slow = 0.01
    events = list(download(planned(models)))
    total = sum(len(MODEL[path]) for path in TAKEN)
    assert len(events) > 2
    assert all(before.done <= after.done for before, after in pairwise(events))
    assert (events[-1].done, events[-1].total, events[-1].files_done, events[-1].files_total) == (total, total, 4, 4)
    assert events[-1].active == () and any(event.speed > 0 and event.active for event in events)


def test_a_second_download_asks_for_nothing(hub: Hub, models: Path) -> None:
    fetch(models)
    hub.sent.clear()
    plan = planned(models)
    assert plan.missing == ()
    list(download(plan))
    assert hub.sent == [] and contents(plan.target) == TAKEN


def test_only_what_changed_on_the_hub_is_fetched_again(hub: Hub, models: Path) -> None:
    fetch(models)
    hub.repositories["org/name"]["main"]["config.json"] = b'{"model_type": "other"}'
    hub.sent.clear()
    folder = fetch(models)
    assert [path for path, _ in hub.sent] == ["config.json"]
    assert (folder / "config.json").read_bytes() == b'{"model_type": "other"}'
    assert all(file.problem is None for file in check_folder(folder))


def test_clean_fetches_everything_again(hub: Hub, models: Path) -> None:
    folder = fetch(models)
    (folder / "model.safetensors").write_bytes(b"x" * len(BIG))
    hub.sent.clear()
    list(download(planned(models, clean=True), clean=True))
    assert len(hub.sent) == 4 and (folder / "model.safetensors").read_bytes() == BIG


def test_text_only_leaves_the_weights(hub: Hub, models: Path) -> None:
    assert contents(fetch(models, text_only=True)) == ["README.md", "config.json", "tokenizer.json"]


def test_one_file_can_be_asked_for(hub: Hub, models: Path) -> None:
    assert contents(fetch(models, specific_file="pytorch_model.bin")) == ["pytorch_model.bin"]
    with pytest.raises(NotFound, match=r"model\.safetensors"):
        planned(models, specific_file="nosuch.bin")


def test_files_can_be_left_out(hub: Hub, models: Path) -> None:
    assert contents(fetch(models, exclude_pattern=r"\.md$|tokenizer")) == ["config.json", "model.safetensors"]
    with pytest.raises(UserError, match="regular expression"):
        planned(models, exclude_pattern="(")


# --- GGUF


@pytest.fixture
def gguf(hub: Hub) -> None:
    names = ["m.Q2_K.gguf", "m.Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-m-f16.gguf"]
    hub.repositories["org/m-GGUF"] = {"main": {**{name: name.encode() * 100 for name in names}, "README.md": b"text"}}


@pytest.mark.usefixtures("gguf")
def test_one_quantisation_is_taken(models: Path) -> None:
    assert contents(fetch(models, "org/m-GGUF")) == ["README.md", "m.Q4_K_M.gguf", "mmproj-m-f16.gguf"]


@pytest.mark.usefixtures("gguf")
def test_the_quantisation_that_was_asked_for_is_taken_with_all_its_parts(models: Path) -> None:
    folder = fetch(models, "org/m-GGUF", quant="q8_0")
    assert [name for name in contents(folder) if "Q" in name] == ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]
    fetch(models, "org/m-GGUF", quant="Q2_K")
    assert "m.Q2_K.gguf" in contents(folder) and "m-Q8_0-00001-of-00002.gguf" in contents(folder)
    assert len([file for file in check_folder(folder) if file.problem is None]) == 5


@pytest.mark.usefixtures("gguf")
def test_a_quantisation_that_is_not_there_is_answered_with_those_that_are(models: Path) -> None:
    with pytest.raises(NotFound, match=r"Q2_K \(.*Q4_K_M \(.*Q8_0 \("):
        planned(models, "org/m-GGUF", quant="Q5_K_M")
    with pytest.raises(NotFound, match="no GGUF"):
        planned(models, quant="Q5_K_M")


# --- interruptions


def test_a_line_that_breaks_is_taken_up_where_it_broke(hub: Hub, models: Path) -> None:
    hub.break_after["model.safetensors"] = [1_000_000, 500_000, 0]
    folder = fetch(models)
    starts = [first for path, first in hub.sent if path == "model.safetensors"]
    assert len(starts) == 4 and starts[0] == 0 and starts == sorted(starts) and starts[-1] > 1_000_000
    assert (folder / "model.safetensors").read_bytes() == BIG


def test_a_download_that_gives_up_looks_like_no_model_and_is_resumed(hub: Hub, models: Path) -> None:
    hub.break_after["model.safetensors"] = [1_500_000, 0]
    with pytest.raises(Unavailable, match="cannot be reached"):
        list(download(planned(models), retries=1))
    assert ModelLibrary(models).all() == [] and not (models / "org_name").exists()
    kept = (models / "org_name.part" / "model.safetensors").stat().st_size
    assert 0 < kept <= 1_500_000
    hub.sent.clear()
    folder = fetch(models)
    assert hub.sent == [("model.safetensors", kept)]
    assert (folder / "model.safetensors").read_bytes() == BIG and not (models / "org_name.part").exists()


def test_closing_the_iterator_stops_at_once_and_keeps_what_came(hub: Hub, models: Path) -> None:
    hub.slow = 0.05
    events = download(planned(models))
    next(event for event in events if event.done > 200_000)
    begin = time.monotonic()
    events.close()
    assert time.monotonic() - begin < 1
    assert ModelLibrary(models).all() == []
    hub.slow = 0
    hub.sent.clear()
    fetch(models)
    assert dict(hub.sent)["model.safetensors"] > 0


def test_the_iterator_may_be_stepped_and_closed_by_other_threads(hub: Hub, models: Path) -> None:
    hub.slow = 0.05
    events = download(planned(models))
    for work in (lambda: next(events), lambda: next(events), events.close):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    hub.slow = 0
    assert contents(fetch(models)) == TAKEN


def test_parts_of_another_version_are_not_mixed_in(hub: Hub, models: Path) -> None:
    hub.break_after["model.safetensors"] = [1_500_000, 0]
    with pytest.raises(Unavailable):
        list(download(planned(models), retries=1))
    newer = random.Random(2).randbytes(2_500_000)
    hub.repositories["org/name"]["main"]["model.safetensors"] = newer
    assert (fetch(models) / "model.safetensors").read_bytes() == newer


def test_a_server_without_ranges_sends_from_the_beginning(hub: Hub, models: Path) -> None:
    hub.no_ranges = True
    hub.break_after["model.safetensors"] = [1_000_000]
    assert (fetch(models) / "model.safetensors").read_bytes() == BIG


def test_a_busy_server_is_asked_again(hub: Hub, models: Path) -> None:
    hub.busy = 2
    assert contents(fetch(models)) == TAKEN


def test_damage_on_the_way_is_noticed_and_not_kept(hub: Hub, models: Path) -> None:
    hub.corrupt = {"model.safetensors"}
    with pytest.raises(Unavailable, match=r"model\.safetensors arrived damaged"):
        fetch(models)
    assert ModelLibrary(models).all() == [] and not (models / "org_name.part" / "model.safetensors").exists()
    hub.corrupt = {"config.json"}
    shutil.rmtree(models / "org_name.part")
    with pytest.raises(Unavailable, match=r"config\.json arrived damaged"):
        fetch(models)
    hub.corrupt = set()
    assert contents(fetch(models)) == TAKEN


def test_the_same_model_is_not_fetched_twice_at_a_time(hub: Hub, models: Path) -> None:
    hub.slow = 0.05
    events = download(planned(models))
    next(events)
    with pytest.raises(Conflict, match="already"):
        next(download(planned(models)))
    events.close()


# --- refusals: one sentence each


def test_a_gated_model_says_what_to_do(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = {"org/name"}
    with pytest.raises(NotAllowed, match=r"gated: accept its terms on http.*HF_TOKEN"):
        fetch(models)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(NotAllowed, match="gated"):
        fetch(models)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert contents(fetch(models)) == TAKEN


def test_a_wrong_name_or_branch_is_told(hub: Hub, models: Path) -> None:
    with pytest.raises(NotFound, match=r"There is no model org/nosuch on 127\.0\.0\.1"):
        planned(models, "org/nosuch")
    with pytest.raises(NotFound, match="org/name has no branch nosuch"):
        planned(models, "org/name:nosuch")


def test_no_network_is_told(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(Unavailable, match=r"cannot be reached.*HF_ENDPOINT"):
            planned(models)


def test_a_login_page_instead_of_a_hub_is_told(hub: Hub, models: Path) -> None:
    hub.html = True
    with pytest.raises(Unavailable, match="does not answer like a Hugging Face Hub"):
        planned(models)


def test_a_full_disk_is_told_before(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=70 << 20))
    hub.repositories["org/huge"] = {"main": {"model.safetensors": b"x" * (8 << 20)}}
    with pytest.raises(Unavailable, match=r"org/huge needs 8\.0 MiB, and the disk of .* has 70\.0 MiB free"):
        fetch(models, "org/huge")
    assert list(models.iterdir()) == []


def test_a_disk_that_fills_up_is_told(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Fetching, "_connect", full)
    with pytest.raises(Unavailable, match="is full"):
        fetch(models)


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json", "C:evil.json"])
def test_a_listing_cannot_write_outside_the_folder(hub: Hub, models: Path, path: str) -> None:
    hub.repositories["org/evil"] = {"main": {path: b"{}", "config.json": b"{}"}}
    with pytest.raises(UserError, match="is not taken"):
        planned(models, "org/evil")


@pytest.mark.parametrize(
    ("text", "repository", "branch", "folder"),
    [
        ("TheBloke/Llama-2-7B-GPTQ", "TheBloke/Llama-2-7B-GPTQ", "main", "TheBloke_Llama-2-7B-GPTQ"),
        ("org/name:gptq-4bit-32g", "org/name", "gptq-4bit-32g", "org_name_gptq-4bit-32g"),
        ("gpt2", "gpt2", "main", "gpt2"),
        ("https://huggingface.co/org/name", "org/name", "main", "org_name"),
        ("https://hf-mirror.com/org/name/tree/v1.0", "org/name", "v1.0", "org_name_v1.0"),
        ("org/name:refs/pr/1", "org/name", "refs/pr/1", "org_name_refs_pr_1"),
    ],
)
def test_names_are_understood(text: str, repository: str, branch: str, folder: str) -> None:
    name = parse_name(text)
    assert (name, name.folder) == (RepositoryName(repository, branch), folder)


@pytest.mark.parametrize("text", ["", "a b", "a/b/c", "../x", "org/..", "org/name:../x", "file:///etc/passwd"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_name(text)


# --- checking


def test_check_says_which_file_is_wrong(hub: Hub, models: Path) -> None:
    folder = fetch(models)
    assert [file.problem for file in check_folder(folder)] == [None] * 4
    (folder / "model.safetensors").write_bytes(BIG[:-1] + b"?")
    (folder / "config.json").write_bytes(b"{}")
    (folder / "README.md").write_bytes(b"# B model")
    (folder / "tokenizer.json").unlink()
    assert {file.path: file.problem for file in check_folder(folder)} == {
        "model.safetensors": "has another SHA-256",
        "config.json": "has 2 bytes instead of 23",
        "README.md": "has another content",
        "tokenizer.json": "is missing",
    }
    assert (fetch(models) / "model.safetensors").read_bytes() == BIG
    assert [file.problem for file in check_folder(folder)] == [None] * 4
    (folder / ".download.json").write_text("[")
    assert read_manifest(folder) is None
    with pytest.raises(NotFound):
        list(check_folder(folder))


# --- jobs


def ended(jobs: DownloadJobs, job: DownloadJob) -> DownloadJob:
    deadline = time.monotonic() + 20
    while not (now := jobs.get(job.id)).ended:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return now


def test_a_job_goes_on_while_nobody_looks(hub: Hub, models: Path) -> None:
    jobs = DownloadJobs(models, models.with_name("loras"))
    job = ended(jobs, jobs.start("org/name"))
    assert (job.state, job.folder, job.error) == ("done", "org_name", "")
    assert isinstance(job.progress, DownloadProgress) and job.progress.done == job.progress.total
    assert jobs.all() == [job] and contents(models / "org_name") == TAKEN


def test_a_job_is_cancelled(hub: Hub, models: Path) -> None:
    hub.slow = 0.1
    jobs = DownloadJobs(models, models.with_name("loras"))
    job = jobs.start("org/name")
    assert jobs.start("org/name").id == job.id
    while jobs.get(job.id).progress is None:
        time.sleep(0.02)
    jobs.cancel(job.id)
    assert ended(jobs, job).state == "cancelled" and not (models / "org_name").exists()
    jobs.close()


def test_a_job_that_fails_says_why(hub: Hub, models: Path) -> None:
    jobs = DownloadJobs(models, models.with_name("loras"))
    job = ended(jobs, jobs.start("org/nosuch"))
    assert job.state == "failed" and "There is no model org/nosuch" in job.error
    with pytest.raises(UserError):
        jobs.start("not a name")
    with pytest.raises(NotFound):
        jobs.cancel(99)


def test_the_manifest_names_the_commit(hub: Hub, models: Path) -> None:
    manifest = json.loads((fetch(models) / ".download.json").read_text())
    assert manifest["repository"] == "org/name" and manifest["commit"] == hub.commit("org/name", "main")
    assert os.stat(models / "org_name" / ".download.json").st_mode & 0o777 == 0o644
