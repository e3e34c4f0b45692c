# ASTRA-MPI with MPICH, for CPUs. Built, but not on this base image and not run (docs/reference/environments.md).
#   docker build -t astra-mpi .
#   docker run --rm -v "$PWD:/data" astra-mpi mpirun -n 4 astra-mpi run /data/deck.toml
#   docker run --rm astra-mpi bash .ci/run        all checks (installs what they need)
# On a cluster: apptainer build astra-mpi.sif docker-daemon://astra-mpi:latest, then
#   srun --mpi=pmi2 apptainer exec astra-mpi.sif astra-mpi run deck.toml
# Kernels are compiled at the start of each container. To do it once for a kind of processor: astra-mpi compile --folder
# /data/kernels, and then -e NUMBA_CACHE_DIR=/data/kernels, also where /data is read-only.
# More than 9 ranks in one container: --shm-size=256m (docs/reference/environments.md).
FROM python:3.11-slim-bookworm
WORKDIR /opt/astra-mpi
COPY . .
RUN pip install --no-cache-dir '.[mpich,text,images,plot]'
# one thread per rank unless told otherwise; Numba does not read the first
ENV OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
CMD ["astra-mpi", "--help"]
