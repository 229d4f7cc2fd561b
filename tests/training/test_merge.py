"""An adapter written into a copy of its base: the same model, for loaders that cannot take the adapter beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modules.errors import Conflict, NotFound, UserError
from modules.library.models import describe
from modules.training import process
from modules.training.folder import RunFolder
from modules.training.jobs import TrainingJobs
from modules.training.worker.__main__ import train
from modules.training.worker.merge import main
from tests.training.test_jobs import wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def jobs(training_root):
    jobs = TrainingJobs(training_root)
    yield jobs
    jobs.close()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(5, 50)[None]).logits


@pytest.mark.parametrize("settings", [{}, {"dora": True}], ids=str)
def test_the_merged_model_is_the_base_with_its_adapter(make_run, training_root, tiny_llama_folder, settings):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make_run("apart", max_steps=6, **settings)
    train(folder)
    output = training_root / "models" / "merged"
    adapter = folder.read_plan().output
    assert main([str(tiny_llama_folder), adapter, str(output)]) == 0
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    before = logits(base)
    wanted = logits(PeftModel.from_pretrained(base, adapter))
    merged = logits(AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32))
    assert torch.allclose(merged, wanted, atol=1e-4) and not torch.allclose(merged, before, atol=1e-2)
    spec = describe(output)
    assert spec.problem is None and spec.chat_template
    assert not list(output.parent.glob(".*.part"))


def test_a_run_is_merged_in_a_process_of_its_own(jobs, make_run):
    folder = make_run("apart", max_steps=2, save_every=1)
    with pytest.raises(Conflict, match="no finished adapter"):
        jobs.merge("apart", "new")
    train(folder)
    assert jobs.merging("apart") is None
    for name, words in (("tiny-llama", "already a model"), ("../x", "cannot be a")):
        with pytest.raises(UserError, match=words):
            jobs.merge("apart", name)
    with pytest.raises(NotFound, match="no complete checkpoint"):
        jobs.merge("apart", "new", "step-000009")
    jobs.merge("apart", "new", "step-000001")
    with pytest.raises(Conflict, match="under way"):
        jobs.merge("apart", "other")
    merge = wait_for(lambda: (now := jobs.merging("apart")) and now.state != "running" and now, what="the merge")
    assert (merge.name, merge.state) == ("new", "done"), merge.reason
    assert "modules.training.worker.merge" in merge.command
    assert jobs.models.find("new").problem is None


def test_a_merge_that_fails_says_why_and_leaves_nothing(jobs, make_run, monkeypatch):
    folder = make_run("apart", max_steps=1)
    train(folder)
    (Path(folder.read_plan().output) / "adapter_model.safetensors").write_bytes(b"damaged")
    jobs.merge("apart", "new")
    merge = wait_for(lambda: (now := jobs.merging("apart")) and now.state != "running" and now, what="the merge")
    assert merge.state == "failed" and merge.reason
    assert not process.alive(RunFolder(folder.path).merge_process)
    assert [path.name for path in jobs.models.folder.iterdir()] == ["tiny-llama"]


def test_a_quantised_base_cannot_take_an_adapter_into_its_weights(jobs, make_run, tiny_llama_folder):
    folder = make_run("apart", max_steps=1)
    train(folder)
    model = jobs.models.folder / "tiny-llama"
    values = json.loads((model / "config.json").read_text())
    model.unlink()
    model.mkdir()
    for file in tiny_llama_folder.iterdir():
        if file.name != "config.json":
            (model / file.name).symlink_to(file)
    (model / "config.json").write_text(json.dumps({**values, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(UserError, match="is quantised"):
        jobs.merge("apart", "new")
