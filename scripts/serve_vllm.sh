#!/usr/bin/env bash
# A vLLM server from which main_grpo.py draws answers (--use_vllm server), on 127.0.0.1, until it is stopped:
#   bash scripts/serve_vllm.sh models/smollm2-135m-instruct --max-model-len 1024
# PORT, VENV: as named; further flags go to `vllm serve`. An adapter is served as its base model: the trainer sends the
# weights with the adapter folded in. On a GPU they come by NCCL, on a CPU through a folder.
set -euo pipefail
unset CDPATH
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/_variables.sh"
MODEL="${1:-}"
PORT="${PORT:-8000}"
VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-2}" # GiB
VENV="${VENV:-.venv}"
[[ -n "$MODEL" ]] || stop "no model; usage: serve_vllm.sh MODEL [flags of vllm serve]"
shift
expand_home MODEL VENV
check_number PORT 1 65535
check_number VLLM_CPU_KVCACHE_SPACE 0
MODEL="$([[ -e "$MODEL" ]] && realpath -- "$MODEL" || printf %s "$MODEL")"
cd "$root"
[[ -d "$VENV" ]] || stop "VENV=$VENV: no such folder"
PATH="$(cd "$VENV" && pwd)/bin:$PATH"
python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)' ||
  stop "no vLLM in $VENV; see requirements-vllm.txt"

[[ "$MODEL" != -* ]] || { echo "serve_vllm.sh: error: $MODEL: no model, but a flag" >&2; exit 2; }
# what is served: the whole model below an adapter, which may lie over another; and in which number format
served="$(python - "$MODEL" <<'END'
import sys

from data.arguments import UserError
from data.engine.models import DTYPES, adapter_stack, check_model_path, pick_device
from data.engine.precision import pick_precision

try:
    check_model_path(sys.argv[1])
    print(adapter_stack(sys.argv[1])[0])
    choice = pick_precision("auto", sys.argv[1], pick_device())
    choice.say(sys.stderr)
    print(DTYPES[choice.format])
except UserError as error:
    print(f"serve_vllm.sh: error: {error}", file=sys.stderr)
    sys.exit(2)
END
)" || exit 2
MODEL="${served%$'\n'*}"
# the commands by which the trainer sends weights are open to whoever reaches the port: hence 127.0.0.1
export VLLM_SERVER_DEV_MODE=1
flags=(--host 127.0.0.1 --port "$PORT" --dtype "${served##*$'\n'}" --logprobs-mode processed_logprobs --max-logprobs -1)
if nvidia-smi -L >/dev/null 2>&1; then
  exec vllm serve "$MODEL" "${flags[@]}" --weight-transfer-config '{"backend": "nccl"}' --enable-scale-out "$@"
fi
export VLLM_CPU_KVCACHE_SPACE
# not `vllm serve`, which asks for the version of a package named vllm: here it is vllm-cpu
exec python -m vllm.entrypoints.openai.api_server --model "$MODEL" "${flags[@]}" "$@"
