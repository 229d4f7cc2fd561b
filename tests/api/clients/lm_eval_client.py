"""The log-likelihoods of one small task by lm-eval's two ways: over /v1/completions, and by its own use of transformers.

Arguments: the address of the API, the name of the loaded model, its folder, and a folder with the task. Prints both as JSON.
"""

import json
import sys
from importlib import import_module
from typing import Any

from lm_eval.tasks import TaskManager

simple_evaluate: Any = import_module("lm_eval").simple_evaluate  # wrapped, so that its parameters are not seen

address, name, folder, tasks = sys.argv[1:]


def likelihoods(model: str, arguments: dict[str, Any]) -> list[Any]:
    told = simple_evaluate(
        model=model, model_args=arguments, tasks=["lines"], task_manager=TaskManager(include_path=tasks), bootstrap_iters=0
    )
    assert told is not None
    return [answer for sample in told["samples"]["lines"] for answer in sample["resps"]]


ours = likelihoods(
    "local-completions", {"model": name, "base_url": f"{address}/completions", "tokenizer": folder, "num_concurrent": 2}
)
theirs = likelihoods("hf", {"pretrained": folder, "dtype": "float32", "device": "cpu"})
print(json.dumps({"ours": ours, "theirs": theirs}))
