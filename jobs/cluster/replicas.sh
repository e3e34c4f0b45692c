#!/usr/bin/env bash
# What replicas are worth in a job of many sequences, on emulated half-core nodes: the passages of quickstart.sh on one
# node, on four, and on four uneven ones, by the virtual clock; the results compared bit by bit.
#   bash jobs/cluster/replicas.sh
# WORK (work/quickstart) is where quickstart.sh left its model and passages, MODEL one of them to use instead, NETWORK
# (10Mbps,rtt=2ms) the ports of the nodes. BATCH (4) is the passages of a batch: emulated nodes take turns at the cores of
# this machine, and a node's turn begins with caches that another has filled, which costs a batch of 4 more than one of 8.
# The three clusters take turns, ROUNDS (3) times, every second time in reverse: what else the machine does meets all of
# them.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text
work=${WORK:-work/quickstart} network=${NETWORK:-10Mbps,rtt=2ms} batch=${BATCH:-4}
out=$work/replicas
rm -rf "$out"/round-*
# a CPU second of a half-core node counts as two
run() { # FOLDER NAME RANKS GRID SPEED
  mpirun -n "$3" astra-mpi run jobs/passages.toml "model.path=${MODEL:-$work/astra.h5}" \
    "input.path=$work/passages.jsonl" parallel.strategy=single "parallel.grid=$4" parallel.clock=virtual \
    "parallel.speed=$5" "parallel.network=$network" "run.batch=$batch" run.resume=false "output.path=$1/$2.h5" \
    >"$1/$2.log"
}
uneven=[$(python -c 'print(",".join(str(1 / s) for s in (0.7, 0.6, 0.4, 0.3)))')]
for round in $(seq "${ROUNDS:-3}"); do
  folder=$out/round-$round
  mkdir -p "$folder"
  order=(one even uneven)
  ((round % 2)) || order=(uneven even one)
  for name in "${order[@]}"; do
    case $name in
      one) run "$folder" one 1 1x1x1 2 ;;
      even) run "$folder" even 4 4x1x1 2 ;;
      uneven) run "$folder" uneven 4 4x1x1 "$uneven" ;;
    esac
  done
done
python jobs/cluster/replicas.py "$out"/round-*
