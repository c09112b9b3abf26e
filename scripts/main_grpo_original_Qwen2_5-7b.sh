#!/usr/bin/env bash
# GRPO of Qwen2.5-7B-Instruct on GoEmotions with all 28 labels, on all GPUs of this machine. It starts from the SFT run
# of main_SFT_original_Qwen2_5-7b.sh if there is one, else from the untuned model. Every setting can be given in the
# environment, further flags of main_grpo.py behind the command:
#   VLLM_GPUS=1 NUM_GENERATIONS=16 bash scripts/main_grpo_original_Qwen2_5-7b.sh --beta 0.01
# GPUS, PARALLEL, VLLM_GPUS, NNODES ...: see scripts/_launch.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh

expand_home SFT MODEL DATA OUTPUT
SFT="${SFT:-outputs/sft-original-Qwen2.5-7B}"
[[ -f "$SFT/train_results.json" ]] && default_model="$SFT" || default_model=models/Qwen2.5-7B-Instruct
MODEL="${MODEL:-$default_model}"
DATA="${DATA:-data/goemotions/original}"
OUTPUT="${OUTPUT:-outputs/grpo-original-Qwen2.5-7B}"
NUM_GENERATIONS="${NUM_GENERATIONS:-8}"
BATCH_SIZE="${BATCH_SIZE:-64}"
LEARNING_RATE="${LEARNING_RATE:-2e-5}"
MAX_STEPS="${MAX_STEPS:-500}"

start_vllm "$MODEL"
launch main_grpo.py --model_path "$MODEL" --label_path "$DATA/labels.txt" \
  --train_data_path "$DATA/train.tsv" --dev_data_path "$DATA/dev.tsv" --output_dir "$OUTPUT" \
  --num_generations "$NUM_GENERATIONS" --batch_size "$BATCH_SIZE" --learning_rate "$LEARNING_RATE" \
  --max_steps "$MAX_STEPS" ${vllm_flags[@]+"${vllm_flags[@]}"} "$@"
