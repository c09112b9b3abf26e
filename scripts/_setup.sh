# Sourced by the launchers: an environment of the project's own in .venv, made once and reused while requirements.txt
# stays as it is. PYTHON names another interpreter; VENV another place.
unset CDPATH # it would send the next line elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_variables.sh
VENV="${VENV:-.venv}"
expand_home VENV PYTHON
stamp="$VENV/requirements.stamp"

pick_python() {
  local candidate
  local -a candidates=(python3 python3.13 python3.12 python3.11 python)
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  [[ -z "${PYTHON:-}" ]] || stop "PYTHON=$PYTHON: is no Python 3.11 or newer"
  stop "Python 3.11 or newer is needed; none was found (name one with PYTHON=/path/to/python3)"
}

wanted="$(cksum requirements.txt)"
if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$wanted" ]]; then
  python_command="$(pick_python)"
  echo "setting up $VENV (once; a few minutes)"
  [[ -x "$VENV/bin/python" ]] || "$python_command" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -r requirements.txt
  echo "$wanted" > "$stamp"
fi
VENV="$(cd "$VENV" && pwd)"
PATH="$VENV/bin:$PATH"
export VIRTUAL_ENV="$VENV"
