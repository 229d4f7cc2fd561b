"""What prompts may take from running replies, by a simulated clock."""

from __future__ import annotations

import pytest

from modules.generation.local.prefill_budget import LEAST, PrefillBudget


def read_beside(
    budget: PrefillBudget, step: float, per_token: float, tokens: int, growth: float = 0.0
) -> list[tuple[float, int]]:
    """(seconds, prompt tokens) of each step until a prompt is read beside a running reply."""
    steps, read = [], 0
    while read < tokens:
        count = min(budget.tokens(decoding=True), tokens - read)
        seconds = step + count * per_token * (1 + growth * read / tokens)
        budget.note(seconds, count, decoding=True)
        steps.append((seconds, count))
        read += count
        assert len(steps) < 10 * tokens
    return steps


@pytest.mark.parametrize(
    ("step", "per_token"), [(0.05, 0.005), (0.05, 0.02), (0.02, 0.00005), (0.003, 0.004)], ids=["small", "slow", "gpu", "tiny"]
)
@pytest.mark.parametrize("growth", [0.0, 2.0])
def test_a_long_prompt_leaves_running_replies_more_than_half_of_their_speed(step, per_token, growth):
    budget = PrefillBudget(512, 256)
    for _ in range(20):
        budget.note(step, 0, decoding=True)
    read_beside(budget, step, per_token, 256)  # what a prompt token costs is not known before the first one
    steps = read_beside(budget, step, per_token, 4000, growth)
    speed = len(steps) * step / sum(seconds for seconds, _ in steps)
    assert speed > 0.55
    assert all(count == 0 or LEAST <= count <= 512 for _, count in steps[:-1])
    if step / per_token < 1000:
        assert speed < 0.75, "and the prompt gets its part"


def test_a_prompt_that_arrives_is_read_from_the_next_step_on_however_long_the_others_have_run():
    budget = PrefillBudget(512, 256)
    for _ in range(20):
        budget.note(0.05, 0, decoding=True)
    read_beside(budget, 0.05, 0.005, 500)
    for _ in range(1000):
        budget.note(0.05, 0, decoding=True)
    assert LEAST <= budget.tokens(decoding=True) <= 2 * LEAST


def test_prompts_have_steps_of_a_tenth_of_a_second_where_nobody_is_disturbed():
    budget = PrefillBudget(512, 256)
    assert budget.tokens(decoding=False) == 256
    budget.note(0.5, 256, decoding=False)
    assert budget.tokens(decoding=False) == 51
    budget.note(0.0001, 256, decoding=False)
    assert budget.tokens(decoding=False) <= 512
