#!/usr/bin/env bash
# The classify job from nothing: scikit-learn's 8x8 digits, a randomly initialised ViT in Hugging Face's format, convert,
# calibrate, classify on RANKS ranks once exactly and once with ASTRA, and compare the classes.
#   bash jobs/digits.sh
# RANKS (4) is the number of ranks, WORK (work/digits) where files go.
set -euo pipefail
cd "$(dirname "$0")/.."
source jobs/setup.sh
setup_venv mpich,text,images
work=${WORK:-work/digits}

python jobs/digits.py make "$work"
astra-mpi convert "$work/vit" "$work/model.h5"
astra-mpi calibrate "$work/model.h5" --data "$work/digits.npz" -o "$work/astra.h5" --threads "$CORES"
for strategy in sp astra; do
  mpirun -n "${RANKS:-4}" astra-mpi run jobs/digits.toml "model.path=$work/astra.h5" "input.path=$work/digits.npz" \
    "parallel.strategy=$strategy" "output.path=$work/$strategy.out.h5" run.resume=false >"$work/$strategy.log"
done
python jobs/digits.py compare "$work"
