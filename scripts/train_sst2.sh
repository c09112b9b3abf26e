#!/usr/bin/env bash
# Qwen2.5-7B-Instruct learns the two sentiments of SST-2: an adapter and an MLP head, or with --tuning full all weights
# and a linear head, each with the settings main_SFT.py has for this data set.
# Every setting can be given in the environment, further flags of main_SFT.py behind the command:
#   OUTPUT=outputs/sst2-full bash scripts/train_sst2.sh --tuning full
# GPUS, PARALLEL, NNODES ...: see scripts/_launch.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh
source scripts/_train.sh

MODEL="${MODEL:-models/Qwen2.5-7B-Instruct}"
DATA="${DATA:-data/sst2}"
OUTPUT="${OUTPUT:-outputs/sst2}"

fine_tune sst2 "$MODEL" "$DATA" "$OUTPUT" "$@"
