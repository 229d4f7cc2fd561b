"""What a script with langchain-openai does: chat, stream, stop, tools, JSON schema, log-probabilities, embeddings, errors."""

import sys
from typing import Any

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

address: Any = {"base_url": sys.argv[1], "api_key": "none", "model": "echo"}
model: Any = ChatOpenAI(**address, max_retries=0)
print("chat", model.invoke("你好 🌍").content)
print("stream", "".join(piece.content for piece in model.stream("你好 🌍")))
print("stop", model.bind(stop=["🌍"]).invoke("你好 🌍").content)
print("logprobs", model.bind(logprobs=True).invoke("你好").response_metadata["logprobs"]["content"][0]["token"])
print("embedding", OpenAIEmbeddings(**address, check_embedding_ctx_length=False).embed_query("a"))
schema: Any = {"title": "weather", "description": "The weather.", "type": "object", "properties": {"city": {"type": "string"}}}
print("tool", model.bind_tools([schema]).invoke("weather?").tool_calls[0]["args"])
print("schema", model.with_structured_output(schema, method="json_schema").invoke("where?"))
try:
    ChatOpenAI(**{**address, "model": "gpt-99"}, max_retries=0).invoke("x")
except openai.NotFoundError as error:
    print("error", error.code)
