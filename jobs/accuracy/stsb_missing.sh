#!/usr/bin/env bash
# STS-B Spearman of all-MiniLM-L6-v2 on 4 ranks when messages of codes are lost, M = 4 (15 minutes, 2 cores):
#   bash jobs/accuracy/stsb_missing.sh TRAIN.tsv TEST.tsv
# A message is a sender's slice of the batch, for one receiver, in one block. Lost codes are left out of the softmax
# (drop) or replaced by the mean code (mean). Rows: loss; columns: treatments, each with seeds 0, 1, 2.
# WORK (work/stsb) keeps model, codebooks and results, and shares them with stsb_table.sh.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,6p' "$0"; exit 2; }
train=$(realpath "$1") test=$(realpath "$2")
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text
work=${WORK:-work/stsb}
mkdir -p "$work"
if [ ! -e "$work/model.h5" ]; then
  setup_minilm
  astra-mpi convert "$MINILM" "$work/model.h5"
fi
books="$work/M=4,K=256.h5"
[ -e "$books" ] || astra-mpi calibrate "$work/model.h5" --data "$train" --dataset s1,s2 -o "$books" --codebook-only \
  --encoder exact --metric plain --seed 0 --threads "$CORES" --kind residual --stages 4 --codebook-size 256 >&2

score() { # LOSS TREATMENT SEED
  local out="$work/loss-$1-$2-$3.json"
  [ -s "$out" ] || mpirun -n 4 python jobs/accuracy/stsb.py "$work/model.h5" "$test" --strategy astra --codebooks "$books" \
    --network "real,loss=$1%" --missing "$2" --seed "$3" >"$out" </dev/null
  python -c 'import json, sys; print(format(json.load(open(sys.argv[1]))["spearman"], ".4f"))' "$out"
}

printf '%-6s%30s%30s\n' loss 'drop (seeds 0, 1, 2)' 'mean (seeds 0, 1, 2)'
printf '%-6s%30s%30s\n' 0% "$(score 0 drop 0)" "$(score 0 mean 0)"
for loss in 1 5 10; do
  line=$(printf '%-6s' "$loss%")
  for treatment in drop mean; do
    line+=$(printf '%30s' "$(for seed in 0 1 2; do score "$loss" "$treatment" "$seed"; done | tr '\n' ' ')")
  done
  echo "$line"
done
