#!/usr/bin/env bash
# Make the locks again: `bash requirements/lock.sh` (needs uv: pip install uv). Python 3.11 on Linux x86-64.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
options=(--quiet --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28)
uv pip compile "${options[@]}" --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match \
    --override without.txt cpu.in -o cpu.txt
uv pip compile "${options[@]}" gpu.in -o gpu.txt
