"""One run, from its folder to its result: the loop."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modules.errors import UserError
from modules.training import checkpoints, events, stored_data
from modules.training.config import TrainingConfig
from modules.training.dataset import choose_format, choose_template, prepare, split
from modules.training.folder import RunFolder
from modules.training.formats import KeySetFormat, TextFormat
from modules.training.plan import Step, learning_rate, micro_batches, plan_steps, share_out
from modules.training.rows import read_rows
from modules.training.samples import Sample, load_tokenizer
from modules.training.worker.checkpointing import NOT_WEIGHTS, Progress, restore, save_checkpoint
from modules.training.worker.distributed import Group
from modules.training.worker.dpo_reference import reference_of
from modules.training.worker.forward import Forward
from modules.training.worker.model import keep_beginning, load_trainee, save_result
from modules.training.worker.objective import Imitation, Objective, Preference
from modules.training.worker.optimizers import make_optimizer, only_plain, peak_memory
from modules.training.worker.sample_replies import Replies
from modules.training.worker.standstill import Standstill
from modules.training.worker.tensorboard import Board

_TOKENS_ON_CPU = 400  # a longer line is not faster there, and takes more memory


class Run:
    """Everything of one run in one process. Raises UserError for what people can mend."""

    def __init__(self, folder: RunFolder, group: Group) -> None:
        self.folder = folder
        self.group = group
        self.config = folder.read_config()
        self.plan = folder.read_plan()
        _set_threads(self.config, group)
        train, held_out, sentence = self._data()
        found = checkpoints.list_checkpoints(folder.checkpoints)
        newest = found[-1] if found else None
        adapter = Path(self.plan.adapter) if self.plan.adapter else None
        resume = newest.path if newest else None
        self.trainee = load_trainee(self.config, Path(self.plan.model), adapter, group.device, resume, train)
        if group.is_first:
            keep_beginning(self.trainee, self.config, folder.beginning)
        group.prepare(self.trainee.model)
        torch.manual_seed(self.config.seed + group.rank)
        named = [(name, one) for name, one in self.trainee.model.named_parameters() if one.requires_grad]
        self.optimizer = make_optimizer(self.config, named, group.device)
        self.progress = restore(newest, self.trainee, self.optimizer, group) if newest else Progress()
        self.forward = Forward(self.trainee, alone=not group.in_step)
        self.train, self.held_out = self._objectives(train, held_out)
        self.steps = plan_steps(self.train.lengths, self.config)
        self.tokens_at_once = None if group.device.type == "cuda" else _TOKENS_ON_CPU
        self.rows_at_once = self.config.micro_rows
        self.replies = self._make_replies()
        self.standstill = Standstill(self.config, self.trainee.dtype)
        self.board = Board(folder.board, self.progress.step) if group.is_first else None
        self._tell(self._started(sentence))
        if only_plain(self.config, group.device):
            self._tell(
                events.Noted(f"{self.config.optimizer} needs a GPU: plain AdamW, which computes the same, is used here.")
            )
        if not self.forward.flattens:
            self._tell(events.Noted("This model cannot compute several rows in one line: they are computed one by one."))

    def __call__(self) -> None:
        """Train to the end, or until somebody asks to stop."""
        reason = "all steps are done"
        if self.replies and self.progress.step == 0:
            self.replies.remember_base()
        while self.progress.step < len(self.steps):
            loss = self._step(self.steps[self.progress.step])
            self.progress.step += 1
            why = self._after_step(loss)
            if why == "stop":
                return
            if why:
                reason = why
                break
        if self.standstill.reason:
            reason = f"{reason}; nothing was learnt at the end, because {self.standstill.reason}"
        self._finish(reason)

    def close(self) -> None:
        """To be called at the end, whatever it is."""
        if self.board:
            self.board.close()

    # --- one step

    def _step(self, step: Step) -> float:
        started = time.perf_counter()
        units = [unit for sequence in step.sequences for unit in sequence]
        weight = sum(self.train.weight(unit) for unit in units)
        tokens = sum(self.train.lengths[unit] for unit in units)
        rate = learning_rate(self.config, self.progress.step, len(self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        own_loss, own_right = self._gradients(share_out(step.sequences, self.train.lengths, self.group.size), weight)
        parameters = self.trainee.trainable
        self.group.add_gradients(parameters)
        norm = self.group.clip(parameters, self.config.clip)
        loss, right = self.group.totals([own_loss, float(own_right)])
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise UserError(
                f"The loss of step {self.progress.step + 1} is not a number. Lower the learning rate (it is "
                f"{self.config.learning_rate:g}), or compute in float32."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        event = events.Stepped(
            step=self.progress.step + 1,
            epoch=round(step.epoch, 4),
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=tokens,
            seconds=time.perf_counter() - started,
            memory=peak_memory(self.group.device),
            preferred=self._share(right, len(units)),
        )
        self._tell(event)
        if self.board:
            self.board.step(event)
        if sentence := self.standstill.look(event.step, loss, rate, norm):
            self._tell(events.Noted(sentence))
        return loss

    def _share(self, right: float, units: int) -> float | None:
        """What of the pairs comes out as people want it; None where there are no pairs."""
        return round(right / units, 4) if self.config.objective == "dpo" else None

    def _gradients(self, shares: Sequence[Sequence[tuple[int, ...]]], whole: int) -> tuple[float, int]:
        """Add up the gradients of this process's share of a step of weight `whole`; its part of the loss and of what comes out right.

        Where the GPU's memory does not suffice, half as much is computed at once from then on, and the step begins anew.
        """
        random = torch.get_rng_state()
        while True:
            total, right = 0.0, 0
            parts = [
                micro_batches(one, self.train.lengths, rows=self.rows_at_once, tokens=self.tokens_at_once) for one in shares
            ]
            groups = parts[self.group.rank]
            # Who has less to do than others, where all must keep in step, computes a row that counts for nothing.
            idle = max(map(len, parts)) - len(groups) if self.group.in_step else 0
            work = [(indices, 1) for indices in groups] + [([0], 0)] * idle
            try:
                for number, (indices, weight) in enumerate(work, 1):
                    loss, well = self.train.loss_sum(indices)
                    loss = loss * (weight / whole)
                    self.group.backward(loss, last=number == len(work))
                    total += float(loss.detach())
                    right += well * weight
                return total, right
            except torch.cuda.OutOfMemoryError:
                largest = max(sum(self.train.lengths[index] for index in indices) for indices in groups)
                if self.config.micro_rows is not None or all(len(indices) == 1 for indices in groups):
                    raise UserError(
                        "The GPU's memory does not suffice. Turn gradient checkpointing on, lower the cutoff or the micro-batch, "
                        "or train with qlora."
                    ) from None
                self.tokens_at_once = largest // 2
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            torch.set_rng_state(random)
            self._tell(events.Noted(f"Up to {self.tokens_at_once} tokens are computed at once: more does not fit."))

    # --- between steps

    def _after_step(self, loss: float) -> str | None:
        """Measure, answer and save where it is due. Returns why the run ends here: "stop" where somebody asked for it."""
        config, progress = self.config, self.progress
        smoothed = progress.add_loss(loss)
        last = progress.step == len(self.steps)
        epoch_ends = last or int(self.steps[progress.step].epoch - 1e-9) > int(self.steps[progress.step - 1].epoch - 1e-9)
        reason = self._measure() if self.held_out and _due(config.eval_every, progress.step, epoch_ends or last) else None
        if self.replies and (last or (config.sample_every and progress.step % config.sample_every == 0)):
            self._answer()
        if config.stop_at_loss and smoothed < config.stop_at_loss:
            reason = f"the smoothed loss fell to {smoothed:.4f}"
        stop = bool(self.group.totals([float(self.group.is_first and self.folder.stop_mark.exists())])[0])
        best_is_new = config.keep_best and progress.best_step == progress.step
        if stop or reason or best_is_new or _due(config.save_every, progress.step, epoch_ends) or last:
            self._save()
        if stop and not last:
            self._tell(events.Stopped(progress.step))
            if self.group.is_first:
                self.folder.stop_mark.unlink(missing_ok=True)
            return "stop"
        return reason

    def _measure(self) -> str | None:
        """Loss on the held-out rows. Returns why the run should end, or None."""
        progress = self.progress
        loss, preferred = self._held_out_loss()
        better = progress.best_loss is None or loss < progress.best_loss
        progress.worse = 0 if better else progress.worse + 1
        if better:
            progress.best_loss, progress.best_step = loss, progress.step
        event = events.Evaluated(progress.step, loss, better, preferred)
        self._tell(event)
        if self.board:
            self.board.evaluated(event)
        if self.config.early_stop and progress.worse >= self.config.early_stop:
            return f"{progress.worse} measurements in a row brought nothing better than {progress.best_loss:.4f}"
        return None

    @torch.no_grad()
    def _held_out_loss(self) -> tuple[float, float | None]:
        """(mean loss, share of the pairs that come out right)."""
        part = self.held_out
        assert part is not None
        shares = share_out([(index,) for index in range(len(part.lengths))], part.lengths, self.group.size)
        mine = [unit for (unit,) in shares[self.group.rank]]
        parts = [micro_batches(one, part.lengths, rows=self.rows_at_once, tokens=self.tokens_at_once or 4096) for one in shares]
        groups = parts[self.group.rank]
        idle = max(map(len, parts)) - len(groups) if self.group.in_step else 0
        self.trainee.model.eval()
        found = [part.loss_sum(indices) for indices in groups]
        for _ in range(idle):
            part.loss_sum([0])
        self.trainee.model.train()
        own = [sum(float(loss) for loss, _ in found), float(sum(right for _, right in found))]
        weight = float(sum(part.weight(unit) for unit in mine))
        loss, right, whole, units = self.group.totals([*own, weight, float(len(mine))])
        return loss / whole, self._share(right, int(units))

    def _answer(self) -> None:
        assert self.replies is not None
        random = torch.get_rng_state()
        for prompt, reply, base in self.replies.now():
            self._tell(events.Sampled(self.progress.step, prompt, reply, base))
        torch.set_rng_state(random)

    def _save(self) -> None:
        path = save_checkpoint(self.folder.checkpoints, self.trainee, self.optimizer, self.progress, self.group)
        if path is not None:
            checkpoints.prune(self.folder.checkpoints, self.config.keep_checkpoints, self._best())
            self._tell(events.Saved(self.progress.step, path.name))

    def _best(self) -> int | None:
        return self.progress.best_step if self.config.keep_best else None

    def _finish(self, reason: str) -> None:
        """Hand over the result: everything or nothing of it, under its final name."""
        weights = self.group.weights(self.trainee.model)
        if self.group.is_first:
            output = Path(self.plan.output)
            best = self._best()
            if best is not None and best != self.progress.step:
                reason = f"{reason}; the best was step {best}"
            draft = output.with_name(f".{output.name}.part")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            try:
                if best is not None and best != self.progress.step:
                    self._copy_best(best, draft)
                else:
                    save_result(self.trainee, self.config, draft, self.folder.beginning, weights)
                shutil.copy(self.folder.config_file, draft / "training.yaml")
                if output.exists():
                    old = output.with_name(f".{output.name}.old")
                    shutil.rmtree(old, ignore_errors=True)
                    os.replace(output, old)
                    os.replace(draft, output)
                    shutil.rmtree(old, ignore_errors=True)
                else:
                    os.replace(draft, output)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            self._tell(events.Done(self.progress.step, str(output), reason))
        self.group.wait()

    def _copy_best(self, step: int, draft: Path) -> None:
        """The weights as they were then, told for the plain base where the adapter began by changing it."""
        path = self.folder.checkpoints / f"step-{step:06d}"
        if self.folder.beginning.exists():
            from peft import set_peft_model_state_dict
            from safetensors.torch import load_file

            set_peft_model_state_dict(self.trainee.model, load_file(path / "adapter_model.safetensors"))
            save_result(self.trainee, self.config, draft, self.folder.beginning)
            return
        for file in path.iterdir():
            if file.name not in NOT_WEIGHTS:
                shutil.copy(file, draft)

    # --- the beginning

    def _data(self) -> tuple[list[Sample], list[Sample], str]:
        """Rows ready to train on; prepared once, by the first process, and kept in the folder."""
        if self.group.is_first and not self.folder.data.exists():
            tokenizer = load_tokenizer(self.plan.model)
            train, held_out, sentence = prepare_parts(self.config, self.folder, tokenizer)
            stored_data.store(self.folder.data, train, held_out, sentence)
        self.group.wait()
        return stored_data.load(self.folder.data)

    def _objectives(self, train: list[Sample], held_out: list[Sample]) -> tuple[Objective, Objective | None]:
        """The loss over each part of the data."""
        if self.config.objective == "sft":
            return Imitation(self.forward, train), Imitation(self.forward, held_out) if held_out else None
        reference = reference_of(
            self.folder.reference, [*train, *held_out], self.forward, self.group, resumed=self.progress.step > 0
        )
        beta, size = self.config.dpo_beta, len(train)
        measured = Preference(self.forward, held_out, reference[size:], beta) if held_out else None
        return Preference(self.forward, train, reference[:size], beta), measured

    def _make_replies(self) -> Replies | None:
        if not (self.config.prompts and self.group.is_first):
            return None
        places = self.plan.places
        form = choose_format(self.config, places, read_rows(places.datasets, self.config.dataset, 50))[1]
        template = ""
        if not isinstance(form, TextFormat | KeySetFormat):
            name = Path(self.plan.model).name
            template = choose_template(self.config, places, self.trainee.tokenizer, name, form)[1]
        return Replies(self.trainee, template, self.config.prompts, self.config.sample_tokens)

    def _started(self, sentence: str) -> events.Started:
        return events.Started(
            step=self.progress.step,
            total_steps=len(self.steps),
            processes=self.group.size,
            device=str(self.group.device),
            dtype=self.trainee.dtype,
            trainable=sum(parameter.numel() for parameter in self.trainee.trainable),
            parameters=sum(parameter.numel() for parameter in self.trainee.model.parameters()),
            data=sentence,
        )

    def _tell(self, event: events.TrainingEvent) -> None:
        if self.group.is_first:
            events.append_event(self.folder.events, event)


def prepare_parts(config: TrainingConfig, folder: RunFolder, tokenizer: Any) -> tuple[list[Sample], list[Sample], str]:
    """(train, held out, a sentence about both). The held-out share is chosen by the seed, by rows and not by pieces."""
    plan = folder.read_plan()
    name = Path(plan.model).name
    data = prepare(config, plan.places, tokenizer, name)
    sentence = data.sentence
    if config.eval_dataset:
        measured = prepare(config, plan.places, tokenizer, name, name=config.eval_dataset)
        held = f"measured on {len(measured.samples)} of a file of its own"
        return list(data.samples), list(measured.samples), f"{sentence}; {held}"
    if not config.eval_share:
        return list(data.samples), [], sentence
    train, held_out = split(data.samples, config)
    held = f"{len(held_out)} of them held out"
    return train, held_out, f"{sentence}; {held}"


def _due(every: int, step: int, otherwise: bool) -> bool:
    return step % every == 0 if every else otherwise


def _set_threads(config: TrainingConfig, group: Group) -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.threads or max(1, cores // here))
