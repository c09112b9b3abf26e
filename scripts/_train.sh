# Sourced by the train launchers behind _setup.sh and _launch.sh: what they have to know of data sets and models.

# The first file there is of a split, in whatever format: `split_file data/emotion dev val` -> data/emotion/val.txt
split_file() {
  local folder="$1" split ending
  shift
  for split in "$@"; do
    for ending in tsv txt csv json jsonl parquet; do
      if [[ -f "$folder/$split.$ending" ]]; then
        echo "$folder/$split.$ending"
        return
      fi
    done
  done
}

# The end of a message that says what is missing: the command that gets it.
download_command() {
  local kind="$1" name="$2" folder="$3"
  local command="get it with: python download.py --$kind $name" default="data/$name"
  [[ "$kind" == dataset ]] || default="models/${name##*/}"
  [[ "$folder" == "$default" ]] || command+=" --target_dir $folder"
  echo "$command"
}

# The flags that name a data set's task and files, in the array `data_flags`. The name is the one download.py has for
# it, with the folder in it where there are several: `find_data goemotions/group data/goemotions/group`.
find_data() {
  local name="$1" folder="$2" set="${1%%/*}" hint="" train dev test
  case "$set" in
    sst2 | r8 | chnsenticorp | emotion | goemotions | chn-reviews)
      hint="; $(download_command dataset "$set" "${folder%"${name#"$set"}"}")" ;;
  esac
  train="$(split_file "$folder" train)"
  dev="$(split_file "$folder" dev val validation)"
  test="$(split_file "$folder" test)"
  [[ -n "$train" ]] || stop "$folder: no train file (train.tsv, .txt, .csv, .json, .jsonl or .parquet) there$hint"
  if [[ -z "$test" ]]; then # scored on dev, which then must not choose the checkpoint: main_SFT.py splits train
    [[ -n "$dev" ]] || stop "$folder: neither a test nor a dev file there, so nothing to score$hint"
    test="$dev"
    dev=""
  fi
  case "$name" in
    sst2 | r8 | chnsenticorp | emotion) data_flags=(--task "$name") ;;
    *)
      [[ -f "$folder/labels.txt" ]] || stop "$folder: no labels.txt there$hint"
      data_flags=(--label_path "$folder/labels.txt") ;;
  esac
  data_flags+=(--train_data_path "$train" --test_data_path "$test")
  [[ -z "$dev" ]] || data_flags+=(--dev_data_path "$dev")
}

# Stop where MODEL is meant as a folder and is none; a hub id is left to main_SFT.py.
check_model() {
  local model="${1%/}" name
  name="${model##*/}"
  [[ ! -d "$model" ]] || return 0
  [[ "$model" == [./~]* || "$model" == models/* || "$model" == outputs/* || "$model" == */*/* ]] || return 0
  case "$name" in
    Qwen*) name="Qwen/$name" ;;
    smollm2-135m-instruct | minilm-l6) ;;
    *) stop "MODEL=$model: no such folder" ;;
  esac
  stop "MODEL=$model: no such folder; $(download_command model "$name" "$model")"
}

# One run on one data set: `fine_tune sst2 MODEL DATA OUTPUT --flags of main_SFT.py`.
fine_tune() {
  local name="$1" model="$2" data="$3" output="$4"
  shift 4
  local -a data_flags
  check_model "$model"
  find_data "$name" "$data"
  launch main_SFT.py --model_path "$model" "${data_flags[@]}" --output_dir "$output" "$@"
}
