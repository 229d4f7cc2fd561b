#!/usr/bin/env bash
# Start Textloom: sets up what is missing, then runs server.py with the given flags. `bash start.sh --help` lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. tools/environment.sh

install_requirements requirements.txt 6000

model=()
case " $* " in
  *" --model"* | *" --help "* | *" -h "*) ;;
  *)
    .venv/bin/python download-model.py starter || fail "The starter model could not be fetched: the line above says why. Start again, or start without it: .venv/bin/python server.py"
    model=(--model SmolLM2-135M-Instruct.Q4_1)
    ;;
esac
exec .venv/bin/python server.py "${model[@]}" "$@"
