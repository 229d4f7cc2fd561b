"""The tools of a request: what the template gets, what a forced call must look like, and who reads the calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from modules.api.chat_request import ChatCompletionRequest, NamedTool, Tool
from modules.generation.tool_calls import BARE, ToolReader, tool_format


def forced_schema(body: ChatCompletionRequest) -> dict[str, Any]:
    """The JSON schema of a reply that has to be one call."""
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    shared: dict[str, Any] = {}
    calls = [_call_schema(tool, shared) for tool in body.tools if named in (None, tool.function.name)]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, **shared}


def place_in_tools(body: ChatCompletionRequest, place: str, parameters: str) -> str:
    """Where a place in the schema of a forced call is in the tools. parameters: how the schema of a tool's arguments is called."""
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    offered = [at for at, tool in enumerate(body.tools) if named in (None, tool.function.name)]
    found = re.fullmatch(r"(?:anyOf\.(\d+)\.)?properties\.arguments(?:\.(.+))?", place)
    if found is None or (found[1] is None) != (len(offered) == 1):
        return f"tools.{place}" if place else "tools"
    return ".".join(["tools", str(offered[int(found[1] or 0)]), parameters, *([found[2]] if found[2] else [])])


def _call_schema(tool: Tool, shared: dict[str, Any]) -> dict[str, Any]:
    """The schema of a call; definitions move up to the root, where references look for them."""
    arguments = {**(tool.function.parameters or {}), "type": "object"}
    for key in ("$defs", "definitions"):
        if key in arguments:
            shared.setdefault(key, {}).update(arguments.pop(key))
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def reader_for(body: ChatCompletionRequest, template: str | None) -> ToolReader | None:
    """What reads the calls of a reply to `body`; None where there can be none."""
    if not body.offered_tools:
        return None
    form = BARE if body.must_call else tool_format(template)
    names: Sequence[str] = [tool.function.name for tool in body.offered_tools]
    return ToolReader(form or BARE, names, limit=None if body.parallel_tool_calls and not body.must_call else 1)
