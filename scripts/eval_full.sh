#!/usr/bin/env bash
# All that can be said of a model on labelled texts, in one page: see --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash scripts/eval_full.sh MODEL DATA [flags]

Predicts the texts of DATA and scores them, then looks at how sure the model is, how it bears changed texts and what it
attends to, and writes one page about it all, report.html, that needs no network.

  MODEL               a run, a merged model, or an untuned model
  DATA                a file of texts with their labels
  flags               for an untuned model: --task or --label_path, --objective; for any: --max_length,
                      --precision, --device. They go to the three programs that load the model

In the environment:
  OUTPUT              where it all goes (default: MODEL/test; needed for an untuned model)
  ROBUSTNESS_ROWS     texts that are changed (default: 200): each is predicted some fifteen times
  ATTENTION_ROWS      texts whose attention is looked at (default: 60)
  REPORT_LANGUAGE     language of the page: en or zh (default: en)
END
}

for flag; do
  case "$flag" in -h | --help) usage && exit ;; esac
done
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/_variables.sh"
MODEL="${1:-}" DATA="${2:-}"
[[ -n "$MODEL" && "$MODEL" != -* ]] || stop "no model; usage: eval_full.sh MODEL DATA [flags]"
[[ -n "$DATA" && "$DATA" != -* ]] || stop "no data; usage: eval_full.sh MODEL DATA [flags]"
shift 2
for flag; do # one that a later program does not know would stop it when much is done
  case "${flag%%=*}" in
    --task | --label_path | --objective | --max_length | --precision | --device | [!-]*) ;;
    *) stop "${flag%%=*}: not a flag of all programs; those are --task --label_path --objective --max_length --precision --device" ;;
  esac
done
ROBUSTNESS_ROWS="${ROBUSTNESS_ROWS:-200}" ATTENTION_ROWS="${ATTENTION_ROWS:-60}" REPORT_LANGUAGE="${REPORT_LANGUAGE:-en}"
check_number ROBUSTNESS_ROWS 1
check_number ATTENTION_ROWS 1
[[ "$REPORT_LANGUAGE" == en || "$REPORT_LANGUAGE" == zh ]] || stop "REPORT_LANGUAGE=$REPORT_LANGUAGE: must be en or zh"
expand_home MODEL DATA OUTPUT
if [[ "$PWD" != "$root" ]]; then # the programs run in the project's folder
  [[ "$MODEL" == /* || ! -e "$MODEL" ]] || MODEL="$PWD/$MODEL"
  [[ "$DATA" == /* ]] || DATA="$PWD/$DATA"
  [[ "${OUTPUT:-/}" == /* ]] || OUTPUT="$PWD/$OUTPUT"
fi
source "$root/scripts/_setup.sh"
if [[ -z "${OUTPUT:-}" ]]; then
  [[ -f "$MODEL/task.json" ]] || stop "OUTPUT is needed for an untuned model: OUTPUT=folder bash scripts/eval_full.sh ..."
  OUTPUT="$MODEL/test"
fi
probabilities=(--probabilities) # which answers behind reasoning have not
if grep -qs '"cot": true' "$MODEL/task.json"; then probabilities=(); fi
model_and_data=(--model_path "$MODEL" --test_data_path "$DATA" --output_dir "$OUTPUT" "$@")

echo "== 1/5 predicting $DATA with $MODEL"
python inference.py "${model_and_data[@]}" ${probabilities[@]+"${probabilities[@]}"}

echo "== 2/5 how sure it is"
python -m scripts.confidence "$OUTPUT"

echo "== 3/5 changed texts (the first $ROBUSTNESS_ROWS)"
python -m scripts.robustness "${model_and_data[@]}" --limit "$ROBUSTNESS_ROWS"

echo "== 4/5 what it attends to (the first $ATTENTION_ROWS)"
python -m scripts.attention "${model_and_data[@]}" --limit "$ATTENTION_ROWS"

echo "== 5/5 one page about it all"
name="${MODEL%/}"
python -m scripts.report "${name##*/}=$OUTPUT" --language "$REPORT_LANGUAGE"
