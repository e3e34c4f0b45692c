#!/usr/bin/env bash
# Late codes, and codes in every second block, of the shipped models on 4 ranks, against fresh codes of as many bits:
#   bash jobs/accuracy/late.sh BOOKS_TRAIN.txt BOOKS_VALID.txt CIFAR100_TRAIN.npz CIFAR100_TEST.npz
# jobs/models/README.md says where the data come from. Prints a table of perplexity for books.h5 (the first 50,000 bytes of
# the text), and accuracy and bits of cifar100.h5 (all images). stsb_predicted.sh does the same for sentences. WORK
# (work/late) keeps codebooks and figures.
set -euo pipefail
[ $# -eq 4 ] || { sed -n '2,7p' "$0"; exit 2; }
train=$(realpath -e "$1") valid=$(realpath -e "$2") images=$(realpath -e "$3") test=$(realpath -e "$4")
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text,images,train
work=${WORK:-work/late}
mkdir -p "$work"

books() { # OPTIONS...
  python jobs/accuracy/language.py jobs/models/books.h5 "$train" "$valid" --window 128 --passage 128 --samples 65536 \
    --bytes 50000 --emulate --work "$work" "$@"
}
books --rows "late 4;every 2"
books --rows "late 6" --late

digits() { # NAME SETTINGS -- OPTIONS OF CALIBRATE...
  local name=$1 set=$2 out="$work/$1.out.h5"
  shift 3
  [ -e "$work/$name.h5" ] || astra-mpi calibrate jobs/models/cifar100.h5 --data "$images" -o "$work/$name.h5" \
    --codebook-only --samples 65536 --threads "$CORES" --predict linear --predict-rank 0 "$@" >&2
  # shellcheck disable=SC2086  # none, or one word
  [ -e "${out%.h5}.json" ] || mpirun -n 4 astra-mpi run jobs/digits.toml model.path=jobs/models/cifar100.h5 \
    model.codebooks="$work/$name.h5" input.path="$test" output.path="$out" $set run.resume=false >&2 </dev/null
  python - "$name" "${out%.h5}.json" <<'PYTHON'
import json
import sys

summary = json.load(open(sys.argv[2]))
print(f"{sys.argv[1]:<14}{summary['bits_per_token_per_block']:>8.4g}{summary['metrics']['accuracy']:>10.2%}")
PYTHON
}
printf '%-14s%8s%10s\n' images bits accuracy
digits fresh-21 "" -- --stages 0,2,3,3,4,4
digits fresh-32 "" -- --stages 0,4,4x5
digits fresh-40 "" -- --stages 6
digits every-2-32 "" -- --stages 0,8,0,8,0,8
digits late-32 parallel.codes=late -- --stages 6
digits late-in-32 parallel.codes=late -- --stages 6 --predict-inputs 8 --metric output
digits late-every-2 parallel.codes=late -- --stages 0,8,0,8,0,8
