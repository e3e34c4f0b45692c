#!/usr/bin/env bash
# The shipped models on data that they were not trained on, on RANKS ranks, exactly and with their codes.
#   bash jobs/accuracy/shipped.sh CIFAR100_TEST.npz BOOKS_VALID.txt        jobs/models/README.md: where they come from
# Prints accuracy of cifar100.h5, and perplexity of books.h5 on the text's first 1000 paragraphs of more than 300
# characters. RANKS (4) is the number of ranks, WORK (work/shipped) where files go.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,5p' "$0"; exit 2; }
images=$(realpath -e "$1") text=$(realpath -e "$2")
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text,images
work=${WORK:-work/shipped}
mkdir -p "$work"
awk 'BEGIN{RS=""} length($0)>300 && n++<1000 {gsub(/\n/," "); print}' "$text" >"$work/paragraphs.txt"

run() { # NAME METRIC DECK OVERRIDES...: one line of the table
  local strategy out line
  line=$(printf '%-12s%-12s' "$1" "$2")
  for strategy in sp astra; do
    out="$work/$1.$strategy.out.h5"
    mpirun -n "${RANKS:-4}" astra-mpi run "${@:3}" "parallel.strategy=$strategy" "output.path=$out" run.resume=false \
      >"$work/$1.$strategy.log"
    line+=$(python -c 'import json, sys
print(format(json.load(open(sys.argv[1]))["metrics"][sys.argv[2]], "12.4f"))' "${out%.h5}.json" "$2")
  done
  echo "$line"
}
printf '%-12s%-12s%12s%12s\n' model metric exact astra
run cifar100 accuracy jobs/digits.toml model.path=jobs/models/cifar100.h5 "input.path=$images"
run books perplexity jobs/accuracy/perplexity.toml "input.path=$work/paragraphs.txt"
