#!/usr/bin/env bash
# Qwen2-7B-Instruct learns to write summaries of counselling cases from PsyQA, on all GPUs of this machine. The settings
# are main_SFT.py's own for the task: an adapter (rank 64, alpha 16, dropout 0.05) on a base in 4 bits, learning rate
# 2e-4, 8 batches of 2 cases a step, 3 epochs, 8,192 tokens a case, gradient checkpointing. Further flags of main_SFT.py
# stand behind the command. A killed run goes on when the same command is given again. MODEL, DATA and OUTPUT can be
# given in the environment:
#   MODEL=/path/to/model bash scripts/start_training_qwen2.sh --num_epochs 2
#   PROCESSES=1 MODEL=models/smollm2-135m-instruct bash scripts/start_training_qwen2.sh --max_length 2048   without a GPU
# GPUS, PARALLEL, PROCESSES, NNODES ...: see scripts/_launch.sh; Windows: scripts/start_training_qwen2.bat
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh
source scripts/_train.sh

expand_home MODEL DATA OUTPUT
MODEL="${MODEL:-models/Qwen2-7B-Instruct}"
DATA="${DATA:-data/psyqa}"
OUTPUT="${OUTPUT:-outputs/psyqa-Qwen2-7B}"

find_data --name psyqa --model "$MODEL" --folder "$DATA" --output_dir "$OUTPUT" # says what is missing
launch main_SFT.py --model_path "$MODEL" --task emotion-summary --train_data_path "$DATA/train/Emotion_Summary.jsonl" \
  --dev_data_path "$DATA/validation/Emotion_Summary.jsonl" --output_dir "$OUTPUT" "$@"

echo "The adapter is in $OUTPUT. To write summaries, and to score those of the test cases (--load_in_4bit saves memory):"
echo "  python inference.py --model_path $OUTPUT --test_data_path $DATA/test/Emotion_Summary.jsonl"
