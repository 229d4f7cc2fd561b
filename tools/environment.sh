# Sourced by start.sh and test.sh: makes .venv and installs a requirements file into it, once.
# Every failure ends with one sentence that says what to do, and status 1.

fail() {
  echo "textloom: $*" >&2
  exit 1
}

find_python() {
  local name
  for name in "${PYTHON:-}" python3.12 python3.11 python3.13 python3 python; do
    [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 || continue
    "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    echo "$name"
    return
  done
  return 1
}

free_megabytes() {
  df -Pm . | awk 'NR == 2 { print $4 }'
}

# What went wrong, from pip's own words.
explain_pip() {
  if grep -qiE 'no space left|errno 28|disk quota' "$1"; then
    fail "The disk is full: free about ${2} MB here ($(pwd)) and start again; what was installed so far is kept."
  elif grep -qiE 'building wheel for pypcre|failed to build.*pypcre' "$1" && ! can_compile; then
    fail "The packages of $3 need a C compiler and Python's headers: on Debian or Ubuntu run 'apt install gcc python3-dev', then start again."
  elif grep -qiE 'name resolution|connection|timed out|network is unreachable|proxyerror|ssl' "$1"; then
    fail "The packages could not be downloaded: check the network (or pip's index and proxy settings) and start again; what was installed so far is kept."
  fi
  fail "The packages of $3 could not be installed: the last lines above say why. Mend that and start again."
}

# Whether .venv's Python finds the C compiler and the headers that packages without a wheel need.
can_compile() {
  .venv/bin/python - <<'PYTHON'
import os, shutil, sys, sysconfig
compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
sys.exit(not (shutil.which(compiler) and os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))))
PYTHON
}

# install_requirements FILE MEGABYTES: nothing to do where the same file was installed completely before.
install_requirements() {
  local file=$1 needed=$2 python stamp want log
  stamp=.venv/.installed-$(basename "$file" .txt)
  want=$(cat requirements*.txt | cksum)
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    return
  fi
  python=$(find_python) || fail "Textloom needs Python 3.11 or newer, and this machine has $(python3 --version 2>/dev/null || echo none). Install one, or name it: PYTHON=/path/to/python3.11 bash $0"
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    [ "$(free_megabytes)" -ge "$needed" ] || fail "The disk is too full: $(free_megabytes) MB are free here ($(pwd)), about $needed MB are needed. Free some and start again."
    echo "Making .venv with $("$python" --version) …"
    rm -rf .venv
    "$python" -m venv .venv || fail "Python's venv module does not work: on Debian or Ubuntu run 'apt install python3-venv', then start again."
  fi
  echo "Installing the packages of $file (a few minutes the first time) …"
  log=$(mktemp)
  # A pipe, not a process substitution: it is waited for, so that the whole reason is in the log when it is read.
  if ! { .venv/bin/python tools/install.py "$file" 2>&1 >&3 | tee "$log" >&2; } 3>&1; then
    explain_pip "$log" "$needed" "$file"
  fi
  rm -f "$log"
  .venv/bin/python -m pip check >/dev/null 2>&1 || fail "The installed packages do not fit together: run '.venv/bin/python -m pip check' to see which; deleting the folder .venv and starting again repairs most cases."
  echo "$want" >"$stamp"
}

# GPTQ models need a package that is compiled while it is installed; where that cannot be, everything else runs.
install_for_gptq() {
  [ -e .venv/.installed-requirements ] || can_compile || {
    echo "GPTQ and AWQ models need a C compiler and Python's headers (on Debian or Ubuntu: apt install gcc python3-dev): install them and start again. Everything else works without."
    return
  }
  (install_requirements requirements.txt 7000) || echo "GPTQ and AWQ models cannot be loaded until that is mended; everything else works without." >&2
}
