#!/usr/bin/env bash
# Llama-3-8B's shape in bfloat16 (16 GB) over four ranks of one host: stages of blocks, and stages whose ranks share
# tokens under ASTRA. A rank of 1x4x1 may take 5.5 GB at most.
#   bash jobs/bench/llama_8b.sh [options of llama_8b.py]
# Needs 17 GB of disk under WORK (work/llama) and 20 GB of memory. KEEP=1 leaves the file.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich
export WORK=${WORK:-work/llama}
mkdir -p "$WORK"
[ -n "${KEEP:-}" ] || trap 'rm -f "$WORK"/llama-3-8b-bfloat16*.h5' EXIT
model=$WORK/llama-3-8b-bfloat16.h5
[ -e "$model" ] || astra-mpi init llama-3-8b "$model" --dtype bfloat16 --no-codebooks
mpirun -n 4 python jobs/bench/llama_8b.py --grid 1x4x1 --strategy single --limit-gb 5.5 "$@"
mpirun -n 4 python jobs/bench/llama_8b.py --grid 1x2x2 --strategy astra "$@"
