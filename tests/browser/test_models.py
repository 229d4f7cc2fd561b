"""The Models tab clicked through with real models: a tiny Llama as a folder and as GGUF, a hub and an engine on loopback."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from modules.app import App
from modules.generation.types import LoadedModel
from modules.library.model_spec import ModelSpec
from modules.loaders.options import LoadOptions
from tests.browser.conftest import Site, say, until
from tests.fakes import EchoModel, loaded_in
from tests.in_process import make_app, serving
from tests.library.hub_server import Hub, running_hub
from tests.tiny import write_tiny_llama

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
SIZES = pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["wide", "phone"])


@dataclass(frozen=True)
class Place:
    """The page, a hub that it downloads from, and the address of an engine that answers "From far away."."""

    site: Site
    hub: Hub
    engine: str


@pytest.fixture(scope="module")
def _place(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, tiny_gguf: Path, browser: Browser
) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("models-site")
    app = App(make_app(root).root, loading=LoadOptions(cpu=True, dtype="float32"))
    shutil.copytree(tiny_llama_folder, app.models.folder / "tiny")
    shutil.copy(tiny_gguf, app.models.folder / "tiny.gguf")
    write_adapter(app, "counter", tiny_llama_folder)
    write_adapter(app, "foreign", write_tiny_llama(tmp_path_factory.mktemp("other") / "wide-llama", hidden=128))
    far = EchoModel(lambda request: "From far away.", name="far-model")
    far_app = make_app(tmp_path_factory.mktemp("far"), far)
    with pytest.MonkeyPatch.context() as patch, running_hub() as hub, serving(far_app) as engine, serving(app) as url:
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        yield Place(Site(app, far, url, browser), hub, engine)
    app.close()
    far_app.close()


@pytest.fixture
def place(_place: Place) -> Iterator[Place]:
    site = _place.site
    yield _place
    site.app.manager.unload(stop_running=True)
    site.app.last_load = None
    for file in ("config-user.yaml", "far.yaml", "dead.yaml"):
        (site.app.models.folder / file).unlink(missing_ok=True)
    site.end()


def write_adapter(app: App, name: str, base: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(str(app.loras.folder / name))


def open_models(place: Place, size: tuple[int, int] = (1280, 800)) -> Page:
    page = place.site.open(width=size[0], height=size[1])
    page.evaluate("TEXTLOOM.openTab('models')")
    expect(page.locator(".tl-card").first).to_be_visible()
    return page


def card(page: Page, name: str) -> Locator:
    return page.locator(f".tl-card[data-name='{name}']")


def choose_model(page: Page, name: str) -> None:
    card(page, name).click()
    expect(page.locator(".tl-chosen h2").first).to_have_text(name)


def load(page: Page) -> None:
    page.locator(".tl-chosen").get_by_role("button", name="Load", exact=True).click()


def status(page: Page) -> Locator:
    return page.locator(".tl-engine")


def field(page: Page, setting: str) -> Locator:
    return page.locator(f"#setting-{setting} input[type=number]")


def write(page: Page, setting: str, value: str) -> None:
    field(page, setting).fill(value)
    field(page, setting).blur()


def download(page: Page, name: str) -> None:
    page.get_by_label("Model on Hugging Face").fill(name)
    page.get_by_role("button", name="Download", exact=True).click()


def ended(page: Page) -> None:
    """The reply has come and is over; an adapter in use cannot be unloaded."""
    expect(page.locator(".tl-message[data-role=assistant]").last).to_have_attribute("data-state", "whole")


def in_page(page: Page) -> None:
    """Nothing of the tab is wider than the screen."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@SIZES
def test_a_model_is_chosen_described_loaded_unloaded_and_loaded_again(place: Place, size: tuple[int, int]):
    page = open_models(place, size)
    choose_model(page, "tiny.gguf")
    expect(card(page, "tiny.gguf")).to_contain_text("loads with llamacpp")
    expect(page.locator("#setting-gpu_layers")).to_be_visible()
    expect(page.locator("#setting-quant_type")).to_be_hidden()
    choose_model(page, "tiny")
    for words in ("float32", "4,096 tokens", "LlamaForCausalLM", "loads with transformers"):
        expect(card(page, "tiny")).to_contain_text(words)
    expect(page.locator("#setting-gpu_layers")).to_be_hidden()
    expect(page.locator("#setting-base_url")).to_be_hidden()
    expect(page.locator(".tl-verdict[data-verdict=fits]")).to_be_visible()
    in_page(page)
    load(page)
    expect(status(page)).to_contain_text("tiny is loaded, with a context of 4,096 tokens.")
    expect(card(page, "tiny").locator(".tl-badge")).to_have_text("loaded")
    first = place.site.app.manager.loaded
    status(page).get_by_role("button", name="Load it again").click()
    until(page, lambda: place.site.app.manager.loaded not in (None, first))
    expect(status(page)).to_have_attribute("data-state", "ready")
    status(page).get_by_role("button", name="Unload the model").click()
    expect(status(page)).to_contain_text("No model is loaded.")
    assert place.site.app.manager.loaded is None
    in_page(page)


def test_while_a_model_loads_its_progress_is_shown(place: Place, monkeypatch: pytest.MonkeyPatch):
    """The tiny one would be there before anybody has seen it: its loader waits."""
    from modules.loaders import choose

    go_on = threading.Event()
    load_now = choose.load

    def slowly(spec: ModelSpec, options: LoadOptions, report: Callable[[str], None]) -> LoadedModel:
        report("Reading shards: 1 of 2 (50 %)")
        go_on.wait(60)
        return load_now(spec, options, report)

    monkeypatch.setattr(choose, "load", slowly)
    page = open_models(place)
    choose_model(page, "tiny")
    load(page)
    expect(status(page)).to_contain_text("Reading shards: 1 of 2")
    expect(page.get_by_role("progressbar", name="Progress of the load")).to_have_attribute("value", "0.5")
    expect(card(page, "tiny").locator(".tl-badge")).to_have_text("loading")
    expect(status(page)).to_contain_text(" 2 s")
    go_on.set()
    expect(status(page)).to_contain_text("tiny is loaded")
    expect(page.get_by_role("progressbar", name="Progress of the load")).to_be_hidden()


@SIZES
def test_a_load_that_fails_leaves_its_reason_on_the_page(place: Place, size: tuple[int, int]):
    (place.site.app.models.folder / "dead.yaml").write_text("base_url: http://127.0.0.1:9/v1\n")
    page = open_models(place, size)
    choose_model(page, "dead")
    load(page)
    expect(status(page)).to_contain_text("127.0.0.1:9")
    expect(status(page)).to_have_attribute("data-state", "wrong")
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("127.0.0.1:9")
    in_page(page)


def test_a_click_on_the_chosen_model_keeps_what_is_written(place: Place):
    page = open_models(place)
    choose_model(page, "tiny")
    write(page, "max_parallel", "3")
    card(page, "tiny").click()
    page.wait_for_timeout(1000)
    expect(field(page, "max_parallel")).to_have_value("3")


def test_settings_are_kept_for_one_model_alone(place: Place):
    page = open_models(place)
    choose_model(page, "tiny")
    write(page, "max_parallel", "3")
    page.get_by_role("button", name="Save settings").click()
    expect(page.locator(".tl-toast")).to_contain_text("config-user.yaml")
    assert place.site.app.saved_options.for_model("tiny").max_parallel == 3
    assert place.site.app.saved_options.for_model("tiny.gguf").max_parallel == LoadOptions().max_parallel
    choose_model(page, "tiny.gguf")
    expect(field(page, "max_parallel")).to_have_value(str(LoadOptions().max_parallel))
    choose_model(page, "tiny")
    expect(field(page, "max_parallel")).to_have_value("3")
    load(page)
    expect(status(page)).to_contain_text("tiny is loaded")
    assert place.site.app.last_load is not None and place.site.app.last_load[1].max_parallel == 3


@SIZES
def test_a_model_is_downloaded_by_name_and_another_download_is_cancelled(place: Place, size: tuple[int, int]):
    folder = place.site.app.models.folder
    files = {file.name: file.read_bytes() for file in (folder / "tiny").iterdir()}
    name = f"someone/small-{size[0]}"
    place.hub.repositories[name] = {"main": files}
    place.hub.repositories["someone/large"] = {"main": {**files, "extra.json": bytes(40 << 20)}}
    page = open_models(place, size)
    download(page, name)
    expect(page.locator(".tl-job", has_text=name)).to_contain_text("Finished")
    local = name.replace("/", "_")
    choose_model(page, local)
    load(page)
    expect(status(page)).to_contain_text(f"{local} is loaded")

    place.hub.slow = 0.05
    download(page, "someone/large")
    job = page.locator(".tl-job", has_text="someone/large").first
    expect(job).to_contain_text("/s ·")
    expect(job.get_by_role("progressbar")).to_be_visible()
    in_page(page)
    job.get_by_role("button", name="Cancel the download of someone/large").click()
    expect(job).to_contain_text("Cancelled")
    place.hub.slow = 0
    assert not (folder / "someone_large").exists()
    download(page, "someone/nothing")
    expect(page.locator(".tl-job", has_text="someone/nothing")).to_contain_text("There is no model someone/nothing")
    place.site.app.manager.unload(stop_running=True)
    shutil.rmtree(folder / local)


@SIZES
def test_an_adapter_is_loaded_used_at_a_strength_and_unloaded_and_a_wrong_one_refused(place: Place, size: tuple[int, int]):
    page = open_models(place, size)
    expect(page.get_by_text("Load a model first: adapters are loaded beside it.")).to_be_visible()
    choose_model(page, "tiny")
    load(page)
    adapter, foreign = (page.locator(f".tl-adapter[data-name={name}]") for name in ("counter", "foreign"))
    foreign.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text(
        "q_proj has 64 inputs and 64 outputs here, and the adapter's 128"
    )
    expect(foreign).to_have_attribute("data-loaded", "false")
    adapter.get_by_role("button", name="Load", exact=True).click()
    expect(adapter).to_have_attribute("data-loaded", "true")
    slider = adapter.get_by_label("Strength of the adapter")
    slider.focus()
    for _ in range(10):
        slider.press("ArrowRight")
    expect(adapter.locator("output")).to_have_text("1.50")
    in_page(page)
    adapter.get_by_role("button", name="Chat with it").click()
    page.wait_for_url("**chat=*")
    expect(page.locator(".tl-composer textarea")).to_be_visible()
    say(page, "hello")
    ended(page)
    store = place.site.app.store
    settings = store.for_owner("local").chats.get(store.for_owner("local").chats.page()[0].id).settings
    assert (settings["adapter"], settings["adapter_strength"]) == ("counter", 1.5)
    page.evaluate("TEXTLOOM.openTab('models')")
    adapter.get_by_role("button", name="Unload", exact=True).click()
    expect(adapter).to_have_attribute("data-loaded", "false")
    assert loaded_in(place.site.app.manager).adapters == ()


@SIZES
def test_a_remote_engine_is_added_chosen_asked_and_removed(place: Place, size: tuple[int, int]):
    page = open_models(place, size)
    page.get_by_text("Add a remote engine").click()
    page.get_by_label("Name here").fill("far")
    page.get_by_label("Address").fill("not an address")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("http://")
    page.get_by_label("Address").fill(f"{place.engine}/v1")
    page.get_by_role("button", name="Add", exact=True).click()
    choose_model(page, "far")
    expect(page.locator("#setting-base_url")).to_be_visible()
    expect(page.locator("#setting-dtype")).to_be_hidden()
    in_page(page)
    load(page)
    expect(status(page)).to_contain_text("far is loaded")
    page.evaluate("TEXTLOOM.openTab('chat')")
    say(page, "Who are you?")
    ended(page)
    expect(page.locator(".tl-message[data-role=assistant] .tl-body").last).to_have_text("From far away.")
    page.evaluate("TEXTLOOM.openTab('models')")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove far").click()
    expect(card(page, "far")).to_have_count(0)
    assert not (place.site.app.models.folder / "far.yaml").exists()


def test_bits_are_one_choice_and_stand_on_the_card_of_the_loaded_model(place: Place, monkeypatch: pytest.MonkeyPatch):
    asked: list[LoadOptions] = []

    def load_here(spec: ModelSpec, options: LoadOptions, report: Callable[[str], None]) -> LoadedModel:
        asked.append(options)
        report("tiny answers one request at a time: it has an encoder and a decoder.")
        return EchoModel(name="tiny")

    monkeypatch.setattr("modules.loaders.choose.load", load_here)
    page = open_models(place)
    choose_model(page, "tiny")
    expect(page.locator("#setting-load_in_8bit, #setting-load_in_4bit")).to_have_count(0)
    page.locator("#setting-bits").get_by_role("combobox").click()
    page.get_by_role("option", name="8-bit").click()
    load(page)
    expect(card(page, "tiny")).to_contain_text("8 bits")
    expect(card(page, "tiny")).to_contain_text("tiny answers one request at a time: it has an encoder and a decoder.")
    expect(card(page, "tiny")).to_contain_text("of weights")
    assert [(options.load_in_8bit, options.load_in_4bit) for options in asked] == [(True, False)]


def test_the_estimate_on_a_chinese_page_is_chinese(place: Place):
    page = place.site.open(locale="zh-CN")
    page.evaluate("TEXTLOOM.openTab('models')")
    choose_model(page, "tiny.gguf")
    expect(page.locator(".tl-verdict")).to_contain_text("大约需要")
    expect(page.locator(".tl-verdict")).not_to_contain_text(re.compile("[A-Za-z]{4,}"))
