#!/usr/bin/env bash
#SBATCH --job-name=asrlora-eval
#SBATCH --output=slurm/logs/%x-%j.log
#SBATCH --nodes=1
#SBATCH --ntasks=1
# sbatch slurm/eval.sh --model-id M [--adapter-dir A] --manifest-path F --output-dir O
set -euo pipefail
source "${SLURM_SUBMIT_DIR:?submit with sbatch from the root of the clone}/slurm/task.sh"
task "${run[@]}" asrlora eval "$@"
