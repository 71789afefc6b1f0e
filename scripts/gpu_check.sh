#!/usr/bin/env bash
# Check this checkout on one GPU, in at most 20 minutes, with nothing but PyTorch and the packages of setup.py:
#   scripts/gpu_check.sh [--tests-only] [--only WORD] [--output output/gpu_check.json]
#   scripts/gpu_check.sh --device cpu --quick
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${VIRTUAL_ENV:-} && -f ${VENV:-.venv}/bin/activate ]]; then
  source "${VENV:-.venv}/bin/activate"
fi
export PYTHONPATH=$PWD:$PWD/AdelaiDet${PYTHONPATH:+:$PYTHONPATH}
exec python -W 'ignore:`torch.jit.script` is deprecated:FutureWarning' tools/gpu_check.py "$@"
