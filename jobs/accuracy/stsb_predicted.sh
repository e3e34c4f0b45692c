#!/usr/bin/env bash
# STS-B of all-MiniLM-L6-v2 on 4 ranks with predicted codes that are not trained: fresh, fewer, in every second block, late
# (30 minutes of CPU time):
#   bash jobs/accuracy/stsb_predicted.sh TRAIN.tsv TEST.tsv
# Rows: codes; columns: bits, Spearman correlation with each of SEEDS (0 1 2), its mean, and the mean cosine of embeddings
# to the exact ones. One process computes what RANKS (4) would. WORK (work/stsb) keeps model, codebooks and results, and
# shares them with stsb_table.sh.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,7p' "$0"; exit 2; }
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
ranks=${RANKS:-4}
score() { # FILE OPTIONS...
  [ -s "$1" ] || python jobs/accuracy/stsb.py "$work/model.h5" "$test" "${@:2}" >"$1" </dev/null
}
score "$work/exact-1.json" --strategy single --embeddings "$work/exact.npy"

printf '%-28s%7s%28s%8s%8s\n' codes bits "Spearman (seeds ${SEEDS:=0 1 2})" mean cosine
while read -r name strategy options; do
  found=()
  for seed in $SEEDS; do
    books="$work/$name-$seed.h5" out="$work/$name-$seed-$ranks.json"
    # shellcheck disable=SC2086  # options are words
    [ -e "$books" ] || astra-mpi calibrate "$work/model.h5" --data "$train" --dataset s1,s2 -o "$books" \
      --codebook-only --seed "$seed" --threads "$CORES" --predict linear --predict-rank 0 $options >&2
    score "$out" --emulate "$ranks" --strategy "$strategy" --codebooks "$books" --exact "$work/exact.npy"
    found+=("$out")
  done
  python - "$name" "${found[@]}" <<'PYTHON'
import json
import sys

rows = [json.load(open(path)) for path in sys.argv[2:]]
mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("spearman", "cosine")}
each = " ".join(format(row["spearman"], ".4f") for row in rows)
bits = rows[0]["bits_per_token_per_block"]
print(f"{sys.argv[1]:<28}{bits:>7.4g}{each:>28}{mean['spearman']:>8.4f}{mean['cosine']:>8.4f}")
PYTHON
done <<'CODES'
predicted-32 astra --stages 0,4,4x5
predicted-32-samples-131072 astra --stages 0,4,4x5 --samples 131072
predicted-32-inputs-1 astra --stages 0,4,4x5 --predict-inputs 1
predicted-16 astra --stages 0,2,2,2,3,3
predicted-32-every-2 astra --stages 0,8,0,8,0,8
predicted-32-late astra:late --stages 6 --predict-inputs 3
CODES
