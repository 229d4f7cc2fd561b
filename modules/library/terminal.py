"""The command line of download-model.py."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.errors import NotFound, UserError
from modules.library.destination import downloaded, not_own
from modules.library.disk import size_text
from modules.library.downloads import DownloadPlan, download, plan_download
from modules.library.fetching import DownloadProgress
from modules.library.file_selection import Wanted, choose_files, default_quantization, quantizations, total_size, total_text
from modules.library.hub import Repository, RepositoryName, completed, parse_name, read_repository
from modules.library.loras import describe_adapter
from modules.library.manifest import Checked, check_folder, manifest_of, problem_of, read_manifest, write_manifest
from modules.library.meta import convert_meta, default_name
from modules.library.meta_download import fetch_from_meta, parse_sizes
from modules.library.models import describe, models_in
from modules.library.paths import safe_name
from modules.library.starter import fetch_starter, starter_as_transformers
from modules.settings import proxies
from modules.settings.terminal import take_any_text

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = """examples:
  download-model.py starter                           a small model to begin with (94 MiB)
  download-model.py TheBloke/Llama-2-7B-GPTQ          a repository of the Hugging Face Hub, into models/TheBloke_Llama-2-7B-GPTQ
  download-model.py TheBloke/Llama-2-7B-GPTQ:main     one branch of it
  download-model.py TheBloke/Llama-2-7B-GGUF --quant Q4_K_M
  download-model.py --from-meta ~/llama-2-7b-chat     convert a checkpoint in Meta's own format
  download-model.py --meta-url 'https://…' --sizes 7B-chat

environment:
  HF_TOKEN     a token of your account, for private and gated models; it goes to the hub, or to what HF_ENDPOINT names
  HF_ENDPOINT  address of a mirror, such as https://hf-mirror.com
"""
_METAVARS = {"quant": "NAME", "specific_file": "FILE", "exclude_pattern": "REGEX"}
"""What stands for the value of a flag of Wanted in --help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status. What the user can act on is one sentence on stderr."""
    take_any_text()
    parser = _parser()
    options = parser.parse_args(arguments)
    if sum(map(bool, (options.model, options.from_meta, options.meta_url))) != 1:
        parser.error("name one model (ORG/NAME, or starter), or use --from-meta or --meta-url")
    try:
        proxies.prepare()
        return _run(options)
    except UserError as error:
        print(error.message, file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and error.filename is None:
            raise
        place = error.filename or options.output or options.model_dir
        print(f"{place}: {error.strerror}. {'Make room, or choose' if full else 'Choose'} another folder.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="download-model.py",
        description="Put a model into models/, or an adapter into loras/.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="`starter`, or ORG/NAME[:BRANCH] on the Hugging Face Hub")
    add("--branch", default="", help="branch, tag or commit (default: main)")
    for field, info in Wanted.model_fields.items():
        value: dict[str, Any] = {"metavar": _METAVARS[field]} if field in _METAVARS else {"action": "store_true"}
        add(f"--{field.replace('_', '-')}", default=info.default, help=info.description, **value)
    add("--output", type=Path, metavar="FOLDER", help="put the model's folder there instead of into models/ or loras/")
    add("--model-dir", type=Path, default=ROOT / "models", metavar="FOLDER", help="where models are put (default: models/)")
    add("--lora-dir", type=Path, default=ROOT / "loras", metavar="FOLDER", help="where adapters are put (default: loras/)")
    add("--threads", type=int, default=4, metavar="N", help="how many files are fetched at the same time (default: 4)")
    add("--max-retries", type=int, default=7, metavar="N", help="how often to try again when a line breaks (default: 7)")
    add("--clean", action="store_true", help="begin anew, instead of going on with what is there")
    add(
        "--check",
        action="store_true",
        help="compare the SHA-256 of what is there, say what is missing or is not the file itself, and fetch nothing",
    )
    add("--as", dest="form", choices=["gguf", "transformers"], default="gguf", help="the form of the starter model")
    add("--from-meta", type=Path, metavar="FOLDER", help="convert Meta's own checkpoint of Llama 1 or 2 into models/")
    add("--meta-url", default="", metavar="URL", help="the signed address from Meta's e-mail: fetch Llama 2 with it")
    add("--sizes", default="7B-chat", metavar="LIST", help="with --meta-url: 7B,13B,70B,7B-chat,13B-chat,70B-chat")
    add("--name", default="", help="with --from-meta: the name of the new folder")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.from_meta:
        convert_meta(options.from_meta, options.model_dir / safe_name(options.name or default_name(options.from_meta)))
        return 0
    if options.meta_url:
        return _from_meta(options)
    if options.model == "starter":
        if options.form == "transformers":
            starter_as_transformers(options.model_dir)
        else:
            fetch_starter(options.model_dir, check=options.check)
        return 0
    name = parse_name(options.model, options.branch)
    if options.check:
        return _check(name, [folder for folder in (options.output, options.model_dir, options.lora_dir) if folder])
    return _download(name, options)


def _from_meta(options: argparse.Namespace) -> int:
    """Fetch, and convert what was fetched."""
    for folder in fetch_from_meta(options.meta_url, parse_sizes(options.sizes), options.model_dir, retries=options.max_retries):
        target = options.model_dir / default_name(folder)
        if not target.exists():
            convert_meta(folder, target)
        print(f"{folder} is not needed any more, unless you want to keep Meta's own files.")
    return 0


# --- download


def _download(name: RepositoryName, options: argparse.Namespace) -> int:
    wanted = Wanted.read({field: getattr(options, field) for field in Wanted.model_fields})
    if not (wanted.quant or wanted.specific_file or wanted.text_only) and sys.stdin.isatty():
        wanted = Wanted(exclude_pattern=wanted.exclude_pattern, quant=_ask_quantization(read_repository(name), wanted))
    plan = plan_download(
        name, wanted, models=options.model_dir, loras=options.lora_dir, output=options.output, clean=options.clean
    )
    if not plan.missing and not plan.outdated:
        print(f"{plan.target.name} is there already, with all its {len(plan.files)} files. --check compares their SHA-256.")
        return 0
    _announce(plan)
    with closing(download(plan, threads=options.threads, retries=options.max_retries, clean=options.clean)) as events:
        with _shown(plan) as show:
            for progress in events:
                show(progress)
    print(f"{name.repository} lies in {plan.target}.")
    return 0


def _announce(plan: DownloadPlan) -> None:
    kind = "an adapter" if plan.repository.is_adapter else "a model"
    files = "1 file" if len(plan.missing) == 1 else f"{len(plan.missing)} files"
    if plan.target.name != plan.repository.name.folder:
        print(
            f"{plan.repository.name.folder} holds another repository, whose name looks alike; this one gets a folder of its own."
        )
    print(f"{plan.repository.name.repository} is {kind}: {files}, {total_text(plan.missing)}, into {plan.target}")


def _ask_quantization(repository: Repository, wanted: Wanted) -> str:
    """Ask which quantisation to take, where there are several and nothing but GGUF. Returns "" where there is no choice."""
    sets = quantizations(repository.files)
    chosen = choose_files(repository.files, wanted)
    if len(sets) < 2 or not any(file.path.endswith(".gguf") for file in chosen):
        return ""
    default = default_quantization(sets)
    print(f"{repository.name.repository} has {len(sets)} quantisations:")
    for label, files in sorted(sets.items(), key=lambda entry: total_size(entry[1])):
        print(f"  {label:12} {total_text(files):>10}{'   (the usual choice)' if label == default else ''}")
    return input(f"Which one? [{default}] ").strip() or default


@contextmanager
def _shown(plan: DownloadPlan) -> Iterator[Callable[[DownloadProgress], None]]:
    """Bars for the whole and for each file under way; without a terminal, a line now and then."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    if console.is_terminal:
        with _bars(plan, console) as show:
            yield show
    else:
        yield _Lines()


class _Lines:
    """A line for each tenth of the download; for each 100 MiB where it is not known how large it is."""

    def __init__(self) -> None:
        self._shown = -1

    def __call__(self, progress: DownloadProgress) -> None:
        step = progress.done // (100 << 20) if progress.total is None else progress.done * 10 // max(progress.total, 1)
        if step > self._shown:
            self._shown = step
            speed = f", {size_text(progress.speed)}/s" if progress.speed else ""
            whole = "" if progress.total is None else f" of {size_text(progress.total)}"
            print(
                f"{'' if progress.total is None else f'{step * 10:3} %  '}{size_text(progress.done)}{whole}{speed}", flush=True
            )


@contextmanager
def _bars(plan: DownloadPlan, console: Console) -> Iterator[Callable[[DownloadProgress], None]]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        whole = bars.add_task(plan.target.name, total=plan.total)
        tasks: dict[str, TaskID] = {}

        def show(progress: DownloadProgress) -> None:
            bars.update(whole, completed=progress.done)
            active = {file.path: file for file in progress.active}
            for path in [path for path in tasks if path not in active]:
                bars.remove_task(tasks.pop(path))
            for path, file in active.items():
                if path not in tasks:
                    tasks[path] = bars.add_task(f"  {path}", total=file.size)
                label = f"  {path} (checking)" if file.checking else f"  {path}"
                bars.update(tasks[path], completed=file.done, description=label)

        yield show


# --- check


def _check(name: RepositoryName, folders: Sequence[Path]) -> int:
    """Compare what is on disk with what the hub had, or has. Returns 1 where a file is wrong."""
    folder = downloaded(name, folders)
    if folder is None:
        others = (problem for parent in folders if (problem := not_own(parent / name.folder, name)))
        raise NotFound(next(others, f"{name.folder} is not there: nothing to check."))
    for problem in _problems(folder):
        print(problem, file=sys.stderr)
    if read_manifest(folder) is None:
        return _compare(name, folder)
    wrong = _print_checked(check_folder(folder))
    if wrong:
        print(
            f"{wrong} of the files of {folder.name} must be fetched again: run the same command without --check.",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def _compare(name: RepositoryName, folder: Path) -> int:
    """Compare a folder that something else made with the hub. It becomes one of ours where nothing differs, and is left alone else."""
    repository = read_repository(name)
    listed = choose_files(repository.files, Wanted(specific_file="*"))
    there = tuple(completed(repository, file) for file in listed if (folder / file.path).is_file())
    known = tuple(file for file in there if file.has_hash)
    if not known:
        raise NotFound(f"{folder} holds no file of {name.repository} that could be compared.")
    if wrong := _print_checked(Checked(file.path, problem_of(folder / file.path, file)) for file in known):
        print(
            f"{wrong} of the files of {folder.name} are not those of {name}, and the folder was not downloaded by this program: "
            "no download will change it. Remove those files and check again to have them fetched, or move the folder away.",
            file=sys.stderr,
        )
        return 1
    write_manifest(folder, manifest_of(repository, known))
    return 0


def _print_checked(files: Iterable[Checked]) -> int:
    """A line for each file; returns how many are wrong."""
    wrong = 0
    for file in files:
        wrong += file.problem is not None
        print(f"{file.path}: {file.problem or 'right'}")
    return wrong


def _problems(folder: Path) -> list[str]:
    """What the list says of the models or the adapter in a folder: files may be those of the hub and yet not a whole model."""
    if (folder / "adapter_config.json").is_file():
        adapter = describe_adapter(folder)
        return [adapter.problem] if adapter is not None and adapter.problem else []
    return [problem for name, path in models_in(folder) if (problem := describe(path, name).problem)]
