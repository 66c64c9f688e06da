#!/usr/bin/env bash
#SBATCH --job-name=asrlora-merge
#SBATCH --output=slurm/logs/%x-%j.log
#SBATCH --ntasks=1
# The index of shards that were built in slices; slurm/shards.sh submits it.
set -euo pipefail
source "${SLURM_SUBMIT_DIR:?submit with sbatch from the root of the clone}/slurm/task.sh"
task "${run[@]}" asrlora shards merge "${1:?OUT}"
