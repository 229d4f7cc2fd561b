"""Data of which an objective could learn nothing but rounding, and ends that nobody would learn: told before the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.errors import UserError
from modules.training import events, stored_data
from modules.training.checks import check_settings
from modules.training.config import TrainingConfig
from modules.training.dataset import Places, Prepared, prepare
from modules.training.jobs import TrainingJobs
from modules.training.samples import Sample, load_tokenizer, readable
from modules.training.worker.standstill import STEPS, Standstill
from tests.training.conftest import make_run, training_root  # noqa: F401  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
ROOT = Path(__file__).resolve().parent.parent.parent
INPUTS = Path(__file__).parent / "inputs" / "objectives"
SHARED = 70
"""A cutoff behind the words that answers of pairs.jsonl have in common, and before the last of them."""


@pytest.fixture(scope="module")
def bytewise(tiny_llama_folder: Path) -> Any:
    return load_tokenizer(tiny_llama_folder)


@pytest.fixture
def without_end(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """A model folder whose tokenizer names no end token and no template."""
    folder = tmp_path / "models" / "endless"
    shutil.copytree(tiny_llama_folder, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({key: value for key, value in values.items() if key != "eos_token"}))
    (folder / "chat_template.jinja").unlink()
    return folder


def prepared(name: str, tokenizer: Any, templates: Path = ROOT / "prompts" / "templates", **settings: Any) -> Prepared:
    places = Places(INPUTS, ROOT / "training" / "formats", templates)
    return prepare(TrainingConfig.read({"dataset": name, **settings}), places, tokenizer, "tiny")


def shown(tokenizer: Any, data: Prepared) -> list[str]:
    return ["".join(f"⟦{text}⟧" if learnt else text for text, learnt in readable(tokenizer, one)) for one in data.samples]


# --- samples that the cutoff makes the same


def test_pairs_that_the_cutoff_makes_equal_are_left_out_by_their_number(bytewise):
    data = prepared("pairs.jsonl", bytewise, objective="dpo", cutoff=SHARED)
    assert [(problem.row, problem.kind) for problem in data.problems if "same" in problem.kind] == [
        (1, "the same when cut"),
        (3, "the same when cut"),
    ]
    assert [sample.row for sample in data.samples] == [2, 2, 4, 4]
    assert "2 the same when cut" in data.sentence
    assert not prepared("pairs.jsonl", bytewise, objective="dpo").problems


def test_where_all_pairs_become_equal_the_run_is_refused_before_the_start(training_root):  # noqa: F811
    rows = [json.loads(line) for line in (INPUTS / "pairs.jsonl").read_text().splitlines()]
    (training_root / "training" / "datasets" / "equal.json").write_text(json.dumps([rows[0], rows[2]]))
    jobs = TrainingJobs(training_root)
    config = TrainingConfig(model="tiny-llama", dataset="equal.json", objective="dpo", cutoff=SHARED)
    with pytest.raises(UserError, match=r"2 the same when cut\. Row 1: .* of both answers\. Raise the cutoff, which is 70"):
        jobs.start(config)
    assert jobs.list() == []
    jobs.close()


def test_one_good_pair_among_equal_ones_is_learnt(training_root, bytewise):  # noqa: F811
    rows = [json.loads(line) for line in (INPUTS / "pairs.jsonl").read_text().splitlines()]
    places = Places(training_root / "training" / "datasets", ROOT / "training" / "formats", ROOT / "prompts" / "templates")
    (places.datasets / "d.json").write_text(json.dumps(rows[:3]))
    data = prepare(TrainingConfig(dataset="d.json", objective="dpo", cutoff=SHARED), places, bytewise, "tiny")
    assert [sample.row for sample in data.samples] == [2, 2]


def test_answers_that_a_template_makes_equal_are_left_out(bytewise, tmp_path):
    (tmp_path / "trims.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim | lower }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (tmp_path / "d.jsonl").write_text(
        '{"prompt": "a", "chosen": "Yes", "rejected": "yes"}\n{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    )
    config = TrainingConfig(dataset="d.jsonl", objective="dpo", template="trims")
    data = prepare(config, Places(tmp_path, ROOT / "training" / "formats", tmp_path), bytewise, "tiny")
    assert [(problem.row, problem.kind) for problem in data.problems] == [(1, "the same answers")]


def test_rows_that_the_cutoff_makes_the_same_are_learnt_once_and_rows_written_twice_as_often_as_written(bytewise):
    whole = prepared("one_system.jsonl", bytewise, loss="all")
    assert [sample.row for sample in whole.samples] == [1, 2, 3, 4] and not whole.problems
    length = len(whole.samples[0].tokens)
    data = prepared("one_system.jsonl", bytewise, loss="all", cutoff=length - 1)
    assert [sample.row for sample in data.samples] == [1, 2, 3, 4], "only the end token is lost"
    with pytest.raises(UserError, match=r"Nothing of the 4 rows can be learnt: 4 the same when cut.*Raise the cutoff"):
        prepared("one_system.jsonl", bytewise, loss="all", cutoff=80)


def test_one_row_of_those_that_became_the_same_stays_beside_another(bytewise, tmp_path):
    rows = (
        INPUTS / "one_system.jsonl"
    ).read_text() + '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'
    (tmp_path / "d.jsonl").write_text(rows)
    config = TrainingConfig(dataset="d.jsonl", loss="all", cutoff=80)
    data = prepare(config, Places(tmp_path, ROOT / "training" / "formats", ROOT / "prompts" / "templates"), bytewise, "tiny")
    assert [sample.row for sample in data.samples] == [1, 5]
    same = [problem for problem in data.problems if problem.kind == "the same when cut"]
    assert [(problem.row, problem.reason) for problem in same] == [
        (row, "its first 80 tokens stand in row 1 already") for row in (2, 3, 4)
    ]


# --- ends


def test_without_any_end_token_the_run_is_refused_with_the_setting(without_end):
    tokenizer = load_tokenizer(without_end)
    assert tokenizer.eos_token_id is None
    for loss in ("answers", "all"):
        with pytest.raises(UserError, match=r"no end token, and the template Guanaco puts nothing.*turn add_eos off") as caught:
            prepared("turns.jsonl", tokenizer, template="Guanaco", loss=loss)
        assert caught.value.param == "add_eos"
    assert shown(tokenizer, prepared("turns.jsonl", tokenizer, template="Guanaco", add_eos=False))[0].endswith("⟦ Third.⟧")
    assert shown(tokenizer, prepared("turns.jsonl", tokenizer, template="ChatML"))[0].endswith("⟦Third.<|im_end|>⟧")


def test_plain_text_and_whole_texts_without_any_end_token_are_refused_too(without_end, tmp_path):
    tokenizer = load_tokenizer(without_end)
    places = Places(tmp_path, ROOT / "training" / "formats", tmp_path)
    (tmp_path / "d.txt").write_text("Once upon a time.")
    (tmp_path / "d.json").write_text('[{"instruction": "a", "output": "b"}]')
    for values in ({"dataset": "d.txt"}, {"dataset": "d.json", "format": "alpaca-format"}):
        with pytest.raises(UserError, match="no end token") as caught:
            prepare(TrainingConfig.read(values), places, tokenizer, "tiny")
        assert caught.value.param == "add_eos"
        assert prepare(TrainingConfig.read({**values, "add_eos": False}), places, tokenizer, "tiny").samples


def test_the_end_is_learnt_after_each_answer_where_the_template_has_none(bytewise):
    [text] = shown(bytewise, prepared("turns.jsonl", bytewise, template="Guanaco"))
    assert text.endswith(
        "### Human: One?\n### Assistant:⟦ First.<|im_end|>⟧\n### Human: Two?\n### Assistant:⟦ Second.<|im_end|>⟧\n"
        "### Human: Three?\n### Assistant:⟦ Third.<|im_end|>⟧"
    )
    without = prepared("turns.jsonl", bytewise, template="Guanaco", add_eos=False).samples[0]
    assert bytewise.eos_token_id not in without.tokens and not without.unread
    cut = prepared("turns.jsonl", bytewise, template="Guanaco", cutoff=len(without.tokens) - 20).samples[0]
    assert len(cut.unread) == 2


def test_with_another_loss_it_is_told_that_earlier_ends_are_not_learnt(bytewise):
    words = "the template Guanaco ends no answers, and with the loss all the end is learnt behind the last one alone"
    assert words in prepared("turns.jsonl", bytewise, template="Guanaco", loss="all").sentence
    assert words not in prepared("turns.jsonl", bytewise, template="Guanaco").sentence
    assert words not in prepared("turns.jsonl", bytewise, template="ChatML", loss="all").sentence


def test_an_end_that_is_learnt_and_not_read_counts_as_in_a_conversation_that_ends_there(make_run, bytewise, tmp_path):  # noqa: F811
    """The loss of three turns is that of the first one, the first two, and all three, each learnt at its last answer alone."""
    from modules.training.worker.forward import Forward, flatten
    from modules.training.worker.model import load_trainee

    sample = prepared("turns.jsonl", bytewise, template="Guanaco").samples[0]
    assert stored_again(tmp_path / "data.npz", [sample, sample]) == [sample, sample]
    ends = [*sample.unread, len(sample.tokens) - 1]
    parts = []
    for before, end in zip([0, *ends], ends, strict=False):
        kept = [at for at in range(end + 1) if at == end or at not in sample.unread]
        parts.append(
            Sample(tuple(sample.tokens[at] for at in kept), tuple(sample.learnt[at] and at > before for at in kept), 1)
        )
    folder = make_run("ends")
    trainee = load_trainee(folder.read_config(), Path(folder.read_plan().model), None, torch.device("cpu"), None, [sample])
    forward = Forward(trainee)
    with torch.no_grad():
        apart = sum(float(forward.loss_sum([part])) for part in parts)
        assert float(forward.loss_sum([sample])) == pytest.approx(apart, rel=1e-5)
        assert float(forward.loss_sum([sample, sample])) == pytest.approx(2 * apart, rel=1e-5)
    read = flatten([sample], torch.device("cpu"))[0][0].tolist()
    assert read == [token for at, token in enumerate(sample.tokens[:-1]) if at not in sample.unread]


def stored_again(path: Path, samples: list[Sample]) -> list[Sample]:
    stored_data.store(path, samples, [], "")
    return stored_data.load(path)[0]


# --- a run that gets nowhere


@pytest.fixture
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_run_in_which_nothing_changes_says_so_and_why(make_run, keep_threads):  # noqa: F811
    from modules.training.worker.__main__ import train

    folder = make_run("still", learning_rate=1e-12, batch=64, epochs=STEPS, max_steps=STEPS, warmup=0, scheduler="constant")
    train(folder)
    told = events.read_events(folder.events)
    [note] = [event.text for event in told if isinstance(event, events.Noted)]
    assert note.startswith("Nothing is being learnt, because the loss changes by rounding alone")
    assert "Raise the learning rate, which is 1e-12" in note and note.endswith(f"(steps 1 to {STEPS}).")
    assert isinstance(told[-1], events.Done) and "nothing was learnt at the end, because" in told[-1].reason


def looked(losses: list[float], *, rate: float = 1e-4, norm: float = 1.0, dtype: str = "float32") -> list[str | None]:
    standstill = Standstill(TrainingConfig(learning_rate=rate), dtype)
    return [standstill.look(step, loss, rate, norm) for step, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("losses", "settings", "reason"),
    [
        ([1.0 + at for at in range(STEPS)], {"rate": 0.0}, "the learning rate is 0"),
        ([0.6931] * STEPS, {"norm": 1e-9}, "the gradient is 0"),
        ([1e-8] * STEPS, {"norm": 1e-9}, "the loss is 0"),
        ([0.6931 + at * 1e-8 for at in range(STEPS)], {}, "rounding alone"),
        ([0.6931 + at * 1e-6 for at in range(STEPS)], {"dtype": "bfloat16"}, "rounding alone"),
        ([0.6931 + at * 1e-6 for at in range(STEPS)], {}, None),
        ([0.6931] * (STEPS - 1), {}, None),
    ],
)
def test_why_nothing_is_learnt(losses, settings, reason):
    *before, last = looked(losses, **settings)
    assert not any(before)
    assert reason in last if reason else last is None


def test_it_is_told_once_and_steps_of_the_warm_up_say_nothing():
    assert len([told for told in looked([1.0] * 3 * STEPS) if told]) == 1
    standstill = Standstill(TrainingConfig(learning_rate=1e-4), "float32")
    assert not any(standstill.look(step, 1.0, 1e-6, 1.0) for step in range(3 * STEPS))


def test_a_learning_rate_of_zero_is_refused_before_the_start():
    with pytest.raises(UserError, match="Nothing would be learnt: the learning rate is 0") as caught:
        check_settings(TrainingConfig(learning_rate=0))
    assert caught.value.param == "learning_rate"
