"""Which files of a repository a download takes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import StringConstraints

from modules.errors import NotFound, UserError
from modules.library.disk import size_text
from modules.library.hub import RepositoryFile
from modules.library.manifest import FILE
from modules.settings.declare import Settings

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
PICKLED = (".bin", ".pt", ".pth")
PREFERRED = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_1", "Q4_0", "IQ4_XS", "Q5_K_S", "Q6_K", "Q8_0")
_USELESS = re.compile(
    r"(^|/)(\.git.*|flax_model.*|tf_model.*|rust_model.*|optimizer.*|scheduler\.\w+|training_args\.bin|rng_state.*|events\.out.*)$"
    r"|\.(h5|msgpack|ot|onnx|onnx_data|tflite|mlmodel|png|jpe?g|gif|webp|svg|mp4|mp3|wav|zip|tar|gz)$"
    r"|^(onnx|openvino|coreml|original|runs|checkpoint-\d+|logs|\.cache)/",
    re.IGNORECASE,
)
_QUANT = re.compile(
    r"(?:^|[-._/])(?P<label>(?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))(?=[-._/]|$)",
    re.IGNORECASE,
)
_PART = re.compile(r"-\d{5}-of-\d{5}$")
Files = tuple[RepositoryFile, ...]


class Wanted(Settings):
    """Which files of a repository are wanted: the flags of download-model.py, and the fields of a request."""

    quant: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    """Of a GGUF repository: which quantisation, such as Q4_K_M; empty chooses one."""
    specific_file: str = ""
    """This file alone; * stands for anything."""
    exclude_pattern: str = ""
    """Files whose path fits this regular expression are left out."""
    text_only: bool = False
    """Only the small files: no weights."""


def choose_files(files: Iterable[RepositoryFile], wanted: Wanted) -> Files:
    """The files to download: no weights twice, nothing for other frameworks. Raises UserError, NotFound."""
    files = tuple(file for file in files if file.path.casefold() != FILE)
    if wanted.specific_file:
        return _specific(files, wanted.specific_file)
    useful = tuple(file for file in files if not _USELESS.search(file.path))
    if wanted.exclude_pattern:
        useful = tuple(file for file in useful if not _pattern(wanted.exclude_pattern).search(file.path))
    if wanted.text_only:
        return tuple(file for file in useful if not file.path.endswith(WEIGHTS))
    useful = _one_form(useful, wanted.quant)
    if not useful:
        raise NotFound("Nothing is left to download: there are no weights, or the pattern excludes them all.")
    return useful


def quantizations(files: Iterable[RepositoryFile]) -> dict[str, Files]:
    """The GGUF quantisations of a repository: label → its files (several where it is cut into parts)."""
    sets: dict[str, Files] = {}
    for file in files:
        if file.path.lower().endswith(".gguf") and not _is_projector(file):
            found = list(_QUANT.finditer(file.path.removesuffix(".gguf")))
            label = found[-1]["label"].upper() if found else _PART.sub("", file.path.rpartition("/")[2].removesuffix(".gguf"))
            sets[label] = (*sets.get(label, ()), file)
    return sets


def default_quantization(sets: dict[str, Files]) -> str:
    """Q4_K_M or the next best, else the smallest."""
    return next((label for label in PREFERRED if label in sets), min(sets, key=lambda label: total_size(sets[label])))


def total_size(files: Iterable[RepositoryFile]) -> int:
    """In bytes, of those whose size is known."""
    return sum(file.size or 0 for file in files)


def total_text(files: Iterable[RepositoryFile]) -> str:
    """For people: 3.2 GiB, or that the hub does not say."""
    files = tuple(files)
    return "of unknown size" if any(file.size is None for file in files) else size_text(total_size(files))


def outdated(before: Iterable[RepositoryFile], repository: Files, chosen: Files, wanted: Wanted) -> Files:
    """Of what earlier downloads put into a folder, the files that the repository has no longer and that `chosen` replaces.

    Weights are replaced by weights alone, and a quantisation by the same one.
    """
    if wanted.specific_file or wanted.text_only:
        return ()
    there = {file.path for file in repository}
    gone = tuple(file for file in before if file.path not in there)
    if wanted.exclude_pattern:
        gone = tuple(file for file in gone if not _pattern(wanted.exclude_pattern).search(file.path))
    labels = quantizations(chosen)
    same = {file.path for label, files in quantizations(gone).items() if label in labels for file in files}
    weights = not wanted.quant and any(file.path.endswith(WEIGHTS) for file in chosen)

    def is_replaced(file: RepositoryFile) -> bool:
        if file.path.lower().endswith(".gguf"):
            return bool(_projector(chosen)) if _is_projector(file) else file.path in same
        return weights or not file.path.endswith((*WEIGHTS, ".index.json"))

    return tuple(file for file in gone if is_replaced(file))


def _specific(files: Files, pattern: str) -> Files:
    found = tuple(file for file in files if fnmatchcase(file.path, pattern) or file.path.rpartition("/")[2] == pattern)
    if not found:
        names = ", ".join(file.path for file in files[:12]) + (" …" if len(files) > 12 else "")
        raise NotFound(f"The repository has no file {pattern}. It has: {names}", param="specific_file")
    return found


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{text!r} is not a regular expression: {error}.", param="exclude_pattern") from None


def _one_form(files: Files, quant: str) -> Files:
    """Safetensors rather than pickled files; of GGUF, one quantisation; the rest as it is."""
    others = tuple(file for file in files if not file.path.endswith(WEIGHTS))
    tensors = tuple(file for file in files if file.path.endswith(".safetensors"))
    sets = quantizations(files)
    if sets and (quant or not (tensors or any(file.path.endswith(PICKLED) for file in files))):
        return _one_quantization(sets, quant) + _projector(files) + others
    if quant:
        raise NotFound("The repository has no GGUF files, so there is no quantisation to choose.", param="quant")
    # Mistral's repositories hold the same weights once more in one file for their own program.
    if any(file.path.startswith("model") for file in tensors):
        tensors = tuple(file for file in tensors if not file.path.startswith("consolidated"))
    if tensors:
        return tensors + tuple(file for file in others if not file.path.endswith(".bin.index.json"))
    return tuple(file for file in files if file.path.endswith(PICKLED)) + others


def _one_quantization(sets: dict[str, Files], quant: str) -> Files:
    label = quant.upper() if quant else default_quantization(sets)
    if label not in sets:
        names = ", ".join(f"{name} ({total_text(files)})" for name, files in sets.items())
        raise NotFound(f"The repository has no quantisation {quant}. It has: {names}.", param="quant")
    return sets[label]


def _is_projector(file: RepositoryFile) -> bool:
    return file.path.rpartition("/")[2].lower().startswith("mmproj")


def _projector(files: Files) -> Files:
    """The image part of a GGUF model: the one in 16 bits, or the first."""
    found = [file for file in files if file.path.lower().endswith(".gguf") and _is_projector(file)]
    found.sort(key=lambda file: not re.search(r"[-._]f16", file.path, re.IGNORECASE))
    return tuple(found[:1])
