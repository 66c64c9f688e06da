#!/usr/bin/env bash
# Several machines: run the same line on each, with its own MACHINE_RANK (0 to NUM_MACHINES - 1):
#   MACHINE_RANK=0 NUM_MACHINES=2 NUM_PROCESSES=16 MAIN_IP=10.0.0.1 launch/multinode.sh FLAGS...
# NUM_PROCESSES counts the GPUs of all machines together.
set -euo pipefail
cd "$(dirname "$0")/.."
exec uv run accelerate launch --config_file accelerate_configs/multinode_zero2.yaml \
  --machine_rank "${MACHINE_RANK:?0 on the first machine}" --num_machines "${NUM_MACHINES:?}" \
  --num_processes "${NUM_PROCESSES:?}" --main_process_ip "${MAIN_IP:?address of machine 0}" \
  --main_process_port "${MAIN_PORT:-29500}" asrlora/train.py "$@"
