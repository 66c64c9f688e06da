#!/usr/bin/env bash
#SBATCH --job-name=asrlora
#SBATCH --output=outputs/slurm-%j.log
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
# One training run as a job: sbatch --gres=gpu:8 slurm/train.sh gpu_zero2 FLAGS...
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit with sbatch from the root of the clone}"
exec srun launch/local.sh "$@"
