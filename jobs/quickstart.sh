#!/usr/bin/env bash
# The main job from nothing: convert all-MiniLM-L6-v2, calibrate codebooks, embed a corpus on RANKS ranks, exactly and with
# ASTRA, answer questions from both, and measure one machine, replicas, sp and astra side by side as on machines that links
# of 10 and 100 Mbit/s join (virtual clock). Prints a table; the last line is the path of a page with charts.
#   bash jobs/quickstart.sh                      Python's own documentation, a few sample questions
#   bash jobs/quickstart.sh "my question"        your question to it
#   bash jobs/quickstart.sh notes/ "my question" a text file or folder instead of the documentation
# RANKS (4) is the number of ranks, MODEL a Hugging Face folder to use instead, WORK (work/quickstart) where files go.
set -euo pipefail
cd "$(dirname "$0")/.."
caller=${OLDPWD:-$PWD}
corpus=() question=()
for argument in "$@"; do
  case $argument in
  -h | --help) sed -n '2,9p' "$0"; exit 0 ;;
  /*) path=$argument ;;
  *) path=$caller/$argument ;;
  esac
  if [ -e "$path" ]; then corpus=("$path"); else question+=("$argument"); fi
done
source jobs/setup.sh
setup_venv mpich,text
work=${WORK:-work/quickstart} ranks=${RANKS:-4}
mkdir -p "$work"

if [ -z "${MODEL:-}" ]; then
  setup_minilm
  MODEL=$MINILM
fi
check=()
if python -c 'import sys; from importlib.util import find_spec as f; sys.exit(not (f("torch") and f("transformers")))'; then
  check=(--check) # the conversion against transformers
else
  echo "the conversion is not held against transformers: .venv/bin/pip install torch transformers, and start again"
fi
astra-mpi convert "$MODEL" "$work/model.h5" ${check[@]+"${check[@]}"}
python jobs/passages.py "$work/model.h5" "$work/passages.jsonl" ${corpus[@]+"${corpus[@]}"}
astra-mpi calibrate "$work/model.h5" --data "$work/passages.jsonl" -o "$work/astra.h5" --threads "$CORES"
python jobs/story.py sample "$work"
embed() { # NAME STRATEGY GRID PASSAGES [KEY=VALUE..]
  mpirun -n "$ranks" astra-mpi run jobs/passages.toml "model.path=$work/astra.h5" "input.path=$work/$4.jsonl" \
    "parallel.strategy=$2" "parallel.grid=$3" "output.path=$work/$1.out.h5" run.resume=false "${@:5}" >"$work/$1.log"
}
embed exact single "${ranks}x1x1" passages # whole passages on each rank
embed astra astra "1x1x$ranks" passages
for mbps in 10 100; do
  embed "replicas.$mbps" single "${ranks}x1x1" sample run.batch=2 parallel.clock=virtual \
    "parallel.network=${mbps}Mbps,rtt=2ms"
done
mpirun -n "$ranks" python jobs/search.py "$work" ${question[@]+"${question[@]}"}
mpirun -n "$ranks" python jobs/story.py measure "$work"
python jobs/story.py tell "$work"
