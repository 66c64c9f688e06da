#!/usr/bin/env bash
# One machine: launch/local.sh [gpu_zero2] FLAGS...   runs asrlora/train.py with accelerate_configs/NAME.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."
name=cpu
if [ $# -gt 0 ] && [ -f "accelerate_configs/$1.yaml" ]; then name=$1; shift; fi
exec uv run accelerate launch --config_file "accelerate_configs/$name.yaml" asrlora/train.py "$@"
