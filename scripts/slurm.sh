#!/usr/bin/env bash
# A job of several machines for Slurm: sbatch scripts/slurm.sh main_SFT.py --flags
# Change the lines below to what your cluster has. --output_dir has to be on a disk that all machines share, and the
# environment as well (bash scripts/test.sh once on a login node makes it). Two minutes before its time is over, and
# when it is preempted, the job is told to end: training saves a checkpoint, and the job is put into the queue again.
#SBATCH --job-name=emotune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

told=0
trap 'told=1' TERM # the step gets its own; this script has to outlive it
srun --kill-on-bad-exit=1 bash scripts/launch.sh "$@" &
step=$!
while true; do
  wait "$step"
  code=$?
  kill -0 "$step" 2>/dev/null || break # else it was the signal that ended the waiting
done
if ((code == 143 || (code != 0 && told))); then
  scontrol requeue "$SLURM_JOB_ID"
  exit
fi
exit "$code"
