#!/usr/bin/env bash
# Speed-ups over one node on the emulated cluster, four nodes of half a core, at two bandwidths. Needs root.
#   sudo env PATH="$PATH" bash jobs/cluster/cluster_table.sh     about 10 minutes; WORK (default work/fast) holds models and results
# MBPS, NODES and CPU choose other clusters. A cluster that is up is refused.
set -euo pipefail
cd "$(dirname "$0")/../.."
export WORK=${WORK:-work/fast}
bash jobs/bench/fast_models.sh
source jobs/setup.sh
setup_venv mpich
nodes=${NODES:-4} cpu=${CPU:-0.5}
codebooks=$(printf '%s\n' "$WORK"/*-k*-{exact,subspace}.h5 | paste -sd,)
for mbps in ${MBPS:-10 100}; do
  jobs/cluster/cluster.sh up "$nodes" "$mbps" "$cpu"
  trap 'jobs/cluster/cluster.sh down' EXIT
  echo "== $nodes nodes of $cpu cores, links of $mbps Mbit/s"
  jobs/cluster/cluster.sh run "$nodes" python jobs/cluster/cluster_table.py "$WORK/vit.h5" --codebooks "$codebooks" \
    --json "$WORK/cluster-$mbps.json" --trace "$WORK/trace-$mbps.json"
  jobs/cluster/cluster.sh down
  trap - EXIT
done
