#!/usr/bin/env bash
# All checks, from nothing: `bash tests/run.sh`. Words after it go to pytest, for example `bash tests/run.sh -m "not slow"`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash recipes/setup_env.sh cpu
unset PYTHONDONTWRITEBYTECODE
export PATH="$PWD/.venv/bin:$PATH" OMP_WAIT_POLICY=PASSIVE
echo "== ruff" && ruff check . && ruff format --check .
echo "== mypy" && mypy
echo "== pytest" && pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 "$@"
