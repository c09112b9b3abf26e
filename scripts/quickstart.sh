#!/usr/bin/env bash
# From nothing to a fine-tuned, scored model on a laptop's CPU: environment, a small real model, SFT on data/sample,
# and a table of the model before and after. OUTPUT=folder puts the runs elsewhere.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

MODEL="${MODEL:-models/smollm2-135m-instruct}"
OUTPUT="${OUTPUT:-outputs/quickstart}"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}" # fewer page faults in large CPU buffers

[[ -f "$MODEL/config.json" ]] || python download.py --model smollm2-135m-instruct --target_dir "$MODEL"

echo "== 1/3 fine-tuning $MODEL on data/sample"
python main_SFT.py --model_path "$MODEL" --label_path data/sample/labels.txt \
  --train_data_path data/sample/train.tsv --dev_data_path data/sample/dev.tsv --test_data_path data/sample/test.tsv \
  --output_dir "$OUTPUT/sft" --num_epochs 1 --learning_rate 1e-3 --batch_size 8 "$@"

echo "== 2/3 the untuned model on the same test rows"
python inference.py --model_path "$MODEL" --label_path data/sample/labels.txt \
  --test_data_path data/sample/test.tsv --output_dir "$OUTPUT/base"

echo "== 3/3 before and after"
python -m scripts.compare "untuned=$OUTPUT/base" "fine-tuned=$OUTPUT/sft" --output_dir "$OUTPUT"
cat <<END
model         $OUTPUT/sft (adapter, task.json, TensorBoard in runs/)
predictions   $OUTPUT/sft/predictions.jsonl
try it        source $VENV/bin/activate; python inference.py --model_path $OUTPUT/sft --text "You made my day, thank you!"
END
