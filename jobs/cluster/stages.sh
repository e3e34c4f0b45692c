#!/usr/bin/env bash
# The shape of GPT-2 by stages of blocks over four emulated half-core nodes at 100 Mbit/s, beside one node and ASTRA.
#   bash jobs/cluster/stages.sh [options of stages.py]
# WORK (work/stages) is where the model goes.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich
work=${WORK:-work/stages}
mkdir -p "$work"
[ -e "$work/gpt2.h5" ] || astra-mpi init gpt2 "$work/gpt2.h5" --stages 4
mpirun -n 4 python jobs/cluster/stages.py "$work/gpt2.h5" "$@"
