# Sourced by the launchers behind _setup.sh: `launch script.py --flags` runs a stage on what this machine has.
#
#   GPUS       GPUs to train on (default: all that are found, less VLLM_GPUS)
#   PARALLEL   how a model is spread over them: ddp (whole on each), fsdp, zero2 or zero3 (DeepSpeed)
#   PROCESSES  processes on a machine without a GPU, over gloo (default: 2)
#   VLLM_GPUS  the last so many GPUs draw GRPO's answers with vLLM (default: 0 = the training processes draw them)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   several machines: the same command on each, with its own NODE_RANK;
#              under srun with one task a node, Slurm says the first three
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}" # seconds to save a checkpoint in
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}" # fewer page faults in large CPU buffers

found_gpus="$( (nvidia-smi -L 2>/dev/null || true) | wc -l)"
PARALLEL="${PARALLEL:-ddp}"
PROCESSES="${PROCESSES:-2}"
VLLM_GPUS="${VLLM_GPUS:-0}"
VLLM_PORT="${VLLM_PORT:-8000}"
if [[ -z "${NNODES:-}" && -n "${SLURM_STEP_NUM_NODES:-}" ]]; then # a step of Slurm's (srun), one task a node
  NNODES="$SLURM_STEP_NUM_NODES" NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-0}}"
  MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)}"
fi
NNODES="${NNODES:-1}"
NODE_RANK="${NODE_RANK:-0}"
MASTER_PORT="${MASTER_PORT:-29500}"
check_number VLLM_GPUS 0 1024
GPUS="${GPUS:-$((found_gpus > VLLM_GPUS ? found_gpus - VLLM_GPUS : 0))}"
check_number GPUS 0 1024
check_number PROCESSES 1 1024
check_number VLLM_PORT 1 65535
check_number NNODES 1 65535
check_number NODE_RANK 0 "$((NNODES - 1))"
check_number MASTER_PORT 1 65535

# The command that starts the processes, in the array `launcher`.
pick_launcher() {
  local -a group
  if ((NNODES > 1)); then
    [[ -n "${MASTER_ADDR:-}" ]] || stop "NNODES=$NNODES: needs MASTER_ADDR, the first machine's address"
    group=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
  else
    group=(--standalone)
  fi
  if ((GPUS == 0)); then
    [[ "$PARALLEL" == ddp ]] || stop "PARALLEL=$PARALLEL: needs GPUs, and none was found"
    launcher=(python -m scripts._distributed torchrun "${group[@]}" --nproc_per_node "$PROCESSES")
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + PROCESSES - 1) / PROCESSES))}"
    return
  fi
  local config="$PARALLEL"
  case "$PARALLEL" in
    ddp) ((GPUS * NNODES > 1)) || config=single ;;
    fsdp) ;;
    zero2 | zero3)
      python -c "import deepspeed" 2>/dev/null || stop "PARALLEL=$PARALLEL: needs DeepSpeed (pip install deepspeed)" ;;
    *) stop "PARALLEL=$PARALLEL: must be ddp, fsdp, zero2 or zero3" ;;
  esac
  launcher=(python -m scripts._distributed accelerate launch --config_file "scripts/accelerate/$config.yaml" --num_processes "$((GPUS * NNODES))"
    --num_machines "$NNODES" --machine_rank "$NODE_RANK" --main_process_port "$MASTER_PORT")
  ((NNODES == 1)) || launcher+=(--main_process_ip "$MASTER_ADDR")
}

# Serve a model with vLLM on the last VLLM_GPUS GPUs until the launcher ends; main_grpo.py's flags in `vllm_flags`.
start_vllm() {
  local model="$1"
  vllm_flags=()
  ((VLLM_GPUS > 0)) || return 0
  ((found_gpus >= GPUS + VLLM_GPUS)) || stop "VLLM_GPUS=$VLLM_GPUS: $found_gpus GPUs found, $GPUS of them train"
  CUDA_VISIBLE_DEVICES="$(seq -s, "$GPUS" "$((GPUS + VLLM_GPUS - 1))")" PORT="$VLLM_PORT" \
    bash scripts/serve_vllm.sh "$model" --tensor-parallel-size "$VLLM_GPUS" &
  server=$!
  trap 'kill "$server" 2>/dev/null || true' EXIT
  until curl -fs "http://127.0.0.1:$VLLM_PORT/health" >/dev/null; do
    kill -0 "$server" 2>/dev/null || stop "the vLLM server ended before it was ready"
    sleep 2
  done
  vllm_flags=(--use_vllm server --vllm_server_port "$VLLM_PORT")
}

launch() {
  local -a launcher
  pick_launcher
  if ((GPUS > 0)); then
    CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 "$((GPUS - 1))")}" "${launcher[@]}" "$@"
  else
    "${launcher[@]}" "$@"
  fi
}
