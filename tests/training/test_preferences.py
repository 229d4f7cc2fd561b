"""Learning from preferences: what is compared, the loss against TRL's, and a run that goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.errors import UserError
from modules.training import checkpoints, events
from modules.training.checks import check_settings
from modules.training.config import TrainingConfig
from modules.training.dataset import Places, Prepared, prepare
from modules.training.folder import RunFolder
from modules.training.samples import load_tokenizer, readable
from modules.training.worker.__main__ import main, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
ROOT = Path(__file__).resolve().parent.parent.parent
USER, ANSWER = "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]


def prepared(folder: Path, tiny_llama_folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Prepared, list[str]]:
    (folder / "d.json").write_text(json.dumps(rows))
    places = Places(folder, ROOT / "training" / "formats", ROOT / "prompts" / "templates")
    tokenizer = load_tokenizer(tiny_llama_folder)
    data = prepare(TrainingConfig.read({"dataset": "d.json", "objective": "dpo", **settings}), places, tokenizer, "tiny")
    return data, ["".join(f"⟦{text}⟧" if learnt else text for text, learnt in readable(tokenizer, one)) for one in data.samples]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "yes", "rejected": "no"},
        {"prompt": turns("a"), "chosen": turns("", "yes")[1:], "rejected": turns("", "no")[1:]},
        {"chosen": turns("a", "yes"), "rejected": turns("a", "no")},
    ],
    ids=["texts", "turns", "turns with the prompt in them"],
)
def test_two_answers_to_one_prompt_are_compared_and_nothing_else(tmp_path, tiny_llama_folder, row):
    data, texts = prepared(tmp_path, tiny_llama_folder, [row])
    begin = USER.format("a") + ANSWER
    assert texts == [f"{begin}⟦yes<|im_end|>⟧", f"{begin}⟦no<|im_end|>⟧"]
    assert data.pairs and data.format == "preferences" and data.sentence.startswith("1 rows read, 1 good; 1 pairs of")


def test_earlier_answers_that_both_share_are_shown_and_not_compared(tmp_path, tiny_llama_folder):
    row = {"system": "s", "prompt": turns("a", "shared", "b"), "chosen": "yes", "rejected": "no"}
    _, texts = prepared(tmp_path, tiny_llama_folder, [row])
    begin = "<|im_start|>system\ns<|im_end|>\n" + USER.format("a") + ANSWER + "shared<|im_end|>\n" + USER.format("b") + ANSWER
    assert texts == [f"{begin}⟦yes<|im_end|>⟧", f"{begin}⟦no<|im_end|>⟧"]


def test_rows_that_cannot_be_compared_are_told_and_both_halves_leave_together(tmp_path, tiny_llama_folder):
    good = {"prompt": "a", "chosen": "yes", "rejected": "no"}
    rows = [
        good, {**good, "rejected": "yes"}, {**good, "rejected": ""}, {**good, "prompt": ""}, {**good, "prompt": "a" * 99},
        {**good, "chosen": "y" * 50}, good,
    ]  # fmt: skip
    data, _ = prepared(tmp_path, tiny_llama_folder, rows, cutoff=60)
    assert [(problem.row, problem.kind) for problem in data.problems] == [
        (2, "broken"), (3, "no answer"), (4, "empty"), (5, "too long (left out)"), (6, "too long (cut)"),
    ]  # fmt: skip
    assert [sample.row for sample in data.samples] == [1, 1, 6, 6, 7, 7]
    assert [sample.row for sample in prepared(tmp_path, tiny_llama_folder, rows, cutoff=60, long_rows="skip")[0].samples] == [
        1,
        1,
        7,
        7,
    ]


def test_the_objective_sft_learns_the_chosen_answers_alone(tmp_path, tiny_llama_folder):
    data, texts = prepared(tmp_path, tiny_llama_folder, [{"prompt": "a", "chosen": "yes", "rejected": "no"}], objective="sft")
    assert texts == [USER.format("a") + ANSWER + "⟦yes<|im_end|>⟧"] and not data.pairs


def test_preferences_need_pairs_and_settings_that_go_with_them(tmp_path, tiny_llama_folder):
    with pytest.raises(
        UserError, match="compares a chosen answer with a rejected one, and the format question-answer has none"
    ):
        prepared(tmp_path, tiny_llama_folder, [{"question": "a", "answer": "b"}])
    with pytest.raises(UserError, match="set the loss to answers"):
        check_settings(TrainingConfig(objective="dpo", loss="all"))
    with pytest.raises(UserError, match="turn packing off"):
        check_settings(TrainingConfig(objective="dpo", packing=True))


# --- runs


@pytest.fixture
def preferring(make_run, training_root):
    """A run over pairs: who counts upwards is preferred to who counts downwards."""
    rows = [
        {"prompt": f"Count to {n}", "chosen": " ".join(map(str, range(1, n))), "rejected": " ".join(map(str, range(n, 1, -1)))}
        for n in range(3, 11)
    ]
    (training_root / "training" / "datasets" / "pairs.json").write_text(json.dumps(rows))

    def make(name: str, **settings: Any) -> RunFolder:
        fixed = {"dataset": "pairs.json", "objective": "dpo", "batch": 8, "scheduler": "constant", "warmup": 0}
        return make_run(name, **{**fixed, "learning_rate": 1e-3, "max_steps": 6, **settings})

    return make


def told(folder: RunFolder, kind: type) -> list:
    return [event for event in events.read_events(folder.events) if isinstance(event, kind)]


def losses(folder: RunFolder) -> list[float]:
    return [event.loss for event in told(folder, events.Stepped)]


def test_the_losses_are_those_of_trl(preferring, make_run, training_root, tmp_path, tiny_llama_folder):
    """The same adapter trained further by both, all pairs in each step. TRL's reference is the adapter as it was, too."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    train(make_run("first", max_steps=4))
    folder = preferring("second", continue_from="first", dpo_beta=0.3)
    train(folder)

    config, places = folder.read_config(), folder.read_plan().places
    tokenizer = load_tokenizer(tiny_llama_folder)
    rows = []
    samples = prepare(config, places, tokenizer, "tiny").samples
    for chosen, rejected in zip(samples[::2], samples[1::2], strict=True):
        (prompt, _), (yes, _), (_, _), (no, _) = [*readable(tokenizer, chosen), *readable(tokenizer, rejected)]
        rows.append({"prompt": prompt, "chosen": yes, "rejected": no})
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    trainer = DPOTrainer(
        model=PeftModel.from_pretrained(base, str(training_root / "loras" / "first"), is_trainable=True),
        args=DPOConfig(
            output_dir=str(tmp_path / "theirs"), beta=0.3, per_device_train_batch_size=8, max_steps=6, learning_rate=1e-3,
            lr_scheduler_type="constant", logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
            gradient_checkpointing=False, disable_tqdm=True, max_length=None,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses(folder)[0] == pytest.approx(0.6931, abs=1e-4), "before the first step nothing is preferred"
    assert losses(folder) == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "full", "learning_rate": 3e-4}, {"init": "pissa"}, {"micro_batch": "1", "dropout": 0.1}],
    ids=str,
)
def test_a_run_learns_what_is_preferred_and_goes_on_with_the_losses_of_an_undisturbed_one(preferring, settings):
    folder = preferring("prefers", max_steps=8, batch=4, save_every=4, eval_share=0.25, **settings)
    train(folder)
    whole, reference = losses(folder), folder.reference.read_bytes()
    steps = told(folder, events.Stepped)
    assert whole[-1] < 0.65 and steps[-1].preferred == 1.0
    assert told(folder, events.Evaluated)[-1].preferred is not None
    (checkpoints.list_checkpoints(folder.checkpoints)[-1].path / checkpoints.COMPLETE).unlink()
    folder.events.unlink()
    train(folder)
    assert told(folder, events.Started)[0].step == 4
    assert losses(folder) == pytest.approx(whole[4:], abs=1e-6)
    assert folder.reference.read_bytes() == reference


def test_a_run_without_its_reference_fails_with_the_reason_instead_of_taking_another(preferring):
    folder = preferring("lost", max_steps=2)
    train(folder)
    folder.reference.unlink()
    assert main([str(folder.path)]) == 1
    assert "without it this run cannot go on" in told(folder, events.Failed)[-1].reason
