#!/usr/bin/env bash
#SBATCH --job-name=asrlora-shards
#SBATCH --output=outputs/slurm-%A-%a.log
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=04:00:00
# Shards on many machines, then one merge of the index. Not a job itself, it submits two:
#   slurm/shards.sh MANIFEST OUT [SLICES] [SBATCH FLAGS...]
# An array task that died is submitted again by the same command: finished shards are kept.
set -euo pipefail
if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    cd "${SLURM_SUBMIT_DIR:?submit from the root of the clone}"
    exec uv run asrlora shards build "$1" "$2" --slice "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
        --workers "${SLURM_CPUS_ON_NODE:-1}"
fi
manifest=${1:?MANIFEST} out=${2:?OUT} slices=${3:-8}
shift "$(( $# < 3 ? $# : 3 ))"
mkdir -p outputs
array=$(sbatch --parsable --array="1-$slices" "$@" "$0" "$manifest" "$out")
sbatch --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes --job-name=asrlora-merge \
    --output=outputs/slurm-%j.log --wrap "uv run asrlora shards merge $(printf %q "$out")"
