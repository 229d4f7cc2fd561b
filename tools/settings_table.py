"""Write docs/settings.md and docs/training-settings.md from the settings classes: `python -m tools.settings_table`."""

from __future__ import annotations

from pathlib import Path

from modules.generation.sampling import SamplingParams
from modules.loaders.options import LoadOptions
from modules.settings.page import PageSettings
from modules.settings.server import ServerOptions
from modules.settings.tables import settings_page
from modules.training.config import TrainingConfig

TRAINING_HEADER = """# Settings of a training run

Made by `python -m tools.settings_table`; a test fails when it is out of date.

Each is a control of the Training tab, a key of `training/recipes/NAME.yaml`, and a line of a run's `config.yaml`.
"""
PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
TRAINING_PAGE = PAGE.with_name("training-settings.md")


def current() -> str:
    return settings_page(
        [
            ("Server", ServerOptions),
            ("Page", PageSettings),
            ("Loading a model", LoadOptions),
            ("Sampling", SamplingParams),
        ]
    )


def training() -> str:
    return settings_page([("Training", TrainingConfig)], TRAINING_HEADER, flags=False)


if __name__ == "__main__":
    PAGE.write_text(current(), encoding="utf-8")
    TRAINING_PAGE.write_text(training(), encoding="utf-8")
