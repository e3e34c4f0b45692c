#!/usr/bin/env bash
# What codes of 10 to 1,024 bits cost SmolLM2-135M in perplexity, on 2, 4 and 8 ranks, and where 5% of messages are lost
# (about an hour of CPU time on one core; it goes on where it was stopped):
#   bash jobs/accuracy/language_table.sh MODEL.h5 WIKITEXT2_VALID.txt WIKITEXT2_TEST.txt
# MODEL.h5: astra-mpi convert of SmolLM2-135M (jobs/smollm2.txt). Codebooks are not trained. One process computes what ranks
# would. WORK (work/language) keeps codebooks, 4 GB, figures and a picture of them (extra `plot`).
set -euo pipefail
[ $# -eq 3 ] || { sed -n '2,7p' "$0"; exit 2; }
model=$(realpath -e "$1") valid=$(realpath -e "$2") test=$(realpath -e "$3")
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text,train,plot
rows="inputs 10;inputs 32;inputs 61;inputs 123;inputs scalar 256;inputs scalar 512;kv scalar 1024"
told=("$model" "$valid" "$test" --emulate --threads "$CORES" --work "${WORK:-work/language}")
python jobs/accuracy/language.py "${told[@]}" --rows "$rows" --ranks 4,2,8 --plot "${WORK:-work/language}/language.svg"
python jobs/accuracy/language.py "${told[@]}" --rows "kv scalar 512"
for seed in 0 1 2; do
  python jobs/accuracy/language.py "${told[@]}" --rows "inputs 32;inputs 61" --loss 0.05 --seed "$seed"
done
