#!/usr/bin/env bash
# Set up, lint and test: scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh
source "${VENV:-.venv}/bin/activate"
ruff check .
ruff format --check .
# One thread a process and a process a core: the tests' tensors are small.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -m pytest --numprocesses auto --dist loadfile "$@"
