#!/usr/bin/env bash
# A Slurm of several nodes on this machine, for tests: munged, slurmctld and a slurmd a node, loopback only, no cgroups,
# no accounting. Everything it makes is in FOLDER (a short path: it holds sockets).
#
#   cluster.sh up FOLDER NODES
#   cluster.sh down FOLDER
#
# Needs root, and a network namespace of its own (jobs.sh makes it). Then SLURM_CONF=FOLDER/slurm.conf.
set -euo pipefail
folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf

up() {
  local last=$(($1 - 1)) host node
  host=$(uname -n | cut -d . -f 1)
  mkdir -p "$folder"/{state,log,run}
  (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
  # cred_expire: a requeued job waits that long. NoInAddrAny, the hosts file: all listen on loopback only.
  # TmpFS by node: else the second one's PMIx finds the first one's folders.
  cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SrunPortRange=16900-16999
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
TmpFS=$folder/tmp.%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
MpiDefault=none
KillOnBadExit=0
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n[0-$last] NodeAddr=127.0.0.1 Port=[17001-$((17001 + last))] CPUs=64 RealMemory=256000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  echo "CgroupPlugin=cgroup/v1" > "$folder/cgroup.conf"  # or slurmd wants /sys/fs/cgroup
  { cat /etc/hosts && echo "127.0.0.1 $(seq -s ' ' -f 'n%g' 0 "$last")"; } > "$folder/hosts"
  munged --key-file="$folder/munge.key" --socket="$folder/run/munge.sock" --pid-file="$folder/run/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/run/munge.seed"
  slurmctld -i
  for node in $(seq 0 "$last"); do
    mkdir -p "$folder/spool.n$node" "$folder/tmp.n$node"
    # A host name and shared memory of its own: Open MPI takes ranks of one name for neighbours.
    unshare --uts --mount sh -c \
      "mount --bind '$folder/hosts' /etc/hosts && mount -t tmpfs shm /dev/shm && hostname n$node && exec slurmd"
  done
  for _ in $(seq 100); do
    [ "$(sinfo -h -N -t idle | wc -l)" = "$1" ] && return
    sleep 0.1
  done
  echo "the nodes did not come up:" >&2
  sinfo -N -l >&2
  tail -n 5 "$folder"/log/*.log >&2
  return 1
}

down() {
  local file
  scancel -u root 2> /dev/null || true
  for _ in $(seq 80); do
    [ -z "$(squeue -h 2> /dev/null)" ] && break
    sleep 0.1
  done
  # The daemons take their pid files away when they end.
  for file in "$folder"/run/slurmd.*.pid "$folder/run/slurmctld.pid" "$folder/run/munged.pid"; do
    [ -e "$file" ] || continue
    kill "$(cat "$file")" 2> /dev/null || continue
    for _ in $(seq 100); do
      [ -e "$file" ] || break
      sleep 0.05
    done
  done
}

case $1 in
  up) up "$3" ;;
  down) down ;;
  *) echo "cluster.sh up|down FOLDER [NODES]" >&2 && exit 2 ;;
esac
