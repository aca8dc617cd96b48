#!/usr/bin/env bash
# All checks, from nothing: `bash tests/run.sh`. With --fast those alone that start neither Ray nor veRL nor vLLM: a few minutes.
# Other words go to pytest, for example `bash tests/run.sh --fast -k viewer`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash recipes/setup_env.sh cpu
words=()
for word in "$@"; do
    if [ "$word" = --fast ]; then words+=(-m "not launch"); else words+=("$word"); fi
done
unset PYTHONDONTWRITEBYTECODE
export PATH="$PWD/.venv/bin:$PATH" OMP_WAIT_POLICY=PASSIVE
echo "== ruff" && ruff check . && ruff format --check .
echo "== mypy" && mypy
echo "== pytest" && pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 "${words[@]}"
