# What differs from one cluster to the next, and nothing else; slurm/*.sh hold none of it. Change it here, or
# keep a copy anywhere and say `export ASRLORA_SITE=/path/to/it`. Two moments:
#
# 1. `source slurm/site.sh` in your shell, before sbatch: sbatch reads these (man sbatch, INPUT ENVIRONMENT
#    VARIABLES). They win over the #SBATCH lines of a script, and flags of sbatch win over them.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=speech
# export SBATCH_GRES=gpu:1             # for a task; slurm/shards.sh asks for none
# export SBATCH_TIMELIMIT=04:00:00
# export SBATCH_SIGNAL=B:USR1@120      # seconds before the time limit: enough for one step and a save
#
# 2. Every job sources it before it starts anything.
# module load cuda/13.0
# export GLOO_SOCKET_IFNAME=ib0        # where several nodes find each other by the wrong interface

# How asrlora's environment is entered; in a container: run=(apptainer exec --nv image.sif uv run)
run=(uv run)
export ASRLORA_MAX_RESTARTS=${ASRLORA_MAX_RESTARTS:-20}  # a task that was stopped more often stays stopped
