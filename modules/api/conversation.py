"""The messages of a request as the conversation that a model reads: parts joined, pictures fetched, tool calls as templates want them."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.concurrency import run_in_threadpool

from modules.api import remote_images
from modules.api.chat_request import ChatMessage, ImagePart, Tool
from modules.api.errors import shortened
from modules.errors import UserError
from modules.generation.template import Arguments
from modules.generation.types import Image, Message, Role

MAX_REMOTE_IMAGES = 16
MAX_IMAGE_PIXELS = 80_000_000
_ROLES: dict[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


async def read_messages(messages: Sequence[ChatMessage], *, images: bool, remote_images: bool) -> tuple[Message, ...]:
    """The conversation. images: whether the model sees any; remote_images: whether http addresses may be fetched. Raises UserError."""
    named = await run_in_threadpool(_named_pictures, messages)
    if sum(url.startswith("http") for urls in named.values() for url in urls) > MAX_REMOTE_IMAGES:
        raise UserError(f"A request may name {MAX_REMOTE_IMAGES} pictures by an http address at most.", param="messages")
    shown: dict[int, tuple[Image, ...]] = {}
    for place, urls in named.items():
        where = f"messages.{place}.content"
        if not images:
            raise UserError("The loaded model cannot see pictures. Send text alone, or load a model for vision.", param=where)
        shown[place] = tuple([await _picture(url, where, remote_images) for url in urls])
    return await run_in_threadpool(_conversation, messages, shown)


def _named_pictures(messages: Sequence[ChatMessage]) -> dict[int, list[str]]:
    """Where pictures are, by the place of their message."""
    return {place: urls for place, message in enumerate(messages) if (urls := _pictures(message))}


def _conversation(messages: Sequence[ChatMessage], shown: Mapping[int, tuple[Image, ...]]) -> tuple[Message, ...]:
    return tuple(_message(message, place, shown.get(place, ())) for place, message in enumerate(messages))


def _pictures(message: ChatMessage) -> list[str]:
    parts = message.content if isinstance(message.content, tuple) else ()
    return [part.image_url.url for part in parts if isinstance(part, ImagePart)]


def _message(message: ChatMessage, place: int, shown: tuple[Image, ...]) -> Message:
    parts = message.content if isinstance(message.content, tuple) else ()
    text = (
        message.content
        if isinstance(message.content, str)
        else "\n".join(p.text for p in parts if not isinstance(p, ImagePart))
    )
    return Message(_ROLES[message.role], text, shown, _extra(message, place))


def _extra(message: ChatMessage, place: int) -> dict[str, Any]:
    """What the template gets besides role and content. Raises UserError."""
    extra: dict[str, Any] = {}
    if message.name is not None:
        extra["name"] = message.name
    if message.reasoning_content is not None:
        extra["reasoning_content"] = message.reasoning_content
    if message.tool_call_id is not None:
        extra["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        extra["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _checked(call.function.arguments, place, number)},
            }
            for number, call in enumerate(message.tool_calls)
        ]
    return extra


def _checked(arguments: str, message: int, call: int) -> str:
    try:
        Arguments(arguments)
    except ValueError:
        where = f"messages.{message}.tool_calls.{call}.function.arguments"
        raise UserError(
            f"The arguments of a call in message {message + 1} ('{where}') are not a JSON object: {shortened(arguments)}. "
            "Send them as the model wrote them; an empty text is a call without arguments.",
            param=where,
        ) from None
    return arguments


def tools_for_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools in the form that chat templates expect."""
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


async def _picture(url: str, where: str, remote: bool) -> Image:
    if url.startswith("data:"):
        data = await run_in_threadpool(_from_data_url, url, where)
    elif url.startswith(("http://", "https://")):
        if not remote:
            raise UserError(
                "This server does not fetch pictures from the network. Send a data: URL, or start it with --allow-remote-images.",
                param=where,
            )
        data = await remote_images.fetch(url, where)
    else:
        raise UserError("A picture must be a data: URL (data:image/png;base64,…) or an http address.", param=where)
    await run_in_threadpool(_check_picture, data, where)
    return Image(data)


def _from_data_url(url: str, where: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not comma:
        raise UserError("The data: URL of a picture has no data: it needs a comma before them.", param=where)
    if not head.endswith(";base64"):
        return unquote_to_bytes(payload)
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UserError("The data: URL of a picture is not valid base64.", param=where) from None


def _check_picture(data: bytes, where: str) -> None:
    from PIL import Image as Pictures

    try:
        with Pictures.open(io.BytesIO(data)) as picture:
            wide, high = picture.size
    except Exception as error:
        raise UserError("The picture is in no format that can be read: send PNG, JPEG, WebP or GIF.", param=where) from error
    if wide * high > MAX_IMAGE_PIXELS:
        raise UserError(
            f"The picture has {wide}×{high} points; {MAX_IMAGE_PIXELS // 1_000_000} million are the most.", param=where
        )
