# Sourced by the train launchers behind _setup.sh and _launch.sh. What they have to know of data sets and models stands
# in data/published.py: scripts/find_data.py looks it up.

# The flags of main_SFT.py that name model, task, files and output, in the array `data_flags`: `find_data --name sst2`.
find_data() {
  local lines line
  lines="$(python -m scripts.find_data "$@")" || exit # it has said what is missing
  data_flags=()
  while IFS= read -r line; do
    data_flags+=("$line")
  done <<< "$lines"
}
