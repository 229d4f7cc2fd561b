"""What a training run can be told: declared once, for the form, the recipes and the file that every run keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import field_validator

from modules.errors import UserError
from modules.library.paths import write_text
from modules.settings.declare import Settings, setting
from modules.settings.yaml_text import parse_yaml

Method = Literal["lora", "qlora", "lora-8bit", "gptq-lora", "full"]
Optimizer = Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "paged-adamw", "adafactor", "sgd", "rmsprop", "adagrad"]
Scheduler = Literal["linear", "cosine", "cosine-restarts", "polynomial", "constant", "constant-with-warmup", "inverse-sqrt"]
Objective = Literal["sft", "dpo"]
Sharding = Literal["none", "fsdp", "fsdp-gradients"]
Init = Literal[
    "default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "mica", "eva", "corda", "lora_ga", "loftq"
]  # fmt: skip
CHANGE_THE_BASE = frozenset({"pissa", "pissa_niter_16", "olora", "corda", "lora_ga"})
"""Beginnings that take something out of the base and put it into the adapter."""
ASK_THE_DATA = frozenset({"eva", "corda", "lora_ga"})
"""Beginnings that run rows of the data through the base first."""


class TrainingConfig(Settings):
    """Everything that decides a run. Two runs with equal configs, data and hardware give equal losses."""

    # --- what to train
    name: str = setting("", group="Run")
    """Name of the run and of the adapter it makes; empty takes the data set's name."""
    model: str = setting("", group="Run")
    """The base model: a folder of the models folder."""
    overwrite: bool = setting(False, group="Run")
    """Replace an adapter of the same name when the run ends."""
    seed: int = setting(42, min=0, max=2**31 - 1, group="Run")
    """Decides the order of the data and every other random choice."""

    # --- method
    method: Method = setting("lora", group="Method")
    """LoRA trains small matrices beside the weights; qlora and lora-8bit hold the base in 4 or 8 bits; gptq-lora takes a GPTQ model; full trains every weight."""
    rank: int = setting(16, min=1, max=4096, step=1, slider_max=256, group="Method")
    """Size of the matrices: more learns more, and takes more memory."""
    alpha: float = setting(32.0, min=0.01, max=8192, group="Method")
    """Strength of the adapter; it is divided by the rank (by its square root with rsLoRA)."""
    dropout: float = setting(0.0, min=0, max=0.99, step=0.01, slider_max=0.5, group="Method")
    """Share of the adapter's inputs that is left out at random; helps small data sets a little, and costs speed."""
    target_modules: str = setting("all-linear", group="Method")
    """Where the adapter sits: "attention", "all-linear", or names of layers with commas (q_proj, v_proj)."""
    rslora: bool = setting(False, group="Method")
    """Divide alpha by the square root of the rank, which keeps high ranks stable."""
    dora: bool = setting(False, group="Method")
    """Learn direction and size of the weights separately: often a little better, and slower."""
    init: Init = setting("default", group="Method")
    """How the adapter begins, by PEFT's names; eva, corda and lora_ga look at the data first. All begin without effect, but for loftq: with qlora it begins by making good what 4 bits lost."""
    continue_from: str = setting("", group="Method")
    """An adapter to train further; its rank and layers are kept."""

    objective: Objective = setting("sft", group="Method")
    """What is aimed at: sft writes answers as the data has them; dpo prefers the chosen answers to the rejected ones (Rafailov et al. 2023)."""
    dpo_beta: float = setting(0.1, min=0.001, max=10, group="Method")
    """For dpo: how strongly the model is kept near what it was; lower moves further away."""

    # --- data
    dataset: str = setting("", group="Data")
    """A file or folder of training/datasets, or hub:ORGANISATION/NAME for one of the Hugging Face Hub."""
    format: str = setting("auto", group="Data")
    """How a row becomes a conversation: a file of training/formats; auto looks at the columns."""
    template: str = setting("auto", group="Data")
    """The words around the turns: model (its own chat template), format (those of the format), a named template, or auto."""
    loss: Literal["answers", "all", "after"] = setting("answers", group="Data")
    """What is learnt: the answers of every turn, everything, or what comes after a marker."""
    loss_after: str = setting("", group="Data")
    """The marker for loss "after": text from its first occurrence on is learnt."""
    cutoff: int = setting(2048, min=8, max=1_000_000, step=64, group="Data")
    """The most tokens of a row."""
    long_rows: Literal["cut", "skip"] = setting("cut", group="Data")
    """What happens to longer rows: they lose their end, or are left out. Both are counted."""
    add_eos: bool = setting(True, group="Data")
    """Let the end-of-text token be learnt behind answers that the template does not end, so that the model learns to stop."""
    packing: bool = setting(False, group="Data")
    """Fill each sequence up to the cutoff with several rows, which do not see each other; batch then counts such sequences."""
    eval_share: float = setting(0.0, min=0, max=0.9, step=0.01, slider_max=0.3, group="Data")
    """Share of the rows that is held out to measure what was learnt; 0 holds out none."""
    eval_dataset: str = setting("", group="Data")
    """A file of its own for that, in the same format."""

    # --- raw text
    overlap: int = setting(128, min=0, max=100_000, step=16, group="Raw text")
    """Tokens that a piece of text shares with the one before."""
    newline_favor: int = setting(128, min=0, max=100_000, step=16, group="Raw text")
    """End a piece at a line break where one is within so many characters of its end; 0 cuts anywhere."""
    hard_cut: str = setting("\\n\\n\\n", group="Raw text")
    """Text that separates documents: no piece reaches over it. \\n is a line break."""
    min_chars: int = setting(0, min=0, max=1_000_000, step=8, group="Raw text")
    """Leave out documents shorter than this many characters; they are counted."""

    # --- steps
    batch: int = setting(16, min=1, max=65_536, step=1, group="Steps")
    """Rows of one step, over all processes."""
    micro_batch: str = setting("auto", group="Steps")
    """Rows computed at once: more is faster on a GPU and takes memory; auto takes what fits. The result is the same."""
    epochs: float = setting(3.0, min=0.01, max=10_000, group="Steps")
    """How often the data is gone through."""
    max_steps: int = setting(0, min=0, max=10**9, step=10, group="Steps")
    """End after this many steps, whatever the epochs; 0 sets no limit."""

    # --- optimiser
    optimizer: Optimizer = setting("adamw", group="Optimiser")
    """What turns gradients into changes; 8-bit and paged ones save GPU memory."""
    learning_rate: float = setting(2e-4, min=0, max=10, group="Optimiser")
    """Size of the changes: about 2e-4 for LoRA, 2e-5 for full training."""
    scheduler: Scheduler = setting("cosine", group="Optimiser")
    """How the learning rate falls."""
    min_learning_rate: float = setting(0.0, min=0, max=1, step=0.01, group="Optimiser")
    """Share of the learning rate that is left at the end."""
    warmup: float = setting(0.03, min=0, max=1_000_000, group="Optimiser")
    """Steps until the full learning rate is reached; below 1 it is a share of all steps."""
    weight_decay: float = setting(0.0, min=0, max=10, step=0.01, slider_max=0.5, group="Optimiser")
    """How fast unused weights shrink."""
    beta1: float = setting(0.9, min=0, max=0.9999, step=0.01, group="Optimiser")
    """How long the optimiser remembers the direction."""
    beta2: float = setting(0.999, min=0, max=0.99999, group="Optimiser")
    """How long the optimiser remembers the size."""
    epsilon: float = setting(1e-8, min=1e-16, max=1, group="Optimiser")
    """Keeps the optimiser from dividing by nothing."""
    clip: float = setting(1.0, min=0, max=1_000_000, group="Optimiser")
    """The largest length of the gradient; 0 sets no limit."""

    # --- speed and memory
    dtype: Literal["auto", "bfloat16", "float32", "mixed"] = setting("auto", group="Speed and memory")
    """Number format of the base model; mixed keeps float32 weights and computes in bfloat16; auto measures what is fast here."""
    gradient_checkpointing: bool = setting(False, group="Speed and memory")
    """Compute inner results again instead of keeping them: about a quarter slower, much less memory."""
    kernels: Literal["auto", "off"] = setting("auto", group="Speed and memory")
    """Use Liger kernels and flash attention on CUDA where they are installed."""
    threads: int = setting(0, min=0, max=1024, step=1, slider_max=64, group="Speed and memory")
    """Processor threads of each process; 0 shares the cores between them."""

    # --- watching
    eval_every: int = setting(0, min=0, max=10**9, step=10, group="Watching")
    """Measure the held-out rows every so many steps; 0 does it once for each epoch."""
    early_stop: int = setting(0, min=0, max=10_000, step=1, group="Watching")
    """End after so many measurements without a better one; 0 goes on."""
    stop_at_loss: float = setting(0.0, min=0, max=100, step=0.05, slider_max=5, group="Watching")
    """End when the smoothed loss falls below this; 0 goes on."""
    save_every: int = setting(0, min=0, max=10**9, step=10, group="Watching")
    """Write a checkpoint every so many steps; 0 does it once for each epoch."""
    keep_checkpoints: int = setting(2, min=1, max=10_000, step=1, group="Watching")
    """How many of the newest checkpoints stay; the best one stays too."""
    keep_best: bool = setting(False, group="Watching")
    """Hand over the adapter of the best measurement instead of the last one."""
    sample_prompts: str = setting("", group="Watching", lines=3)
    """Questions, one on each line, that are answered while training, beside the base model's answers."""
    sample_every: int = setting(0, min=0, max=10**9, step=10, group="Watching")
    """Answer them every so many steps; 0 does it at the end alone."""
    sample_tokens: int = setting(60, min=1, max=4096, step=1, slider_max=500, group="Watching")
    """The most tokens of such an answer."""

    # --- more than one GPU or machine
    processes: int = setting(1, min=1, max=4096, step=1, group="Several GPUs")
    """Processes on each machine: one for each GPU."""
    machines: int = setting(1, min=1, max=4096, step=1, group="Several GPUs")
    """Machines that train together; the job shows the command for each."""
    main_address: str = setting("127.0.0.1", group="Several GPUs")
    """Address of the first machine."""
    main_port: int = setting(0, min=0, max=65_535, group="Several GPUs")
    """Its port; 0 takes a free one, where there is one machine."""
    sharding: Sharding = setting("none", group="Several GPUs")
    """Split over the processes by FSDP: weights, gradients and optimiser (as ZeRO 3), or all but the weights (as ZeRO 2); none keeps a copy in each."""

    @field_validator("micro_batch", mode="before")
    @classmethod
    def _rows_or_auto(cls, value: Any) -> str:
        word = str(value).strip().lower()
        if word != "auto" and not (word.isascii() and word.isdigit() and int(word) > 0):
            raise ValueError("must be auto or a number from 1")
        return word

    @property
    def micro_rows(self) -> int | None:
        """Rows computed at once, None where that is found automatically."""
        return None if self.micro_batch == "auto" else int(self.micro_batch)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The questions of sample_prompts."""
        return tuple(line.strip() for line in self.sample_prompts.splitlines() if line.strip())


def read_config(path: Path) -> TrainingConfig:
    """The config in a YAML file. Raises UserError."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must hold lines of the form name: value.")
    return TrainingConfig.read(values)


def write_config(path: Path, config: TrainingConfig) -> None:
    """Write every field, so that a later change of a default does not change an old run."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
