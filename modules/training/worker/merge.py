"""`python -m modules.training.worker.merge BASE ADAPTER OUTPUT`: write an adapter into a copy of its base model."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import traceback
from pathlib import Path

from modules.errors import UserError
from modules.library.config_files import GENERATION
from modules.library.models import describe as model_of
from modules.loaders.pretrained import as_listed, explained, load_whole, with_adapter
from modules.loaders.quiet_imports import hush_imports, import_gptqmodel
from modules.settings.terminal import take_any_text
from modules.training.samples import load_tokenizer
from modules.training.worker.__main__ import describe
from modules.training.worker.writing import merged, write_model


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 1 failed; the last line of the output is the reason."""
    take_any_text()
    if len(arguments) != 3:
        print("usage: python -m modules.training.worker.merge BASE ADAPTER OUTPUT", file=sys.stderr)
        return 2
    try:
        merge(*map(Path, arguments))
    except UserError as error:
        print(error.message, file=sys.stderr)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the last line says why, whatever it is
        traceback.print_exc()
        print(describe(error), file=sys.stderr)
    else:
        return 0
    return 1


def merge(base: Path, adapter: Path, output: Path) -> None:
    """Write `base` with `adapter` in its weights to the new folder `output`, in the base's number format. Raises UserError.

    Differences are computed in float32 and added in the base's format. Everything or nothing is written.
    """
    from transformers import AutoModelForCausalLM

    if output.exists():
        raise UserError(f"There is already a folder {output}.")
    hush_imports()
    if importlib.util.find_spec("gptqmodel"):
        import_gptqmodel()
    spec = model_of(base)
    with explained(spec), as_listed(spec, without=(GENERATION,)) as folder:
        model = load_whole(AutoModelForCausalLM, spec.name, folder, dtype="auto")
    whole = merged(with_adapter(model, adapter))
    draft = output.with_name(f".{output.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        write_model(whole, draft, base)
        load_tokenizer(base).save_pretrained(str(draft))
        os.replace(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
