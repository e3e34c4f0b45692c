#!/usr/bin/env bash
# A prompt of 32768 tokens on small GPT-2 and Llama shapes, 4 ranks: memory of every rank, beside what a T x T array
# would take. The GPT-2 shape with one code per token, whose keys are counted, and with four; Llama with codes of keys
# and values.
#   bash jobs/bench/long_prompt.sh     TOKENS, RANKS and WORK (default work/long) choose otherwise
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich
WORK=${WORK:-work/long} TOKENS=${TOKENS:-32768} RANKS=${RANKS:-4}
mkdir -p "$WORK"
make() { # NAME PRESET CODEC OPTIONS
  [ -e "$WORK/$1-$TOKENS.h5" ] || astra-mpi init "$2" "$WORK/$1-$TOKENS.h5" --tokens "$TOKENS" "${@:3}"
}
make gpt2-counted gpt2-tiny --kind grouped --codebook-size 1024
make gpt2-m4 gpt2-tiny --stages 4
make llama llama-tiny --stages 4
for model in gpt2-counted gpt2-m4 llama; do
  for strategy in astra sp; do
    [ "$model" = gpt2-m4 ] && [ "$strategy" = sp ] && continue
    mpirun -n "$RANKS" python jobs/bench/long_prompt.py "$WORK/$model-$TOKENS.h5" --strategy "$strategy" </dev/null
  done
done
