# Sourced by the job scripts of this folder, after `set -euo pipefail`. Sets `launcher`, an array: the words before a
# command that every rank of the job is to run.
#   SITE      a file of yours to source first, for modules and the settings below (README.md has examples)
#   VENV      (.venv)  virtual environment with astra-mpi, on a file system that all nodes see; "" if SITE sets PATH
#   LAUNCHER  (srun)   or mpirun
#   MPI       (pmi2)   what srun speaks: pmi2 for MPICH and its PyPI wheel, pmix for Open MPI; `srun --mpi=list` shows yours
die() { echo "${SLURM_JOB_NAME:-job}: error: $*" >&2; exit 2; }

cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the folder of the project}"
[ -d jobs/slurm ] || die "submit from the folder of the project, $PWD has no jobs/slurm"
if [ -n "${SITE:-}" ]; then source "$SITE"; fi
if [ -n "${VENV=.venv}" ]; then
  [ -x "$VENV/bin/astra-mpi" ] || die "no astra-mpi in $VENV; run bash jobs/quickstart.sh once, or set VENV"
  source "$VENV/bin/activate"
fi
command -v astra-mpi >/dev/null || die "astra-mpi is not on PATH; set VENV, or PATH in the file that SITE names"

# threads per rank; without --cpus-per-task SLURM sets no variable
export SLURM_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK NUMBA_NUM_THREADS=$SLURM_CPUS_PER_TASK
case ${LAUNCHER:-srun} in
# srun does not take --cpus-per-task from sbatch; one dead rank must end the others
srun) launcher=(srun "--mpi=${MPI:-pmi2}" "--cpus-per-task=$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1) ;;
mpirun) launcher=(mpirun -n "$SLURM_NTASKS") ;;
*) die "LAUNCHER is '$LAUNCHER'; use srun or mpirun" ;;
esac
launcher+=(bash jobs/slurm/task.sh)
if [ "${SLURM_RESTART_COUNT:-0}" != 0 ] && [ "${LAUNCHER:-srun}" = srun ]; then
  srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash jobs/slurm/sweep_shm.sh
fi
echo "job $SLURM_JOB_ID${SLURM_ARRAY_TASK_ID:+, task $SLURM_ARRAY_TASK_ID}${SLURM_RESTART_COUNT:+, restart $SLURM_RESTART_COUNT}:" \
  "$SLURM_NTASKS ranks of $SLURM_CPUS_PER_TASK threads on $SLURM_JOB_NODELIST"
