#!/usr/bin/env bash
# One run on a published data set, with the model and the settings that data/published.py recommends for it:
# `bash scripts/train_task.sh TASK [flags of main_SFT.py]`, TASK as download.py names its folder: sst2, r8, chnsenticorp,
# emotion, goemotions/group, psyqa ... (any other word lists them all). MODEL, DATA and OUTPUT can be given in the
# environment.
#   bash scripts/train_task.sh sst2                        an MLP head over an adapter on Qwen2.5-7B-Instruct
#   OUTPUT=outputs/r8-full bash scripts/train_task.sh r8 --tuning full --gradient_checkpointing
#   OUTPUT=outputs/chn-qlora bash scripts/train_task.sh chnsenticorp --tuning qlora     正面 and 负面 compared as answers
#   MODEL=models/minilm-l6 OUTPUT=outputs/emotion-minilm bash scripts/train_task.sh emotion --tuning full
#   bash scripts/train_task.sh psyqa                       summaries of cases, an adapter on Qwen2-7B-Instruct in 4 bits
# On a laptop, an encoder that reads Chinese; one process, since each has a model of its own:
#   PROCESSES=1 MODEL=models/multilingual-e5-small bash scripts/train_task.sh chnsenticorp --tuning full --max_length 256
# GPUS, PARALLEL, NNODES ...: see scripts/_launch.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
source scripts/_launch.sh
source scripts/_train.sh

expand_home MODEL DATA OUTPUT
find_data --name="${1:-}" --model="${MODEL:-}" --folder="${DATA:-}" --output_dir="${OUTPUT:-}"
launch main_SFT.py "${data_flags[@]}" "${@:2}"
