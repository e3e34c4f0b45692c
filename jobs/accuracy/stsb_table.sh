#!/usr/bin/env bash
# STS-B Spearman of all-MiniLM-L6-v2 for kinds of codebooks and numbers of ranks, k-means only (20 minutes, 2 cores):
#   bash jobs/accuracy/stsb_table.sh TRAIN.tsv TEST.tsv
# The TSV files have a header with columns score, s1, s2. Codebooks come from the train sentences, seed 0.
# The table goes to stdout, progress to stderr. WORK (work/stsb) keeps model, codebooks and results; what is there is not made again.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,5p' "$0"; exit 2; }
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

score() { # NAME RANKS OPTIONS...
  local out="$work/$1-$2.json"
  [ -s "$out" ] || mpirun -n "$2" python jobs/accuracy/stsb.py "$work/model.h5" "$test" "${@:3}" >"$out" </dev/null
  python -c 'import json, sys; print(format(json.load(open(sys.argv[1]))["spearman"], ".4f"))' "$out"
}

printf '%-14s%8s%8s%8s%8s\n' codec bits P=2 P=4 P=8
printf '%-14s%8s%8s%8s%8s\n' exact 12288 "$(score exact 2 --strategy sp)" "$(score exact 4 --strategy sp)" "$(score exact 8 --strategy sp)"
while read -r name bits options; do
  books="$work/$name.h5"
  # shellcheck disable=SC2086  # options are words
  [ -e "$books" ] || astra-mpi calibrate "$work/model.h5" --data "$train" --dataset s1,s2 -o "$books" --codebook-only \
    --encoder exact --metric plain --seed 0 --threads "$CORES" $options >&2
  line=$(printf '%-14s%8s' "$name" "$bits")
  for ranks in 2 4 8; do line+=$(printf '%8s' "$(score "$name" "$ranks" --strategy astra --codebooks "$books")"); done
  echo "$line"
done <<'CODECS'
G=1,K=1024 10 --kind grouped --groups 1 --codebook-size 1024
G=16,K=256 128 --kind grouped --groups 16 --codebook-size 256
G=32,K=256 256 --kind grouped --groups 32 --codebook-size 256
M=4,K=256 32 --kind residual --stages 4 --codebook-size 256
M=8,K=256 64 --kind residual --stages 8 --codebook-size 256
CODECS
