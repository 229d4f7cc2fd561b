"""What a script with litellm does: chat, stream, stop, tools, JSON schema, log-probabilities, embeddings, errors."""

import sys
from importlib import import_module
from typing import Any

litellm: Any = import_module("litellm")  # its annotations are too vague to check a script against
litellm.suppress_debug_info = True
address: Any = {"api_base": sys.argv[1], "api_key": "none", "model": "openai/echo"}
ask: Any = {**address, "messages": [{"role": "user", "content": "你好 🌍"}]}
print("chat", litellm.completion(**ask).choices[0].message.content)
print("stream", "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ask, stream=True)))
print("stop", litellm.completion(**ask, stop="🌍").choices[0].message.content)
print("logprobs", litellm.completion(**ask, logprobs=True).choices[0].logprobs.content[0].token)
print("embedding", litellm.embedding(**address, input=["a"], encoding_format="float").data[0]["embedding"])
tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
call: Any = litellm.completion(**ask, tools=[tool]).choices[0].message.tool_calls[0].function
print("tool", call.name, call.arguments)
schema: Any = {"name": "city", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
form: Any = {"type": "json_schema", "json_schema": schema}
print("schema", litellm.completion(**ask, response_format=form).choices[0].message.content)
try:
    litellm.completion(**{**ask, "model": "openai/gpt-99"})
except litellm.NotFoundError as error:
    print("error", "model_not_found" if "gpt-99 is not loaded" in str(error) else error)
