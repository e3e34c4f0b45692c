#!/usr/bin/env bash
# What replicas are worth in a job of many sequences, on emulated half-core nodes: the passages of quickstart.sh on one
# node, on four, and on four uneven ones, by the virtual clock; the results compared bit by bit.
#   bash jobs/cluster/replicas.sh
# WORK (work/quickstart) is where quickstart.sh left its model and passages, MODEL one of them to use instead, BATCH (4)
# the passages of a batch, NETWORK (10Mbps,rtt=2ms) the ports of the nodes.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text
work=${WORK:-work/quickstart} network=${NETWORK:-10Mbps,rtt=2ms} batch=${BATCH:-4}
out=$work/replicas
mkdir -p "$out"
# a CPU second of a half-core node counts as two
run() { # NAME RANKS GRID SPEED
  mpirun -n "$2" astra-mpi run jobs/passages.toml "model.path=${MODEL:-$work/astra.h5}" \
    "input.path=$work/passages.jsonl" parallel.strategy=single "parallel.grid=$3" parallel.clock=virtual \
    "parallel.speed=$4" "parallel.network=$network" "run.batch=$batch" run.resume=false "output.path=$out/$1.h5" \
    >"$out/$1.log"
}
run one 1 1x1x1 2
run even 4 4x1x1 2
run uneven 4 4x1x1 "[$(python -c 'print(",".join(str(1 / s) for s in (0.7, 0.6, 0.4, 0.3)))')]"
python jobs/cluster/replicas.py "$out"
