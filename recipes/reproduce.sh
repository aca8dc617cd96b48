#!/usr/bin/env bash
# A released checkpoint (ReSearch, Search-R1, TongSearch-QR), evaluated as by its authors, beside their figures.
#
#   bash recipes/reproduce.sh agentrl/ReSearch-Qwen-7B-Instruct --dry-run
#   bash recipes/reproduce.sh --help
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/recipes/setup_env.sh" any
unset PYTHONDONTWRITEBYTECODE
# Paths are those of the folder that this is called in, but modules there (a data.py, say) are not ours.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
exec "$root/.venv/bin/python" -m research.evaluation.reproduce "$@"
