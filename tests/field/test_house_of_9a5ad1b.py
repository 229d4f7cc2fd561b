"""A folder of Textloom as commit 9a5ad1b left it opens and works: chats, notebook, presets, characters, settings, runs and adapters.

inputs/house_of_9a5ad1b.tar.xz was made by that commit itself: chats of its page, with a reply made twice, one interrupted and one
that was being written when the server was killed; a run that is done, and one that was killed in step 7 after a checkpoint of step 4.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modules.generation.sampling import SamplingParams
from modules.loaders.options import LoadOptions
from modules.settings.command_line import parse, read_settings_file
from modules.settings.page import PageSettings
from modules.settings.server import ServerOptions
from modules.training import events
from modules.training.jobs import TrainingJobs
from tests.api.page.test_chats import Page
from tests.fakes import EchoModel
from tests.in_process import make_app
from tests.training.test_jobs import when_ended

ROOT = Path(__file__).resolve().parents[2]
PACKED = Path(__file__).parent / "inputs" / "house_of_9a5ad1b.tar.xz"
WAS_IN = "/textloom"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """The old folder, at another place than where it was made."""
    with tarfile.open(PACKED) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def page(house: Path) -> Iterator[Page]:
    app = make_app(house, EchoModel(name="tiny-llama"))
    yield Page(app)
    app.close()


def titles(page: Page) -> dict[str, int]:
    return {chat["title"]: chat["id"] for chat in page.ok("GET", "")}


def test_chats_are_all_there_and_go_on(page: Page):
    chats = titles(page)
    assert len(chats) == 4 and "Stories" in chats
    lighthouse = page.view(next(id_ for title, id_ in chats.items() if "lighthouse" in title))
    roles = [message["role"] for message in lighthouse["messages"]]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert len(lighthouse["messages"][1]["versions"]) == 2
    page.say("Go on", lighthouse["id"], lighthouse["messages"][-1]["id"])
    assert [message["role"] for message in page.finished(lighthouse["id"])["messages"]] == [*roles, "user", "assistant"]


def test_replies_that_were_interrupted_say_so_and_can_be_continued(page: Page):
    chats = titles(page)
    half = page.view(next(id_ for title, id_ in chats.items() if "Half" in title))["messages"][-1]
    killed = page.view(chats["Stories"])["messages"][-1]
    assert half["state"] == killed["state"] != page.view(chats["Stories"])["messages"][0]["state"]
    page.ok("POST", f"/messages/{half['id']}/continue")


def test_search_finds_their_words_in_both_scripts(page: Page):
    for words in ("lighthouse", "灯塔"):
        assert len(page.ok("GET", f"?search={words}")) == 1


def test_the_notebook_characters_and_presets_are_as_they_were(page: Page, house: Path):
    assert page.ok("GET", "/writing/notebook")["text"] == "Once upon a time"
    assert {"Mira", "老周"} <= {character["id"] for character in page.ok("GET", "/characters")["characters"]}
    preset = page.app.presets.read("My own")
    assert (preset.temperature, preset.min_p) == (0.33, 0.1)
    page.ok("POST", "/preset", {"name": "My own"})


def test_its_settings_file_is_read(house: Path):
    values = read_settings_file(house / "settings.yaml", required=True)
    classes = (ServerOptions, LoadOptions, SamplingParams, PageSettings)
    parsed: Any = parse([], classes, environment={}, defaults=values).settings
    assert (parsed[ServerOptions].listen_port, parsed[LoadOptions].ctx_size) == (7861, 2048)
    assert (parsed[SamplingParams].min_p, parsed[SamplingParams].temperature) == (0.07, 0.65)
    assert parsed[PageSettings].theme == "dark"


@pytest.fixture
def jobs(house: Path, tiny_llama_folder: Path) -> Iterator[TrainingJobs]:
    (house / "models").mkdir()
    (house / "models" / "tiny-llama").symlink_to(tiny_llama_folder)
    (house / "prompts").mkdir()
    (house / "prompts" / "templates").symlink_to(ROOT / "prompts" / "templates")
    (house / "training" / "formats").symlink_to(ROOT / "training" / "formats")
    for plan in house.glob("training/runs/*/plan.json"):
        plan.write_text(plan.read_text().replace(WAS_IN, str(house)))
    jobs = TrainingJobs(house)
    yield jobs
    jobs.close()
    for job in jobs.list():
        jobs.stop_now(job.id)


def told(jobs: TrainingJobs, id_: str, kind: type) -> list[Any]:
    return [event for event in jobs.events(id_) if isinstance(event, kind)]


def test_runs_are_listed_with_how_they_ended(jobs: TrainingJobs):
    states = {job.id: job.state for job in jobs.list()}
    assert states["done"] == "done" and states["half"] not in ("done", "running", "starting", "queued")
    assert [event.step for event in told(jobs, "done", events.Stepped)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.training
def test_a_run_that_was_killed_goes_on_from_its_checkpoint(jobs: TrainingJobs, house: Path):
    before = {event.step: event.loss for event in told(jobs, "half", events.Stepped)}
    jobs.resume("half")
    assert when_ended(jobs, "half").state == "done"
    after = {event.step: event.loss for event in told(jobs, "half", events.Stepped)}
    assert sorted(after) == list(range(1, 9))
    assert [after[step] for step in (5, 6)] == pytest.approx([before[step] for step in (5, 6)], abs=1e-4)
    assert json.loads((house / "loras" / "half" / "adapter_config.json").read_text())["r"] == 4


def test_its_adapter_loads_and_changes_the_model(house: Path, tiny_llama_folder: Path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(5, 50)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    with torch.no_grad():
        plain = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, str(house / "loras" / "done")).eval()(tokens).logits
    assert (plain - adapted).abs().max() > 0.01
