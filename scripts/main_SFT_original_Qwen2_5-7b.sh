#!/usr/bin/env bash
# SFT of Qwen2.5-7B-Instruct on GoEmotions with all 28 labels, on all GPUs of this machine. Every setting can be given
# in the environment, further flags of main_SFT.py behind the command:
#   MODEL=/path/to/model BATCH_SIZE=16 bash scripts/main_SFT_original_Qwen2_5-7b.sh --num_epochs 2
# GPUS, PARALLEL, NNODES ...: see scripts/_launch.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh

expand_home MODEL DATA OUTPUT
MODEL="${MODEL:-models/Qwen2.5-7B-Instruct}"
DATA="${DATA:-data/goemotions/original}"
OUTPUT="${OUTPUT:-outputs/sft-original-Qwen2.5-7B}"
BATCH_SIZE="${BATCH_SIZE:-32}"
LEARNING_RATE="${LEARNING_RATE:-2e-4}"
NUM_EPOCHS="${NUM_EPOCHS:-2}"

launch main_SFT.py --model_path "$MODEL" --label_path "$DATA/labels.txt" \
  --train_data_path "$DATA/train.tsv" --dev_data_path "$DATA/dev.tsv" --output_dir "$OUTPUT" \
  --batch_size "$BATCH_SIZE" --learning_rate "$LEARNING_RATE" --lr_scheduler_type cosine --num_epochs "$NUM_EPOCHS" \
  --lora_r 32 --lora_alpha 64 "$@"
