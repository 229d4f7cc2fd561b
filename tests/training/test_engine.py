"""A trained adapter in our engine: the same probabilities as in plain peft on plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, TextDelta
from modules.library.models import describe
from modules.loaders.choose import load
from modules.loaders.options import LoadOptions
from modules.training import events
from modules.training.worker.__main__ import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("settings", [{}, {"rslora": True, "target_modules": "q_proj, down_proj"}], ids=str)
def test_the_adapter_answers_in_the_engine_as_in_plain_peft(make_run, tiny_llama_folder, settings):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make_run("engine", max_steps=10, **settings)
    train(folder)
    output = next(event.output for event in events.read_events(folder.events) if isinstance(event, events.Done))
    prompt = tuple(range(40, 80))
    sampling = SamplingParams(max_tokens=8, temperature=0.0, ban_eos=True)
    model = load(describe(Path(tiny_llama_folder)), LoadOptions(dtype="float32", ctx_size=256), lambda _: None)
    try:
        model.load_adapter("trained", output)
        made = []
        with model.stream(GenerationRequest(prompt, sampling, adapter="trained", logprobs=20)) as stream:
            for event in stream:
                if isinstance(event, TextDelta):
                    made += event.details
    finally:
        model.close()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, output).eval()
    tokens = torch.tensor([[*prompt, *(token.id for token in made)]])
    with torch.no_grad():
        logprobs = tuned(tokens).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    assert len(made) == 8
    for at, token in enumerate(made):
        wanted = {one.id: float(logprobs[at, one.id]) for one in token.alternatives}
        assert len(wanted) >= 20
        assert {one.id: one.logprob for one in token.alternatives} == pytest.approx(wanted, abs=2e-4)
