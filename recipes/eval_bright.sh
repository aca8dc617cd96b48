#!/usr/bin/env bash
# How well questions of BRIGHT are searched with: as they stand, rewritten by a model, or by the texts of a file.
#
#   bash recipes/eval_bright.sh --queries original --tasks biology,pony
#   bash recipes/eval_bright.sh --model runs/mine/policy --retriever bm25 --tasks biology
#   bash recipes/eval_bright.sh --help
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/recipes/setup_env.sh" any
unset PYTHONDONTWRITEBYTECODE
# Paths are those of the folder that this is called in, but modules there (a data.py, say) are not ours.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
case ${1:-} in run | score | -h | --help) ;; *) set -- run "$@" ;; esac
exec "$root/.venv/bin/python" -m research.evaluation.bright "$@"
