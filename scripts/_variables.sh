# Sourced by all launchers before anything else: what a variable of the environment may hold is checked here, before it
# is used. Bash arithmetic runs commands that stand in a number's place: a[$(command)].

# End with exit code 2 and one line.
stop() {
  local line="${1//[[:cntrl:]]/ }"
  printf '%s: error: %s\n' "${0##*/}" "${line:0:300}" >&2
  exit 2
}

# `check_number NAME MINIMUM [MAXIMUM]`: the variable NAME holds digits within these limits. Drops leading zeros.
check_number() {
  local name="$1" value="${!1}" maximum="${3:-999999999}"
  [[ -n "$value" && "$value" != *[!0123456789]* && ${#value} -le 10 ]] ||
    stop "$name=$value: must be a whole number from $2 to $maximum"
  value=$((10#$value))
  ((value >= $2 && value <= maximum)) || stop "$name=$value: must be a whole number from $2 to $maximum"
  printf -v "$name" %s "$value"
}

# `split_words NAME`: the words of the variable NAME in the array `words`; each stands once, and a * means nothing.
split_words() {
  local word seen=" "
  words=()
  set -f
  for word in ${!1}; do
    [[ "$seen" != *" $word "* ]] || stop "$1: $word stands there twice"
    seen+="$word "
    words+=("$word")
  done
  set +f
  ((${#words[@]} > 0)) || stop "$1: names nothing"
}

# `expand_home NAME ...`: a ~ that the shell did not expand, as in OUTPUT="~/runs", becomes the home folder.
expand_home() {
  local name value
  for name; do
    value="${!name:-}"
    case "$value" in
      "~" | "~/"*) printf -v "$name" %s "$HOME${value:1}" ;;
      "~"*) stop "$name=$value: write the folder out (for one whose name begins with ~: ./$value)" ;;
    esac
  done
}
