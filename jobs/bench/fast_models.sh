#!/usr/bin/env bash
# What the speed jobs measure: a random ViT-Base for 1024 tokens, and codebook files for it, fitted to random images.
#   bash jobs/bench/fast_models.sh     files that exist are kept; WORK is the folder (default work/fast)
# Codebooks as in arXiv 2505.19342: of block inputs, searched by distance. Weights and images are random: latency does not
# depend on them, but how many codes are distinct does.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich
WORK=${WORK:-work/fast}
mkdir -p "$WORK"

[ -e "$WORK/vit.h5" ] || astra-mpi init vit-base "$WORK/vit.h5" --tokens 1024 --kind grouped --codebook-size 256
if [ ! -e "$WORK/images.npy" ]; then # 10 x 1024 tokens
  python -c 'import sys, numpy as np
np.save(sys.argv[1], np.random.default_rng(0).standard_normal((10, 3, 512, 512), dtype=np.float32))' "$WORK/images.npy"
fi
make() { # NAME CODEC OPTIONS: with the exact and with the subspace encoder
  local encoder
  for encoder in exact subspace; do
    [ -e "$WORK/$1-$encoder.h5" ] || astra-mpi calibrate "$WORK/vit.h5" --data "$WORK/images.npy" --codebook-only \
      -o "$WORK/$1-$encoder.h5" --samples 8192 --threads "$CORES" --encoder "$encoder" --site hidden --metric plain "${@:2}"
  done
}
make g1-k1024 --kind grouped --codebook-size 1024
make g1-k256 --kind grouped --codebook-size 256
make m8-k256 --stages 8
