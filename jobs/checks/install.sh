#!/usr/bin/env bash
# Build the package and install it in empty environments, from the wheel and from the sdist, for each Python given.
#   bash jobs/checks/install.sh [PYTHON..]      default: python3
# WORK (work/install) is where files go. Prints the result of twine's check, what each environment holds and runs (the
# console script, the files of kernels; of the wheel also `verify` on two ranks and a first answer), and the seconds to that
# answer where kernels are compiled on the way, in the next process, and where `astra-mpi compile` did it before.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD work=$(realpath -m "${WORK:-work/install}")
rm -rf "$work" && mkdir -p "$work"
[ $# -gt 0 ] || set -- python3

"$1" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install -q --disable-pip-version-check build twine
# in a copy: a build leaves folders behind
cp -r astra_mpi kernels pyproject.toml README.md LICENSE "$work/"
find "$work" -name __pycache__ -prune -exec rm -r {} +
"$work/tools/bin/python" -m build -o "$work/dist" "$work" >"$work/build.log"
"$work/tools/bin/python" -m twine check --strict "$work"/dist/*
rm -r "$work/astra_mpi" "$work/kernels"
cd "$work" # away from the sources

first() { # LABEL: seconds from the start of Python to eight new tokens of a tiny decoder
  local begin
  begin=$(date +%s.%N)
  python - <<'ANSWER'
import numpy as np
from mpi4py import MPI
import astra_mpi
from astra_mpi.kernels import cpu

model = astra_mpi.load("model.h5", comm=MPI.COMM_WORLD, strategy="single")
model.generate(np.arange(16)[None], max_new_tokens=8)
print(f"    {cpu.cache_state().n_compiled} kernels compiled", end="")
ANSWER
  printf ', %.1f s to the first answer: %s\n' "$(echo "$(date +%s.%N) - $begin" | bc)" "$1"
}

for interpreter in "$@"; do
  "$interpreter" --version
  for file in dist/*.whl dist/*.tar.gz; do
    rm -rf env && "$interpreter" -m venv env
    env/bin/python -m pip install -q --disable-pip-version-check "$file[mpich,text]"
    (
      export PATH="$work/env/bin:$PATH" OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
      echo "  $file: $(astra-mpi --version) in $(du -sm env | cut -f1) MB with all it needs"
      site=$(python -c 'import astra_mpi, pathlib; print(pathlib.Path(astra_mpi.__file__).parent)')
      diff <(cd "$root" && find astra_mpi kernels -name '*.py' -o -name '*.cu' -o -name '*.cuh' | sed 's,^kernels,astra_mpi/kernels,' | sort) \
        <(cd "$site/.." && find astra_mpi -name '*.py' -o -name '*.cu' -o -name '*.cuh' | sort)
      ls "$site"/../astra_mpi-*.dist-info/licenses/LICENSE >/dev/null
      case $file in *.tar.gz) exit 0 ;; esac
      astra-mpi init llama-tiny model.h5 >/dev/null
      find "$site" -name '*.nb[ic]' -delete
      first "kernels compiled on the way"
      first "the next process"
      find "$site" -name '*.nb[ic]' -delete
      astra-mpi compile --compute float32 model.h5 | sed 's/^/    /'
      first "after astra-mpi compile"
      mpirun -n 2 astra-mpi verify model.h5 --strategies sp,astra | tail -3 | sed 's/^/    /'
    )
  done
done
