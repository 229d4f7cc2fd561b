"""What a script with the openai client does: chat, stream, stop, tools, JSON schema, log-probabilities, embeddings, errors."""

import sys
from typing import Any

import openai

client: Any = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
ask: Any = {"model": "echo", "messages": [{"role": "user", "content": "你好 🌍"}]}
print("chat", client.chat.completions.create(**ask).choices[0].message.content)
print("stream", "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask, stream=True)))
with client.chat.completions.create(**ask, stream=True) as stream:
    print("left after", next(iter(stream)).choices[0].delta.role)
print("stop", client.chat.completions.create(**ask, stop="🌍").choices[0].message.content)
print("logprobs", client.chat.completions.create(**ask, logprobs=True).choices[0].logprobs.content[0].token)
print("completion", client.completions.create(model="echo", prompt="abc").choices[0].text)
print("embedding", client.embeddings.create(model="echo", input="a").data[0].embedding)
tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
call: Any = client.chat.completions.create(**ask, tools=[tool]).choices[0].message.tool_calls[0].function
print("tool", call.name, call.arguments)
schema: Any = {"name": "city", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
form: Any = {"type": "json_schema", "json_schema": schema}
print("schema", client.chat.completions.create(**ask, response_format=form).choices[0].message.content)
try:
    client.chat.completions.create(**{**ask, "model": "gpt-99"})
except openai.NotFoundError as error:
    print("error", error.code)
