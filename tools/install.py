"""Install a requirements file into the environment whose Python runs this: with uv, and with pip where uv fails.

uv downloads and compiles on all cores, and installs in a third of pip's time. It does not read pip's configuration, where
people have named their mirror, their proxy or their certificates, so it is handed over here. Needs the standard library only.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

UV = "uv==0.13.9"

# What a setting of pip is called for uv, and what stands between several values there.
FOR_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}
# pip's own order: the environment's word counts most, a command's section more than the one for all commands.
SECTIONS = ("global", "install", ":env:")


def pip_settings(listing: str) -> dict[str, list[str]]:
    """The values of each setting in what `pip config list` prints (lines like `global.index-url='https://…'`)."""
    found: dict[str, list[str]] = {}
    lines = [re.fullmatch(r"(global|install|:env:)\.([a-z-]+)=(.+)", line) for line in listing.splitlines()]
    for _, key, value in sorted((line.groups() for line in lines if line), key=lambda row: SECTIONS.index(row[0])):
        found[key] = str(ast.literal_eval(value)).split()
    return found


def uv_environment(settings: dict[str, list[str]]) -> dict[str, str]:
    """pip's settings as environment variables of uv."""
    return {name: separator.join(settings[key]) for key, (name, separator) in FOR_UV.items() if settings.get(key)} | {
        "UV_INDEX_STRATEGY": "unsafe-best-match"
    }  # as pip does: the best version of all indexes, not the first one's


def install_with_uv(file: str) -> bool:
    """Whether uv could be had and installed everything."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*pip, "install", "--quiet", "--retries", "1", UV], capture_output=True).returncode:
        return False
    listing = subprocess.run([*pip, "config", "list"], capture_output=True, text=True).stdout
    settings = pip_settings(listing)
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--compile-bytecode", "-r", file]
    if settings.get("no-index", ["0"])[0].lower() in ("1", "true", "yes", "on"):
        command.append("--no-index")
    return subprocess.run(command, env={**uv_environment(settings), **os.environ}).returncode == 0


def install_with_pip(file: str) -> int:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile", "-r", file]
    status = subprocess.run(pip).returncode
    if status == 0:
        # On all cores, where pip compiles on one. What does not compile is for other versions of Python.
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-j", "0", sys.prefix], capture_output=True)
    return status


if __name__ == "__main__":
    file = sys.argv[1]
    if not install_with_uv(file):
        print("uv cannot install them; pip goes on.", flush=True)
        sys.exit(install_with_pip(file))
