#!/usr/bin/env bash
#SBATCH --job-name=asrlora
#SBATCH --output=slurm/logs/%x-%j.log
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# One run on N nodes with M processes each, one a GPU where there are any:
#   sbatch --nodes=2 --gres=gpu:8 slurm/train.sh multinode_zero2 FLAGS...
# Give --resume auto: stopped before its time limit or preempted, it is queued again and resumes.
set -euo pipefail
source "${SLURM_SUBMIT_DIR:?submit with sbatch from the root of the clone}/slurm/task.sh"
export NUM_MACHINES=$SLURM_JOB_NUM_NODES
export NUM_PROCESSES=$(( NUM_MACHINES * ${ASRLORA_PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}} ))
MAIN_IP=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN_IP MAIN_PORT=$(( 20000 + SLURM_JOB_ID % 20000 ))
export ASRLORA_RUN="${run[*]@Q}"
task srun --kill-on-bad-exit=0 bash -c 'MACHINE_RANK=$SLURM_NODEID exec launch/multinode.sh "$@"' multinode "$@"
