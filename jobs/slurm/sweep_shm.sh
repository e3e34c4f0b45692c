#!/usr/bin/env bash
# Removes shared memory that killed MPICH ranks of this user have left on this node. MPICH names it after the SLURM job
# and step, so that the same job, put back into the queue and started here again, would take it for its own, find old
# messages in it and fail in MPI_Init. What a process still uses stays.
for segment in /dev/shm/mpich_shm_*; do
  [ -O "$segment" ] || continue
  grep -qsF "$segment" /proc/[0-9]*/maps || rm -f "$segment"
done
