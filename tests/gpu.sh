#!/usr/bin/env bash
# All checks that need a CUDA GPU, on this machine: kernels against the specification, whole models against the CPU
# backend and PyTorch, several ranks sharing one GPU, compute-sanitizer's memcheck and racecheck where it is installed.
# Makes or reuses .venv as tests/run.sh does. CUDA=12 or 13 (default: what nvidia-smi says). More arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source jobs/setup.sh
command -v nvidia-smi >/dev/null || { echo "no nvidia-smi here: these checks need a CUDA GPU and its driver"; exit 2; }
CUDA=${CUDA:-$(nvidia-smi | sed -n 's/.*CUDA[^0-9]*Version: \([0-9]*\).*/\1/p')}
setup_venv mpich,test
if [ "$CUDA" = 12 ]; then # the tests' own CuPy is that of CUDA 13, and there can be one only
  python -m pip uninstall -qq -y cupy-cuda13x
fi
python -m pip install -qq --disable-pip-version-check "cupy-cuda${CUDA}x[ctk]>=14"
export MPI_PYTEST_LOGDIR=${MPI_PYTEST_LOGDIR:-mpi-logs}
nvidia-smi -L

ran() { # a log in which tests passed and none was skipped for want of a GPU
  grep -Eq '(^|[^0-9])[1-9][0-9]* passed' "$1" && ! grep -q 'no GPU' "$1"
}
log=$(mktemp)
timeout -k 10 1200 python -m pytest -q -rs -m gpu "$@" tests/kernels/test_cuda_kernels.py | tee "$log"
ran "$log" || { echo "no test ran on the GPU"; exit 1; }
for ranks in ${RANKS:-1 2 4}; do
  echo "== mpirun -n $ranks, one GPU"
  timeout -k 10 900 mpirun -n "$ranks" python -m pytest -q -rs --only-mpi -m gpu "$@" tests/kernels/test_cuda_engine.py | tee "$log"
  ran "$log" || { echo "no test ran on the GPU at $ranks ranks"; exit 1; }
done
rm -f "$log"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    echo "== compute-sanitizer --tool $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 9 python -m pytest -q -m gpu tests/kernels/test_cuda_kernels.py
  done
else
  echo "compute-sanitizer is not installed (it comes with the CUDA toolkit): memcheck and racecheck were not run"
fi
