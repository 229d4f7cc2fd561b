"""Which files of a folder are its weights: one choice, for what is listed and for what is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modules.errors import UserError
from modules.library.json_files import read_json

INDEXES = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}
SINGLE = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_NOT_WEIGHTS = re.compile(
    r"^(training_args|optimizer|scheduler|rng_state.*|scaler|random_states.*)\.|^adapter_model\.|^consolidated.*\.safetensors$",
    re.IGNORECASE,
)
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)$")

Files = Mapping[str, Path]


@dataclass(frozen=True)
class Candidate:
    """A set of files that may be the weights. problem: why it is not whole, by the names of files alone.

    names: of weights that must be among them, because a whole set beside them has those.
    """

    files: list[Path]
    problem: str | None = None
    names: frozenset[str] = frozenset()


def weight_files(name: str, files: Files, problem_of: Callable[[Candidate], str | None]) -> list[Path]:
    """The first whole set, in the order in which transformers looks for them. Raises UserError with what is wrong with the first.

    problem_of: why a set is not the whole model, by its headers; None where nothing is known to be wrong.
    Safetensors come before the pickled forms. An index whose files are not there is passed over where a whole set lies beside it.
    """
    first: str | None = None
    for candidate in _candidates(name, files):
        problem = candidate.problem or problem_of(candidate)
        if problem is None:
            return candidate.files
        first = first or problem
    raise UserError(
        first or f"{name} has a config.json but no weights. Download it again, or copy the weights into the folder."
    )


def unnamed_shard(files: Files, chosen: Sequence[Path]) -> tuple[str, str] | None:
    """(index, file) for the first file of the chosen set's own numbering that its index leaves out; None where there is none."""
    named = {file.name for file in chosen}
    for file in chosen:
        if (part := _SHARD.match(file.name)) and (index := INDEXES.get(file.suffix, "")) in files:
            left = sorted(key for key in _numbered(part["stem"], int(part["total"]), part["suffix"]) if key not in named)
            if left:
                return index, left[0]
    return None


def _candidates(name: str, files: Files) -> Iterator[Candidate]:
    for suffix in _SUFFIXES:
        there = {key: file for key, file in files.items() if key.endswith(suffix) and not _NOT_WEIGHTS.search(key)}
        single, index = SINGLE.get(suffix, ""), INDEXES.get(suffix, "")
        of_index = _of_index(name, files[index], files) if index in files else None
        if single in there:
            yield Candidate([there[single]], names=of_index.names if of_index else frozenset())
        if of_index is not None:
            yield replace(of_index, names=frozenset())  # what an index names too much, nobody may need
        if of_index is None or of_index.problem:
            yield from _without_index(name, {key: file for key, file in there.items() if key != single})
    # A file of Mistral's own form is no weights of transformers', but all that there is.
    yield from (Candidate([file]) for key, file in files.items() if re.match(r"^consolidated.*\.safetensors$", key))


def _of_index(name: str, index: Path, files: Files) -> Candidate:
    try:
        named = read_json(index).get("weight_map")
    except UserError as error:
        return Candidate([], error.message)
    if not isinstance(named, dict) or not named:
        return Candidate([], f"{index.name} in {name} names no weights (weight_map). Download it again, or delete it.")
    wanted = sorted(set(map(str, named.values())))
    missing = [shard for shard in wanted if shard not in files]
    if missing:
        first = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
        verb = "are" if len(missing) > 1 else "is"
        return Candidate(
            [],
            f"{name} is not whole: {first} of the {len(wanted)} files that {index.name} names {verb} missing. Download it again.",
        )
    return Candidate([files[shard] for shard in wanted], names=frozenset(map(str, named)))


def _without_index(name: str, there: Files) -> Iterator[Candidate]:
    """Numbered sets, then a file by any other name; several of those are one model only where none repeats another."""
    sets: dict[tuple[str, int, str], list[str]] = {}
    others: list[Path] = []
    for key, file in there.items():
        if part := _SHARD.match(key):
            sets.setdefault((part["stem"], int(part["total"]), part["suffix"]), []).append(key)
        else:
            others.append(file)
    for kind, found in sets.items():
        missing = [key for key in _numbered(*kind) if key not in there]
        if missing:
            yield Candidate([], f"{name} is not whole: {missing[0]} is missing. Download it again.")
        else:
            yield Candidate([there[key] for key in sorted(found)])
    if len(others) > 1:
        names = ", ".join(file.name for file in others)
        yield Candidate([], f"{name} has several files with weights: {names}. Keep the one that you want.")
    elif others:
        yield Candidate(others)


def _numbered(stem: str, total: int, suffix: str) -> list[str]:
    return [f"{stem}-{number:05}-of-{total:05}{suffix}" for number in range(1, total + 1)]
