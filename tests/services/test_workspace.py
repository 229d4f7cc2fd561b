"""Owners are said once: a Workspace carries its own into all services, and no method below takes another."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from modules.chats.store import ChatStore
from modules.services.base import Service
from modules.services.workspace import Workspace

PROPERTIES = [name for name, value in vars(Workspace).items() if isinstance(value, property)]


def service(name: str) -> Any:
    return getattr(Workspace(SimpleNamespace(), "ann"), name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in PROPERTIES if name != "is_admin"])
def test_a_service_acts_for_the_user_of_its_workspace_and_for_nobody_else(name: str):
    made = service(name)
    assert isinstance(made, Service) and made.owner == "ann"
    for method, function in inspect.getmembers(type(made), inspect.isfunction):
        if method != "__init__":
            assert "owner" not in inspect.signature(function).parameters, f"{name}.{method}"


def test_no_method_of_the_chat_history_takes_an_owner():
    store = ChatStore(":memory:")
    history = store.for_owner("ann")
    for table in (history, history.chats, history.messages, history.tokens, history.pictures, history.preferences):
        for method, function in inspect.getmembers(type(table), inspect.isfunction):
            if method != "__init__":
                assert "owner" not in inspect.signature(function).parameters, f"{type(table).__name__}.{method}"
    store.close()


def test_what_two_users_keep_under_one_name_stays_apart():
    store = ChatStore(":memory:")
    for owner in ("ann", "bob"):
        history = store.for_owner(owner)
        history.preferences.set("name", owner)
        history.messages.add(history.chats.create().id, None, "user", f"of {owner}")
    (row,) = store.for_owner("bob").chats.page()
    assert row.title == "of bob" and store.for_owner("ann").preferences.get("name") == "ann"
    store.for_owner("ann").messages.write(2, "taken over", "whole", store.for_owner("bob").messages.get(2).figures)
    assert store.for_owner("bob").messages.get(2).content == "of bob"
    store.close()
