#!/usr/bin/env bash
# Several machines: run the same line on each, with its own MACHINE_RANK (0 to NUM_MACHINES - 1):
#   MACHINE_RANK=0 NUM_MACHINES=2 NUM_PROCESSES=16 MAIN_IP=10.0.0.1 launch/multinode.sh [multinode_zero2] FLAGS...
# NUM_PROCESSES counts the GPUs of all machines together. ASRLORA_RUN says how the environment is entered.
set -euo pipefail
cd "$(dirname "$0")/.."
name=multinode_zero2
if [ $# -gt 0 ] && [ -f "accelerate_configs/$1.yaml" ]; then name=$1; shift; fi
eval "run=(${ASRLORA_RUN:-uv run})"
exec "${run[@]}" accelerate launch --config_file "accelerate_configs/$name.yaml" \
  --machine_rank "${MACHINE_RANK:?0 on the first machine}" --num_machines "${NUM_MACHINES:?}" \
  --num_processes "${NUM_PROCESSES:?}" --main_process_ip "${MAIN_IP:?address of machine 0}" \
  --main_process_port "${MAIN_PORT:-29500}" asrlora/train.py "$@"
