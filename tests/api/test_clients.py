"""Programs that people use run against the server as they are, each in a process of its own.

litellm needs an older openai than ours, so its script runs where TEXTLOOM_LITELLM_PYTHON names a Python that has it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.test_tools import TEMPLATE
from tests.fakes import EchoModel, repeat_the_question

SCRIPTS = Path(__file__).parent / "clients"
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


def reply(request):
    """A call where there are tools, JSON where a schema asks for it, else the question."""
    if request.template_variables:
        return CALL
    return '{"city": "Oslo"}' if request.sampling.json_schema else repeat_the_question(request)


def run(*command: str, **environment: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


PYTHONS = {"openai_client": sys.executable, "langchain_openai_client": sys.executable}
if litellm_python := os.environ.get("TEXTLOOM_LITELLM_PYTHON"):
    PYTHONS["litellm_client"] = litellm_python


@pytest.mark.slow
@pytest.mark.parametrize("script", PYTHONS)
def test_a_script_gets_what_it_asks_for(serve, script):
    server = serve(EchoModel(reply, chat_template=TEMPLATE))
    lines = run(PYTHONS[script], str(SCRIPTS / f"{script}.py"), f"{server.url}/v1")
    told = dict(line.split(" ", 1) for line in lines)
    assert told["chat"] == told["stream"] == "你好 🌍"
    assert told["stop"].strip() == "你好"
    assert told["logprobs"] == "你"
    assert told["embedding"] == "[1.0, 0.0]"
    assert "Oslo" in told["tool"]
    assert "Oslo" in told["schema"]
    assert told["error"] == "model_not_found"


@pytest.mark.slow
def test_the_llm_command_talks_to_the_server(serve, tmp_path):
    server = serve(EchoModel())
    models = f"- model_id: here\n  model_name: echo\n  api_base: {server.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models, encoding="utf-8")
    environment = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    llm = [sys.executable, "-m", "llm", "-m", "here"]
    assert run(*llm, "你好 🌍", **environment) == ["你好 🌍"]
    assert run(*llm, "--no-stream", "-s", "Be brief.", "-o", "max_tokens", "3", "hello", **environment) == ["hel"]
    assert server.model.requests[-1].prompt[0].role == "system"
