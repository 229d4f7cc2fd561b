"""A generation request as a program would send it to the API: curl and Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from modules.generation.types import GenerationRequest, Message

KEY = "TEXTLOOM_API_KEY"


def api_body(request: GenerationRequest, model: str, template: str | None) -> tuple[str, dict[str, Any]]:
    """(address below /v1, body) of the API call that makes `request`."""
    body: dict[str, Any] = {"model": model}
    if isinstance(request.prompt, str):
        path = "/completions"
        body["prompt"] = request.prompt
    else:
        path = "/chat/completions"
        body["messages"] = [
            {"role": part.role, "content": part.content} for part in request.prompt if isinstance(part, Message)
        ]
        if template:
            body["template"] = template
        if request.continue_reply:
            body["continue_final_message"] = True
    sampling = request.sampling
    body |= {**sampling.model_dump(mode="json", exclude_defaults=True), "max_tokens": sampling.max_tokens}
    if request.adapter:
        body |= {"adapter": request.adapter, "adapter_strength": request.adapter_strength}
    body["truncate"] = "oldest"
    return path, body


def curl(address: str, body: Mapping[str, Any]) -> str:
    text = json.dumps(body, ensure_ascii=False, indent=2)
    return (
        f"curl {shlex.quote(address)} \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f'  -H "Authorization: Bearer ${KEY}" \\\n'
        f"  -d {shlex.quote(text)}\n"
    )


_OPENAI = {
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "logit_bias",
}


def python(address: str, path: str, body: Mapping[str, Any]) -> str:
    known = {key: value for key, value in body.items() if key in _OPENAI}
    more = {key: value for key, value in body.items() if key not in _OPENAI}
    call = "chat.completions" if path.startswith("/chat") else "completions"
    answer = "message.content" if path.startswith("/chat") else "text"
    lines = [f"    {key}={value!r}," for key, value in known.items()]
    if more:
        lines.append(f"    extra_body={more!r},")
    return "\n".join(
        [
            "import os",
            "",
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url={address!r}, api_key=os.environ.get("{KEY}", "none"))',
            f"reply = client.{call}.create(",
            *lines,
            ")",
            f"print(reply.choices[0].{answer})",
            "",
        ]
    )
