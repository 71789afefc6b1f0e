#!/usr/bin/env bash
# Train and evaluate PointWSSIS on one subset, from split to student:
#   scripts/pointwssis.sh 10p [--dataset coco|bdd100k] [--start-from released] [--from STAGE] [--dry-run] [KEY VALUE ...]
# Finished stages are skipped, broken ones resume. `--help` lists every flag; the environment sets
# DETECTRON2_DATASETS, OUTPUT_DIR, NUM_GPUS, and NNODES, NODE_RANK, MASTER_ADDR on several machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${VIRTUAL_ENV:-} && -f ${VENV:-.venv}/bin/activate ]]; then
  source "${VENV:-.venv}/bin/activate"
fi
exec python tools/pipeline.py "$@"
