#!/usr/bin/env bash
# An emulated cluster on one Linux host, for honest timings of MPI over slow links. Each node is a network namespace with
# a CPU quota and a link of its own, shaped in both directions, to one switch.
#   jobs/cluster/cluster.sh up NODES MBPS CPU     up 4 10 0.5: four nodes of half a core with links of 10 Mbit/s
#                                         up 4 10,10,100,10 0.7,0.6,0.4,0.3: a value per node
#   jobs/cluster/cluster.sh run RANKS COMMAND...  one rank per node, over TCP, with MPICH's mpirun; its exit code
#   jobs/cluster/cluster.sh awake PID             keeps cores awake while that process runs; `run` does so by itself
#   jobs/cluster/cluster.sh bytes [--json]        what each node has sent and received since it is up
#   jobs/cluster/cluster.sh status                the nodes, their links and quotas; exit code 1 when the cluster is down
#   jobs/cluster/cluster.sh down                  ends what runs on the nodes and removes them
# Needs root, iproute2 and the cgroup CPU controller (v1 or v2). docs/log/cluster.md says what was measured.
set -euo pipefail
export LC_ALL=C
SWITCH=astra-switch # a namespace too, so that the host's firewall and addresses stay out of it
MAX_NODES=254       # addresses in 10.77.0.0/24
LOCK=/run/astra-cluster.lock
CGROUPS=/sys/fs/cgroup
if [ -d "$CGROUPS/cpu" ]; then CGROUPS=$CGROUPS/cpu; fi # v1
cores=$(env -u OMP_NUM_THREADS nproc)

refuse() { echo "cluster.sh: $1" >&2; exit 2; }

usage() { sed -n '2,11p' "$0" >&2; exit 2; }

need_host() { # root, iproute2, a CPU controller
  [ "$(id -u)" = 0 ] || refuse "network namespaces and quotas need root: run it with sudo env PATH=\"\$PATH\""
  command -v ip >/dev/null && command -v tc >/dev/null || refuse "ip and tc are missing: install the package iproute2"
  command -v chrt >/dev/null || refuse "chrt is missing: install the package util-linux"
  [ -e "$CGROUPS/cpu.shares" ] || grep -qw cpu "$CGROUPS/cgroup.controllers" 2>/dev/null ||
    refuse "no cgroup CPU controller at $CGROUPS: mount one, or leave the container"
}

is_up() { [ -n "$(ip -n "$SWITCH" link show dev switch up 2>/dev/null)" ]; } # `up` raises the switch last

node_count() { ip netns list | grep -cE '^astra-[0-9]+( |$)' || true; }

need_cluster() { is_up || refuse "no cluster is up: start one with \`up NODES MBPS CPU\`"; }

need_count() { # NAME VALUE
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || refuse "$1 must be a whole number of at least 1, not '$2'"
}

per_node() { # NAME LIST NODES: fills the array NAME with a positive number for each node
  local -n values=$1
  local value
  IFS=, read -ra values <<<"$2,"
  if [ ${#values[@]} = 1 ]; then while [ ${#values[@]} -lt "$3" ]; do values+=("${values[0]}"); done; fi
  [ ${#values[@]} = "$3" ] || refuse "$1 lists ${#values[@]} values for $3 nodes: give one, or one per node"
  for value in "${values[@]}"; do
    [[ $value =~ ^[0-9]+(\.[0-9]+)?$|^\.[0-9]+$ && $value =~ [1-9] ]] || refuse "$1 must be positive numbers, not '$value'"
  done
}

need_cores() { # CPU...: what is promised must be there
  local total least
  total=$(printf '%s\n' "$@" | awk '{ sum += $1 } END { print sum }')
  least=$(printf '%s\n' "$@" | sort -g | head -n 1)
  awk -v least="$least" 'BEGIN { exit least < 0.001 }' || refuse "CPU is $least of a core: the kernel's least is 0.001"
  awk -v total="$total" -v cores="$cores" 'BEGIN { exit total > cores }' ||
    refuse "the nodes' CPU adds up to $total cores and this machine has $cores: lower CPU or NODES"
}

set_quota() { # GROUP CPU: no more, and no less either when the machine has other work
  local quota period
  # 10 ms: shorter periods give less than the quota, longer ones stall exchanges; the kernel takes quotas from 1 ms on
  read -r quota period < <(awk -v cpu="$2" 'BEGIN { us = cpu < 0.1 ? 1000 : cpu * 10000; printf "%d %d\n", us, us / cpu }')
  mkdir "$1"
  if [ -e "$1/cpu.cfs_quota_us" ]; then
    echo "$period" >"$1/cpu.cfs_period_us"
    echo "$quota" >"$1/cpu.cfs_quota_us"
    echo 102400 >"$1/cpu.shares" # 100 times the usual
  else
    echo "$quota $period" >"$1/cpu.max"
    echo 10000 >"$1/cpu.weight"
  fi
}

get_quota() { # GROUP: in cores
  { cat "$1/cpu.max" 2>/dev/null || echo "$(<"$1/cpu.cfs_quota_us") $(<"$1/cpu.cfs_period_us")"; } |
    awk '{ printf "%.3g\n", $1 / $2 }'
}

add_namespace() { # NAME: without IPv6, whose chatter would be counted
  ip netns add "$1"
  ip netns exec "$1" sh -c 'f=/proc/sys/net/ipv6/conf/default/disable_ipv6; if [ -e $f ]; then echo 1 >$f; fi'
}

add_node() { # INDEX MBPS CPU
  local node=astra-$1 rate burst shape
  # burst: a packet, or 0.256 ms of the link, which is about what timers can do. More would carry small messages for free
  read -r rate burst < <(awk -v mbps="$2" 'BEGIN { printf "%.0f %.0f\n", mbps * 1e6, (mbps > 50 ? mbps * 32 : 1600) }')
  shape="tbf rate ${rate}bit burst $burst latency 1000ms"
  add_namespace "$node"
  ip -n "$SWITCH" link add "port$1" type veth peer name eth0 netns "$node"
  ip -n "$SWITCH" link set "port$1" master switch up
  ip -n "$node" addr add "10.77.0.$(($1 + 1))/24" dev eth0
  ip -n "$node" link set lo up
  ip -n "$node" link set eth0 up
  tc -n "$node" qdisc add dev eth0 root $shape      # node to switch
  tc -n "$SWITCH" qdisc add dev "port$1" root $shape # switch to node
  set_quota "$CGROUPS/$node" "$3"
}

end_processes() { # those of every node
  local tries pids
  for tries in {1..100}; do
    pids=$(cat "$CGROUPS"/astra-[0-9]*/cgroup.procs 2>/dev/null || true)
    [ -n "$pids" ] || return 0
    kill -9 $pids 2>/dev/null || true
    sleep 0.05
  done
  refuse "these processes of the nodes do not end: ${pids//$'\n'/ }"
}

remove() { # all nodes, whole or half made
  local name
  end_processes
  for name in $(ip netns list | grep -oE '^astra-([0-9]+|switch)' || true); do ip netns del "$name"; done
  for name in "$CGROUPS"/astra-[0-9]*; do if [ -d "$name" ]; then rmdir "$name"; fi; done
}

lock() { # held by this process and what it becomes
  exec 9>"$LOCK"
  flock -w 5 9 || refuse "another \`up\` or \`run\` is under way: wait for it, or end it with \`down\`"
}

up() { # NODES MBPS CPU
  local i MBPS CPU
  [ $# = 3 ] || usage
  need_count NODES "$1"
  [ "$1" -le "$MAX_NODES" ] || refuse "$1 nodes are more than the $MAX_NODES addresses of the network"
  per_node MBPS "$2" "$1"
  per_node CPU "$3" "$1"
  need_cores "${CPU[@]}"
  need_host
  lock
  ! is_up || refuse "a cluster of $(node_count) nodes is up: remove it with \`down\`"
  remove # what a killed `up` has left
  trap 'trap - EXIT; remove; refuse "the cluster could not be made and nothing of it is left"' EXIT
  if [ -e "$CGROUPS/cgroup.subtree_control" ]; then echo +cpu >"$CGROUPS/cgroup.subtree_control"; fi
  add_namespace "$SWITCH"
  ip -n "$SWITCH" link add switch type bridge
  for ((i = 0; i < $1; i++)); do add_node "$i" "${MBPS[i]}" "${CPU[i]}"; done
  ip -n "$SWITCH" link set switch up
  trap - EXIT
}

run() { # RANKS COMMAND...
  [ $# -ge 2 ] || usage
  need_count RANKS "$1"
  need_host
  need_cluster
  [ "$1" -le "$(node_count)" ] || refuse "$1 ranks need $1 nodes and the cluster has $(node_count)"
  [[ $(mpirun --version 2>/dev/null) = HYDRA* ]] || refuse "mpirun is not MPICH's: pip install mpich, and put it in PATH"
  lock
  end_processes # what a killed `run` has left
  stay_awake $$
  export MPIR_CVAR_NOLOCAL=1 UCX_TLS=tcp,self UCX_NET_DEVICES=eth0 # no shared memory: everything crosses the links
  exec mpirun -n "$1" "$(realpath "$0")" become_node "${@:2}"
}

stay_awake() { # PID: while it runs, what no node uses of a core is spent at the lowest priority. A virtual machine takes
  # cores that idle away, and gives them back cold: nodes that leave some idle would be slower than those that share all
  local core
  for ((core = 0; core < cores; core++)); do
    (chrt -i 0 bash -c 'while now=$(<"/proc/$1/stat") && [[ $now != *") Z "* ]]; do
      for ((i = 0; i < 100000; i++)); do :; done; done' awake "$1" </dev/null >/dev/null 2>&1 9>&- &)
  done
}

awake() { # PID
  [ $# = 1 ] || usage
  need_count PID "$1"
  need_host
  [ -e "/proc/$1/stat" ] || refuse "no process $1 runs"
  stay_awake "$1"
}

become_node() { # COMMAND...: by mpirun, once per rank
  exec 9>&- # mpirun holds the lock, not what it may leave behind
  echo $$ >"$CGROUPS/astra-$PMI_RANK/cgroup.procs"
  exec ip netns exec "astra-$PMI_RANK" "$@"
}

bytes() { # [--json]
  local i
  need_host
  need_cluster
  for ((i = 0; i < $(node_count); i++)); do
    echo "$i $(ip netns exec "astra-$i" sh -c 'cd /sys/class/net/eth0/statistics && cat tx_bytes rx_bytes' | paste -sd ' ')"
  done | if [ "${1:-}" = --json ]; then
    awk '{ printf "%s{\"node\": %d, \"sent_bytes\": %s, \"received_bytes\": %s}", NR == 1 ? "[" : ", ", $1, $2, $3 }
      END { print "]" }'
  else
    awk 'BEGIN { print "node     sent_bytes received_bytes" } { printf "%4d %14s %14s\n", $1, $2, $3 }'
  fi
}

status() {
  local i link
  need_host
  is_up || { echo "down"; exit 1; }
  echo "node address      link       cores processes"
  for ((i = 0; i < $(node_count); i++)); do
    link=$(tc -n "astra-$i" qdisc show dev eth0 | grep -oE 'rate [^ ]+')
    printf '%4d %-12s %-10s %5s %9d\n' "$i" "10.77.0.$((i + 1))" "${link#rate }" \
      "$(get_quota "$CGROUPS/astra-$i")" "$(wc -l <"$CGROUPS/astra-$i/cgroup.procs")"
  done
}

down() {
  need_host
  remove
}

case ${1:-} in
up | run | awake | become_node | bytes | status | down) "$@" ;;
*) usage ;;
esac
