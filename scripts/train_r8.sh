#!/usr/bin/env bash
# Qwen2.5-7B-Instruct learns the eight topics of R8: an adapter and an MLP head, or with --tuning full all weights and a
# linear head, each with the settings main_SFT.py has for this data set.
# Every setting can be given in the environment, further flags of main_SFT.py behind the command:
#   OUTPUT=outputs/r8-full bash scripts/train_r8.sh --tuning full --gradient_checkpointing
# GPUS, PARALLEL, NNODES ...: see scripts/_launch.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh
source scripts/_train.sh

MODEL="${MODEL:-models/Qwen2.5-7B-Instruct}"
DATA="${DATA:-data/r8}"
OUTPUT="${OUTPUT:-outputs/r8}"

fine_tune r8 "$MODEL" "$DATA" "$OUTPUT" "$@"
