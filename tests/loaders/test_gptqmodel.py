"""A model that GPTQModel itself quantised, by the command line that the documents of 2023 give."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modules.generation.sampling import SamplingParams
from modules.generation.types import Finished, GenerationRequest, TextDelta
from modules.library.models import describe
from modules.loaders.choose import choose, load
from server import read_flags

NAME = "TheBloke_Llama-2-7B-chat-GPTQ"
PROMPT = "The capital of France is"
QUANTISE = """
import json, os, sys
os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
source, place, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(source, dtype="bfloat16", num_hidden_layers=2)
model.save_pretrained(place + "/first-layers")
tokenizer = AutoTokenizer.from_pretrained(source)
tokenizer.save_pretrained(place + "/first-layers")
from gptqmodel import GPTQModel, QuantizeConfig
texts = ["The sea is wide, and the ships that cross it are small. " * 4, "To make bread, mix flour, water, salt and yeast. " * 5]
model = GPTQModel.load(place + "/first-layers", QuantizeConfig(bits=4, group_size=64), device="cpu")
model.quantize(texts * 4, batch_size=4)
model.save(place + "/quantised")
model = GPTQModel.load(place + "/quantised", device="cpu")
with torch.inference_mode():
    scores = model.model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].float().log_softmax(-1)
best = scores.topk(5)
print(json.dumps(dict(zip(best.indices.tolist(), best.values.tolist()))))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_gptqmodel_made_loads_by_the_documented_command_line(starter_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", QUANTISE, str(starter_folder), str(tmp_path), PROMPT]
    # It writes a log into the folder that it runs in.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = {int(token): score for token, score in json.loads(done.stdout.strip().splitlines()[-1]).items()}
    folder = (tmp_path / "quantised").rename(tmp_path / NAME)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]  # as in folders of that time, which have quantize_config.json alone
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")

    flags = ["--share", "--model", NAME, "--load-in-8bit", "--bf16", "--auto-devices"]
    server, options, _, _, _ = read_flags(flags)
    assert server.model == NAME
    spec = describe(folder)
    assert choose(spec, options) == "gptq"
    said: list[str] = []
    model = load(spec, options, said.append)
    try:
        assert "--load-in-8bit has no effect with the gptq loader." in said
        events = list(model.stream(GenerationRequest(PROMPT, SamplingParams(temperature=0, max_tokens=8), logprobs=5)))
        first = next(event for event in events if isinstance(event, TextDelta) and event.details).details[0]
        assert first.id == max(theirs, key=theirs.__getitem__)
        ours = {token.id: token.logprob for token in first.alternatives}
        common = set(ours) & set(theirs)
        assert len(common) >= 4
        assert max(abs(ours[token] - theirs[token]) for token in common) < 0.2
        assert isinstance(events[-1], Finished)
    finally:
        model.close()
