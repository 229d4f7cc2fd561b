"""Recipes: YAML files with the settings that make a known training run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modules.errors import NotFound, UserError
from modules.library.entries import named, read_text
from modules.library.paths import path_inside
from modules.settings.yaml_text import parse_yaml
from modules.training.config import TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """about: one sentence for people; values: the fields that it sets."""

    name: str
    about: str
    values: dict[str, Any]


def list_recipes(folder: Path) -> list[str]:
    """Names of the recipes, in alphabetical order."""
    return [path.stem for path in named(folder, ".yaml")]


def read_recipe(folder: Path, name: str) -> Recipe:
    """One recipe, checked against the settings. Raises NotFound, UserError."""
    path = path_inside(folder, name, ".yaml", "recipe")
    if not os.path.lexists(path):
        raise NotFound(f"There is no recipe called {name}. There are: {', '.join(list_recipes(folder))}.", param="recipe")
    try:
        values = parse_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path.name} must hold lines of the form name: value.")
    about = str(values.pop("about", ""))
    TrainingConfig.read(values)
    return Recipe(name, about, values)
