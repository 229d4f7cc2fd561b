"""Programs that people use run against the server as they are, each in a process of its own."""

from __future__ import annotations

import json
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["openai_client", "langchain_openai_client", "litellm_client"])
def test_a_script_gets_what_it_asks_for(serve, script):
    server = serve(EchoModel(reply, chat_template=TEMPLATE))
    lines = run(sys.executable, str(SCRIPTS / f"{script}.py"), f"{server.url}/v1", LITELLM_LOCAL_MODEL_COST_MAP="True")
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


TASK = """
task: lines
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.mark.slow
def test_lm_eval_measures_what_it_measures_by_itself(serve, tiny_llama_folder, tmp_path):
    rows = [{"question": f"{n} + {n} =", "choices": [str(2 * n), "seven", "你好"], "answer": 0} for n in range(4)]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "lines.yaml").write_text(TASK.format(file=tmp_path / "lines.jsonl"), encoding="utf-8")
    server = serve()
    (server.app.models.folder / "tiny").symlink_to(tiny_llama_folder)
    server.app.load_model("tiny")
    script = str(SCRIPTS / "lm_eval_client.py")
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    lines = run(sys.executable, script, f"{server.url}/v1", "tiny", str(tiny_llama_folder), str(tmp_path), **environment)
    told = json.loads(lines[-1])
    ours, theirs = (flat(told[side]) for side in ("ours", "theirs"))
    assert len(ours) == 12
    assert [likelihood for likelihood, _ in ours] == pytest.approx([likelihood for likelihood, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def flat(answers):
    """(log-likelihood, whether greedy) of each choice, however deep lm-eval nests them."""
    if len(answers) == 2 and not isinstance(answers[0], list):
        return [(float(answers[0]), str(answers[1]) == "True")]
    return [pair for part in answers for pair in flat(part)]
