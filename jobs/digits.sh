#!/usr/bin/env bash
# The classify job: scikit-learn's 8x8 digits, the ViT that jobs/models/digits.toml trained (not on these images), on
# RANKS ranks once exactly and once with ASTRA, and the classes compared.
#   bash jobs/digits.sh
# RANKS (4) is the number of ranks, WORK (work/digits) where files go. TRAIN=1 trains the model anew first (needs PyTorch).
set -euo pipefail
cd "$(dirname "$0")/.."
source jobs/setup.sh
setup_venv "mpich,text,images${TRAIN:+,train,plot}"
work=${WORK:-work/digits} model=jobs/models/digits.h5

python jobs/digits.py make "$work"
if [ -n "${TRAIN:-}" ]; then
  data="data.train=$work/train.npz data.valid=$work/test.npz"
  # shellcheck disable=SC2086  # two words
  astra-mpi train jobs/models/digits-exact.toml $data "output.path=$work/exact.h5"
  # shellcheck disable=SC2086
  astra-mpi train jobs/models/digits.toml $data "model.path=$work/exact.h5" "output.path=$work/digits.h5"
  model=$work/digits.h5
fi
for strategy in sp astra; do
  mpirun -n "${RANKS:-4}" astra-mpi run jobs/digits.toml "model.path=$model" "input.path=$work/test.npz" \
    "parallel.strategy=$strategy" "output.path=$work/$strategy.out.h5" run.resume=false >"$work/$strategy.log"
done
python jobs/digits.py compare "$work"
