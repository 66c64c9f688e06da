#!/usr/bin/env bash
#SBATCH --job-name=asrlora-sweep
#SBATCH --output=slurm/logs/%x-%A_%a.log
#SBATCH --array=0-7%4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# A sweep as an array, one trial a task: sbatch slurm/sweep.sh [FILE [--phase NAME] [--offset N]]
# Without FILE the default grid, slurm/sweep.yaml. `asrlora sweep plan FILE` prints the line for another one, or
# the lines where it is longer than one array may be. Any part of it runs too: --array=3, --array=0-9:2.
set -euo pipefail
source "${SLURM_SUBMIT_DIR:?submit with sbatch from the root of the clone}/slurm/task.sh"
file=${1:-slurm/sweep.yaml}
shift "$(( $# < 1 ? $# : 1 ))"
task "${run[@]}" asrlora sweep run "$file" "$@" --trial "${SLURM_ARRAY_TASK_ID:?submit as an array}"
