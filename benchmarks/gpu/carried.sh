#!/usr/bin/env bash
# Run the check where nothing can be installed: carried.sh WHEELS [OPTION ...]
# WHEELS is a directory of wheels that the machine lacks; `make gpu-wheels` fetches them. PYTHON (python3) needs torch.
set -euo pipefail
wheels=${1:?directory of wheels}
shift
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
for wheel in "$wheels"/*.whl; do
    "${PYTHON:-python3}" -m zipfile -e "$wheel" "$site"
done
cd "$(dirname "$0")/../.."
PYTHONPATH=$site "${PYTHON:-python3}" -m benchmarks.gpu "$@"
