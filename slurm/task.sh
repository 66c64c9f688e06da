# Sourced by the jobs. `task COMMAND...` runs it, hands Slurm's signals on, and requeues the task (with its own
# array id) when the command ends with 75: saved, to be resumed.
cd "${SLURM_SUBMIT_DIR:?submit with sbatch from the root of the clone}"
source "${ASRLORA_SITE:-slurm/site.sh}"

task() {
    local child code=0 signalled='' warned=''
    "$@" &
    child=$!
    trap 'signalled=1 warned=1; kill -USR1 "$child" 2>/dev/null' USR1
    trap 'signalled=1; kill -TERM "$child" 2>/dev/null' TERM
    while :; do  # a trapped signal ends `wait`, not the command
        wait "$child" && code=0 || code=$?
        [[ -n "$signalled" ]] || break
        signalled=''
    done
    # 138: USR1 came before Python had a handler for it
    if (( code == 75 )) || { [[ -n "$warned" ]] && (( code == 138 )); }; then
        if (( ${SLURM_RESTART_COUNT:-0} >= ASRLORA_MAX_RESTARTS )); then
            echo "asrlora: given up after ${SLURM_RESTART_COUNT:-0} restarts (ASRLORA_MAX_RESTARTS)" >&2
        elif [[ -n "$warned" ]]; then
            exec scontrol requeue \
                "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
        fi
    fi
    exit "$code"
}
