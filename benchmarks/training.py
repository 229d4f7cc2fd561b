"""How fast a LoRA is trained: our worker, TRL's SFTTrainer (default, padding-free, packed) and transformers' Trainer.

`python -m benchmarks.training`: the same rows, each contestant in a process of its own, in turn; medians of several rounds.
Tokens are the real ones of the rows: no padding is counted. Time is that of the steps, without loading and preparing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
BATCH, LONGEST = 4, 400
WORDS = [
    "the",
    "sea",
    "lamp",
    "keeper",
    "wrote",
    "a",
    "small",
    "book",
    "about",
    "boats",
    "nets",
    "tide",
    "and",
    "wind",
    "while",
    "bread",
    "grew",
    "cold",
    "on",
    "stone",
]
TARGETS = ["q_proj", "v_proj"]


def make_rows(count: int) -> list[dict[str, str]]:
    """Rows of 50 to 400 tokens of the starter model; half of each is the answer."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    pick = random.Random(7)
    rows = []
    for _ in range(count):
        size = pick.randint(50, LONGEST)
        words = " ".join(pick.choice(WORDS) for _ in range(size))
        tokens = tokenizer(words)["input_ids"][: size - 1]
        half = len(tokens) // 2
        prompt = tokenizer.decode(tokens[:half])
        rows.append({"prompt": prompt, "completion": tokenizer.decode(tokens)[len(prompt) :]})
    return rows


def count_tokens(rows: list[dict[str, str]]) -> int:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    return sum(len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 for row in rows)


# --- contestants: each trains one epoch over the rows, and returns (seconds, losses)


def ours(folder: Path, threads: int) -> tuple[float, list[float]]:
    from modules.training import events
    from modules.training.config import TrainingConfig
    from modules.training.folder import Plan, RunFolder
    from modules.training.worker.distributed import Group
    from modules.training.worker.run import Run

    (folder / "formats").mkdir(exist_ok=True)
    (folder / "formats" / "plain.json").write_text(json.dumps({"prompt,completion": "%prompt%%completion%"}))
    config = TrainingConfig(
        model=MODEL.name, dataset="rows.json", format="plain", batch=BATCH, epochs=1, rank=8, alpha=16,
        target_modules=",".join(TARGETS), learning_rate=1e-4, scheduler="constant", warmup=0, dtype="float32", threads=threads,
    )  # fmt: skip
    run_folder = RunFolder(Path(tempfile.mkdtemp(dir=folder)) / "run")
    run_folder.create(config, Plan(str(MODEL), str(run_folder.path / "out"), str(folder), str(folder / "formats"), str(folder)))
    run = Run(run_folder, Group())
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    told = events.read_events(run_folder.events)
    return seconds, [event.loss for event in told if isinstance(event, events.Stepped)]


def _watch() -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        start = end = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.end = time.perf_counter()

    return Watch()


def _common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "theirs"), "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "learning_rate": 1e-4,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True,
        "lr_scheduler_type": "constant",
    }  # fmt: skip


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")


def _losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trl(folder: Path, threads: int, **settings: Any) -> tuple[float, list[float]]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    watch = _watch()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**_common(folder), **settings),
        train_dataset=Dataset.from_list(json.loads((folder / "rows.json").read_text())),
        peft_config=_lora(),
        callbacks=[watch],
    )
    trainer.train()
    return watch.end - watch.start, _losses(trainer)


def trainer(folder: Path, threads: int) -> tuple[float, list[float]]:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    rows = []
    for row in json.loads((folder / "rows.json").read_text()):
        prompt = tokenizer(row["prompt"])["input_ids"]
        tokens = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": tokens, "labels": [-100] * len(prompt) + tokens[len(prompt) :]})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), _lora())
    watch = _watch()
    trains = Trainer(
        model=model,
        args=TrainingArguments(**_common(folder)),
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[watch],
    )
    trains.train()
    return watch.end - watch.start, _losses(trains)


CONTESTANTS: dict[str, Any] = {
    "ours": ours,
    "TRL SFTTrainer, its defaults": trl,
    # Its default computes inner results again in the backward pass; these two are the fast TRL, so they keep them.
    "TRL, padding-free": lambda folder, threads: trl(
        folder, threads, padding_free=True, max_length=None, gradient_checkpointing=False
    ),
    "TRL, best-fit packing": lambda folder, threads: trl(
        folder, threads, packing=True, packing_strategy="bfd", gradient_checkpointing=False
    ),
    "transformers' Trainer": trainer,
}


def contest(name: str, folder: Path, threads: int) -> None:
    """Run one contestant in this process and print what it took, as JSON in the last line."""
    import resource

    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    seconds, losses = CONTESTANTS[name](folder, threads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "first_loss": losses[0], "last_loss": losses[-1]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=24, help="how many of the 200 rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of contestants, ours is always there")
    parser.add_argument("--contest", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contest:
        contest(options.contest, options.folder, options.threads)
        return
    names = [name for name in CONTESTANTS if name == "ours" or not options.only or name in options.only]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows(200)[: options.rows]
        (Path(folder) / "rows.json").write_text(json.dumps(rows))
        tokens = count_tokens(rows)
        for _ in range(options.rounds):
            for name in names:
                found[name].append(_in_a_process(name, folder, options.threads))
                print(f"{name}: {tokens / found[name][-1]['seconds']:.1f} tokens/s", file=sys.stderr, flush=True)
    print(f"{options.rows} rows, {tokens} tokens, batch {BATCH}, LoRA r=8 on q and v, float32, {options.threads} thread(s)\n")
    print("| tool | real tokens/s | ours ÷ it | peak memory | ours ÷ it | first loss |\n|---|---|---|---|---|---|")
    middle = {name: _medians(runs) for name, runs in found.items()}
    for name, one in middle.items():
        speed = middle["ours"]["seconds"]
        print(
            f"| {name} | {tokens / one['seconds']:.1f} | {one['seconds'] / speed:.2f} | {one['peak'] / 1e9:.2f} GB "
            f"| {middle['ours']['peak'] / one['peak']:.2f} | {one['first_loss']:.3f} |"
        )


def _in_a_process(name: str, folder: str, threads: int) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.training", "--contest", name, "--folder", folder, "--threads", str(threads)]
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


if __name__ == "__main__":
    main()
