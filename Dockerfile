# ASTRA-MPI with MPICH, for CPUs. Not yet run.
#   docker build -t astra-mpi .
#   docker run --rm -v "$PWD:/data" astra-mpi mpirun -n 4 astra-mpi run /data/deck.toml
#   docker run --rm astra-mpi bash .ci/run        all checks (installs what they need)
# On a cluster: apptainer build astra-mpi.sif docker-daemon://astra-mpi:latest, then
#   srun --mpi=pmi2 apptainer exec astra-mpi.sif astra-mpi run deck.toml
# Kernels are compiled into the image for the kind of processor that builds it. Elsewhere they are compiled at the start of
# each container, unless -e NUMBA_CACHE_DIR=/data/kernels keeps them; --build-arg COMPILE=0 leaves them out.
# More than 9 ranks in one container: --shm-size=256m (docs/reference/environments.md).
FROM python:3.11-slim-bookworm
WORKDIR /opt/astra-mpi
COPY . .
RUN pip install --no-cache-dir '.[mpich,text,images,plot]'
# one thread per rank unless told otherwise; Numba does not read the first
ENV OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
ARG COMPILE=1
RUN [ "$COMPILE" = 0 ] || astra-mpi compile
CMD ["astra-mpi", "--help"]
