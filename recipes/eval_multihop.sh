#!/usr/bin/env bash
# Score a search agent on HotpotQA, 2WikiMultiHopQA, MuSiQue and Bamboogle, or on questions of yours.
#
#   bash recipes/eval_multihop.sh --model runs/mine/policy --corpus my.corpus.jsonl --datasets my.questions.jsonl
#   bash recipes/eval_multihop.sh --model http://127.0.0.1:8001 --retriever http://127.0.0.1:8000 --limit 500
#   bash recipes/eval_multihop.sh --help
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/recipes/setup_env.sh" any
unset PYTHONDONTWRITEBYTECODE
# Paths are those of the folder that this is called in, but modules there (a data.py, say) are not ours.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
exec "$root/.venv/bin/python" -m research.evaluation run "$@"
