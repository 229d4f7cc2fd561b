"""tools/install.py: uv gets pip's settings, and pip installs where uv cannot be had."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.install import pip_settings, uv_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
LISTING = """\
:env:.index-url='https://mirror.example/simple'
global.extra-index-url='https://one.example/simple\\nhttps://two.example/simple'
global.find-links='/wheels /more'
global.index-url='https://elsewhere.example/simple'
global.trusted-host='mirror.example'
install.proxy='http://127.0.0.1:3128'
list.format='columns'
"""


def test_what_pip_is_told_uv_is_told_as_well():
    assert uv_environment(pip_settings(LISTING)) == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INSECURE_HOST": "mirror.example",
        "ALL_PROXY": "http://127.0.0.1:3128",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_without_uv_pip_installs(tmp_path: Path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels)
    (tmp_path / "requirements.txt").write_text("tinything==1.0\n")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    only_here = {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": "/dev/null"}
    installed = subprocess.run(
        [python, ROOT / "tools" / "install.py", tmp_path / "requirements.txt"], env=only_here, capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    assert "pip goes on" in installed.stdout
    assert subprocess.run([python, "-c", "import tinything"]).returncode == 0
    (tmp_path / "requirements.txt").write_text("nothing-of-this-name==1.0\n")
    refused = subprocess.run(
        [python, ROOT / "tools" / "install.py", tmp_path / "requirements.txt"], env=only_here, capture_output=True, text=True
    )
    assert refused.returncode == 1 and "nothing-of-this-name" in refused.stderr


def make_wheel(folder: Path) -> None:
    files = {
        "tinything.py": "",
        "tinything-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n",
        "tinything-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "tinything-1.0.dist-info/RECORD"
    lines = [f"{name},sha256={digest(text)},{len(text)}" for name, text in files.items()]
    with zipfile.ZipFile(folder / "tinything-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in (files | {record: "\n".join([*lines, f"{record},,"]) + "\n"}).items():
            wheel.writestr(name, text)


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
