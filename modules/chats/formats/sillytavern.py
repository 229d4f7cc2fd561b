"""SillyTavern's CHAT.jsonl: a line with {"user_name", "character_name"}, then one for each message, {"name", "is_user", "mes", "swipes"}."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modules.chats.contents import Content, moment, told
from modules.chats.portable import Lenient, PortableChat, PortableMessage, Turn, chat_of_versions, checked, clean_title
from modules.chats.remarks import Remark, Unreadable
from modules.generation.types import Role

_TOLD = ("narrator", "comment", "assistant_note", "help", "welcome")
"""Kinds of messages that nobody in the chat says."""


class _Line(Lenient):
    mes: str
    name: str | None = None
    is_user: bool | None = None
    is_system: bool | None = None
    send_date: Any = None
    extra: dict[str, Any] | None = None
    swipes: list[str | None] | None = None
    swipe_id: int | None = None
    swipe_info: list[dict[str, Any] | None] | None = None


def is_head(value: Any) -> bool:
    return isinstance(value, dict) and "mes" not in value and bool({"chat_metadata", "character_name"} & set(value))


def is_line(value: Any) -> bool:
    return isinstance(value, dict) and "mes" in value and bool({"is_user", "name", "send_date"} & set(value))


def read(values: Sequence[tuple[int, Any]], broken: Sequence[int] = ()) -> PortableChat:
    """values: the number and the value of each line; broken: the numbers of lines without one. Raises Unreadable."""
    head = values[0][1] if values and is_head(values[0][1]) else {}
    lines, broken = [], list(broken)
    for number, value in values[1 if head else 0 :]:
        try:
            lines.append(checked(_Line, value))
        except Unreadable:
            broken.append(number)
    remarks = [Remark("line", {"n": number}) for number in sorted(broken)]
    character = head.get("character_name")
    character = " ".join(character.split()) if isinstance(character, str) and character != "unused" else ""
    speakers = {line.name for line in lines if not line.is_user and not line.is_system}
    counts: Counter[str] = Counter()
    turns = [_turn(line, len(speakers) > 1, counts) for line in lines]
    counts["unhidden"] = sum(1 for line in lines if line.is_system and _role(line) != "system" and not _calls(line.extra or {}))
    chat = chat_of_versions(turns, created=moment(head.get("create_date")), remarks=[*remarks, *told(counts)])
    if not character:
        return chat
    return replace(chat, title=clean_title(f"{character}: {chat.title}" if chat.title else character), titled=True)


def _role(line: _Line) -> Role:
    if line.is_system and not line.is_user and (line.extra or {}).get("type") in _TOLD:
        return "system"
    if not line.is_system and (line.extra or {}).get("type") == "narrator":
        return "system"
    return "user" if line.is_user else "assistant"


def _turn(line: _Line, several: bool, counts: Counter[str]) -> Turn:
    """All versions of a message; the text of the one in front may have been changed since it was written."""
    swipes = [swipe or "" for swipe in line.swipes or []]
    chosen = line.swipe_id or 0
    if not 0 <= chosen < len(swipes):
        swipes, chosen = [line.mes, *(swipe for swipe in swipes if swipe != line.mes)], 0
    swipes[chosen] = line.mes
    infos = line.swipe_info or []
    versions = []
    for at, text in enumerate(swipes):
        info = (infos[at] if at < len(infos) else None) or {}
        extra = (line.extra or {}) if at == chosen else info.get("extra")
        date = line.send_date if at == chosen else info.get("send_date") or line.send_date
        versions.append(_version(line, text, extra if isinstance(extra, dict) else {}, date, several, counts))
    return Turn(versions, chosen)


def _version(line: _Line, text: str, extra: dict[str, Any], date: Any, several: bool, counts: Counter[str]) -> PortableMessage:
    role = _role(line)
    content = Content(counts)
    reasoning = extra.get("reasoning")
    content.think(reasoning if isinstance(reasoning, str) else "")
    calls = _calls(extra)
    if text.strip() and not calls:  # with calls it is the same in words
        content.say(f"{line.name}: {text}" if several and role == "assistant" and line.name else text)
    for call in calls:
        content.call(call.get("name"), call.get("parameters"))
        content.result(call.get("name"), call.get("result"))
    media = [item.get("url") for item in _list(extra.get("media")) if isinstance(item, dict)]
    for address in dict.fromkeys(str(item) for item in (extra.get("image"), *_list(extra.get("image_swipes")), *media) if item):
        content.picture(address)
    for file in (extra.get("file"), *_list(extra.get("files"))):
        if isinstance(file, dict):
            content.named("files", file.get("name") or file.get("url"))
    model = extra.get("model")
    return PortableMessage(
        role,
        content.text,
        created=moment(date),
        model=model[:200] if isinstance(model, str) and model and role == "assistant" else None,
        pictures=content.pictures,
    )


def _calls(extra: dict[str, Any]) -> list[dict[str, Any]]:
    return [call for call in _list(extra.get("tool_invocations")) if isinstance(call, dict)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]
