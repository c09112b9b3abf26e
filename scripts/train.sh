#!/usr/bin/env bash
# Data sets × tunings × seeds: one run each, in $OUTPUT_DIR/<data set>-<tuning>-seed<seed>, and a table of means and
# standard deviations. A finished run is skipped, so the same command goes on where it was stopped; one that fails does
# not stop the others. Every setting can be given in the environment, further flags of main_SFT.py behind the command:
#   DATASETS="sst2 goemotions/group" TUNINGS=lora SEEDS="0 1 2 3 4" bash scripts/train.sh --num_epochs 2
# A data set is a folder in DATA_DIR, as download.py makes it, or your own with train, dev and test files and a
# labels.txt. GPUS, PARALLEL ...: see scripts/_launch.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh
source scripts/_train.sh

DATASETS="${DATASETS:-sst2 r8}"
TUNINGS="${TUNINGS:-full lora}"
SEEDS="${SEEDS:-0 42 123}"
expand_home MODEL DATA_DIR OUTPUT_DIR
MODEL="${MODEL:-models/Qwen2.5-7B-Instruct}"
DATA_DIR="${DATA_DIR:-data}"
OUTPUT_DIR="${OUTPUT_DIR:-outputs/train}"

split_words DATASETS
datasets=("${words[@]}")
split_words TUNINGS
tunings=("${words[@]}")
split_words SEEDS
seeds=()
for SEEDS in "${words[@]}"; do
  check_number SEEDS 0 4294967295
  seeds+=("$SEEDS")
done

# One run: `fine_tune sst2 OUTPUT --flags of main_SFT.py`.
fine_tune() {
  find_data --own --name="$1" --model="$MODEL" --folder="$DATA_DIR/$1" --output_dir="$2"
  launch main_SFT.py "${data_flags[@]}" "${@:3}"
}

trap 'exit 130' INT # Ctrl-C ends all of it, not just the run that is on
for dataset in "${datasets[@]}"; do # before hours of training: is everything there?
  find_data --own --name="$dataset" --model="$MODEL" --folder="$DATA_DIR/$dataset" --output_dir="$OUTPUT_DIR"
done

finished=()
failed=()
for dataset in "${datasets[@]}"; do
  for tuning in "${tunings[@]}"; do
    for seed in "${seeds[@]}"; do
      output="$OUTPUT_DIR/${dataset//\//-}-$tuning-seed$seed"
      if [[ -f "$output/train_results.json" && -f "$output/test_results.json" ]]; then
        echo "== $output: finished already, skipped"
        finished+=("$output")
        continue
      fi
      echo "== $output"
      if fine_tune "$dataset" "$output" --tuning "$tuning" --seed "$seed" "$@"; then
        finished+=("$output")
      else
        failed+=("$output")
      fi
    done
  done
done

status=0
if ((${#finished[@]} > 0)); then
  echo "== finished runs: ${#finished[@]}"
  python -m scripts.compare --group_seeds --runs "${finished[@]}" --output_dir "$OUTPUT_DIR" \
    --markdown_path "$OUTPUT_DIR/comparison.md" || status=1
fi
if ((${#failed[@]} > 0)); then
  echo "== failed runs: ${#failed[@]}" >&2
  printf '%s\n' "${failed[@]}" >&2
  status=1
fi
exit "$status"
