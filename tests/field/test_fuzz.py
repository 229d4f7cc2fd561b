"""Every route × what no client sends: no body, names of 300 letters, NUL, half characters, huge numbers, 50 MB. The routes come
from the applications themselves, so that a new one is walked through too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from starlette.testclient import TestClient

from modules.api.legacy import routes as legacy_routes
from modules.app import App
from tests.fakes import EchoModel
from tests.in_process import make_app

pytestmark = pytest.mark.slow

LONG = "n" * 300
STRINGS = {
    "300 letters": LONG,
    "NUL": "a\0b",
    "half a character": "\ud800",
    "a path": "../../../etc/passwd",
    "a long path": "/".join(["n" * 100] * 60),
    "nothing": "",
}
NUMBERS = {"a huge number": 10**30, "a negative number": -(2**63) - 1, "no finite number": 1e308}
IN_PATHS = {
    "300 letters": LONG,
    "NUL": "%00",
    "NUL in a name": "a%00b",
    "no UTF-8": "%ed%a0%80%ff",
    "a path": "..%2f..%2fetc%2fpasswd",
    "a huge number": str(10**30),
    "a negative number": "-1",
    "many digits": "9" * 5000,
}
READS = {"GET", "HEAD", "OPTIONS"}


@dataclass(frozen=True)
class Address:
    """One route of one application. body: the model of its JSON, None where it takes none."""

    application: str
    method: str
    path: str
    body: type[BaseModel] | None
    takes_json: bool
    queries: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.application} {self.method} {self.path}"


class Site:
    """Both applications over one App, and what the App holds."""

    def __init__(self, root: Path, app: App, applications: dict[str, Any]) -> None:
        self.root = root
        self.app = app
        self.clients = {
            name: TestClient(made, base_url="http://localhost", raise_server_exceptions=False, follow_redirects=False)
            for name, made in applications.items()
        }
        self.addresses = [address for name, made in applications.items() for address in _addresses(name, made)]
        chat = app.store.for_owner("local").chats.create(title="kept")
        self.chat = chat.id
        self.said = app.store.for_owner("local").messages.add(chat.id, None, "user", "kept").id
        self.reply = app.store.for_owner("local").messages.add(chat.id, self.said, "assistant", "kept").id

    def ask(self, address: Address, path: str, **sent: Any) -> int:
        if self.app.manager.loaded is None:
            self.app.manager.replace("echo", lambda report: EchoModel())
        client = self.clients[address.application]
        return client.request(address.method, path, **sent).status_code

    def filled(self, path: str) -> str:
        """`path` with things that are there."""
        there = {"chat_id": self.chat, "message_id": self.reply, "old": self.said, "new": self.reply, "kind": "examples"}
        return re.sub(r"\{(\w+)(:\w+)?\}", lambda found: str(there.get(found[1], "ghost")), path)

    def state(self) -> str:
        """A digest of all that is kept: the tables, the files, and the model."""
        told = hashlib.sha256()
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and ".sqlite" not in path.name and ".db" not in path.name:
                told.update(f"{path}\0".encode() + path.read_bytes())
        with self.app.store.database.reading() as db:
            for table in ("chats", "messages", "preferences", "pictures", "message_tokens"):
                told.update(repr([tuple(row) for row in db.execute(f"SELECT * FROM {table}")]).encode())
        told.update(str(self.app.manager.status.name).encode())
        return told.hexdigest()


ENDLESS = "/gradio_api/heartbeat/{session_hash}"
"""Says that the page is open for as long as it is."""


def _addresses(name: str, application: Any) -> Iterator[Address]:
    for context in iter_route_contexts(application.routes):
        route = context.original_route
        for method in getattr(route, "methods", None) or ():
            if method == "HEAD":
                continue
            field = getattr(route, "body_field", None)
            model = getattr(getattr(field, "field_info", None), "annotation", None)
            is_model = isinstance(model, type) and issubclass(model, BaseModel)
            dependant = getattr(route, "dependant", None)
            queries = tuple(parameter.alias for parameter in dependant.query_params) if dependant else ()
            yield Address(name, method, str(context.path), model if is_model else None, field is not None, queries)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from modules import web

    root = tmp_path_factory.mktemp("fuzz")
    app = make_app(root, EchoModel())

    async def build() -> Any:
        return web.build(app)

    page = asyncio.run(build())
    (mounted,) = [route.app for route in page.routes if type(route).__name__ == "Mount"]
    site = Site(root, app, {"page": page, "2023": legacy_routes.build(app)})
    site.addresses += [Address("page", *found) for found in _of_gradio(mounted, {a.path for a in site.addresses})]
    yield site
    app.replies.close()
    app.notebooks.close()
    app.close()


def _of_gradio(mounted: Any, ours: set[str]) -> Iterator[tuple[str, str, None, bool, tuple[str, ...]]]:
    for address in _addresses("page", mounted):
        if address.path not in ours | {ENDLESS} and address.method in READS | {"POST"}:
            yield address.method, address.path, None, address.takes_json, ()


def check(told: dict[str, int]) -> None:
    broken = {what: status for what, status in told.items() if status >= 500}
    assert not broken


def test_there_are_routes_to_walk(site):
    assert len(site.addresses) > 130
    assert sum(address.body is not None for address in site.addresses) > 25
    assert {"/chats/send", "/v1/chat/completions", "/api/v1/chat", "/health"} <= {address.path for address in site.addresses}


@pytest.mark.parametrize("name", IN_PATHS)
def test_names_in_paths(site, name):
    """Whatever a path names that cannot be: it is not found or not allowed, and nothing is changed."""
    before = site.state()
    told = {}
    for address in site.addresses:
        if "{" in address.path:
            path = re.sub(r"\{\w+(:\w+)?\}", lambda found: IN_PATHS[name], address.path)
            body = {"json": _example(address.body)} if address.body is not None else {}
            told[str(address)] = site.ask(address, path, **body)
    assert len(told) > 50
    check(told)
    assert site.state() == before


@pytest.mark.parametrize("name", IN_PATHS)
def test_names_in_queries(site, name):
    told = {}
    for address in site.addresses:
        for query in address.queries:
            path = f"{site.filled(address.path)}?{quote(query)}={IN_PATHS[name]}"
            told[f"{address} {query}"] = site.ask(address, path)
    assert len(told) > 10
    check(told)


def test_no_body(site):
    """Where one is asked for; some routes need none, and do what they are for."""
    before = site.state()
    told = {}
    for address in site.addresses:
        if address.takes_json:
            for number, sent in enumerate(({}, {"content": b""}, {"content": b"", "headers": JSON}, {"data": {"a": "b"}})):
                told[f"{address} {number}"] = site.ask(address, site.filled(address.path), **sent)
    assert len(told) > 100
    check(told)
    assert site.state() == before


JSON = {"Content-Type": "application/json"}
OTHER_BODIES = {
    "no JSON": b"{",
    "half JSON": b'{"a": "',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deep": b"[" * 100_000,
    "a number of many digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "half a character": b'{"content": "\\ud800", "\\ud800": "\\udc00"}',
    "no number": b'{"a": NaN, "b": Infinity}',
    "50 MB": b'"' + b"x" * 50_000_000 + b'"',
}


@pytest.mark.parametrize("name", OTHER_BODIES)
def test_bodies_that_mean_nothing(site, name):
    before = site.state()
    told = {}
    for address in site.addresses:
        if address.method not in READS and (name == "50 MB" or address.takes_json or address.path in RAW):
            told[str(address)] = site.ask(address, site.filled(address.path), content=OTHER_BODIES[name], headers=JSON)
    check(told)
    assert site.state() == before


RAW = (
    "/chats/import",
    "/chats/everything",
    "/chats/pictures",
    "/chats/characters/import",
    "/chats/characters/{id}/picture",
)


@pytest.mark.parametrize("name", STRINGS)
def test_strings_in_bodies(site, name):
    _walk_leaves(site, str, STRINGS[name])


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_in_bodies(site, name):
    _walk_leaves(site, (int, float), NUMBERS[name])


def _walk_leaves(site: Site, kind: Any, value: Any) -> None:
    """Each leaf of that kind in each body in turn, the others as they should be."""
    told = {}
    for address in site.addresses:
        if address.body is None:
            continue
        whole = _example(address.body, everything=True)
        least = _example(address.body)
        for place in _leaves(whole, kind):
            content = json.dumps(_with(least, whole, place, value)).encode()
            told[f"{address} {place}"] = site.ask(address, site.filled(address.path), content=content, headers=JSON)
    assert len(told) > 50
    check(told)


def _example(model: type[BaseModel], *, everything: bool = False) -> Any:
    """A body that fits the schema of `model`: what is required, or every field."""
    schema = _schema(model)
    return _value(schema, schema.get("$defs", {}), everything, 0)


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _value(schema: dict[str, Any], known: dict[str, Any], everything: bool, depth: int) -> Any:
    if "$ref" in schema:
        return _value(known[schema["$ref"].rsplit("/", 1)[-1]], known, everything, depth + 1)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return _value(next(part for part in schema[union] if part.get("type") != "null"), known, everything, depth)
    match schema.get("type"):
        case "object":
            fields = schema.get("properties", {})
            wanted = fields if everything and depth < 4 else schema.get("required", [])
            return {name: _value(fields[name], known, everything, depth + 1) for name in wanted}
        case "array":
            items = schema.get("items", {"type": "string"})
            return [_value(items, known, everything, depth + 1)] * max(1, schema.get("minItems", 1))
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case "string":
            return "x"
        case _:
            return "x"


def _leaves(value: Any, kind: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, kind, (*place, key))
    elif isinstance(value, list):
        for at, item in enumerate(value[:1]):
            yield from _leaves(item, kind, (*place, at))
    elif isinstance(value, kind) and not isinstance(value, bool):
        yield place


def _with(least: Any, whole: Any, place: tuple[Any, ...], value: Any) -> Any:
    """`least`, with what `whole` has at the top of `place`, and `value` at its end."""
    made = json.loads(json.dumps({**least, place[0]: whole[place[0]]}))
    at = made
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    return made


def test_every_raw_route_is_there(site):
    assert set(RAW) <= {address.path for address in site.addresses}
