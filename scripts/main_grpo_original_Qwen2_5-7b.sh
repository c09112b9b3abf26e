#!/usr/bin/env bash
# Reinforcement of Qwen2.5-7B-Instruct on GoEmotions with all 28 labels, on all GPUs of this machine. It starts from the
# SFT run of main_SFT_original_Qwen2_5-7b.sh if there is one, else from the untuned model. Every setting can be given in
# the environment, further flags of main_grpo.py behind the command:
#   VLLM_GPUS=1 NUM_GENERATIONS=16 bash scripts/main_grpo_original_Qwen2_5-7b.sh --beta 0.01
# With EXPECTATION=exact no answers are drawn, all are weighed; the start has to be a fine-tuned model:
#   EXPECTATION=exact bash scripts/main_grpo_original_Qwen2_5-7b.sh --accuracy_reward f1_macro
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
EXPECTATION="${EXPECTATION:-sampled}"
if [[ "$EXPECTATION" == exact ]]; then
  [[ "${VLLM_GPUS:-0}" == 0 ]] || stop "VLLM_GPUS=$VLLM_GPUS: EXPECTATION=exact draws no answers"
  how=(--expectation exact --batch_size "${BATCH_SIZE:-16}") # texts on each GPU
else
  how=(--num_generations "${NUM_GENERATIONS:-8}" --batch_size "${BATCH_SIZE:-64}") # answers
fi
LEARNING_RATE="${LEARNING_RATE:-2e-5}"
MAX_STEPS="${MAX_STEPS:-500}"

start_vllm "$MODEL"
launch main_grpo.py --model_path "$MODEL" --label_path "$DATA/labels.txt" \
  --train_data_path "$DATA/train.tsv" --dev_data_path "$DATA/dev.tsv" --output_dir "$OUTPUT" \
  "${how[@]}" --learning_rate "$LEARNING_RATE" --max_steps "$MAX_STEPS" \
  ${vllm_flags[@]+"${vllm_flags[@]}"} "$@"
