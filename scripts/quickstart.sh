#!/usr/bin/env bash
# From nothing to a fine-tuned, scored model on a laptop's CPU: environment, a small real model, SFT, reinforcement
# and merging on data/sample, and a table of the model before and after each. OUTPUT=folder puts the runs elsewhere.
# With --zh it is a model that reads Chinese, on data/sample_zh (scripts/_quickstart_zh.sh).
set -euo pipefail

language=en
for flag; do # --zh may stand anywhere; the others keep their order
  shift
  case "$flag" in
    --zh) language=zh ;;
    -h | --help)
      cat <<'END'
usage: bash scripts/quickstart.sh [--zh] [flags of main_SFT.py]

Makes the environment, gets a small model, trains it on a sample and shows how good it was before and after.

  --zh           Chinese: multilingual-e5-small learns from the comments in data/sample_zh (中文快速上手)
  other flags    go to main_SFT.py: --seed 1, --num_epochs 2 ...; python main_SFT.py --help lists them

  MODEL=folder   the model (default: models/smollm2-135m-instruct; with --zh models/multilingual-e5-small)
  OUTPUT=folder  where the runs go (default: outputs/quickstart; with --zh outputs/quickstart-zh)
END
      exit
      ;;
    *) set -- "$@" "$flag" ;;
  esac
done
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

expand_home MODEL OUTPUT
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}" # fewer page faults in large CPU buffers
if [[ "$language" == zh ]]; then
  source scripts/_quickstart_zh.sh
  exit
fi
MODEL="${MODEL:-models/smollm2-135m-instruct}"
OUTPUT="${OUTPUT:-outputs/quickstart}"

[[ -f "$MODEL/config.json" ]] || python download.py --model smollm2-135m-instruct --target_dir "$MODEL"

echo "== 1/5 fine-tuning $MODEL on data/sample"
python main_SFT.py --model_path "$MODEL" --label_path data/sample/labels.txt \
  --train_data_path data/sample/train.tsv --dev_data_path data/sample/dev.tsv --test_data_path data/sample/test.tsv \
  --output_dir "$OUTPUT/sft" --num_epochs 1 --learning_rate 1e-3 --batch_size 8 "$@"

echo "== 2/5 reinforcing what earns a reward: all answers weighed, none drawn"
python main_grpo.py --model_path "$OUTPUT/sft" --train_data_path data/sample/train.tsv \
  --dev_data_path data/sample/dev.tsv --test_data_path data/sample/test.tsv --output_dir "$OUTPUT/reinforced" \
  --expectation exact --max_steps 40 --batch_size 4 --eval_steps 20 --learning_rate 2e-4

echo "== 3/5 folding the adapter into the model: a plain model directory, compared before and after"
python merge_lora.py --training_output_dir "$OUTPUT/reinforced" --output_dir "$OUTPUT/merged" --overwrite
python inference.py --model_path "$OUTPUT/merged" --test_data_path data/sample/test.tsv
merged=("merged=$OUTPUT/merged/test")
if python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'; then
  python inference.py --model_path "$OUTPUT/merged" --test_data_path data/sample/test.tsv --backend vllm \
    --output_dir "$OUTPUT/merged/vllm"
  merged+=("merged, in vLLM=$OUTPUT/merged/vllm")
fi

echo "== 4/5 the untuned model on the same test rows"
python inference.py --model_path "$MODEL" --label_path data/sample/labels.txt \
  --test_data_path data/sample/test.tsv --output_dir "$OUTPUT/base"

echo "== 5/5 before and after"
python -m scripts.compare "untuned=$OUTPUT/base" "SFT=$OUTPUT/sft" "SFT + reinforcement=$OUTPUT/reinforced" \
  "${merged[@]}" --output_dir "$OUTPUT"
python -m scripts.report "SFT + reinforcement=$OUTPUT/reinforced" "SFT=$OUTPUT/sft" "untuned=$OUTPUT/base" \
  "${merged[@]}" --output_dir "$OUTPUT"
cat <<END
report        $OUTPUT/report.html (open it in a browser: scores, charts, the worst errors)
models        $OUTPUT/sft, $OUTPUT/reinforced (adapter, task.json, TensorBoard in runs/),
              $OUTPUT/merged (any tool loads it)
predictions   $OUTPUT/reinforced/predictions.jsonl
rewards       $OUTPUT/reinforced/rewards.csv
try it        source $VENV/bin/activate; python inference.py --model_path $OUTPUT/merged --interactive
END
