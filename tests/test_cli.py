"""Bad input through the real command line: one clear line, exit code 2, soon, and nothing written."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from data.conformal import Promise
from data.contract import Contract
from data.files import file_hash
from data.sampling import Sampling
from data.tasks import BUILT_IN_TASKS
from tests.conftest import ROOT, SAMPLE

SCRIPTS = (
    "download.py", "main_SFT.py", "main_grpo.py", "merge_lora.py", "inference.py", "-m scripts.attention",
    "-m scripts.calibrate", "-m scripts.compare", "-m scripts.confidence", "-m scripts.coverage", "-m scripts.ensemble", "-m scripts.gather",
    "-m scripts.judge_summaries", "-m scripts.label_corpus", "-m scripts.report", "-m scripts.reproduce", "-m scripts.reward_curve", "-m scripts.robustness",
    "-m scripts.summary_scores", "-m scripts.web",
    "-m scripts.benchmark grpo", "-m scripts.benchmark inference", "-m scripts.benchmark score",
    "-m scripts.benchmark sft", "-m scripts.benchmark gpu", "-m scripts.benchmark plan",
)  # fmt: skip
HEAVY = {"torch", "trl", "peft", "sklearn", "datasets", "matplotlib", "pandas", "scipy", "gradio"}
GOOD = "I love it\t18\tc1\nno\t27\tc2\n"
LABELS = (SAMPLE / "labels.txt").read_text(encoding="utf-8")

# name -> (script, flags; {dir} is the case's own folder, what the line must say)
SFT = "main_SFT.py --model_path {model} --train_data_path {dir}/good.tsv --label_path {dir}/labels.txt --output_dir {dir}/out"
INFER = "inference.py --model_path {model} --label_path {dir}/labels.txt --output_dir {dir}/out"
ROBUST = "scripts/robustness.py --model_path {model} --label_path {dir}/labels.txt --test_data_path {dir}/good.tsv --output_dir {dir}/out"
SUMMARISE = (
    "inference.py --model_path {model} --task emotion-summary --test_data_path {dir}/cases.jsonl --output_dir {dir}/out"
)
CORPUS = "scripts/label_corpus.py --model_path {model} --label_path {dir}/labels.txt --input_path {dir}/good.tsv --output_dir {dir}/out"
GRPO = SFT.replace("main_SFT.py", "main_grpo.py")
ATTEND = INFER.replace("inference.py", "scripts/attention.py")
JUDGE = "scripts/judge_summaries.py {dir}/written.jsonl --judge_url http://127.0.0.1:9/v1 --judge_model m --output_dir {dir}/out"
SUMMARY_SFT = "main_SFT.py --model_path {model} --task emotion-summary --tuning lora --train_data_path {dir}/told.jsonl --output_dir {dir}/out"
CASES = {
    "missing model": (f"{SFT} --model_path {{dir}}/nowhere", "--model_path {dir}/nowhere: no such directory"),
    "missing data": (f"{SFT} --train_data_path {{dir}}/nowhere.tsv", "--train_data_path {dir}/nowhere.tsv: no such file"),
    "a folder for data": (f"{SFT} --train_data_path {{dir}}/run", "--train_data_path {dir}/run: is a directory, where a file is expected"),
    "a pipe for data": (f"{SFT} --dev_data_path {{dir}}/pipe", "--dev_data_path {dir}/pipe: is a pipe, socket or device, where a file"),
    "a device for data": (f"{INFER} --test_data_path /dev/zero", "--test_data_path /dev/zero: is a pipe, socket or device, where a file"),
    "links in a circle": (f"{SFT} --test_data_path {{dir}}/circle", "--test_data_path {dir}/circle: cannot be read (Too many levels"),
    "a name too long": (f"{SFT} --train_data_path {{dir}}/{'long' * 100}", "longlong: cannot be read (File name too long)"),
    "below a file": (f"{GRPO} --train_data_path {{dir}}/good.tsv/x", "--train_data_path {dir}/good.tsv/x: no such file"),
    "a zip for data": (f"{SFT} --train_data_path {{dir}}/data.xlsx", "{dir}/data.xlsx: is a zip archive, as .xlsx"),
    "ids in another order": ("main_SFT.py --model_path {model} --task emotion --train_data_path {dir}/ids.jsonl --output_dir {dir}/out", "{dir}/ids.jsonl:1: label id 0: is 'sadness' in the published files of emotion"),
    "missing labels": (f"{SFT} --label_path {{dir}}/nowhere.txt", "--label_path {dir}/nowhere.txt: cannot be read"),
    "wrong label id": (f"{SFT} --train_data_path {{dir}}/id.tsv", "{dir}/id.tsv:2: label id 28"),
    "labels in a pipe": (f"{SFT} --label_path {{dir}}/pipe", "--label_path {dir}/pipe: is no file"),
    "labels without end": (f"{INFER} --label_path /dev/zero --text hi", "--label_path /dev/zero: is no file"),
    "labels of another encoding": (f"{SFT} --label_path {{dir}}/wide.txt", "{dir}/wide.txt:1: label 'j\\x00o\\x00y\\x00' holds a control character"),
    "a label like a tag": (f"{SFT} --label_path {{dir}}/tag.txt", "{dir}/tag.txt:2: label '</think>' holds a tag"),
    "grpo: more labels than an answer holds": ("main_grpo.py --model_path {dir}/trained --train_data_path {dir}/several.tsv --output_dir {dir}/out", "{dir}/several.tsv:2: 3 labels, while an answer holds at most 2"),
    "no label": (f"{SFT} --train_data_path {{dir}}/unlabelled.tsv", "{dir}/unlabelled.tsv:2: no label, which needs --allow_none"),
    "grpo: no label": (f"{GRPO} --dev_data_path {{dir}}/unlabelled.tsv", "{dir}/unlabelled.tsv:2: no label, which needs --allow_none"),
    "no label of one": (f"{SFT} --task single_label --allow_none", ": is single_label, so each text has a label"),
    "grpo: no label of one": ("main_grpo.py --model_path {model} --task sst2 --allow_none --train_data_path {dir}/good.tsv", "--allow_none: task sst2: is single_label"),
    "no label to compare": (f"{SFT} --objective score --allow_none", "--allow_none: needs --objective generate or classify"),
    "no label to compare in an untuned model": (f"{INFER} --text hi --objective score --allow_none", "--allow_none: needs --objective generate or classify"),
    "no label in summaries": (f"{SUMMARY_SFT} --allow_none", "--allow_none on: does nothing without a task of labels"),
    "a label called none": (f"{SFT} --label_path {{dir}}/none.txt --allow_none", "label 'None' is what the answer is called that no label applies"),
    "no label where the run has some": ("inference.py --model_path {dir}/trained --text hi --allow_none", "--allow_none on contradicts {dir}/trained/task.json: trained with off"),
    "gather: no label where the run has some": ("scripts/gather.py --output_dir {dir} --model_path {dir}/trained --allow_none", "--allow_none on contradicts {dir}/trained/task.json: trained with off"),
    "labels in two ways": (f"{SFT} --label_path {{dir}}/two.txt --train_data_path {{dir}}/two_ways.csv", "{dir}/two_ways.csv:1: a label column ('label') and a column for each label"),
    "columns of some labels": (f"{SFT} --train_data_path {{dir}}/some.csv", "{dir}/some.csv:1: a column for 'fear', but none for 'admiration'"),
    "a column of a label that is no mark": (f"{INFER} --label_path {{dir}}/two.txt --test_data_path {{dir}}/marks.csv", "{dir}/marks.csv:2: column 'Fear' is 'maybe', where 1 or 0 is expected"),
    "label not in the set": (f"{SFT} --dev_data_path {{dir}}/label.tsv", "{dir}/label.tsv:2: label 'hunger' is not in"),
    "wrong number of columns": (f"{SFT} --train_data_path {{dir}}/columns.tsv", "{dir}/columns.tsv:2: 2 columns"),
    "empty text": (f"{SFT} --train_data_path {{dir}}/text.tsv", "{dir}/text.tsv:2: empty text"),
    "empty file": (f"{SFT} --train_data_path {{dir}}/empty.tsv", "{dir}/empty.tsv: the file is empty"),
    "non-UTF-8 byte": (f"{SFT} --test_data_path {{dir}}/latin.tsv", "{dir}/latin.tsv:2: byte 0xe9 is not UTF-8"),
    "duplicate label": (f"{SFT} --label_path {{dir}}/twice.txt", "{dir}/twice.txt:3: label 'joy' stands already on line 1"),
    "header": (f"{SFT} --train_data_path {{dir}}/header.tsv", "{dir}/header.tsv:1: a header"),
    "run without task.json": (f"{INFER} --model_path {{dir}}/run --text hi", "{dir}/run: a trained adapter without task.json"),
    "contradicting labels": (f"{SFT} --task goemotions-group", "contradicts --task goemotions-group: id 0 is 'admiration'"),
    "labels that contradict the run": (f"{INFER} --model_path {{dir}}/trained --text hi", "contradicts {dir}/trained/task.json"),
    "unknown flag": (f"{SFT} --learning_rat 1e-3", "unknown flag --learning_rat; did you mean --learning_rate?"),
    "unknown flag of inference": (f"{INFER} --txt hi", "unknown flag --txt; did you mean --text?"),
    "wrong type": (f"{SFT} --batch_size many", "--batch_size: expected a whole number, found 'many'"),
    "wrong choice": (f"{SFT} --tuning lara", "--tuning: invalid choice: 'lara'"),
    "below its minimum": (f"{SFT} --batch_size 0", "--batch_size 0: must be from 1 to 65536"),
    "ratio over one": (f"{SFT} --val_ratio 1.5", "--val_ratio 1.5: must be 0, or from 0.001 to 0.9"),
    "no learning rate": (f"{SFT} --learning_rate 0", "--learning_rate 0.0: must be from 1e-09 to 1"),
    "a learning rate that explodes": (f"{SFT} --learning_rate 1000", "--learning_rate 1000.0: must be from 1e-09 to 1"),
    "a learning rate that rounds away": (f"{SFT} --learning_rate 1e-300", "--learning_rate 1e-300: must be from 1e-09 to 1"),
    "a decay that explodes": (f"{SFT} --weight_decay 1e30", "--weight_decay 1e+30: must be from 0 to 10"),
    "a loss of nothing": (f"{SFT} --loss focal --focal_gamma 1e6", "--focal_gamma 1000000.0: must be from 0 to 10"),
    "a target of nothing": (f"{SFT} --objective classify --label_smoothing 0.9999999", "--label_smoothing 0.9999999: must be from 0 to 0.9"),
    "an adapter as large as memory": (f"{SFT} --lora_r 1000000000", "--lora_r 1000000000: must be from 1 to 8192"),
    "a scale beyond floats": (f"{SFT} --lora_alpha {10**15}", "--lora_alpha 1000000000000000: must be from 1 to 65536"),
    "a batch as large as memory": (f"{SFT} --batch_size {10**12}", "--batch_size 1000000000000: must be from 1 to 65536"),
    "a step that never ends": (f"{SFT} --gradient_accumulation_steps {10**12}", "--gradient_accumulation_steps 1000000000000: must be from 1 to 65536"),
    "a run that never ends": (f"{SFT} --max_steps {10**18}", "--max_steps 1000000000000000000: must be from 1 to 100000000"),
    "epochs beyond integers": (f"{SFT} --num_epochs 1e308", "--num_epochs 1e+308: must be from 0.001 to 10000"),
    "no epoch": (f"{SFT} --num_epochs 1e-300", "--num_epochs 1e-300: must be from 0.001 to 10000"),
    "no validation row": (f"{SFT} --val_ratio 1e-300", "--val_ratio 1e-300: must be 0, or from 0.001 to 0.9"),
    "two warm-ups": (f"{SFT} --warmup_steps 10 --warmup_ratio 0.1", "--warmup_steps 10 and --warmup_ratio 0.1: give one of them"),
    "a warm-up that there is not": (f"{SFT} --warmup_ratio 0.1 --lr_scheduler_type constant", "--warmup_ratio 0.1: does nothing without another --lr_scheduler_type"),
    "embeddings that do not learn anyway": (f"{SFT} --freeze_embeddings", "--freeze_embeddings on: does nothing without --tuning full"),
    "unknown optimizer": (f"{SFT} --optimizer adam", "--optimizer: invalid choice: 'adam'"),
    "focus without focal loss": (f"{SFT} --focal_gamma 3", "--focal_gamma 3.0: does nothing without --loss focal"),
    "endless training": (f"{SFT} --num_epochs inf", "--num_epochs: must be finite, found 'inf'"),
    "weight without end": (f"{SFT} --weight_decay nan", "--weight_decay: must be finite, found 'nan'"),
    "a number like a library": (f"{SFT} --batch_size {10**30}", "--batch_size: 1000000000000000000000000000000 is out of range"),
    "seed too large": (f"{SFT} --seed 99999999999", "--seed 99999999999: must be from 0 to 4294967295"),
    "output_dir below a file": (f"{SFT} --output_dir {{dir}}/good.tsv/sub", "--output_dir {dir}/good.tsv/sub: {dir}/good.tsv is a file"),
    "empty output_dir": (f"{INFER} --text hi --output_dir ''", "--output_dir: is empty"),
    "unknown scheduler": (f"{SFT} --lr_scheduler_type zigzag", "--lr_scheduler_type: invalid choice: 'zigzag'"),
    "output_dir that is a file": (f"{SFT} --output_dir {{dir}}/good.tsv", "--output_dir {dir}/good.tsv: is a file"),
    "unknown metric": (f"{SFT} --metric_for_best f1", "--metric_for_best f1: must be loss or one of"),
    "steps that do not fit": (f"{SFT} --eval_steps 50 --save_steps 70", "--save_steps 70: must be a multiple of --eval_steps 50"),
    "unknown task": (f"{SFT} --task goemotion", "--task goemotion: unknown; known tasks are goemotions-original"),
    "nothing to do": (f"{INFER}", "give one of --test_data_path (a file), --text (one text), --interactive and --demo"),
    "two things to do": (f"{INFER} --text hi --demo", "give one of --test_data_path (a file), --text (one text), --interactive and --demo"),
    "unknown engine": (f"{INFER} --text hi --backend llama", "--backend: invalid choice: 'llama'"),
    "an engine for encoders": (f"{INFER} --text hi --backend bert", "--backend bert: {model} is no encoder, which hf and vllm run"),
    "constrained how": (f"{INFER} --text hi --constrained maybe", "--constrained: expected on or off, found 'maybe'"),
    "no such part": (f"{INFER} --test_data_path {{dir}}/good.tsv --shard 9/8", "--shard 9/8: expected i/n with i from 1 to n"),
    "no part": (f"{INFER} --test_data_path {{dir}}/good.tsv --shard third", "--shard third: expected i/n with i from 1 to n"),
    "vllm in four bits": (f"{INFER} --text hi --backend vllm --load_in_4bit", "--load_in_4bit: is for hf, not for vllm"),
    "pruned mass of all": (f"{INFER} --text hi --pruned_mass 1", "--pruned_mass 1.0: must be from 0 to below 1"),
    "thresholds of reasoned answers": (f"{INFER} --text hi --decide thresholds --cot", "--decide thresholds: is for models that write labels alone; this one reasons"),
    "thresholds of free answers": (f"{INFER} --text hi --decide thresholds --constrained off", "--constrained off: there are then no probabilities, but thresholds of them decide; give --decide answer"),
    "pruned mass below nothing": (f"{INFER} --text hi --pruned_mass -0.1", "--pruned_mass -0.1: must be from 0 to below 1"),
    "an unknown way to decide": (f"{INFER} --text hi --decide chance", "--decide: invalid choice: 'chance'"),
    "vllm device": (f"{INFER} --text hi --backend vllm --device cuda:1", "--device: vllm takes the GPUs it sees"),
    "GPUs without vllm": (f"{INFER} --text hi --tensor_parallel_size 2", "--tensor_parallel_size 2: needs --backend vllm"),
    "no GPUs": (f"{INFER} --text hi --tensor_parallel_size 0", "--tensor_parallel_size 0: must be at least 1"),
    "merge: nothing given": ("merge_lora.py", "--training_output_dir is needed"),
    "merge: no run": ("merge_lora.py --training_output_dir {dir}/nowhere", "--training_output_dir {dir}/nowhere: no such directory"),
    "merge: nothing to merge": ("merge_lora.py --training_output_dir {dir}/trained", "{dir}/trained: holds a whole model: nothing to merge"),
    "merge: a broken adapter": ("merge_lora.py --training_output_dir {dir}/run", "{dir}/run/adapter_config.json: names no base model"),
    "merge: a base that is gone": ("merge_lora.py --training_output_dir {dir}/moved", "its base model 'models/gone' is not there; a relative path counts from here"),
    "merge: no such base": ("merge_lora.py --training_output_dir {dir}/moved --base_model_path {dir}/nowhere", "--base_model_path {dir}/nowhere: no such directory"),
    "merge: unknown format": ("merge_lora.py --training_output_dir {dir}/moved --dtype int8", "--dtype: invalid choice: 'int8'"),
    "merge: into the current folder": ("merge_lora.py --training_output_dir {dir}/moved --output_dir . --overwrite", "is the folder this was started in, or one above it"),
    "merge: where models are made": ("merge_lora.py --training_output_dir {dir}/moved --output_dir {dir}/.x.merging/model", ".x.merging is where a merged model is made, and does not last"),
    "summaries: a key is missing": (f"{SUMMARY_SFT} --train_data_path {{dir}}/keyless.jsonl", "{dir}/keyless.jsonl:2: no consultation_process among 'id', 'case_description', 'experience_and_reflection'"),
    "summaries: none to learn from": (f"{SUMMARY_SFT} --train_data_path {{dir}}/cases.jsonl", "{dir}/cases.jsonl:1: no experience_and_reflection among 'case_description', 'consultation_process'"),
    "summaries: a text for a list": (f"{SUMMARY_SFT} --train_data_path {{dir}}/texts.jsonl", "{dir}/texts.jsonl:2: consultation_process is 'b', where a list of texts is expected"),
    "summaries: a list for a text": (f"{SUMMARY_SFT} --dev_data_path {{dir}}/listed.jsonl", "{dir}/listed.jsonl:2: experience_and_reflection is ['c'], where words are expected"),
    "summaries: no consultation": (f"{SUMMARY_SFT} --train_data_path {{dir}}/silent.jsonl", "{dir}/silent.jsonl:2: consultation_process is an empty list"),
    "summaries: an empty turn": (f"{SUMMARY_SFT} --test_data_path {{dir}}/pause.jsonl", "{dir}/pause.jsonl:2: empty consultation_process[1]"),
    "summaries: rows of texts and labels": (f"{SUMMARY_SFT} --train_data_path {{dir}}/ids.jsonl", "{dir}/ids.jsonl:1: no case_description among 'text', 'label'"),
    "summaries: a table": (f"{SUMMARY_SFT} --train_data_path {{dir}}/good.tsv", "{dir}/good.tsv: is no JSON; expected an object a line, or a list of objects"),
    "summaries: labels": (f"{SUMMARY_SFT} --label_path {{dir}}/labels.txt", "--label_path {dir}/labels.txt: task emotion-summary has no labels"),
    "summaries: a head": (f"{SUMMARY_SFT} --objective classify", "--objective classify: task emotion-summary is written (generate)"),
    "summaries: the shape of a head": (f"{SUMMARY_SFT} --head mlp", "--head mlp: does nothing without a task of labels"),
    "summaries: a head alone": (f"{SUMMARY_SFT} --tuning head", "--tuning head: task emotion-summary is written (generate), and has no head"),
    "summaries: compared": (f"{SUMMARY_SFT} --objective score", "--objective score: task emotion-summary is written (generate)"),
    "summaries: reasoning": (f"{SUMMARY_SFT} --cot", "--cot on: does nothing without a task of labels"),
    "summaries: weights of labels": (f"{SUMMARY_SFT} --class_weights balanced", "--class_weights balanced: does nothing without a task of labels"),
    "summaries: another wording": (f"{SUMMARY_SFT} --prompt text_only", "--prompt text_only: "),
    "summaries: instruction first": (f"{SUMMARY_SFT} --prompt instruction_first", "--prompt instruction_first: task emotion-summary"),
    "summaries: a metric of labels": (f"{SUMMARY_SFT} --metric_for_best f1_macro", "--metric_for_best f1_macro: must be loss or one of rouge1_f1, rouge2_f1, rougeL_f1, bleu"),
    "summaries: an encoder": (f"{SUMMARY_SFT} --model_path {{dir}}/encoder", "--task emotion-summary: {dir}/encoder is an encoder, which writes nothing"),
    "summaries: no room": (f"{SUMMARY_SFT} --max_new_tokens 0", "--max_new_tokens 0: must be from 1 to 10000000"),
    "room for a summary where labels are written": (f"{SFT} --max_new_tokens 9", "--max_new_tokens 9: does nothing without a task whose answer is free text (emotion-summary)"),
    "find_data: two lines": ("scripts/find_data.py --name sst2 --model 'a\nb'", "--model 'a\\nb': holds a line break"),
    "download: into a file": ("download.py --model org/tiny --target_dir {dir}/good.tsv", "--target_dir {dir}/good.tsv: is a file"),
    "find_data: cases that are not there": ("scripts/find_data.py --name psyqa --model {model} --folder {dir}/run", "{dir}/run: no train file (train/Emotion_Summary.jsonl) there; get it with: python download.py --dataset psyqa"),
    "find_data: cases to test on": ("scripts/find_data.py --name longemotion-summary", "longemotion-summary: has only test.jsonl, nothing to train on"),
    "find_data: among one's own": ("scripts/find_data.py --own --name longemotion-summary --model {model} --folder {dir}", "longemotion-summary: has only test.jsonl, nothing to train on"),
    "download: of nowhere": ("download.py --dataset psyqa --source {dir}/nowhere.json", "--source {dir}/nowhere.json: no such file"),
    "download: of a folder": ("download.py --dataset psyqa --source {dir}/run", "--source {dir}/run: is a directory, where a file is expected"),
    "download: of a pipe": ("download.py --dataset psyqa --source {dir}/pipe", "--source {dir}/pipe: is a pipe, socket or device"),
    "download: of an unknown source": ("download.py --model org/tiny --source ftp", "--source ftp: expected auto, hf, modelscope, pypi; a file is for --dataset psyqa"),
    "download: of a file, what no file makes": ("download.py --dataset sst2 --source {dir}/good.tsv", "--source {dir}/good.tsv: expected auto, hf, modelscope, pypi; a file is"),
    "download: a revision of a file": ("download.py --dataset psyqa --source {dir}/good.tsv --revision v1", "--revision v1: a file has none; leave it out"),
    "download: no PsyQA": ("download.py --dataset psyqa --source {dir}/good.tsv --target_dir {dir}/psyqa", "{dir}/good.tsv: is no JSON; expected an object a line, or a list of objects"),
    "download: rows of something else": ("download.py --dataset psyqa --source {dir}/ids.jsonl --target_dir {dir}/psyqa", "{dir}/ids.jsonl:1: not in PsyQA's form: no question among 'text', 'label'"),
    "gather: nothing given": ("scripts/gather.py", "--output_dir is needed"),
    "gather: no parts": ("scripts/gather.py --model_path {dir}/trained --output_dir {dir}", "--output_dir {dir}: no parts such as"),
    "corpus: no model": ("scripts/label_corpus.py --input_path {dir}/good.tsv --output_dir {dir}/out", "--model_path is needed: a hub id or a directory"),
    "corpus: no rows": ("scripts/label_corpus.py --model_path {model} --output_dir {dir}/out", "--input_path is needed: data files, or folders with such files"),
    "corpus: nowhere to write": ("scripts/label_corpus.py --model_path {model} --input_path {dir}/good.tsv", "--output_dir is needed: where the parts go"),
    "corpus: no such file": (f"{CORPUS} --input_path {{dir}}/good.tsv {{dir}}/nowhere.tsv", "--input_path {dir}/nowhere.tsv: no such file"),
    "corpus: a file twice": (f"{CORPUS} --input_path {{dir}}/good.tsv {{dir}}/run/../good.tsv", "good.tsv is there already, by {dir}/good.tsv; a row would count twice"),
    "corpus: no such folder": (f"{CORPUS} --input_path {{dir}}/counsellor/test", "--input_path {dir}/counsellor/test: no such file"),
    "corpus: a pipe": (f"{CORPUS} --input_path {{dir}}/pipe", "--input_path {dir}/pipe: is a pipe, socket or device"),
    "corpus: into what is read": (f"{CORPUS} --input_path {{dir}}", "--output_dir {dir}/out: lies in --input_path {dir}, whose files are read"),
    "corpus: no task": ("scripts/label_corpus.py --model_path {model} --input_path {dir}/good.tsv --output_dir {dir}/out", "--task"),
    "corpus: summaries": ("scripts/label_corpus.py --model_path {dir}/counsellor --input_path {dir}/good.tsv --output_dir {dir}/out", "--model_path {dir}/counsellor: task emotion-summary-en has no labels, and labelling needs some"),
    "corpus: no workers": (f"{CORPUS} --workers 0", "--workers 0: must be at least 1"),
    "corpus: parts of nothing": (f"{CORPUS} --rows_per_part 0", "--rows_per_part 0: must be at least 1"),
    "corpus: an unknown engine": (f"{CORPUS} --backend hf", "--backend: invalid choice: 'hf' (choose from 'transformers', 'vllm')"),
    "corpus: GPUs without vllm": (f"{CORPUS} --tensor_parallel_size 2", "--tensor_parallel_size 2: needs --backend vllm"),
    "corpus: compiled by vllm": (f"{CORPUS} --backend vllm --compile", "--compile: is for transformers; vllm does so by itself"),
    "corpus: a promise that was not made": (f"{CORPUS} --coverage 0.9", "--coverage 0.9: {model} is untuned, and only a trained model promises"),
    "corpus: an encoder that is to write": ("scripts/label_corpus.py --model_path {dir}/encoder --task emotion --backend vllm --input_path {dir}/good.tsv --output_dir {dir}/out", "--backend vllm: {dir}/encoder is an encoder, which bert runs"),
    "corpus: an empty address": (f"{CORPUS} --address ''", "--address : expected auto or host:port"),
    "corpus: a client's address": (f"{CORPUS} --address ray://head:10001", "--address ray://head:10001: expected auto or host:port"),
    "corpus: nobody there": (f"{CORPUS} --address 127.0.0.1:9", "--address 127.0.0.1:9: no Ray cluster there (Connection refused)"),
    "corpus: a port that there is not": (f"{CORPUS} --address 127.0.0.1:99999", "--address 127.0.0.1:99999: no Ray cluster there"),
    "corpus: labels that contradict the run": (f"{CORPUS} --model_path {{dir}}/trained", "contradicts {dir}/trained/task.json"),
    "probabilities of free answers": (f"{INFER} --test_data_path {{dir}}/good.tsv --probabilities --constrained off", "--probabilities: are those of valid answers"),
    "compare: results of another type": ("scripts/compare.py --runs {dir}/odd", "{dir}/odd/test_results.json: accuracy is 'high', expected a number or null"),
    "compare: results too deep": ("scripts/compare.py --runs {dir}/deep", "{dir}/deep/test_results.json: not a JSON object"),
    "compare: a language without titles": ("scripts/compare.py --runs {dir}/odd --language fr", "--language: invalid choice: 'fr'"),
    "confidence: nothing given": ("scripts/confidence.py", "--runs is needed: folders with a predictions.jsonl"),
    "confidence: no such run": ("scripts/confidence.py {dir}/nowhere", "{dir}/nowhere/predictions.jsonl: cannot be read (No such file"),
    "confidence: none at all": ("scripts/confidence.py {dir}/unsure", "{dir}/unsure/predictions.jsonl: no row has a confidence, so there is nothing to analyse: predict again"),
    "confidence: over one": ("scripts/confidence.py {dir}/oversure", "{dir}/oversure/predictions.jsonl:1: id '1' has a confidence that is not from 0 to 1"),
    "a promise of everything": (f"{SFT} --coverage 1", "--coverage 1.0: must be from 0.01 to 0.9999"),
    "a promise of nothing": (f"{GRPO} --coverage 0", "--coverage 0.0: must be from 0.01 to 0.9999"),
    "a promise without calibration": (f"{SFT} --coverage 0.9 --calibration off", "--coverage 0.9: is calibrated, so it needs --calibration on"),
    "grpo: a promise without calibration": (f"{GRPO} --coverage 0.9 --calibration off", "--coverage 0.9: is calibrated, so it needs --calibration on"),
    "a promise of reasoning": (f"{SFT} --coverage 0.9 --cot", "--coverage 0.9: not of answers with reasoning (--cot)"),
    "a promise on two rows": (f"{SFT} --coverage 0.9 --dev_data_path {{dir}}/good.tsv", "--coverage 0.9: needs at least 9 validation rows, found 2"),
    "grpo: a promise on two rows": (f"{GRPO} --coverage 0.9 --dev_data_path {{dir}}/good.tsv --num_generations 2 --batch_size 2", "--coverage 0.9: needs at least 9 validation rows, found 2"),
    "a promise of summaries": (f"{SUMMARY_SFT} --coverage 0.9", "--coverage 0.9: does nothing without a task of labels"),
    "a promise that was not made": ("inference.py --model_path {dir}/trained --text hi --coverage 0.9", "--coverage 0.9: {dir}/trained promises nothing yet; python -m scripts.calibrate --model_path {dir}/trained"),
    "another promise than was made": ("inference.py --model_path {dir}/promising --text hi --coverage 0.8", "--coverage 0.8 contradicts {dir}/promising/task.json: calibrated for 0.9"),
    "a promise of an untuned model": (f"{INFER} --text hi --coverage 0.9", "--coverage 0.9: {model} is untuned, and only a trained model promises"),
    "a promise beyond everything": ("inference.py --model_path {dir}/promising --text hi --coverage 1.5", "--coverage 1.5: must be from 0.01 to 0.9999"),
    "a promise of the engine": ("inference.py --model_path {dir}/promising --text hi --coverage 0.9 --backend vllm", "--coverage: needs probabilities of labels: --probabilities on"),
    "a promise of free answers": ("inference.py --model_path {dir}/promising --text hi --coverage 0.9 --constrained off", "--coverage: needs probabilities of valid answers"),
    "a promise of a counsellor": ("inference.py --model_path {dir}/counsellor --demo --coverage 0.9", "--coverage: task emotion-summary-en has no labels"),
    "sets without a promise": (f"{INFER} --text hi --max_set_size 3", "--max_set_size 3: does nothing without --coverage"),
    "sets of nothing": ("inference.py --model_path {dir}/promising --text hi --coverage 0.9 --max_set_size 0", "--max_set_size 0: must be at least 1"),
    "web: another promise than was made": ("scripts/web.py --model_path {dir}/promising --coverage 0.8", "--coverage 0.8 contradicts {dir}/promising/task.json: calibrated for 0.9"),
    "calibrate: which model": ("scripts/calibrate.py --dev_data_path {dir}/good.tsv", "--model_path is needed: a run, or a merged model"),
    "calibrate: on what": ("scripts/calibrate.py --model_path {dir}/trained", "--dev_data_path is needed: labelled rows"),
    "calibrate: an untuned model": ("scripts/calibrate.py --model_path {model} --dev_data_path {dir}/good.tsv", "--model_path {model}: no task.json there; a run or a merged model is calibrated"),
    "calibrate: summaries": ("scripts/calibrate.py --model_path {dir}/counsellor --dev_data_path {dir}/told.jsonl", "task emotion-summary-en has no labels, and a calibration needs some"),
    "calibrate: rows it was trained on": ("scripts/calibrate.py --model_path {dir}/promising --dev_data_path {dir}/group.tsv", "--dev_data_path {dir}/group.tsv: the model was trained on these rows; use others"),
    "calibrate: too few rows": ("scripts/calibrate.py --model_path {dir}/trained --dev_data_path {dir}/group.tsv --coverage 0.9", "--coverage 0.9: needs at least 9 rows in {dir}/group.tsv, found 2"),
    "calibrate: no promise": ("scripts/calibrate.py --model_path {dir}/trained --dev_data_path {dir}/group.tsv --coverage 1.5", "--coverage 1.5: must be from 0.01 to 0.9999"),
    "coverage: of what": ("scripts/coverage.py", "--runs is needed: folders with a predictions.jsonl"),
    "coverage: without probabilities": ("scripts/coverage.py {dir}/tested", "{dir}/tested/predictions.jsonl: has no probabilities (inference.py --probabilities gives them)"),
    "coverage: an odd set": ("scripts/coverage.py {dir}/oddset", "{dir}/oddset/predictions.jsonl:1: label_set is 'joy', so this is no line of predictions"),
    "coverage: a set of nobody": ("scripts/coverage.py {dir}/setless", "{dir}/setless/predictions.jsonl:1: id '1' has label 'awe', which task setless has not"),
    "confidence: labels of nobody": ("scripts/confidence.py {dir}/trained/test", "{dir}/trained/test/predictions.jsonl:1: id '1' has label 'joy', which task goemotions-group has not"),
    "confidence: fewer than no examples": ("scripts/confidence.py {dir}/unsure --examples -1", "--examples -1: must be at least 0"),
    "confidence: the same run twice": ("scripts/confidence.py {dir}/unsure {dir}/run/../unsure", "--runs: {dir}/run/../unsure has the same predictions as {dir}/unsure"),
    "summary scores: nothing given": ("scripts/summary_scores.py", "--file is needed: cases with what a model wrote of them"),
    "summary scores: no such file": ("scripts/summary_scores.py {dir}/nowhere.jsonl", "--file {dir}/nowhere.jsonl: no such file"),
    "summary scores: nothing written": ("scripts/summary_scores.py {dir}/cases.jsonl", "{dir}/cases.jsonl:1: no summary among 'case_description', "),
    "summary scores: no cases": ("scripts/summary_scores.py {dir}/ids.jsonl", "{dir}/ids.jsonl:1: no case_description among 'text', 'label'"),
    "summary scores: a file to write in": ("scripts/summary_scores.py {dir}/cases.jsonl --output_dir {dir}/good.tsv", "--output_dir {dir}/good.tsv: is a file"),
    "robustness: no file": ("scripts/robustness.py --model_path {model}", "--test_data_path is needed: a labelled file"),
    "robustness: no model": ("scripts/robustness.py --test_data_path {dir}/good.tsv", "--model_path is needed: a hub id or a directory (--show N"),
    "robustness: no task": ("scripts/robustness.py --test_data_path {dir}/good.tsv --show 3", "--task, --label_path or --model_path is needed"),
    "robustness: unknown change": (f"{ROBUST} --perturbations typo", "--perturbations typo: unknown; known are synonyms, paraphrase, typos"),
    "robustness: a change of another language": (f"{ROBUST} --perturbations same_sound", "--perturbations same_sound: not for texts in 'en'"),
    "robustness: strength 0": (f"{ROBUST} --strengths 0 0.1", "--strengths 0.0: must be above 0 and up to 1"),
    "robustness: more than everything": (f"{ROBUST} --strengths 1.5", "--strengths 1.5: must be above 0 and up to 1"),
    "robustness: unknown language": (f"{ROBUST} --language fr", "--language: invalid choice: 'fr'"),
    "robustness: no labels": (f"{ROBUST} --test_data_path {{dir}}/plain.txt", "{dir}/plain.txt: has no labels; nothing says which answers are right"),
    "robustness: bad row": (f"{ROBUST} --test_data_path {{dir}}/id.tsv", "{dir}/id.tsv:2: label id 28"),
    "robustness: nowhere to write": ("scripts/robustness.py --model_path {model} --label_path {dir}/labels.txt --test_data_path {dir}/good.tsv", "--output_dir is needed for an untuned model: where robustness_result.json"),
    "robustness: negative look": (f"{ROBUST} --show -1", "--show -1: must be at least 0"),
    "compare: a baseline that there is not": ("scripts/compare.py --runs a={dir}/odd b={dir}/run --baseline c", "--baseline c: no such name; the runs are a, b"),
    "compare: a baseline alone": ("scripts/compare.py --runs a={dir}/odd --baseline a", "--baseline a: is the only system; there is none to test against it"),
    "compare: tests without rows": ("scripts/compare.py --runs a={dir}/odd b={dir}/run --baseline a --rounds 0", "--baseline a: tests draw rows, which --rounds 0 leaves out"),
    "compare: too few rounds": ("scripts/compare.py --runs {dir}/odd --rounds 5", "--rounds 5: must be 0, or from 100 to 1000000"),
    "compare: an interval of nothing": ("scripts/compare.py --runs {dir}/odd --level 0", "--level 0.0: must be from 0.5 to 0.999"),
    "compare: a seed below zero": ("scripts/compare.py --runs {dir}/odd --seed -1", "--seed -1: must be from 0 to 4294967295"),
    "compare: rows that are none": ("scripts/compare.py --runs {dir}/scored", "{dir}/scored/predictions.jsonl:1: gold is 'joy', so this is no line of predictions"),
    "compare: an odd log of training": ("scripts/compare.py --runs {dir}/logged", "{dir}/logged/train_results.json: peak_memory_mib is 'much', expected a whole number or null"),
    "grpo: summaries": ("main_grpo.py --model_path {model} --task emotion-summary --train_data_path {dir}/cases.jsonl --output_dir {dir}/out", "--task emotion-summary: task emotion-summary has no labels, and a reward needs some"),
    "grpo: a run of summaries": ("main_grpo.py --model_path {dir}/writes --train_data_path {dir}/cases.jsonl --output_dir {dir}/out", "--model_path {dir}/writes: task emotion-summary-zh has no labels, and a reward needs some"),
    "web: summaries": ("scripts/web.py --model_path {dir}/writes", "--model_path {dir}/writes: task emotion-summary-zh has no labels, and the page needs some"),
    "robustness: summaries": ("scripts/robustness.py --task emotion-summary --test_data_path {dir}/cases.jsonl --show 3", "--task emotion-summary: task emotion-summary has no labels, and this analysis needs some"),
    "attention: summaries": ("scripts/attention.py --model_path {dir}/writes --text hi --output_dir {dir}/out", "--model_path {dir}/writes: task emotion-summary-zh has no labels, and this analysis needs some"),
    "confidence: summaries": ("scripts/confidence.py {dir}/writes", "{dir}/writes/test/predictions.jsonl: its answers are summaries (task emotion-summary-zh), where labels are needed"),
    "ensemble: summaries": ("scripts/ensemble.py {dir}/summaries {dir}/unsure --output_dir {dir}/out", "{dir}/summaries/predictions.jsonl: its answers are summaries (task emotion-summary), where labels are needed"),
    "ensemble: a task of summaries": ("scripts/ensemble.py {dir}/unsure {dir}/tested --task emotion-summary --output_dir {dir}/out", "--task emotion-summary: task emotion-summary has no labels, and an ensemble needs some"),
    "compare: summaries tested": ("scripts/compare.py a={dir}/summaries b={dir}/scored --baseline a", "--baseline a: tests compare labels, and its answers are summaries"),
    "report: labels and summaries": ("scripts/report.py {dir}/unsure {dir}/summaries --output_dir {dir}/out", "--runs: {dir}/summaries has summaries and {dir}/unsure has labels; a report is of one of the two"),
    "report: nothing given": ("scripts/report.py", "--runs is needed: folders with a predictions.jsonl"),
    "report: no such run": ("scripts/report.py {dir}/nowhere", "{dir}/nowhere/predictions.jsonl: cannot be read (No such file"),
    "report: several and no place": ("scripts/report.py a={dir}/odd b={dir}/deep", "--output_dir is needed: where the report.html of 2 runs goes"),
    "report: two of a name": ("scripts/report.py a={dir}/unsure a={dir}/unsure --output_dir {dir}/out", "--runs: two are called a; the report shows each by itself"),
    "report: rows of another type": ("scripts/report.py {dir}/odd", "{dir}/odd/predictions.jsonl:1: gold is 'joy', so this is no line of predictions"),
    "report: labels of nobody": ("scripts/report.py {dir}/trained/test", "{dir}/trained/test/predictions.jsonl:1: id '1' has label 'joy', which task goemotions-group has not"),
    "report: a file for a folder": ("scripts/report.py {dir}/unsure --output_dir {dir}/good.tsv", "--output_dir {dir}/good.tsv: is a file"),
    "report: a language without words": ("scripts/report.py {dir}/unsure --language fr", "--language: invalid choice: 'fr'"),
    "report: fewer than no errors": ("scripts/report.py {dir}/unsure --worst -1", "--worst -1: must be at least 0"),
    "judge: no file": ("scripts/judge_summaries.py --judge_url http://127.0.0.1:9/v1 --judge_model m", "--file is needed: cases with what a model wrote of them"),
    "judge: no address": ("scripts/judge_summaries.py {dir}/written.jsonl --judge_model m", "--judge_url is needed: the model that judges"),
    "judge: no model": ("scripts/judge_summaries.py {dir}/written.jsonl --judge_url http://127.0.0.1:9/v1", "--judge_model is needed: the model that judges"),
    "judge: no address at all": (f"{JUDGE} --judge_url 127.0.0.1:9", "--judge_url 127.0.0.1:9: is no address"),
    "judge: a file for an address": (f"{JUDGE} --judge_url file:///etc/hosts", "--judge_url file:///etc/hosts: is no address; expected one such as"),
    "judge: a password in the address": (f"{JUDGE} --judge_url http://me:secret@127.0.0.1:9/v1", "--judge_url: holds a password, a query or a fragment"),
    "judge: a tab in a name": (f"{JUDGE} --judge_model 'a\tb'", "--judge_model a\\tb: holds a character that no name has"),
    "judge: no requests": (f"{JUDGE} --concurrency 0", "--concurrency 0: must be at least 1"),
    "judge: no time": (f"{JUDGE} --timeout 0", "--timeout 0.0: must be at least 1"),
    "judge: nothing to judge": (f"{JUDGE} --limit 0", "--limit 0: must be at least 1"),
    "judge: missing file": (JUDGE.replace("written", "nowhere"), "--file {dir}/nowhere.jsonl: no such file"),
    "judge: no case": (JUDGE.replace("written", "ids"), "{dir}/ids.jsonl:1: no case_description among 'text', 'label'"),
    "judge: no summary": (JUDGE.replace("written", "cases"), "{dir}/cases.jsonl:1: no summary among"),
    "judge: nothing to compare with": (JUDGE, "{dir}/written.jsonl: case 1 has no symptoms, treatment_process, characteristics_of_illness, treatment_effect"),
    "report: robustness of another type": ("scripts/report.py {dir}/tested", "{dir}/tested/robustness_result.json: clean.accuracy: Input should be a valid number"),
    "report: no attention in it": ("scripts/report.py {dir}/attended", "{dir}/attended/attention.json: task: Field required; scripts/attention.py did not write it"),
    "ensemble: no rows of predictions": ("scripts/ensemble.py --runs {dir}/odd {dir}/deep --output_dir {dir}/out", "{dir}/odd/predictions.jsonl:1: gold is 'joy', so this is no line of predictions"),
    "attention: nothing given": ("scripts/attention.py", "--model_path is needed"),
    "attention: nothing to read": (ATTEND, "give one of --text (one text) and --test_data_path (a file)"),
    "attention: two things to read": (f"{ATTEND} --text hi --test_data_path {{dir}}/good.tsv", "give one of --text (one text) and --test_data_path (a file)"),
    "attention: an empty text": (f"{ATTEND} --text ' '", "--text is empty"),
    "attention: the first rows of one text": (f"{ATTEND} --text hi --limit 5", "--limit 5: is for a file (--test_data_path)"),
    "attention: an empty page": (f"{ATTEND} --text hi --texts_shown 0", "--texts_shown 0: must be at least 1"),
    "attention: no top words": (f"{ATTEND} --text hi --top_words 0", "--top_words 0: must be at least 1"),
    "attention: words that never occur": (f"{ATTEND} --text hi --min_count 0", "--min_count 0: must be at least 1"),
    "attention: wrong label id": (f"{ATTEND} --test_data_path {{dir}}/id.tsv", "{dir}/id.tsv:2: label id 28"),
    "attention: nowhere to write": ("scripts/attention.py --model_path {model} --task emotion --text hi", "--output_dir is needed for an untuned model"),
    "attention: another objective than the run's": ("scripts/attention.py --model_path {dir}/trained --text hi --objective score", "--objective score contradicts {dir}/trained/task.json"),
    "attention: a head that is not there": (f"{ATTEND} --text hi --objective classify", "--objective: invalid choice: 'classify'"),
    "attention: a format that there is not": (f"{ATTEND} --text hi --precision fp8", "--precision: invalid choice: 'fp8'"),
    "empty --text": (f"{INFER} --text ''", "--text is empty"),
    "unknown sharing": (f"{SFT} --prefix_sharing maybe", "--prefix_sharing: invalid choice: 'maybe'"),
    "compile what": (f"{SFT} --compile maybe", "--compile: expected on or off, found 'maybe'"),
    "nothing given": ("main_SFT.py", "--model_path is needed"),
    "not a model": (f"{INFER} --model_path {{dir}} --text hi", "{dir}: holds neither config.json nor adapter_config.json"),
    "a pickle of weights": (f"{INFER} --model_path {{dir}}/pickled --text hi", "{dir}/pickled: its weights are a pickle (pytorch_model.bin)"),
    "a config with a text for a number": (f"{SFT} --model_path {{dir}}/typed", "{dir}/typed/config.json: num_hidden_layers is '2', expected a whole number"),
    "a config deeper than Python": (f"{GRPO} --model_path {{dir}}/deep", "{dir}/deep/config.json: not a JSON object"),
    "half of the weights": (f"{INFER} --model_path {{dir}}/halved --text hi", "{dir}/halved/model.safetensors: Error while deserializing header"),
    "merge: an adapter of no rank": ("merge_lora.py --training_output_dir {dir}/rankless", "{dir}/rankless/adapter_config.json: r is 0, expected a number from 1"),
    "a path too long": (f"{SFT} --model_path /{'a' * 5000}", "cannot be read (File name too long)"),
    "a hub that does not answer": (f"{SFT} --model_path someone/model", "--model_path someone/model: no such directory, and no answer from the hub at http://127.0.0.1:9"),
    "plan: no such way to spread": (f"{SFT} --plan --plan_parallel foo", "--plan_parallel: invalid choice: 'foo'"),
    "plan: one GPU to spread over": (f"{SFT} --plan --plan_gpus 1 --plan_parallel fsdp", "--plan_parallel fsdp: spreads a model over GPUs: needs --plan_gpus 2 or more"),
    "plan: not asked for": (f"{GRPO} --plan_gpus 8", "--plan_gpus 8: does nothing without --plan"),
    "grpo: nothing given": ("main_grpo.py", "--model_path is needed"),
    "grpo: no task": ("main_grpo.py --model_path {model} --train_data_path {dir}/good.tsv", "name --task or --label_path"),
    "grpo: wrong label id": (f"{GRPO} --train_data_path {{dir}}/id.tsv", "{dir}/id.tsv:2: label id 28"),
    "grpo: batch that splits a group": (f"{GRPO} --batch_size 12", "--batch_size 12: must be a multiple of --num_generations 8"),
    "grpo: batches that split a group": (f"{GRPO} --batch_size 2 --gradient_accumulation_steps 3", "--batch_size 2 x 3 batches: must be a multiple of --num_generations 8"),
    "grpo: a group of one": (f"{GRPO} --num_generations 1", "--num_generations 1: must be from 2 to 4096"),
    "grpo: unknown loss": (f"{GRPO} --loss_type ppo", "--loss_type: invalid choice: 'ppo'"),
    "grpo: unknown scaling": (f"{GRPO} --scale_rewards both", "--scale_rewards: invalid choice: 'both'"),
    "grpo: unknown engine": (f"{GRPO} --use_vllm yes", "--use_vllm: invalid choice: 'yes'"),
    "grpo: no reward": (f"{GRPO} --accuracy_weight 0 --format_weight 0 --length_weight 0", "all are below 0.01, so there is no reward"),
    "grpo: hardly a reward": (f"{GRPO} --accuracy_weight 1e-300 --format_weight 0 --length_weight 0", "all are below 0.01, so there is no reward"),
    "grpo: a reward beyond floats": (f"{GRPO} --accuracy_weight 1e308", "--accuracy_weight 1e+308: must be from 0 to 1000"),
    "grpo: negative weight": (f"{GRPO} --length_weight -1", "--length_weight -1.0: must be from 0 to 1000"),
    "grpo: no temperature": (f"{GRPO} --temperature 0", "--temperature 0.0: must be from 0.01 to 100"),
    "grpo: hardly a temperature": (f"{GRPO} --temperature 1e-300", "--temperature 1e-300: must be from 0.01 to 100"),
    "grpo: a temperature at which all is equal": (f"{GRPO} --temperature 1e30", "--temperature 1e+30: must be from 0.01 to 100"),
    "grpo: top_p over one": (f"{GRPO} --top_p 1.5", "--top_p 1.5: must be from 0.1 to 1"),
    "grpo: top_p of one token": (f"{GRPO} --top_p 1e-300", "--top_p 1e-300: must be from 0.1 to 1"),
    "grpo: top_k of one token": (f"{GRPO} --top_k 1", "--top_k 1: must be 0, or from 2 to 1000000"),
    "grpo: negative beta": (f"{GRPO} --beta -0.1", "--beta -0.1: must be 0, or from 1e-06 to 100"),
    "grpo: beta beyond floats": (f"{GRPO} --beta 1e30", "--beta 1e+30: must be 0, or from 1e-06 to 100"),
    "grpo: no clip range": (f"{GRPO} --epsilon 0", "--epsilon 0.0: must be from 1e-06 to 100"),
    "grpo: a clip range without end": (f"{GRPO} --epsilon 1e30", "--epsilon 1e+30: must be from 1e-06 to 100"),
    "grpo: no gradient": (f"{GRPO} --max_grad_norm 1e-300", "--max_grad_norm 1e-300: must be from 0.001 to 1000000000.0"),
    "grpo: a group as large as memory": (f"{GRPO} --num_generations {10**9}", "--num_generations 1000000000: must be from 2 to 4096"),
    "grpo: an answer as large as memory": (f"{GRPO} --max_completion_length {10**9}", "--max_completion_length 1000000000: must be from 1 to 10000000"),
    "grpo: fewer texts than are drawn for": (f"{GRPO} --val_ratio 0", "--batch_size 32: with --num_generations 8, these are answers to 4 texts at once, and {dir}/good.tsv has 2 to learn from"),
    "grpo: embeddings that do not learn anyway": (f"{GRPO} --freeze_embeddings", "--freeze_embeddings on: does nothing without --tuning full"),
    "grpo: unknown optimizer": (f"{GRPO} --optimizer sgd", "--optimizer: invalid choice: 'sgd'"),
    "grpo: rounds without dynamic sampling": (f"{GRPO} --dynamic_sampling_rounds 5", "--dynamic_sampling_rounds 5: does nothing without --dynamic_sampling"),
    "grpo: metric": (f"{GRPO} --metric_for_best loss", "--metric_for_best loss: must be one of accuracy"),
    "grpo: unknown sharing": (f"{GRPO} --prefix_sharing maybe", "--prefix_sharing: invalid choice: 'maybe'"),
    "grpo: exact with an engine that draws": (f"{GRPO} --expectation exact --use_vllm colocate", "--use_vllm colocate: does nothing without --expectation sampled"),
    "grpo: exact at a temperature": (f"{GRPO} --expectation exact --temperature 0.5", "--temperature 0.5: does nothing without --expectation sampled"),
    "grpo: exact groups": (f"{GRPO} --expectation exact --num_generations 4", "--num_generations 4: does nothing without --expectation sampled, or --cot"),
    "grpo: sampled by the mean": (f"{GRPO} --scale_rewards mean", "--scale_rewards mean: needs --expectation exact; sampled has"),
    "grpo: exact over a batch": (f"{GRPO} --expectation exact --scale_rewards batch", "--scale_rewards batch: needs --expectation sampled"),
    "grpo: unknown expectation": (f"{GRPO} --expectation mean", "--expectation: invalid choice: 'mean'"),
    "grpo: all answers pruned": (f"{GRPO} --expectation exact --pruned_mass 2", "--pruned_mass 2.0: must be from 0 to 0.5"),
    "grpo: pruned without a tree": (f"{GRPO} --pruned_mass 0.2", "--pruned_mass 0.2: does nothing without --expectation exact"),
    "grpo: a tree of nothing": (f"{GRPO} --expectation exact --max_tree_tokens 0", "--max_tree_tokens 0: must be from 1 to 1000000"),
    "grpo: entropy of samples": (f"{GRPO} --entropy_weight 0.1", "--entropy_weight 0.1: does nothing without --expectation exact"),
    "grpo: unknown reward": (f"{GRPO} --accuracy_reward f2", "--accuracy_reward: invalid choice: 'f2' (choose from 'jaccard', 'exact_match', 'f1_macro', 'f1_micro')"),
    "grpo: a window of no F1": (f"{GRPO} --f1_window 5", "--f1_window 5: does nothing without --accuracy_reward f1_macro or f1_micro"),
    "grpo: a window of nothing": (f"{GRPO} --accuracy_reward f1_macro --f1_window 0", "--f1_window 0: must be from 1 to 100000000"),
    "grpo: adapter without task.json": (f"{GRPO} --model_path {{dir}}/run", "{dir}/run/adapter_config.json: names no base model"),
    "a format that there is not": (f"{SFT} --precision half", "--precision: invalid choice: 'half' (choose from 'auto', 'bf16', 'fp16', 'fp32')"),
    "summaries of no tokens": (f"{SUMMARISE} --max_new_tokens 0", "--max_new_tokens 0: must be at least 1"),
    "summaries drawn coldly": (f"{SUMMARISE} --temperature -1", "--temperature -1.0: must be 0 (the most probable token) or from 0.01"),
    "summaries drawn all but coldly": (f"{SUMMARISE} --temperature 0.001", "--temperature 0.001: must be 0 (the most probable token) or from 0.01"),
    "summaries drawn hotly": (f"{SUMMARISE} --temperature inf", "--temperature: must be finite, found 'inf'"),
    "summaries drawn from nothing": (f"{SUMMARISE} --top_p 0", "--top_p 0.0: must be above 0 and at most 1"),
    "summaries drawn from more than all": (f"{SUMMARISE} --top_p 1.5", "--top_p 1.5: must be above 0 and at most 1"),
    "summaries drawn from less than nothing": (f"{SUMMARISE} --top_k -1", "--top_k -1: must be 0 (all tokens) or more"),
    "summaries drawn from half a token": (f"{SUMMARISE} --top_k 1.5", "--top_k: expected a whole number, found '1.5'"),
    "summaries under no penalty that there is": (f"{SUMMARISE} --repetition_penalty nan", "--repetition_penalty: must be finite, found 'nan'"),
    "summaries under too weak a penalty": (f"{SUMMARISE} --repetition_penalty 0", "--repetition_penalty 0.0: must be from 0.1 to 10"),
    "labels are not drawn": (f"{INFER} --text hi --temperature 1", "--temperature: is for tasks whose answer is free text"),
    "labels have no length": (f"{INFER} --text hi --max_new_tokens 5", "--max_new_tokens: is for tasks whose answer is free text"),
    "probabilities of summaries": (f"{SUMMARISE} --probabilities", "--probabilities: task emotion-summary has no labels"),
    "compiled summaries": (f"{SUMMARISE} --compile", "--compile: not for free text (task emotion-summary), which keeps a cache"),
    "summaries with reasoning": (f"{SUMMARISE} --cot", "--cot: task emotion-summary has no reasoning"),
    "summaries that are compared": (f"{SUMMARISE} --objective score", "--objective score: task emotion-summary is written (generate)"),
    "summaries with labels": (f"{SUMMARISE} --label_path {{dir}}/labels.txt", "--label_path {dir}/labels.txt: task emotion-summary has no labels"),
    "a case that is a text": (f"{SUMMARISE.replace('--test_data_path {dir}/cases.jsonl', '--text hello')}", "--text: not JSON"),
    "a case that lacks a part": ("inference.py --model_path {model} --task emotion-summary --text '{{\"case_description\": [\"a\"]}}'", "--text: no consultation_process among 'case_description'"),
    "cases of labels": (f"{SUMMARISE} --test_data_path {{dir}}/ids.jsonl", "{dir}/ids.jsonl:1: no case_description among 'text', 'label'"),
    "cases that are a table": (f"{SUMMARISE} --test_data_path {{dir}}/good.tsv", "{dir}/good.tsv: is no JSON; expected an object a line"),
    "all cases bad": (f"{SUMMARISE} --test_data_path {{dir}}/ids.jsonl --skip_bad_rows", "--test_data_path {dir}/ids.jsonl: no cases in it (1 rejected)"),
    "a run of another language": ("inference.py --model_path {dir}/counsellor --task emotion-summary-zh --text hi", "--task emotion-summary-zh contradicts {dir}/counsellor/task.json: trained as emotion-summary-en"),
    "labels for a run of summaries": (f"{INFER} --model_path {{dir}}/counsellor --text hi", "contradicts {dir}/counsellor/task.json: id 0 is"),
    "a run of summaries that compares": ("inference.py --model_path {dir}/counsellor --objective score --text hi", "--objective score contradicts {dir}/counsellor/task.json: trained with generate"),
    "a run of summaries that reasons": ("inference.py --model_path {dir}/counsellor --cot --text hi", "--cot on contradicts {dir}/counsellor/task.json: trained with off"),
    "summaries of a run of labels": ("inference.py --model_path {dir}/trained --task emotion-summary --text hi", "contradicts {dir}/trained/task.json: id 0 is"),
    "predicting in a format that there is not": ("inference.py --model_path {model} --task emotion --text x --precision fp8", "--precision: invalid choice: 'fp8'"),
}  # fmt: skip
SLOW_CASES = {  # known only once the tokenizer is there
    "summaries: max_length shorter than the prompt": (f"{SUMMARY_SFT} --max_length 64", "--max_length 64: "),
    "max_length shorter than the prompt": (f"{SFT} --max_length 32", "--max_length 32: the prompt of task goemotions-original takes"),
    "grpo: max_length shorter than the prompt": (f"{GRPO} --batch_size 8 --max_length 32", "--max_length 32: the prompt of task goemotions-original takes"),
    "grpo: budget over the limit": (f"{GRPO} --batch_size 8 --length_budget 999", "--length_budget 999: is over the limit of"),
    "grpo: limit under the gold answers": (f"{GRPO} --batch_size 8 --max_completion_length 1", "--max_completion_length 1: the longest gold answer takes"),
    "a label like a command": (f"{SFT} --label_path {{dir}}/command.txt --train_data_path {{dir}}/command.tsv", "label '<|im_end|>' holds <|im_end|>, which is no word"),
}  # fmt: skip


TOLD = {"id": 1, "case_description": ["a"], "consultation_process": ["b"], "experience_and_reflection": "c"}


def cases_with(*, without: str = "", **changes) -> str:
    """A file of cases, of which the first is right, and the second is not."""
    second = {name: value for name, value in (TOLD | changes).items() if name != without}
    return "".join(f"{json.dumps(case)}\n" for case in (TOLD, second, TOLD))


def write_files(directory: Path, model_dir: Path) -> None:
    trained = directory / "trained"
    files = {
        "good.tsv": GOOD,
        "labels.txt": LABELS,
        "id.tsv": "fine\t3\tc1\nbad\t28\tc2\n",
        "label.tsv": "fine\tjoy\tc1\nbad\thunger\tc2\n",
        "columns.tsv": "fine\t3\tc1\nbad\t3\n",
        "text.tsv": "fine\t3\tc1\n \t3\tc2\n",
        "empty.tsv": "",
        "latin.tsv": b"fine\t3\tc1\ncaf\xe9\t3\tc2\n",
        "plain.txt": "I love it\nno\n",
        "twice.txt": "joy\nfear\njoy\n",
        "wide.txt": "joy\nfear\n".encode("utf-16-le"),
        "tag.txt": "joy\n</think>\n",
        "several.tsv": "fine\t3\tc1\nall\t1,2,3\tc2\n",
        "unlabelled.tsv": "fine\t3\tc1\nall of it\t\tc2\n",
        "none.txt": "joy\nNone\n",
        "two.txt": "joy\nfear\n",
        "two_ways.csv": "text,label,joy,fear\nfine,joy,1,0\n",
        "some.csv": "text,id,fear,joy\nfine,c1,0,1\n",
        "marks.csv": "text,joy,Fear\nfine,1,maybe\n",
        "command.txt": "joy\n<|im_end|>\n",
        "command.tsv": "fine\tjoy\nso so\tjoy\nthe end\t<|im_end|>\n",
        "header.tsv": "text\tlabels\tid\n" + GOOD,
        "run/adapter_config.json": "{}",
        "moved/adapter_config.json": '{"base_model_name_or_path": "models/gone"}',
        "trained/config.json": "{}",
        "promising/config.json": "{}",
        "group.tsv": "fine\t3\tc1\nno\t1\tc2\n",
        "oddset/test_results.json": '{"per_label": {"joy": {}, "fear": {}}}',
        "oddset/predictions.jsonl": '{"id": "1", "text": "hi", "gold": ["joy"], "labels": ["joy"], "valid": true, "label_set": "joy", "abstained": false}\n',
        "setless/test_results.json": '{"per_label": {"joy": {}, "fear": {}}}',
        "setless/predictions.jsonl": '{"id": "1", "text": "hi", "gold": ["joy"], "labels": ["joy"], "valid": true, "label_set": ["awe"], "abstained": false}\n',
        "counsellor/config.json": "{}",
        "odd/test_results.json": '{"accuracy": "high"}',
        "odd/predictions.jsonl": '{"id": "1", "text": "hi", "gold": "joy", "labels": ["joy"], "valid": true}\n',
        "unsure/test_results.json": '{"per_label": {"joy": {}, "fear": {}}}',
        "unsure/predictions.jsonl": '{"id": "1", "text": "hi", "gold": ["joy"], "labels": ["joy"], "valid": true}\n',
        "oversure/test_results.json": '{"per_label": {"joy": {}, "fear": {}}}',
        "oversure/predictions.jsonl": '{"id": "1", "text": "hi", "gold": null, "labels": [], "valid": true, "confidence": 1.5}\n',
        "trained/test/predictions.jsonl": '{"id": "1", "text": "hi", "gold": ["joy"], "labels": ["joy"], "valid": true}\n',
        "tested/test_results.json": '{"per_label": {"joy": {}, "fear": {}}}',
        "tested/predictions.jsonl": '{"id": "1", "text": "hi", "gold": ["joy"], "labels": ["joy"], "valid": true}\n',
        "tested/robustness_result.json": '{"model_path": "m", "test_data_path": "t", "task": "t", "n": 1, "clean": {"accuracy": "high"}}',
        "attended/test_results.json": '{"per_label": {"joy": {}, "fear": {}}}',
        "attended/predictions.jsonl": '{"id": "1", "text": "hi", "gold": ["joy"], "labels": ["joy"], "valid": true}\n',
        "attended/attention.json": '{"model_path": "m"}',
        "scored/test_results.json": '{"n": 1, "accuracy": 1.0}',
        "scored/predictions.jsonl": '{"id": "1", "text": "hi", "gold": "joy", "labels": ["joy"], "valid": true}\n',
        "logged/test_results.json": '{"n": 1}',
        "logged/train_results.json": '{"peak_memory_mib": "much"}',
        "summaries/test_results.json": '{"n": 1, "rougeL_f1": 0.5}',
        "summaries/predictions.jsonl": '{"id": "1", "case_description": ["a"], "consultation_process": ["b"], "summary": "c", "truncated": false, "finished": true}\n',
        "writes/config.json": "{}",
        "writes/test/predictions.jsonl": '{"id": "1", "case_description": ["a"], "consultation_process": ["b"], "summary": "c", "truncated": false, "finished": true}\n',
        "deep/test_results.json": "[" * 100_000,
        "data.xlsx": b"PK\x03\x04",
        "written.jsonl": '{"case_description": ["a"], "consultation_process": ["b"], "summary": "c", "causes": "d"}',
        "ids.jsonl": '{"text": "fine", "label": 0}',
        "cases.jsonl": '{"case_description": ["a"], "consultation_process": ["b"]}\n',
        "told.jsonl": cases_with(),
        "keyless.jsonl": cases_with(without="consultation_process"),
        "texts.jsonl": cases_with(consultation_process="b"),
        "listed.jsonl": cases_with(experience_and_reflection=["c"]),
        "silent.jsonl": cases_with(consultation_process=[]),
        "pause.jsonl": cases_with(consultation_process=["b", " "]),
        "encoder/config.json": '{"model_type": "bert"}',
        "pickled/config.json": '{"model_type": "qwen2"}',
        "pickled/pytorch_model.bin": b"\x80\x02.",
        "typed/config.json": '{"model_type": "qwen2", "num_hidden_layers": "2"}',
        "deep/config.json": "[" * 100_000,
        "halved/config.json": '{"model_type": "qwen2"}',
        "halved/model.safetensors": b"\x40\0\0\0\0\0\0\0{",
        "rankless/adapter_config.json": json.dumps(
            {"base_model_name_or_path": str(model_dir), "peft_type": "LORA", "r": 0, "lora_alpha": 8}
        ),
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    group = replace(BUILT_IN_TASKS["goemotions-group"], most_labels=2)
    Contract(group).save(trained)
    learnt = {"train_data_path": file_hash(directory / "group.tsv")}
    Contract(group, coverage=Promise(0.9, 0.2, 99), data_hashes=learnt).save(directory / "promising")
    Contract(BUILT_IN_TASKS["emotion-summary-en"], max_length=4096, sampling=Sampling()).save(directory / "counsellor")
    Contract(BUILT_IN_TASKS["emotion-summary-zh"], max_length=8192, sampling=Sampling()).save(directory / "writes")
    os.mkfifo(directory / "pipe")
    (directory / "circle").symlink_to(directory / "circle")


def contents(directory: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def outcomes_of(light: Iterable[str], heavy: Iterable[str] = ()) -> list[dict]:
    """What each command line ends with; see tests/command_lines.py."""
    done = subprocess.run(
        [sys.executable, "tests/command_lines.py"], input=json.dumps([list(light), list(heavy)]), capture_output=True,
        text=True, cwd=ROOT, timeout=1500, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, tiny_model_dir):
    """name -> outcome of every case and every `--help`, the places, and what stood in the folder before and after."""
    directory = tmp_path_factory.mktemp("bad-input")
    write_files(directory, tiny_model_dir)
    before = contents(directory)
    places = {"dir": directory, "model": tiny_model_dir}
    light, heavy = ([line.format(**places) for line, _ in cases.values()] for cases in (CASES, SLOW_CASES))
    found = outcomes_of([f"{script} --help" for script in SCRIPTS] + light, heavy)
    return dict(zip([*SCRIPTS, *CASES, *SLOW_CASES], found, strict=True)), places, before, contents(directory)


@pytest.mark.parametrize("name", CASES | SLOW_CASES)
def test_bad_input_is_one_clear_line(outcomes, name):
    stderr = outcomes[0][name]["stderr"]
    script, message = (CASES | SLOW_CASES)[name]
    assert outcomes[0][name]["code"] == 2, stderr
    assert message.format(**outcomes[1]) in stderr
    lines = stderr.strip().splitlines()
    assert lines[-1].startswith(f"{Path(script.split()[0]).name}: error: ")
    assert len(lines) == 1 or name in SLOW_CASES  # loading a tokenizer may have something to say of its own
    assert "Traceback" not in stderr
    loaded = HEAVY & set(outcomes[0][name]["modules"])
    assert "torch" in loaded if name in SLOW_CASES else not loaded


def test_nothing_was_written(outcomes):
    assert outcomes[2] == outcomes[3]


def test_a_typo_in_main_names_the_setting(tmp_path):
    scripts = ("main_SFT.py", "main_grpo.py", "merge_lora.py", "inference.py", "download.py")
    for script in scripts:
        source = (ROOT / script).read_text(encoding="utf-8")
        begin, _, end = source.rpartition("settings = ")
        call_line = end[end.index("run(") :]
        (tmp_path / script).write_text(f"{begin}settings = dict(modle_path='x')\n    {call_line}", encoding="utf-8")
    for script, done in zip(scripts, outcomes_of(str(tmp_path / script) for script in scripts), strict=True):
        assert done["code"] == 2, done["stderr"]
        assert done["stderr"].startswith(f"{script}: error: __main__: there is no setting 'modle_path'")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag_without_heavy_imports(outcomes, script):
    done = outcomes[0][script]
    assert done["code"] == 0
    assert any(line.strip().startswith("--") for line in done["stdout"].splitlines())
    assert "None)" not in done["stdout"]
    assert not re.search(r"--no[_-]|\[[A-Z_]+\]|default: (True|False)", done["stdout"]), "a switch is --name [on|off]"
    assert not HEAVY & set(done["modules"])
