#!/usr/bin/env bash
# Trains the best configuration found on this task, rescue included, and leaves a run directory:
#
#     ASRLORA_REAL=FOLDER recipes/nonnative_english/run.sh OUT
#
# FOLDER holds moonshine-tiny/, nonnative/ and lj/ (README.md beside this file says what they are).
set -euo pipefail
out=$(realpath -m "${1:?OUT, a new run directory}")
real=$(realpath "${ASRLORA_REAL:?the folder of the base and the recordings}")
cd "$(dirname "$0")/../.."
for needed in moonshine-tiny/config.json nonnative/train.jsonl nonnative/domain.jsonl lj/heldout.jsonl; do
    [ -e "$real/$needed" ] || { echo "ASRLORA_REAL: $real holds no $needed" >&2; exit 2; }
done
mkdir -p data
ln -sfn "$real" data/real
exec uv run python asrlora/train.py --config recipes/nonnative_english/best.yaml --output-dir "$out" --resume auto
