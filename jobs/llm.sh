#!/usr/bin/env bash
# A long prompt on a real LLM, from nothing: get SmolLM2-135M-Instruct (GGUF, Apache-2.0), convert it, calibrate codebooks,
# put a question about a document of about 2,000 tokens to it on one rank and on RANKS ranks, exactly and with ASTRA.
#   bash jobs/llm.sh                          a topic of Python's own documentation, and a question about it
#   bash jobs/llm.sh notes.txt "my question"  your text file and your question
# Prints the answers side by side, bytes, caches, the document's perplexity, and the time to the first token on RANKS
# machines at 10, 100 and 1000 Mbit/s by the virtual clock. RANKS (4), WORK (work/llm), SAMPLES (4096): tokens that
# codebooks are fitted to, MODEL: a Hugging Face folder or GGUF file of another chat model.
set -euo pipefail
cd "$(dirname "$0")/.."
caller=${OLDPWD:-$PWD}
file=() question=()
for argument in "$@"; do
  case $argument in
  -h | --help) sed -n '2,9p' "$0"; exit 0 ;;
  /*) path=$argument ;;
  *) path=$caller/$argument ;;
  esac
  if [ -f "$path" ]; then file=(--file "$path"); else question+=("$argument"); fi
done
source jobs/setup.sh
setup_venv mpich,text
work=${WORK:-work/llm} ranks=${RANKS:-4}
mkdir -p "$work"

if [ -z "${MODEL:-}" ]; then
  setup_smollm2
  MODEL=$SMOLLM2
fi
astra-mpi convert "$MODEL" "$work/model.h5"
python jobs/llm.py write "$work" ${question[@]+"${question[@]}"} ${file[@]+"${file[@]}"}
astra-mpi calibrate "$work/model.h5" --data "$work/calibration.jsonl" -o "$work/astra.h5" --samples "${SAMPLES:-4096}" \
  --threads "$CORES"

# name, ranks
while read -r strategy n; do
  options=("model.path=$work/astra.h5" "parallel.strategy=$strategy" run.resume=false)
  mpirun -n "$n" astra-mpi run jobs/llm.toml "${options[@]}" "input.path=$work/ask.jsonl" \
    "output.path=$work/$strategy.out.h5" </dev/null >"$work/$strategy.log"
  mpirun -n "$n" astra-mpi run jobs/llm.toml "${options[@]}" "input.path=$work/document.txt" task.name=perplexity \
    input.max_tokens=2048 "output.path=$work/$strategy.perplexity.h5" </dev/null >"$work/$strategy.perplexity.log"
done <<RUNS
single 1
sp $ranks
astra $ranks
RUNS
mpirun -n "$ranks" python jobs/llm.py first "$work" </dev/null
python jobs/llm.py compare "$work" single sp astra
