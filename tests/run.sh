#!/usr/bin/env bash
# All checks, from nothing: `bash tests/run.sh`. With --fast those alone that start neither Ray nor veRL nor vLLM: a few minutes.
# With --environment gpu, on a machine with or without a GPU, those of the GPU lock in an environment of its own, .venv-gpu (20 GB):
# imports, dry runs of the gpu profile, and the tests that start none of the three.
# Other words go to pytest, for example `bash tests/run.sh --fast -k viewer`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=cpu words=()
while (($#)); do
    case $1 in
        --environment) environment=${2:?--environment is cpu or gpu} && shift ;;
        --environment=*) environment=${1#*=} ;;
        --fast) words+=(-m "not launch") ;;
        *) words+=("$1") ;;
    esac
    shift
done
unset PYTHONDONTWRITEBYTECODE
export OMP_WAIT_POLICY=PASSIVE
case $environment in
    cpu)
        bash recipes/setup_env.sh cpu
        export PATH="$PWD/.venv/bin:$PATH"
        echo "== ruff" && ruff check . && ruff format --check .
        echo "== mypy" && mypy
        ;;
    gpu)
        bash recipes/setup_env.sh gpu .venv-gpu
        export PATH="$PWD/.venv-gpu/bin:$PATH"
        echo "== imports"
        for module in torch vllm ray verl.trainer.main_ppo transformers sentence_transformers faiss wandb huggingface_hub \
            research.training.__main__ research.evaluation.__main__ research.viewer.__main__ retriever_server.__main__; do
            python -c "import $module" || { echo "error: $module cannot be imported" >&2 && exit 1; }
        done
        echo "== dry runs"
        # Search-R1 in words of our own: its released ones are fetched.
        own="protocol@research.protocol=search_r1_own research.prompt=search_r1_own"
        for recipe in musique "search_r1 $own" rqr; do
            python -m research.training $recipe --hardware gpu --gpus 8 --dry-run >/dev/null
        done
        # What needs a package of the CPU lock alone, and the recipe that serves, which takes .venv.
        for file in architecture retriever_encoder retriever_page serve_recipe viewer_page; do
            words+=(--ignore "tests/test_$file.py")
        done
        words+=(-m "not launch")
        ;;
    *) echo "error: --environment is cpu or gpu, not '$environment'" >&2 && exit 2 ;;
esac
echo "== pytest" && pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 "${words[@]}"
