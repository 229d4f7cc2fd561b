"""Checkpoints are whole or not there; events survive a crash in the middle of a line."""

from __future__ import annotations

import json

import pytest

from modules.training import checkpoints, events


def write(folder, step, text="weights"):
    with checkpoints.new_checkpoint(folder, step) as draft:
        (draft / "weights").write_text(text)


def steps(folder):
    return [one.step for one in checkpoints.list_checkpoints(folder)]


def test_a_failure_while_writing_leaves_nothing_and_the_earlier_one_intact(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(OSError), checkpoints.new_checkpoint(tmp_path, 2) as draft:
        (draft / "weights").write_text("half")
        raise OSError(28, "No space left on device")
    assert steps(tmp_path) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_checkpoint_that_lost_a_file_or_its_end_does_not_count(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / "step-000004" / checkpoints.COMPLETE).unlink()
    (tmp_path / "step-000003" / "weights").write_text("weig")
    assert steps(tmp_path) == [1, 2]
    (tmp_path / "step-000002" / "weights").unlink()
    assert steps(tmp_path) == [1]


def test_writing_the_same_step_again_replaces_it(tmp_path):
    write(tmp_path, 1, "old")
    write(tmp_path, 1, "newer")
    assert (tmp_path / "step-000001" / "weights").read_text() == "newer"
    assert steps(tmp_path) == [1]


def test_old_ones_are_deleted_and_the_best_is_kept(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / ".step-000005.part").mkdir()
    checkpoints.prune(tmp_path, keep=2, best=1)
    assert steps(tmp_path) == [1, 3, 4]
    assert not (tmp_path / ".step-000005.part").exists()


def step(number, loss=1.0):
    return events.Stepped(number, 0.0, loss, 0.0, 0.0, 1, 1.0, 0)


def started(number):
    return events.Started(number, 9, 1, "cpu", "float32", 1, 2)


def test_events_are_read_as_they_were_told(tmp_path):
    path = tmp_path / "events.jsonl"
    told = [started(0), step(1), events.Evaluated(1, 0.5, True), events.Sampled(1, "a", "b", "ü"), events.Done(1, "x", "end")]
    for event in told:
        events.append_event(path, event)
    assert events.read_events(path) == told


def test_a_line_that_a_crash_cut_short_harms_no_other(tmp_path):
    path = tmp_path / "events.jsonl"
    events.append_event(path, step(1))
    with path.open("a") as file:
        file.write(json.dumps({"event": "stepped"})[:9])
    events.append_event(path, step(2))
    assert events.read_events(path) == [step(1), step(2)]


def test_steps_that_a_resumed_run_does_anew_are_forgotten(tmp_path):
    path = tmp_path / "events.jsonl"
    for event in (started(0), step(1), step(2, 5.0), events.Failed("x"), started(1), step(2, 3.0)):
        events.append_event(path, event)
    kept = [event for event in events.read_events(path) if isinstance(event, events.Stepped)]
    assert kept == [step(1), step(2, 3.0)]
    assert not any(isinstance(event, events.Failed) for event in events.read_events(path))


def test_the_smoothed_loss_follows_without_the_pull_of_its_beginning():
    assert events.smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert events.smoothed([4.0, 2.0])[1] == pytest.approx((0.9 * 0.4 + 0.2) / 0.19)
