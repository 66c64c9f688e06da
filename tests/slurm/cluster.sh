#!/usr/bin/env bash
# A real Slurm on this host: cluster.sh up ROOT [NODES] | cluster.sh down ROOT | cluster.sh node ROOT NAME
# Needs root and Debian's slurmctld, slurmd, slurm-client and munge. Each node has 4 CPUs (SLURM_TEST_CPUS) and 2
# fake GPUs; an array may have 10 tasks.
# Afterwards: export SLURM_CONF=ROOT/etc/slurm.conf
set -euo pipefail
action=${1:?up, down or node} root=$(realpath -m "${2:?ROOT}") nodes=${3:-2} port=${SLURM_TEST_PORT:-27817}
cpus=${SLURM_TEST_CPUS:-4}
export SLURM_CONF=$root/etc/slurm.conf

down() {
    timeout 5 scancel -u root 2>/dev/null || true
    for _ in $(seq 100); do
        [[ -n "$(timeout 5 squeue -h -t R,CG 2>/dev/null)" ]] || break
        sleep 0.1
    done
    local pid
    for pid in $(cat "$root"/run/slurmd-*.pid "$root"/run/slurmctld.pid 2>/dev/null); do
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 150); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    done
    munged --stop --socket="$root/run/munge.sock" 2>/dev/null || true
}

node() {
    mkdir -p "$root/spool/$1"
    # a hosts file of its own, in which n1 and n2 are this host
    unshare -m bash -c 'mount --bind "$0/etc/hosts" /etc/hosts && exec slurmd -N "$1" -f "$SLURM_CONF"' "$root" "$1"
}

up() {
    mkdir -p "$root"/{etc,run,log,state,munge,dev,spool}
    chmod 755 "$root" "$root"/*/
    chmod 711 "$root/munge"
    (umask 077; head -c 1024 /dev/urandom >"$root/munge/key")
    for gpu in 0 1; do mknod "$root/dev/nvidia$gpu" c 1 3; done  # gres.conf wants character devices
    echo "Name=gpu File=$root/dev/nvidia[0-1]" >"$root/etc/gres.conf"
    echo CgroupPlugin=cgroup/v1 >"$root/etc/cgroup.conf"
    cp /etc/hosts "$root/etc/hosts"
    for n in $(seq "$nodes"); do echo "127.0.0.1 n$n" >>"$root/etc/hosts"; done
    # cred_expire=5: a requeued job starts again after 6 s instead of 121 s
    cat >"$SLURM_CONF" <<C
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$root/run/munge.sock,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd-%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=0
ReturnToService=2
SlurmdTimeout=15
SlurmctldTimeout=15
KillWait=30
MinJobAge=3600
MaxArraySize=10
JobRequeue=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=n[1-$nodes] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
C
    munged --force --key-file="$root/munge/key" --socket="$root/run/munge.sock" \
        --pid-file="$root/run/munged.pid" --log-file="$root/log/munged.log" --seed-file="$root/munge/seed"
    slurmctld -f "$SLURM_CONF"
    for n in $(seq "$nodes"); do node "n$n"; done
    for _ in $(seq 200); do
        [[ "$(timeout 5 sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" == "$nodes" ]] && exit 0
        sleep 0.1
    done
    echo "cluster.sh: the nodes did not come up; see $root/log" >&2
    exit 1
}

"$action" "${@:3}"
