"""Order, packing, sharing out, learning rates: pure functions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.errors import UserError
from modules.training.config import TrainingConfig, read_config, write_config
from modules.training.layers import choose_targets
from modules.training.plan import learning_rate, micro_batches, pack, plan_steps, share_out
from modules.training.recipes import list_recipes, read_recipe

ROOT = Path(__file__).resolve().parent.parent.parent
lengths = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(lengths, st.integers(1, 7), st.booleans())
def test_every_epoch_takes_every_row_once(sizes, batch, packing):
    steps = plan_steps(sizes, TrainingConfig(batch=batch, epochs=2, packing=packing, cutoff=100))
    rows = [index for step in steps for sequence in step.sequences for index in sequence]
    assert sorted(rows) == sorted([*range(len(sizes))] * 2)
    assert steps[-1].epoch == 2
    assert all(len(step.sequences) <= batch for step in steps)


@given(lengths)
def test_packed_sequences_are_never_longer_than_the_cutoff(sizes):
    packed = pack(range(len(sizes)), sizes, 100)
    assert all(sum(sizes[index] for index in sequence) <= 100 for sequence in packed)
    assert len(packed) <= 2 * sum(sizes) / 100 + 1


def test_the_order_is_the_same_for_the_same_seed_and_differs_between_epochs():
    config = TrainingConfig(batch=10, epochs=2)
    steps = plan_steps([1] * 10, config)
    assert steps == plan_steps([1] * 10, config)
    assert steps != plan_steps([1] * 10, config.changed({"seed": 7}))
    assert steps[0].sequences != steps[1].sequences


def test_max_steps_and_parts_of_an_epoch_end_the_plan():
    assert len(plan_steps([1] * 10, TrainingConfig(batch=2, epochs=9, max_steps=3))) == 3
    assert len(plan_steps([1] * 10, TrainingConfig(batch=2, epochs=1.5))) == 8


@given(lengths, st.integers(1, 4))
def test_processes_share_all_sequences_about_evenly(sizes, processes):
    sequences = [(index,) for index in range(len(sizes))]
    parts = share_out(sequences, sizes, processes)
    assert sorted(sequence for part in parts for sequence in part) == sequences
    loads = [sum(sizes[index] for (index,) in part) for part in parts]
    assert max(loads) - min(loads) <= max(sizes)


def test_micro_batches_keep_both_limits():
    sequences = [(0,), (1,), (2, 3), (4,)]
    assert micro_batches(sequences, [5, 5, 5, 5, 50], rows=2, tokens=None) == [[0, 1], [2, 3, 4]]
    assert micro_batches(sequences, [5, 5, 5, 5, 50], rows=None, tokens=10) == [[0, 1], [2, 3], [4]]
    assert micro_batches([], [], rows=2, tokens=None) == []


def rates(**settings) -> list[float]:
    config = TrainingConfig(learning_rate=1.0, **settings)
    return [round(learning_rate(config, step, 10), 4) for step in range(10)]


def test_the_rate_warms_up_and_falls_as_the_scheduler_says():
    assert rates(scheduler="constant", warmup=0) == [1.0] * 10
    assert rates(scheduler="linear", warmup=0) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates(scheduler="linear", warmup=5)[:6] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert rates(scheduler="constant-with-warmup", warmup=0.2)[:3] == [0.5, 1.0, 1.0]
    cosine = rates(scheduler="cosine", warmup=0, min_learning_rate=0.1)
    assert cosine[0] == 1.0 and cosine[5] == 0.55 and 0.1 < cosine[9] < 0.13


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "cosine-restarts", "polynomial", "inverse-sqrt", "constant"])
def test_every_scheduler_stays_between_nothing_and_the_full_rate(scheduler):
    assert all(0 <= rate <= 1 for rate in rates(scheduler=scheduler, warmup=2))


def test_llama_2s_recipe_is_what_the_paper_says():
    config = TrainingConfig.read(read_recipe(ROOT / "training" / "recipes", "llama-2-chat").values)
    assert (config.beta1, config.beta2, config.epsilon) == (0.9, 0.95, 1e-5)
    assert (config.learning_rate, config.min_learning_rate, config.scheduler) == (2e-5, 0.1, "cosine")
    assert (config.weight_decay, config.clip, config.batch, config.cutoff, config.epochs) == (0.1, 1.0, 64, 4096, 2)
    assert config.packing and config.loss == "answers" and config.method == "full"


def test_every_recipe_can_be_read_and_says_what_it_is():
    folder = ROOT / "training" / "recipes"
    assert {"fast", "llama-2-chat", "alpaca", "vicuna", "guanaco-qlora"} <= set(list_recipes(folder))
    assert all(read_recipe(folder, name).about for name in list_recipes(folder))


def test_a_config_is_read_as_it_was_written(tmp_path):
    config = TrainingConfig(name="中文", model="m", sample_prompts="a\nb", micro_batch="2", learning_rate=3e-4)
    write_config(tmp_path / "config.yaml", config)
    assert read_config(tmp_path / "config.yaml") == config
    assert config.prompts == ("a", "b") and config.micro_rows == 2 and TrainingConfig().micro_rows is None


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_micro_batch_is_a_number_or_auto(value):
    with pytest.raises(UserError, match="micro_batch: must be auto or a number"):
        TrainingConfig.read({"micro_batch": value})


LLAMA = [f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")]


def test_target_modules_are_found_by_what_they_are_for():
    linear = [*LLAMA, "lm_head", "model.embed_tokens"]
    assert choose_targets("attention", linear) == ["o_proj", "q_proj"]
    assert choose_targets("all-linear", linear) == ["o_proj", "q_proj", "up_proj"]
    assert choose_targets("q_proj, up_proj", linear) == ["q_proj", "up_proj"]
    assert choose_targets("attention", ["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"]) == ["c_attn"]
    with pytest.raises(UserError, match=r"no layer called q_prj\. Did you mean q_proj\?"):
        choose_targets("q_prj", linear)
