"""transformers' `from_pretrained`, with what this program adds to it: the files that are listed, all of them or a refusal, and reasons.

For everything that reads a model's folder with transformers: loaders, drafts, embeddings, training and merging.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import extract_tb
from typing import Any

from modules.errors import Unavailable, UserError
from modules.library.entries import files_of
from modules.library.loras import describe_adapter
from modules.library.model_spec import ModelSpec
from modules.library.models import describe
from modules.library.weight_files import INDEXES, SINGLE
from modules.library.weights import read_safetensors_header
from modules.library.whole import missing_text

log = logging.getLogger(__name__)

_BOM = b"\xef\xbb\xbf"
_PICKLED = (".bin", ".pt", ".pth")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""transformers takes a folder that has these for the adapter, and loads its base model from elsewhere."""


def load_whole(
    model_class: Any,
    name: str,
    path: Path,
    *,
    unused: str | None = None,
    report: Callable[[str], None] = lambda sentence: None,
    **arguments: Any,
) -> Any:
    """`model_class.from_pretrained(path)`, where every weight comes from the files. Raises UserError that names the first others.

    Weights that are missing, or have another shape, would be random numbers. Those that the model has no place for are reported.
    unused: a pattern for weights that may be missing because nobody uses them.
    """
    model, info = model_class.from_pretrained(str(path), output_loading_info=True, ignore_mismatched_sizes=True, **arguments)
    missing = sorted(key for key in info["missing_keys"] if not (unused and re.search(unused, key)))
    if missing:
        raise UserError(f"{name} is not whole: {missing_text(missing)} Download it again.", param="model")
    if mismatched := sorted(info["mismatched_keys"], key=lambda entry: entry[0]):
        key, there, wanted = mismatched[0]
        more = f", and {len(mismatched) - 1} more do not fit" if len(mismatched) > 1 else ""
        raise UserError(
            f"The weights of {name} do not fit its config.json: {key} is {list(there)}, where {list(wanted)} is expected{more}. "
            "Take both from the same repository.",
            param="model",
        )
    if unexpected := sorted(info["unexpected_keys"]):
        sentence = unexpected_text(name, unexpected)
        log.warning("%s", sentence)
        report(sentence)
    return model


def with_adapter(model: Any, path: Path, **arguments: Any) -> Any:
    """PEFT's model with the adapter of a folder, all of it. Raises UserError that names the first weights that its files lack.

    PEFT leaves those as they begin, and only warns.
    """
    from peft import PeftModel

    from modules.generation.local.adapters import read_adapter_weights

    if (problem := _adapter_problem(path)) is not None:
        raise UserError(problem)
    if not (path / "adapter_model.safetensors").exists():
        read_adapter_weights(path.name, path)  # the list has read no more than a header, which a pickled file does not have
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            adapted = PeftModel.from_pretrained(model, str(path), **arguments)
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise UserError(f"The adapter {path.name} was made for another model: {_last_line(error)}") from error
    for warning in said:
        text = str(warning.message)
        if "missing adapter keys" in text:
            keys = re.findall(r"'([^']+)'", text)
            raise UserError(f"The adapter {path.name} is not whole: {missing_text(keys)} Download it again, or train it anew.")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return adapted


def _adapter_problem(path: Path) -> str | None:
    adapter = describe_adapter(path)
    return adapter.problem if adapter is not None else f"{path.name} is no adapter."


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def unexpected_text(name: str, keys: Collection[str]) -> str:
    first = ", ".join(list(keys)[:3])
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{name} has weights that its kind of model has no place for, and which are not used: {first}{more}."


def load_tokenizer(name: str, path: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder. Raises UserError where tokenizer.json is of a form that is not known here."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises Exception itself
        if reason := _unreadable_tokenizer(name, path / "tokenizer.json"):
            raise UserError(reason, param="model") from error
        raise


def _unreadable_tokenizer(name: str, path: Path) -> str | None:
    """Which part of a tokenizer.json the installed library does not take; None where it takes the file."""
    import tokenizers

    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text)
    except OSError:
        return None
    except ValueError:
        return f"tokenizer.json in {name} is not valid JSON. Download it again."
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        return f'tokenizer.json in {name} has no "model", so it is no tokenizer. Download it again.'
    if _reads(text):
        return None
    advice = (
        f"which tokenizers {tokenizers.__version__} does not know. Update the package, or take an older revision of the model."
    )
    plain: dict[str, Any] = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    for key in ("version", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"):
        value = values.get(key)
        if value is not None and not _reads(json.dumps({**plain, key: value})):
            kind = value.get("type") if isinstance(value, dict) else value
            return f'tokenizer.json in {name} has a "{key}" of the kind {kind!r} in a form {advice}'
    return f"tokenizer.json in {name} is in a form {advice}"


def _reads(text: str) -> bool:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(text)
    except Exception:  # noqa: BLE001  # it raises no narrower one
        return False
    return True


# --- the folder as it is listed


@contextmanager
def as_listed(spec: ModelSpec, config: Mapping[str, Any] | None = None, without: Collection[str] = ()) -> Iterator[Path]:
    """A folder in which transformers finds what the list says: the model's own, or a passing one that points into it.

    transformers looks for weights under a few names, and takes a stray file there for the model; it does not read JSON that begins
    with a byte order mark. config: what config.json says in place of the folder's own; without: files to leave out.
    """
    if not spec.weights and (problem := (spec := describe(spec.path)).problem):
        raise UserError(problem, param="model")
    files, _ = files_of(spec.path)
    marked = {file.name for file in files.values() if file.suffix in (".json", ".jinja") and _begins_with_mark(file)}
    left_out = {*without, *_ADAPTER}
    if config is None and not marked | files.keys() & left_out and _found_first(files) == spec.weights:
        yield spec.path
        return
    left_out |= {*INDEXES.values(), *SINGLE.values(), *spec.weights}
    if config is not None:
        left_out.add("config.json")
    with TemporaryDirectory(prefix="textloom-") as name:
        folder = Path(name)
        for entry in spec.path.iterdir():
            if entry.name in left_out:
                continue
            if entry.name in marked:
                (folder / entry.name).write_bytes(entry.read_bytes().removeprefix(_BOM))
            else:
                (folder / entry.name).symlink_to(entry.resolve())
        _point_at([files[file] for file in spec.weights], folder)
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield folder


def _begins_with_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_BOM)) == _BOM


def _found_first(files: Mapping[str, Path]) -> tuple[str, ...]:
    """The weights that transformers would read."""
    for suffix in (".safetensors", ".bin"):
        if SINGLE[suffix] in files:
            return (SINGLE[suffix],)
        if INDEXES[suffix] in files:
            try:
                index = json.loads(files[INDEXES[suffix]].read_text(encoding="utf-8"))
                # transformers insists on "metadata", of which it needs nothing.
                return tuple(sorted(set(index["weight_map"].values()))) if "metadata" in index else ()
            except (ValueError, KeyError, TypeError, AttributeError):
                return ()
    return ()


def _point_at(weights: list[Path], folder: Path) -> None:
    """Links to the weights by the names that transformers looks for, with an index where there are several."""
    suffix = ".safetensors" if all(file.suffix == ".safetensors" for file in weights) else ".bin"
    if len(weights) == 1:
        (folder / SINGLE[suffix]).symlink_to(weights[0].resolve())
        return
    places: dict[str, str] = {}
    for file in weights:
        (folder / file.name).symlink_to(file.resolve())
        names = read_safetensors_header(file) if suffix == ".safetensors" else (file.name,)
        places |= dict.fromkeys(names, file.name)
    (folder / INDEXES[suffix]).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")


# --- reasons


@contextmanager
def explained(spec: ModelSpec) -> Iterator[None]:
    """Turn what transformers raises into a sentence. A folder is somebody else's text: what it makes fail is never our error."""
    from modules.generation.local.engine_loop import is_out_of_memory

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise Unavailable(
                f"The memory is too small for {spec.name}. Load it with fewer bits, or a smaller model."
            ) from error
        log.info("loading %s failed", spec.name, exc_info=error)
        raise _sentence(spec, error) from error


def _sentence(spec: ModelSpec, error: Exception) -> UserError:
    from huggingface_hub.errors import StrictDataclassFieldValidationError

    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            f"{spec.name} brings Python code of its own. Read it, and load the model with --trust-remote-code if you trust it.",
            param="trust_remote_code",
        )
    if "offload" in text and "disk" in text:
        return UserError(f"{spec.name} does not fit the memory it may use. Allow more, or add --disk.", param="disk")
    if isinstance(error, StrictDataclassFieldValidationError):
        reason = " ".join(text.splitlines()[1:]).strip().removeprefix("TypeError: ")
        return UserError(
            f"config.json in {spec.name} cannot be used: {reason}. Correct it, or download it again.", param="model"
        )
    if any(name.endswith(_PICKLED) for name in spec.weights) and _is_of_reading(error):
        return UserError(
            f"A file with weights of {spec.name} is damaged, or holds something else than weights (code in it is never run). "
            "Download it again, as safetensors.",
            param="model",
        )
    first = text.splitlines()[0] if text else type(error).__name__
    return UserError(f"{spec.name} cannot be loaded: {first} ({type(error).__name__})", param="model")


def _is_of_reading(error: Exception) -> bool:
    """Whether a pickled file could not be read: its reader fails in any way, and torch's sentence advises to let it run code."""
    return any(frame.name in ("load_state_dict", "_load_pretrained_model") for frame in extract_tb(error.__traceback__))
