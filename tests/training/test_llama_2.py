"""Llama 2's own recipe: what of it is in the rows, in the steps, and in the optimiser."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from modules.training.config import TrainingConfig
from modules.training.dataset import Prepared, prepare
from modules.training.folder import RunFolder
from modules.training.plan import learning_rate, plan_steps
from modules.training.recipes import read_recipe
from modules.training.samples import load_tokenizer
from modules.training.worker.distributed import Group
from modules.training.worker.objective import Imitation
from modules.training.worker.run import Run

ROOT = Path(__file__).resolve().parent.parent.parent
LENGTH, BATCH = 4096, 64


@pytest.fixture
def make(make_run, training_root):
    """make(count): a run of the recipe on so many rows of one question and one answer each."""

    def make(count: int) -> tuple[RunFolder, list[dict[str, str]]]:
        pick = random.Random(1)
        rows = [
            {"question": f"Question {number}?", "answer": f"Answer {number}: {'word ' * pick.randint(20, 300)}end."}
            for number in range(count)
        ]
        (training_root / "training" / "datasets" / "pairs.json").write_text(json.dumps(rows))
        recipe = read_recipe(ROOT / "training" / "recipes", "llama-2-chat").values
        plain = {key: info.get_default() for key, info in TrainingConfig.model_fields.items()}
        kept = ("name", "model", "dtype", "threads")
        settings = {key: value for key, value in {**plain, **recipe}.items() if key not in kept}
        return make_run("llama-2", **{**settings, "dataset": "pairs.json", "template": "Llama-2"}), rows

    return make


def prepared_of(folder: RunFolder) -> Prepared:
    plan = folder.read_plan()
    return prepare(folder.read_config(), plan.places, load_tokenizer(plan.model), "tiny-llama")


def test_a_pair_is_prompt_answer_and_special_token_and_of_these_only_the_last_two_are_learnt(make):
    folder, rows = make(30)
    tokenizer = load_tokenizer(folder.read_plan().model)
    prepared = prepared_of(folder)
    assert len(prepared.samples) == 30 and prepared.problems == ()
    for row, sample in zip(rows, prepared.samples, strict=True):
        learnt = [token for token, flag in zip(sample.tokens, sample.learnt, strict=True) if flag]
        assert sample.tokens[-1] == learnt[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(learnt[:-1]).strip() == row["answer"]
        shown = tokenizer.decode([token for token, flag in zip(sample.tokens, sample.learnt, strict=True) if not flag])
        assert shown == f"<s>[INST] {row['question']} [/INST]" or shown.strip() == f"<s>[INST] {row['question']} [/INST]"


def test_sequences_of_the_stated_length_are_filled_and_sixty_four_make_a_step_for_two_epochs(make):
    folder, _ = make(600)
    lengths = [len(sample.tokens) for sample in prepared_of(folder).samples]
    steps = plan_steps(lengths, folder.read_config())
    sequences = [sequence for step in steps for sequence in step.sequences]
    filled = [sum(lengths[row] for row in sequence) for sequence in sequences]
    assert max(filled) <= LENGTH
    assert sum(filled) / len(filled) > 0.97 * LENGTH
    assert [len(step.sequences) for step in steps[: len(steps) // 2 - 1]] == [BATCH] * (len(steps) // 2 - 1)
    assert sorted(row for sequence in sequences for row in sequence) == sorted([*range(600)] * 2)
    assert steps[-1].epoch == 2 and len(steps) >= 4


def test_the_numbers_of_the_paper_reach_the_optimiser(make, monkeypatch):
    folder, _ = make(12)
    run = Run(folder, Group())
    assert isinstance(run.optimizer, torch.optim.AdamW)
    rates, clips = [], []
    step, clip = run.optimizer.step, run.group.clip

    def watched_step() -> None:
        rates.append([group["lr"] for group in run.optimizer.param_groups])
        step()

    def watched_clip(parameters, limit: float) -> float:
        clips.append(limit)
        return clip(parameters, limit)

    monkeypatch.setattr(run.optimizer, "step", watched_step)
    monkeypatch.setattr(run.group, "clip", watched_clip)
    run()
    decayed, plain = run.optimizer.param_groups
    assert (decayed["betas"], decayed["eps"], decayed["weight_decay"]) == ((0.9, 0.95), 1e-5, 0.1)
    assert (plain["betas"], plain["eps"], plain["weight_decay"]) == ((0.9, 0.95), 1e-5, 0.0)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert sum(len(group["params"]) for group in run.optimizer.param_groups) == len(list(run.trainee.model.parameters()))
    assert clips == [1.0] * len(run.steps) and len(run.steps) == 2  # one step holds all rows of an epoch
    assert rates == [[pytest.approx(2e-5)] * 2, [pytest.approx(2e-5 * 0.55)] * 2]


def test_the_rate_falls_as_a_cosine_to_a_tenth(make):
    folder, _ = make(1)
    config = folder.read_config()
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert (
        rates[0] == pytest.approx(2e-5) and rates[500] == pytest.approx(1.1e-5) and rates[-1] == pytest.approx(2e-6, rel=1e-3)
    )
    assert rates == sorted(rates, reverse=True)


def test_pairs_in_one_sequence_do_not_see_each_other(make):
    folder, _ = make(12)
    run = Run(folder, Group())
    assert isinstance(run.train, Imitation)
    sequence = max((sequence for step in run.steps for sequence in step.sequences), key=len)
    assert len(sequence) > 1
    with torch.no_grad():
        alone = sum(float(run.train.loss_sum([row])[0]) for row in sequence)
        together = float(run.train.loss_sum(list(sequence))[0])
    assert together == pytest.approx(alone, rel=1e-5)
