#!/usr/bin/env bash
# What the train_*.sh have in common: bash recipes/train.sh RECIPE ARGUMENTS sets up the environment of the hardware that
# the arguments name, or else of this machine, and runs the recipe (musique, search_r1 or rqr) in it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
recipe=$1
shift

hardware=$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
starts=yes
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --hardware=*) hardware=${!i#*=} ;;
        --hardware) next=$((i + 1)) && hardware=${!next:-} ;;
        --dry-run | --help | -h) starts= ;;
    esac
done
case $hardware in
    cpu | gpu) environment=$hardware ;;
    rehearsal) environment=cpu ;;
    *) echo "error: --hardware is cpu, gpu or rehearsal, not '$hardware'" >&2 && exit 2 ;;
esac

# A dry run needs some environment to compose the configuration in, not the one of the hardware it is about.
bash "$root/recipes/setup_env.sh" "$([ "$starts" ] && echo "$environment" || echo any)"

# Without Python's bytecode cache each process of the run compiles vLLM and veRL again.
unset PYTHONDONTWRITEBYTECODE
# Modules in the folder that this is called in (a data/, say) are not ours; research/doors.py looks there last.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
exec "$root/.venv/bin/python" -m research.training "$recipe" --hardware "$hardware" "$@"
