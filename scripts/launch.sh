#!/usr/bin/env bash
# Run a stage on all that this machine has, or on several machines: bash scripts/launch.sh main_SFT.py --flags
# The variables stand in scripts/_launch.sh, the configurations of Accelerate in scripts/accelerate/.
set -euo pipefail

case "${1:-}" in
  "" | -h | --help)
    cat <<'END'
usage: bash scripts/launch.sh STAGE [flags of the stage]

Runs main_SFT.py or main_grpo.py on all GPUs of this machine; without a GPU in two processes. STAGE --help lists its flags.

  PARALLEL=ddp   how a model is spread over GPUs: ddp (whole on each), fsdp, zero2 or zero3 (DeepSpeed)
  GPUS=4         GPUs to train on (default: all that are found)
  PROCESSES=2    processes on a machine without a GPU
  NNODES=2 NODE_RANK=0 MASTER_ADDR=host MASTER_PORT=29500   several machines: the same command on each

Under Slurm, `srun bash scripts/launch.sh …` with one task a node takes the last four from the job: scripts/slurm.sh.
END
    exit
    ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh
case "$1" in
  main_SFT.py | main_grpo.py) ;;
  *) stop "$1: must be main_SFT.py or main_grpo.py" ;;
esac
launch "$@"
