#!/usr/bin/env bash
#SBATCH --job-name=asrlora-programme
#SBATCH --output=slurm/logs/%x-%j.log
#SBATCH --ntasks=1
#SBATCH --gres=none
# A sweep with phases: submits one array a phase, each after the one before, and the summary last. Also a sweep
# that is longer than this Slurm's MaxArraySize, in parts.
#   sbatch slurm/programme.sh [FILE]        (or slurm/programme.sh [FILE], where jobs may not submit jobs)
# A phase begins when all tasks of the one before have ended, well or not; after an accept it ends at once.
set -euo pipefail
SLURM_SUBMIT_DIR=${SLURM_SUBMIT_DIR:-$PWD}
source "$SLURM_SUBMIT_DIR/slurm/task.sh"
file=${1:-slurm/programme.yaml}
plan=$("${run[@]}" asrlora sweep plan "$file" --arrays)
previous=''
while read -r phase array offset; do
    previous=$(sbatch --parsable --array="$array" ${previous:+--dependency=afterany:$previous} \
        slurm/sweep.sh "$file" --phase "$phase" ${offset:+--offset "$offset"})
    previous=${previous%%;*}
    echo "phase $phase: job $previous, tasks $array${offset:+ from trial $offset on}"
done <<<"$plan"
sbatch --dependency="afterany:$previous" slurm/status.sh "$file"
