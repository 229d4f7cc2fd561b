#!/usr/bin/env bash
# Set up what the tests need and run everything: format, lint, types, import rule, tests. --fast and --changed run less
# (tools/run_tests.py); other arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. tools/environment.sh

install_requirements requirements-dev.txt 7000

if ! command -v chromium-headless-shell >/dev/null 2>&1 && ! command -v chromium >/dev/null 2>&1; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing Chromium for the browser tests …"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-headless-shell fonts-noto-cjk fonts-noto-color-emoji; } >/dev/null ||
      fail "Chromium could not be installed: install the package 'chromium-headless-shell' by hand, then run the tests again."
  else
    echo "Chromium is missing and cannot be installed without root: install it, or leave its tests out: bash test.sh -m 'not browser'" >&2
  fi
fi

exec .venv/bin/python -m tools.run_tests "$@"
