#!/usr/bin/env bash
# How far it scales: jobs/bench/scale.py for P = 2..64 ranks and T = 1024, 4096, 16384 tokens, by the virtual clock.
#   bash jobs/bench/scale.sh     about 25 minutes on two cores; rows that exist are kept in WORK (default work/scale)
# TOKENS, RANKS and LAYERS choose other rows. 64 ranks need 16 GB of memory up to 4096 tokens, and more than 24 at 16384.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich
WORK=${WORK:-work/scale}
mkdir -p "$WORK"
for tokens in ${TOKENS:-1024 4096 16384}; do
  for ranks in ${RANKS:-2 4 8 16 32 64}; do
    row="$WORK/$tokens-$ranks.json"
    if [ ! -s "$row" ]; then
      mpirun -n "$ranks" python jobs/bench/scale.py "$WORK" --tokens "$tokens" --layers "${LAYERS:-2}" \
        --repeats "$((tokens > 4096 ? 1 : 3))" >"$row.new" </dev/null
      mv "$row.new" "$row"
    fi
    cat "$row"
  done
done
