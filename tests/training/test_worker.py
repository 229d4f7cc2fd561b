"""The worker on a tiny Llama: what it learns, what it hands over, and what it says when something goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import SafetensorError

from modules.training import checkpoints, events
from modules.training.config import Init, TrainingConfig
from modules.training.folder import RunFolder
from modules.training.samples import Sample
from modules.training.worker import checkpointing
from modules.training.worker.__main__ import describe, main, train
from modules.training.worker.objective import Imitation

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

GOLDEN = [
    5.58686, 5.39938, 5.24894, 5.14114, 5.10225, 5.05272, 4.99516, 4.97248, 4.95786, 4.95268,
    4.93139, 4.90023, 4.95686, 4.93799, 4.93710, 4.90114, 4.93156, 4.94486, 4.91308, 4.92812,
]  # fmt: skip


def told(folder: RunFolder, kind: type) -> list:
    return [event for event in events.read_events(folder.events) if isinstance(event, kind)]


def losses(folder: RunFolder) -> list[float]:
    return [event.loss for event in told(folder, events.Stepped)]


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_twenty_steps_give_the_recorded_losses(make_run):
    folder = make_run("golden", max_steps=20)
    train(folder)
    assert losses(folder) == pytest.approx(GOLDEN, abs=1e-4)


def test_the_adapter_loads_in_plain_peft_and_changes_the_model(make_run, tiny_llama_folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make_run("plain", max_steps=8)
    train(folder)
    output = Path(told(folder, events.Done)[0].output)
    assert {path.name for path in output.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "training.yaml"}
    tokens = torch.arange(5, 50)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    with torch.no_grad():
        before = base(tokens).logits
        after = PeftModel.from_pretrained(base, str(output)).eval()(tokens).logits
    assert (after - before).abs().max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"micro_batch": "1"},
        {"micro_batch": "3"},
        {"gradient_checkpointing": True},
        {"target_modules": "all-linear", "gradient_checkpointing": True, "micro_batch": "4"},
    ],
    ids=str,
)
def test_how_much_is_computed_at_once_does_not_change_the_losses(make_run, settings):
    plain = make_run("plain", max_steps=4)
    other = make_run("other", max_steps=4, **settings)
    train(plain)
    train(other)
    assert losses(other) == pytest.approx(losses(plain), abs=2e-5)


def test_rows_in_one_line_do_not_see_each_other(make_run):
    """The loss of packed rows is the sum of what each has alone; and changing one row changes no other."""
    from modules.training.worker.distributed import Group
    from modules.training.worker.run import Run

    run = Run(make_run("alone"), Group())
    assert isinstance(run.train, Imitation)
    assert run.forward.flattens and run.forward.own_head
    rows = run.train.samples[:5]
    with torch.no_grad():
        alone = [float(run.forward.loss_sum([row])) for row in rows]
        together = float(run.forward.loss_sum(rows))
        other = Sample(tuple(reversed(rows[0].tokens)), rows[0].learnt, 1)
        changed = float(run.forward.loss_sum([other, *rows[1:]])) - float(run.forward.loss_sum([other]))
    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert changed == pytest.approx(sum(alone[1:]), rel=1e-5)


def test_the_loss_is_that_of_transformers_itself(make_run, tiny_llama_folder):
    from transformers import AutoModelForCausalLM

    from modules.training.worker.distributed import Group
    from modules.training.worker.run import Run

    run = Run(make_run("same"), Group())
    assert isinstance(run.train, Imitation)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    sample = run.train.samples[0]
    labels = torch.tensor([[token if learnt else -100 for token, learnt in zip(sample.tokens, sample.learnt, strict=True)]])
    with torch.no_grad():
        theirs = float(model(input_ids=torch.tensor([sample.tokens]), labels=labels).loss)
        ours = float(run.forward.loss_sum([sample])) / sample.labels
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_many_labels_are_computed_in_parts_with_the_same_gradient(make_run, monkeypatch):
    from modules.training.worker import forward
    from modules.training.worker.distributed import Group
    from modules.training.worker.run import Run

    run = Run(make_run("parts"), Group())
    assert isinstance(run.train, Imitation)
    rows = run.train.samples[:3]

    def gradients() -> list[torch.Tensor]:
        run.optimizer.zero_grad()
        run.forward.loss_sum(rows).backward()
        return [parameter.grad.clone() for parameter in run.trainee.trainable if parameter.grad is not None]

    whole = gradients()
    monkeypatch.setattr(forward, "_LOGITS_AT_ONCE", 260 * 7)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(whole, gradients(), strict=True))


def test_packed_sequences_train_too(make_run):
    folder = make_run("packed", packing=True, cutoff=300, batch=2, max_steps=3, loss="all")
    train(folder)
    assert losses(folder)[0] == pytest.approx(5.6, abs=0.3)


@pytest.mark.parametrize(
    "settings",
    [
        {"rslora": True}, {"dora": True}, {"init": "gaussian"}, {"init": "orthogonal"}, {"init": "olora"}, {"init": "pissa"},
        {"init": "pissa_niter_16"}, {"init": "mica"}, {"init": "eva"}, {"init": "corda"}, {"init": "lora_ga"},
        {"init": "eva", "method": "qlora"}, {"init": "loftq", "method": "qlora"}, {"method": "lora-8bit"},
        {"target_modules": "q_proj, v_proj", "dropout": 0.1}, {"optimizer": "adafactor"}, {"optimizer": "sgd"},
        {"optimizer": "paged-adamw"}, {"dtype": "bfloat16"}, {"dtype": "mixed"}, {"method": "qlora"}, {"method": "full", "learning_rate": 1e-3},
    ],
    ids=str,
)  # fmt: skip
def test_every_way_of_training_learns_and_can_be_resumed(make_run, settings):
    folder = make_run("way", max_steps=12, save_every=6, **settings)
    train(folder)
    undisturbed = losses(folder)
    assert len(undisturbed) == 12 and undisturbed[-1] < undisturbed[0]
    output = Path(told(folder, events.Done)[0].output)
    assert any(output.glob("*.safetensors"))
    for path in (checkpoints.list_checkpoints(folder.checkpoints)[-1].path / checkpoints.COMPLETE, folder.events):
        path.unlink()
    train(folder)
    tolerance = 1e-6 if settings.get("dtype") is None else 1e-2
    assert losses(folder) == pytest.approx(undisturbed[6:], abs=tolerance)


@pytest.mark.parametrize("init", [init for init in get_args(Init) if init != "loftq"])
def test_however_an_adapter_began_it_gives_the_same_logits_on_the_plain_base(make_run, tiny_llama_folder, init):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from modules.training.worker.distributed import Group
    from modules.training.worker.run import Run

    folder = make_run("converted", max_steps=6, init=init)
    run = Run(folder, Group())
    run()
    tokens = torch.arange(5, 50)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    with torch.no_grad():
        trained = run.trainee.model.eval()(tokens).logits
        loaded = PeftModel.from_pretrained(base, str(run.plan.output)).eval()(tokens).logits
    assert torch.allclose(trained, loaded, atol=1e-4)


@pytest.mark.parametrize("alpha", [4, 32])
def test_loftq_begins_nearer_to_the_full_weights_than_the_four_bits_alone(make_run, tiny_llama_folder, alpha):
    from transformers import AutoModelForCausalLM

    from modules.training.worker.distributed import Group
    from modules.training.worker.run import Run

    tokens = torch.arange(5, 50)[None]
    distance = {}
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)(tokens).logits
        for init in ("default", "loftq"):
            run = Run(make_run(init, method="qlora", init=init, rank=16, alpha=alpha), Group())
            distance[init] = float((run.trainee.model.eval()(tokens).logits - wanted).norm())
    assert distance["loftq"] < 0.8 * distance["default"]


def test_an_adapter_is_trained_further(make_run):
    first = make_run("first", max_steps=10)
    train(first)
    second = make_run("second", max_steps=2, continue_from="first")
    train(second)
    assert losses(second)[0] < losses(first)[4]


def test_measuring_keeps_the_best_and_stops_early(make_run, training_root):
    """Whoever learns to count forgets letters: the held-out loss falls a little at first, and then rises."""
    rows = [{"instruction": f"Spell {word}", "input": "", "output": " ".join(word * 6)} for word in ("qwerty", "asdfgh")]
    (training_root / "training" / "datasets" / "letters.json").write_text(json.dumps(rows))
    folder = make_run(
        "early", max_steps=60, learning_rate=3e-2, eval_dataset="letters.json", eval_every=2, early_stop=3,
        keep_best=True, keep_checkpoints=1, save_every=2,
    )  # fmt: skip
    train(folder)
    measured = told(folder, events.Evaluated)
    best = min(measured, key=lambda event: event.loss)
    assert measured[-1].step < 60 and len(measured) - measured.index(best) == 4
    done = told(folder, events.Done)[0]
    assert "3 measurements in a row" in done.reason and f"the best was step {best.step}" in done.reason
    kept = folder.checkpoints / f"step-{best.step:06d}" / "adapter_model.safetensors"
    from safetensors.torch import load_file

    handed, saved = load_file(Path(done.output) / "adapter_model.safetensors"), load_file(kept)
    assert all(torch.equal(handed[name], saved[name]) for name in saved)


def test_it_ends_at_the_wanted_loss(make_run):
    folder = make_run("loss", stop_at_loss=5.0)
    train(folder)
    assert "the smoothed loss fell to" in told(folder, events.Done)[0].reason
    assert 1 < len(losses(folder)) < 24


def test_sample_replies_stand_beside_the_bases_and_change_nothing(make_run):
    plain = make_run("plain", max_steps=6, dropout=0.1)
    asked = make_run(
        "asked", max_steps=6, dropout=0.1, sample_prompts="Count to 3\nCount to 5", sample_every=3, sample_tokens=8
    )
    train(plain)
    train(asked)
    samples = told(asked, events.Sampled)
    assert [(one.step, one.prompt) for one in samples] == [
        (3, "Count to 3"), (3, "Count to 5"), (6, "Count to 3"), (6, "Count to 5"),
    ]  # fmt: skip
    assert samples[0].base == samples[2].base
    assert losses(asked) == losses(plain)


def test_stop_saves_first_and_the_run_goes_on_where_it_was(make_run):
    whole = make_run("whole", max_steps=8)
    train(whole)
    folder = make_run("halted", max_steps=8)
    folder.stop_mark.touch()
    train(folder)
    assert told(folder, events.Stopped)[0].step == 1
    assert not folder.stop_mark.exists()
    train(folder)
    assert losses(folder) == losses(whole)


def test_tensorboard_files_hold_the_same_losses(make_run):
    from importlib import import_module

    event_pb2: Any = import_module("tensorboardX.proto.event_pb2")

    folder = make_run("board", max_steps=3)
    train(folder)
    data = next(folder.board.glob("events.out.tfevents.*")).read_bytes()
    found = {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            if value.tag == "train/loss":
                found[event.step] = value.simple_value
    assert [found[step] for step in (1, 2, 3)] == pytest.approx(losses(folder), abs=1e-6)


# --- when something goes wrong


def reason(folder: RunFolder) -> str:
    return told(folder, events.Failed)[-1].reason


def test_a_loss_that_is_no_number_fails_the_run_and_keeps_the_last_good_checkpoint(make_run):
    folder = make_run("nan", learning_rate=10.0, optimizer="sgd", scheduler="constant", warmup=0, clip=0.0, save_every=1,
                      method="full")  # fmt: skip
    assert main([str(folder.path)]) == 1
    assert "is not a number. Lower the learning rate" in reason(folder)
    assert checkpoints.list_checkpoints(folder.checkpoints)[-1].step == len(losses(folder))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, is Linux's")
@pytest.mark.parametrize("name", ["optimizer.pt", "progress.json"])
def test_a_full_disk_while_saving_fails_the_run_and_keeps_the_last_good_checkpoint(make_run, monkeypatch, name):
    folder = make_run("full", save_every=2, max_steps=6)
    save_weights = checkpointing.save_weights

    def save_beside_a_full_disk(trainee, draft, weights):
        save_weights(trainee, draft, weights)
        if "000004" in draft.name:
            (draft / name).symlink_to("/dev/full")

    monkeypatch.setattr(checkpointing, "save_weights", save_beside_a_full_disk)
    assert main([str(folder.path)]) == 1
    assert reason(folder).startswith("The disk is full")
    assert [one.step for one in checkpoints.list_checkpoints(folder.checkpoints)] == [2]
    assert not Path(folder.read_plan().output).exists()
    monkeypatch.setattr(checkpointing, "save_weights", save_weights)
    assert main([str(folder.path)]) == 0
    assert told(folder, events.Done)


def test_a_full_disk_is_known_by_the_words_of_safetensors_too():
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert describe(error).startswith("The disk is full")


def test_a_disk_that_is_known_to_be_too_small_is_told_before_anything_is_written(make_run, monkeypatch):
    import shutil

    folder = make_run("small", save_every=2, max_steps=6)
    usage = shutil.disk_usage(folder.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main([str(folder.path)]) == 1
    assert "Make room and resume the run" in reason(folder)


def test_resuming_falls_back_to_the_checkpoint_before_a_damaged_one(make_run):
    folder = make_run("damaged", save_every=4, max_steps=12)
    train(folder)
    whole = losses(folder)
    saved = checkpoints.list_checkpoints(folder.checkpoints)
    (saved[-1].path / "optimizer.pt").unlink()
    folder.events.unlink()
    train(folder)
    assert told(folder, events.Started)[0].step == saved[-2].step == 8
    assert losses(folder) == whole[8:]


def test_a_changed_data_set_does_not_change_a_run_that_goes_on(make_run, training_root):
    whole = make_run("whole", max_steps=6)
    train(whole)
    folder = make_run("changed", max_steps=6)
    folder.stop_mark.touch()
    train(folder)
    (training_root / "training" / "datasets" / "counting.json").write_text("[]")
    train(folder)
    assert losses(folder) == losses(whole)


def test_a_mistake_in_the_program_is_told_with_its_kind(make_run, monkeypatch):
    from modules.training.worker import run

    folder = make_run("bug", max_steps=2)
    monkeypatch.setattr(run, "make_optimizer", lambda *_: 1 / 0)
    assert main([str(folder.path)]) == 1
    assert reason(folder) == "ZeroDivisionError: division by zero"


def test_memory_that_does_not_suffice_halves_what_is_computed_at_once(make_run, monkeypatch):
    from modules.training.worker.forward import Forward

    plain = make_run("plain", max_steps=3)
    train(plain)
    folder = make_run("memory", max_steps=3, dropout=0.0)
    compute = Forward.loss_sum

    def with_little_memory(self, samples):
        if sum(len(sample.tokens) for sample in samples) > 150 and len(samples) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return compute(self, samples)

    monkeypatch.setattr(Forward, "loss_sum", with_little_memory)
    train(folder)
    assert "more does not fit" in told(folder, events.Noted)[0].text
    assert losses(folder) == pytest.approx(losses(plain), abs=1e-5)


def test_a_run_is_repeated_by_hand_with_the_same_losses_under_another_name(make_run, training_root):
    folder = make_run("once", max_steps=3)
    train(folder)
    (training_root / "training" / "datasets" / "counting.json").write_text("[]")
    assert main([str(folder.path), "--as", "twice"]) == 0
    again = RunFolder(folder.path.with_name("twice"))
    assert losses(again) == losses(folder)
    one, two = (Path(told(run, events.Done)[0].output) for run in (folder, again))
    assert (one.name, two.name) == ("once", "twice")
    assert (one / "adapter_model.safetensors").read_bytes() == (two / "adapter_model.safetensors").read_bytes()
    assert main([str(folder.path), "--as", "../x"]) == 1
    assert told(folder, events.Done) and not told(folder, events.Failed)


def test_a_recorded_config_is_complete(make_run):
    """A later change of a default does not change an old run: every field is written down."""
    folder = make_run("complete")
    assert set(folder.read_config().model_fields_set) == set(TrainingConfig.model_fields)


def test_a_lora_over_a_gptq_model_trains_as_over_the_weights_that_it_stands_for(make_run, training_root):
    from safetensors.torch import save_file

    from tests.loaders.gptq_folder import write_gptq
    from tests.tiny import write_tiny_llama

    models = training_root / "models"
    plain = write_tiny_llama(models / "exact", hidden=128)
    exact = write_gptq(plain, models / "packed")
    save_file({name: tensor.contiguous() for name, tensor in exact.items()}, plain / "model.safetensors", {"format": "pt"})
    settings = {"max_steps": 4, "target_modules": "q_proj, down_proj"}
    packed = make_run("packed", model="packed", method="gptq-lora", **settings)
    whole = make_run("whole", model="exact", **settings)
    train(packed)
    train(whole)
    assert losses(packed)[-1] < losses(packed)[0]
    assert losses(packed) == pytest.approx(losses(whole), abs=0.05)
