#!/usr/bin/env bash
# Qwen2.5-1.5B learns the sentiment of Chinese reviews, ChnSentiCorp, by comparing 正面 and 负面 as answers: an adapter
# with the settings main_SFT.py has for this data set. --objective classify puts a head on the model instead.
# Every setting can be given in the environment, further flags of main_SFT.py behind the command:
#   OUTPUT=outputs/chnsenticorp-qlora bash scripts/train_chnsenticorp.sh --tuning qlora
# GPUS, PARALLEL, NNODES ...: see scripts/_launch.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh
source scripts/_train.sh

MODEL="${MODEL:-models/Qwen2.5-1.5B}"
DATA="${DATA:-data/chnsenticorp}"
OUTPUT="${OUTPUT:-outputs/chnsenticorp}"

fine_tune chnsenticorp "$MODEL" "$DATA" "$OUTPUT" "$@"
