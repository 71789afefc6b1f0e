#!/usr/bin/env bash
# PointWSSIS on two machines of eight GPUs each: sbatch scripts/slurm_example.sh 10p
# OUTPUT_DIR and DETECTRON2_DATASETS have to lie on a disk that every machine sees.
#SBATCH --job-name=pointwssis
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
set -euo pipefail
export NNODES=$SLURM_NNODES NUM_GPUS=8 MASTER_PORT=29500
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
# A machine that fails ends the others.
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID bash scripts/pointwssis.sh "$@"' pointwssis "$@"
