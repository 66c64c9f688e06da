#!/usr/bin/env bash
#SBATCH --job-name=asrlora-status
#SBATCH --output=slurm/logs/%x-%j.log
#SBATCH --ntasks=1
#SBATCH --gres=none
# The table of a sweep, and outcome.json beside its trials: sbatch slurm/status.sh FILE
set -euo pipefail
source "${SLURM_SUBMIT_DIR:?submit with sbatch from the root of the clone}/slurm/task.sh"
task "${run[@]}" asrlora sweep status "${1:?FILE}"
