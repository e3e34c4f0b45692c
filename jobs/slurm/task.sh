#!/usr/bin/env bash
# What every rank runs before its command: compiled kernels are kept on the node's own disk, where they load fastest and
# no two nodes of different CPUs meet.
cache=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/astra-mpi-numba-$(id -u)
mkdir -m 700 "$cache" 2>/dev/null || true
# a folder of another user is left alone: what lies in it would be run
if [ -O "$cache" ] && [ ! -L "$cache" ]; then export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR-$cache}; fi
exec "$@"
