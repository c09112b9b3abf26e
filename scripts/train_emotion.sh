#!/usr/bin/env bash
# Qwen3-0.6B learns to tell six emotions apart in English sentences: an adapter and a linear head, with the settings
# main_SFT.py has for this data set.
# Every setting can be given in the environment, further flags of main_SFT.py behind the command:
#   MODEL=models/minilm-l6 OUTPUT=outputs/emotion-minilm bash scripts/train_emotion.sh --tuning full
# GPUS, PARALLEL, NNODES ...: see scripts/_launch.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh
source scripts/_train.sh

MODEL="${MODEL:-models/Qwen3-0.6B}"
DATA="${DATA:-data/emotion}"
OUTPUT="${OUTPUT:-outputs/emotion}"

fine_tune emotion "$MODEL" "$DATA" "$OUTPUT" "$@"
