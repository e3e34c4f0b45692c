#!/usr/bin/env bash
# Does the virtual clock predict the emulated cluster? ViT-Base shape, 1024 tokens, nodes of half a core; one node, SP and
# ASTRA (G = 1/K = 1024 and M = 8/K = 256, counted keys off) on 2 and 4 ranks at 10, 50 and 200 Mbps (40 minutes, 2 cores):
#   bash jobs/cluster/validate_clock.sh
# Needs root and an otherwise idle machine (see cluster.sh). WORK (work/validate) keeps models and figures; what is
# there is not measured again. G1 and M8 are model files with such codebooks, or "MODEL --codebooks FILE".
# Prints measured and predicted latencies; exit code 4 when ASTRA or one node is off by more than 10%, or SP by 20%.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup.sh
setup_venv mpich,text
work=${WORK:-work/validate}
mkdir -p "$work"
[ -n "${G1:-}" ] || [ -e "$work/g1.h5" ] ||
  astra-mpi init vit-base "$work/g1.h5" --tokens 1024 --kind grouped --groups 1 --codebook-size 1024
[ -n "${M8:-}" ] || [ -e "$work/m8.h5" ] ||
  astra-mpi init vit-base "$work/m8.h5" --tokens 1024 --kind residual --stages 8 --codebook-size 256
bandwidths="10 50 200"

bench() { # NAME CODEC RANKS LAUNCHER... -- OPTIONS...: writes NAME.CODEC.json
  local out="$work/$1.$2.json" model strategies=single,sp,astra launcher=()
  if [ "$2" = g1 ]; then model=${G1:-$work/g1.h5}; else model=${M8:-$work/m8.h5} strategies=astra; fi
  shift 2
  while [ "$1" != -- ]; do launcher+=("$1"); shift; done
  shift
  [ -s "$out" ] || # shellcheck disable=SC2086  # the model may be followed by --codebooks
    "${launcher[@]}" astra-mpi bench $model --strategies "$strategies" --counted-keys off --repeats 3 --warmup 1 "$@" \
      --json "$out" </dev/null >&2
}

for ranks in 2 4; do
  networks=()
  for mbps in $bandwidths; do networks+=(--network "${mbps}Mbps"); done
  for codec in g1 m8; do # half a core: CPU seconds count twice
    bench "virtual-$ranks" $codec mpirun -n $ranks -- "${networks[@]}" --clock virtual --speed 2
  done
  for mbps in $bandwidths; do
    [ -s "$work/wall-$ranks-$mbps.m8.json" ] && continue
    jobs/cluster/cluster.sh up $ranks "$mbps" 0.5
    trap 'jobs/cluster/cluster.sh down' EXIT
    for codec in g1 m8; do bench "wall-$ranks-$mbps" $codec jobs/cluster/cluster.sh run $ranks --; done
    jobs/cluster/cluster.sh down
    trap - EXIT
  done
done
python jobs/cluster/validate_clock.py "$work"
