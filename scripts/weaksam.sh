#!/usr/bin/env bash
# Train and evaluate WeakSAM on one dataset, from image tags to boxes (voc07), masks (voc12), both (coco14):
#   scripts/weaksam.sh voc07|voc12|coco14|own [--detector mist|oicr] [--retrain faster_rcnn|dino] [--segmenter mask_rcnn|mask2former]
#     [--until STAGE] [--from STAGE] [--start-from released] [--dry-run] [KEY VALUE ...]
# Finished stages are skipped, broken ones resume. `--help` lists every flag; the environment sets
# DETECTRON2_DATASETS, OUTPUT_DIR, NUM_GPUS, and NNODES, NODE_RANK, MASTER_ADDR on several machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${VIRTUAL_ENV:-} && -f ${VENV:-.venv}/bin/activate ]]; then
  source "${VENV:-.venv}/bin/activate"
fi
export PYTHONPATH="$PWD:$PWD/AdelaiDet${PYTHONPATH:+:$PYTHONPATH}"
exec python -m wsis run weaksam "$@"
