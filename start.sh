#!/usr/bin/env bash
# Start Textloom: sets up what is missing, then runs server.py with the given flags. `bash start.sh --help` lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. tools/environment.sh

install_requirements requirements-base.txt 6000
install_for_gptq

# Whether somebody has said already which model (or which folder of models, or settings) to take.
model_is_chosen() {
  local flags
  flags=" $(grep -v '^ *#' CMD_FLAGS.txt 2>/dev/null | tr '\n' ' ') $* "
  [[ "$flags" =~ \ --?(model|model[-_]dir|settings|help|h)[\ =] ]] ||
    [ -n "${TEXTLOOM_MODEL:-}${TEXTLOOM_MODEL_DIR:-}" ] || grep -qsE '^model(_dir|-dir)?:' settings.yaml
}

if ! model_is_chosen "$@"; then
  .venv/bin/python download-model.py starter || fail "The starter model could not be fetched: the line above says why. Start again, or start without it: .venv/bin/python server.py"
  set -- --model SmolLM2-135M-Instruct.Q4_1 "$@"
fi
exec .venv/bin/python server.py "$@"
