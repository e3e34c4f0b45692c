#!/usr/bin/env bash
# What replicas are worth in a job of many sequences, on emulated half-core nodes: the passages of quickstart.sh on one
# node, on four, and on four uneven ones; the results compared bit by bit.
#   bash jobs/cluster/replicas.sh                                  by the virtual clock
#   sudo env PATH="$PATH" bash jobs/cluster/replicas.sh cluster    on the cluster of cluster.sh, in real time
# WORK (work/quickstart) is where quickstart.sh left its model and passages, MODEL one of them to use instead, MBPS (10)
# the ports of the nodes, RTT (2ms) what the virtual clock adds, BATCH (4) the passages of a batch. By the clock, nodes take
# turns at the cores of this machine, and a node's turn begins with caches that another has filled, which costs a batch of 4
# more than one of 8. The three clusters take turns, ROUNDS (3) times, every second time in reverse: what else the machine
# does meets all of them.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text
work=${WORK:-work/quickstart} mbps=${MBPS:-10} batch=${BATCH:-4} place=${1:-clock}
case $place in clock | cluster) ;; *) echo "replicas.sh: '$place' is neither clock nor cluster" >&2; exit 2 ;; esac
out=$work/replicas/$place
rm -rf "$out"
uneven=(0.7 0.6 0.4 0.3)

run() { # FOLDER NAME RANKS CPU...
  local ranks=$3 deck=(jobs/passages.toml "model.path=${MODEL:-$work/astra.h5}" "input.path=$work/passages.jsonl"
    parallel.strategy=single "parallel.grid=$3x1x1" "run.batch=$batch" run.resume=false "output.path=$1/$2.h5")
  if [ "$place" = cluster ]; then
    jobs/cluster/cluster.sh up 4 "$mbps" "$(IFS=,; echo "${*:4}")"
    trap 'jobs/cluster/cluster.sh down' EXIT
    jobs/cluster/cluster.sh run "$ranks" astra-mpi run "${deck[@]}" >"$1/$2.log"
    jobs/cluster/cluster.sh down
    trap - EXIT
  else # a CPU second of a node of half a core counts as two
    mpirun -n "$ranks" astra-mpi run "${deck[@]}" parallel.clock=virtual "parallel.network=${mbps}Mbps,rtt=${RTT:-2ms}" \
      "parallel.speed=[$(python -c 'import sys; print(*(1 / float(cpu) for cpu in sys.argv[1:]), sep=",")' "${@:4}")]" \
      >"$1/$2.log"
  fi
}

for round in $(seq "${ROUNDS:-3}"); do
  folder=$out/round-$round
  mkdir -p "$folder"
  order=(one even uneven)
  ((round % 2)) || order=(uneven even one)
  for name in "${order[@]}"; do
    case $name in
      one) run "$folder" one 1 0.5 ;;
      even) run "$folder" even 4 0.5 ;;
      uneven) run "$folder" uneven 4 "${uneven[@]}" ;;
    esac
  done
done
python jobs/cluster/replicas.py "$out"/round-*
