#!/usr/bin/env bash
# Text from a small Llama, end to end: convert a llama2.c checkpoint, let it write stories, calibrate codebooks on them, go
# on with the beginnings of others on one rank and on RANKS ranks, exactly and with ASTRA, and show the texts side by side.
#   bash jobs/stories.sh stories260K.bin tok512.bin
# Both files are in huggingface.co/karpathy/tinyllamas, folder stories260K (MIT licence; jobs/README.md has their sha256).
# RANKS (4) is the number of ranks, WORK (work/stories) where files go.
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."
[ $# = 2 ] || { sed -n '2,7p' "$0"; exit 2; }
files=()
for file in "$@"; do case $file in /*) files+=("$file") ;; *) files+=("$caller/$file") ;; esac; done
source jobs/setup.sh
setup_venv mpich,text
work=${WORK:-work/stories} ranks=${RANKS:-4}
mkdir -p "$work"

astra-mpi convert "${files[0]}" "$work/model.h5" --tokenizer "${files[1]}"
python jobs/stories.py begin "$work"
astra-mpi run jobs/stories.toml "model.path=$work/model.h5" "input.path=$work/begin.npy" input.kind=tokens \
  task.max_new_tokens=300 task.temperature=1 run.batch=32 parallel.strategy=single "output.path=$work/written.h5" \
  run.resume=false >"$work/written.log"
python jobs/stories.py split "$work"
astra-mpi calibrate "$work/model.h5" --data "$work/written.jsonl" -o "$work/astra.h5" --threads "$CORES"

# name, ranks, strategy, decode
while read -r name n strategy decode; do
  options=("model.path=$work/astra.h5" "parallel.strategy=$strategy" run.resume=false)
  mpirun -n "$n" astra-mpi run jobs/stories.toml "${options[@]}" "input.path=$work/beginnings.jsonl" \
    "task.decode=$decode" "output.path=$work/$name.out.h5" </dev/null >"$work/$name.log"
  mpirun -n "$n" astra-mpi run jobs/stories.toml "${options[@]}" "input.path=$work/unseen.txt" task.name=perplexity \
    input.max_tokens=256 task.stride=128 "output.path=$work/$name.perplexity.h5" </dev/null >"$work/$name.perplexity.log"
done <<RUNS
single 1 single local
sp $ranks sp local
astra $ranks astra local
astra-merged $ranks astra merged
RUNS
python jobs/stories.py compare "$work" single sp astra astra-merged
