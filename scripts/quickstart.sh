#!/usr/bin/env bash
# Set up and run the whole of PointWSSIS on a synthetic dataset, on the CPU, in minutes:
#   scripts/quickstart.sh [--seeds 3] [--full] [--supervised] [--smoke] [--data nuclei|coco --root DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh
source "${VENV:-.venv}/bin/activate"
exec python tools/quickstart.py "$@"
