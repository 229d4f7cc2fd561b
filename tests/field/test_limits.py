"""What a stranger sends cannot take more than its share: templates, YAML, zip files, bodies, connections."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from modules.api import connections, conversation, large_bodies
from modules.errors import ContextTooLong, UserError
from modules.generation.context_overflow import fit_messages
from modules.generation.sampling import SamplingParams
from modules.generation.sandbox import BoundedEnvironment
from modules.generation.template import check_template, render_chat
from modules.generation.types import Message, Messages
from modules.library.character import Character
from modules.library.character_files import read_character
from modules.library.characters import CharacterLibrary
from modules.library.presets import PresetLibrary, read_preset
from modules.services.backup import Backup
from modules.settings.yaml_text import parse_yaml
from tests.fakes import CHATML, EchoModel
from tests.in_process import make_app, serving

ROOT = Path(__file__).resolve().parent.parent.parent
INPUTS = Path(__file__).parent / "inputs"
LONG = {
    "DEEP": "(" * 5000 + "1" + ")" * 5000,
    "DEEPFOR": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "LONGNUMBER": "9" * 10_000,
    "LONGSOURCE": "{{ a }}" * 100_000,
}
HOSTILE: dict[str, str] = json.loads((INPUTS / "hostile_templates.json").read_text(encoding="utf-8"))


def written_out(source: str) -> str:
    for name, text in LONG.items():
        source = source.replace(name, text) if source in (name, f"{{{{ {name} }}}}") else source
    return source


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """What rendering each hostile template came to, in one process that may have a gigabyte, and seconds for each."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.field.templates_at_work"],
        input=json.dumps([written_out(source) for source in HOSTILE.values()]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    return dict(zip(HOSTILE, lines + [["died", told.stderr[-300:]]] * (len(HOSTILE) - len(lines)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_with_a_sentence(outcomes, name):
    outcome, said = outcomes[name]
    assert outcome == "refused", said
    assert said.startswith("The chat template ")
    assert len(said) < 700


def test_long_conversations_are_no_attack():
    turns = [Message("user", "word " * 20)] * 100_000
    assert render_chat(CHATML, turns).count("<|im_start|>") == 100_001


def test_a_long_text_is_no_attack():
    text = "你好 hello " * 1_000_000
    thinking = "{% for m in messages %}{{ '<|u|>' + m.content.split('</think>')[-1].strip() + '<|e|>' }}{% endfor %}"
    assert len(render_chat(thinking, [Message("user", text)])) > len(text)


@pytest.mark.parametrize(
    "file",
    sorted(path.name for path in (ROOT / "prompts" / "templates").glob("*.jinja")),
)
def test_the_shipped_templates_render_a_long_chat(file):
    source = (ROOT / "prompts" / "templates" / file).read_text(encoding="utf-8")
    turns = [Message("user" if at % 2 == 0 else "assistant", f"turn {at}") for at in range(2001)]
    assert "turn 2000" in render_chat(source, turns)


def test_what_jinja_can_do_it_still_can():
    source = (
        "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages | reverse %}{% set ns.n = ns.n + m.content | length %}"
        "{% set ns.seen = ns.seen + [m.role] %}{% endfor %}{{ ns.n }} {{ ns.seen | join(', ') }} {{ '%s-%03d' | format('a', 7) }} "
        "{{ '{}:{x}'.format(1, x=2) }} {{ '{a}'.format_map({'a': 5}) }} {{ [3, 1, 2] | sort | tojson }} {{ [1, 2, 3] | sum }} "
        "{{ messages | map(attribute='role') | join('|') }} {{ 'ab' * 2 ~ 1 ~ none }} {{ 'a,b'.split(',')[1] }} "
        "{{ messages[1:] | length }} {{ {'a': [1, {'b': 2}]} | tojson(indent=1) }} {{ 2 ** 10 }} {{ 7 % 4 }} "
        "{{ 'x' | center(3) }}{{ ('a' ~ '\\n' ~ 'b') | indent(2) }} {{ messages[0].role == messages[-1].role }} "
        "{{ [1, 2] == [1, 2] and 1 < 2 < 3 }} {{ 'é' | tojson }}"
    )
    text = render_chat(source, [Message("user", "abc"), Message("assistant", "de")])
    assert text == (
        '5 assistant, user a-007 1:2 5 [1, 2, 3] 6 user|assistant abab1None b 1 {\n "a": [\n  1,\n  {\n   "b": 2\n  }\n ]\n} '
        '1024 3  x a\n  b False True "é"'
    )


def test_a_template_that_python_cannot_compile_is_told():
    with pytest.raises(UserError, match=r"^The chat template cannot be read: "):
        check_template(written_out("DEEPFOR"))


# --- YAML and zip files


MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: [" + "1," * 100_000 + "1]",
        MERGES,
        "created: 2023-99-99",
        f"seed: {'9' * 5000}",
        "name: &a [*a, *b]",
        "? [1]\n: 2",
        "!!python/object/apply:os.system ['true']",
        "a: \x00",
    ],
    ids=["deep", "many parts", "merges", "a bad date", "a long number", "no anchor", "a list as key", "a Python object", "NUL"],
)
def test_yaml_that_is_none_is_told_as_such(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)
    with pytest.raises(UserError, match=r"too large for a character|not valid YAML"):
        read_character(text.encode(), "x.yaml")
    with pytest.raises(UserError, match=r"too large for a preset|not valid YAML"):
        read_preset(text.encode(), "x.yaml")


def test_yaml_is_read_by_the_c_parser():
    from modules.settings import yaml_text

    assert issubclass(yaml_text._Loader, yaml.CSafeLoader)
    assert parse_yaml("a: &x {k: 1}\nb: {<<: *x, l: [1, 2.5, true, null, 2023-01-02]}")["b"]["k"] == 1


def test_a_character_may_have_a_megabyte_and_a_preset_64_kilobytes():
    assert read_character(("name: A\ncontext: " + "x" * 150_000).encode(), "a.yaml").name == "A"
    with pytest.raises(UserError, match="1 MB at most"):
        read_character(b"name: A\ncontext: " + b"x" * 1024**2, "a.yaml")
    with pytest.raises(UserError, match="64 kB at most"):
        read_preset(b"temperature: 0.5 # " + b"x" * 65536, "a.yaml")


def test_what_could_not_be_read_again_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="64 kB"):
        PresetLibrary(tmp_path).save("long", SamplingParams(grammar="x" * 65_536))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="1 MB"):
        CharacterLibrary(tmp_path).save("", Character("A", more_greetings=tuple(["x" * 200_000] * 6)))
    assert list(tmp_path.iterdir()) == []


def zipped(members: dict[str, bytes]) -> bytearray:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return bytearray(packed.getvalue())


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Any]:
    app = make_app(tmp_path)
    yield lambda data: Backup(app, "local").read(io.BytesIO(bytes(data)))
    app.close()


def test_the_members_of_a_zip_are_counted_before_their_list_is_read(taken, monkeypatch):
    many = zipped({f"prompts/{number}.txt": b"" for number in range(20_001)})
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(UserError, match="20000 files"):
        taken(many)
    more_than_16_bits = bytearray(many)
    more_than_16_bits[-22:-22] = b"PK\6\7" + bytes(16)
    with pytest.raises(UserError, match="20000 files"):
        taken(more_than_16_bits)


def test_a_member_that_says_less_than_it_holds_is_not_unpacked(taken):
    """Two megabytes that unpack to two gigabytes, and say that they are ten bytes."""
    packed = zipped({"prompts/bomb.txt": b"x" * 60_000_000, "prompts/good.txt": b"hello"})
    at = packed.index(b"PK\1\2")
    packed[at + 24 : at + 28] = struct.pack("<L", 10)
    tracemalloc.start()
    try:
        done = taken(packed)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done["prompts"] == 1
    assert len(done["problems"]) == 1
    assert most < 30_000_000


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("presets/a.yaml", b"seed: 2023-99-99"),
        ("presets/a.yaml", b"x" * 70_000),
        ("presets/a\x01.yaml", b"temperature: 0.5"),
        ("presets/" + "n" * 300 + ".yaml", b"temperature: 0.5"),
        ("characters/a.yaml", b"name: A\ncontext: " + b"x" * 1024**2),
        ("prompts/a.txt", b"\xff\xfe"),
        ("chats/a.json", b'{"messages": [{"role": "user", "content": "a", "created": "2023-99-99"}], "created": {}}'),
        ("chats/a.json", b"[" * 100_000),
        ("settings.json", b'{"pages": {"nowhere": {}}}'),
        ("settings.json", b'{"sampling": [1], "page": 3, "name": {"a": 1}, "pages": []}'),
    ],
)
def test_a_member_that_cannot_be_read_is_named_and_the_others_come_in(taken, name, data):
    done = taken(zipped({name: data, "prompts/good.txt": b"hello"}))
    assert done["prompts"] == 1
    if not name.startswith("chats/a.json") or data.startswith(b"["):
        assert [problem.split(":")[0] for problem in done["problems"]] == [name]


def test_a_damaged_deflate_is_named(taken):
    packed = zipped({"prompts/bad.txt": bytes(range(256)) * 100, "prompts/good.txt": b"hello"})
    packed[60:80] = b"\xff" * 20
    assert taken(packed)["problems"] == ["prompts/bad.txt: this file is damaged."]
    for at in range(0, len(packed), 7):
        spoilt = bytearray(packed)
        spoilt[at] ^= 0xFF
        with contextlib.suppress(UserError):
            taken(spoilt)


# --- bodies and connections


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    app = make_app(tmp_path_factory.mktemp("site"), EchoModel())
    with serving(app) as url:
        yield url
    app.close()


OF_ROUTES = {
    "/v1/chat/completions": 64,
    "/chats/send": 8,
    "/chats/1/view": 8,
    "/chats/pictures": 20,
    "/chats/characters/import": 20,
    "/gradio_api/queue/join": 8,
}
"""MiB of a body."""
READ_NOTHING = {"/v1/nowhere": 64, "/login": 8, "/": 8}


@pytest.mark.parametrize("path", [*OF_ROUTES, *READ_NOTHING])
def test_every_route_has_a_limit(site, path):
    content = b" " * ((OF_ROUTES | READ_NOTHING)[path] * 1024**2 + 1)
    reply = httpx.post(site + path, content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("path", OF_ROUTES)
def test_a_body_that_does_not_say_its_length_is_measured(site, path):
    content = iter([b" " * 1024**2] * OF_ROUTES[path] + [b" "])
    reply = httpx.post(site + path, content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def talk(url: str, *pieces: bytes) -> bytes:
    """What a server says to pieces of a request that never ends, until it hangs up."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as line:
        for piece in pieces:
            line.sendall(piece)
        heard = b""
        while data := line.recv(65536):
            heard += data
        return heard


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"POST /v1/chat/completions HTT",),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n", b"X-Slow: "),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        ),
        (b"POST /chats/send HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n",),
    ],
    ids=["nothing", "half a line", "half a head", "half a body", "half a chunk", "an answer before the body"],
)
def test_a_request_that_is_never_finished_is_hung_up_on(site, monkeypatch, pieces):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    assert b"HTTP/1.1 408" in talk(site, *pieces) or b"/health" in b"".join(pieces)


@pytest.mark.slow
def test_a_slow_reply_is_not_hung_up_on(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    app = make_app(tmp_path, EchoModel(lambda request: "a long reply", pace=0.1))
    with serving(app) as url:
        reply = httpx.post(url + "/v1/completions", json={"prompt": "x", "max_tokens": 50}, timeout=30)
        assert reply.json()["choices"][0]["text"] == "a long reply"
    app.close()


# --- long conversations


class Counted:
    """The tokens of a conversation, one for each letter and one for each message; and how many messages were looked at."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, messages: Messages) -> int:
        self.read += len(messages)
        return sum(len(message.content) + 1 for message in messages)


def test_a_conversation_that_cannot_fit_is_refused_before_it_is_rendered():
    count = Counted()
    turns = (Message("user", "a"),) * 100_000
    with pytest.raises(ContextTooLong, match="100000 messages"):
        fit_messages(turns, count, 4096, 100, "refuse")
    assert count.read == 0


def test_what_cannot_fit_is_dropped_before_it_is_rendered():
    count = Counted()
    turns = (Message("system", "s"), *(Message("user" if n % 2 else "assistant", "ab") for n in range(100_000)))
    kept, dropped = fit_messages(turns, count, 4096, 100, "drop_oldest")
    assert (len(kept) + dropped, kept[0].role, kept[1].role) == (100_001, "system", "user")
    assert 3 * len(kept) <= 3996 < 3 * (len(kept) + 2)
    assert count.read < 60_000


def test_long_conversations_are_read_beside_the_event_loop(tmp_path, monkeypatch):
    where: dict[str, set[str]] = {}

    def watched(module: Any, name: str) -> None:
        does = getattr(module, name)

        def told(*given: Any) -> Any:
            where.setdefault(name, set()).add(threading.current_thread().name.split("_")[0])
            return does(*given)

        monkeypatch.setattr(module, name, told)

    watched(large_bodies, "_read")
    watched(conversation, "_named_pictures")
    watched(conversation, "_conversation")
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": "hello"} for n in range(9_999)]
    app = make_app(tmp_path, EchoModel(context_length=10**7), nowebui=True)
    with serving(app) as url:

        def post(content: bytes) -> httpx.Response:
            sent = {"Content-Type": "application/json"}
            return httpx.post(url + "/v1/chat/completions", content=content, headers=sent, timeout=120)

        good = post(json.dumps({"messages": turns, "max_tokens": 3}).encode())
        bad = post(json.dumps({"messages": [*turns, {"role": "nobody"}]}).encode())
        broken, deep = post(b'{"messages": ' + b" " * 100_000), post(b"[" * 200_000)
    app.close()
    assert good.json()["choices"][0]["message"]["content"] == "hel"
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "messages.9999.role")
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    assert deep.status_code == 400
    assert where == {"_read": {"asyncio"}, "_named_pictures": {"AnyIO worker thread"}, "_conversation": {"AnyIO worker thread"}}


def test_strangers_bodies_are_not_read(tmp_path):
    app = make_app(tmp_path, EchoModel(), nowebui=True, api_key="secret")
    body = {"messages": 3, "user": "a" * 100_000}
    with serving(app) as url:
        assert httpx.post(url + "/v1/chat/completions", json=body).status_code == 401
        known = httpx.post(url + "/v1/chat/completions", json=body, headers={"Authorization": "Bearer secret"})
        assert (known.status_code, known.json()["error"]["param"]) == (400, "messages")
    app.close()


def test_a_template_that_takes_too_much_ends_the_request_at_its_first_rendering(monkeypatch):
    """Conversations that are fitted to a template are rendered several times."""
    rendered: list[int] = []
    render = BoundedEnvironment.render

    def counted(self: Any, *arguments: Any) -> str:
        rendered.append(1)
        return render(self, *arguments)

    monkeypatch.setattr(BoundedEnvironment, "render", counted)
    source = "{# of this test #}{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    turns = [Message("system", "a"), Message("assistant", "b"), Message("user", "c"), Message("user", "d")]
    with pytest.raises(UserError, match="not for this conversation"):
        render_chat(source, turns)
    assert len(rendered) == 1
