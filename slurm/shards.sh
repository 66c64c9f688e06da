#!/usr/bin/env bash
#SBATCH --job-name=asrlora-shards
#SBATCH --output=slurm/logs/%x-%A_%a.log
#SBATCH --nodes=1
#SBATCH --ntasks=1
# Shards on many machines, then one merge of the index. Not a job itself, it submits two:
#   slurm/shards.sh MANIFEST OUT [SLICES] [SBATCH FLAGS...]
# An array task that died is submitted again by the same command: finished shards are kept.
set -euo pipefail
if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    source "${SLURM_SUBMIT_DIR:?}/slurm/task.sh"
    task "${run[@]}" asrlora shards build "$1" "$2" --slice "$SLURM_ARRAY_TASK_ID/$3"
fi
manifest=${1:?MANIFEST} out=${2:?OUT} slices=${3:-8}
shift "$(( $# < 3 ? $# : 3 ))"
unset SBATCH_GRES  # no GPU is needed
array=$(sbatch --parsable --array="1-$slices" "$@" slurm/shards.sh "$manifest" "$out" "$slices") || {
    echo "shards.sh: where the array is too long for this Slurm, give fewer SLICES than its MaxArraySize" >&2
    exit 1
}
# without the second flag, a merge whose slices failed would wait for ever
sbatch --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes "$@" slurm/merge.sh "$out"
