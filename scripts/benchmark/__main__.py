"""Measure EmoTune against the libraries it stands on: same model, same data, same machine, in one run.

    python -m scripts.benchmark sft --model_path models/smollm2-135m-instruct --output_dir outputs/benchmark

Each contestant is a process of its own, so that its peak memory is its own. They take turns, one training step each,
and medians are compared: what else the machine does then slows all of them alike. A figure in seconds says little on
another machine; a ratio does.

sft     one training step of a Llama-type model under a LoRA adapter. `trl` is TRL's SFTTrainer as it comes, `ours`
        main_SFT.py, `compiled` the same with --compile, `plain` with --prefix_sharing off: what the packing adds to
        the rest (on a CPU plain instead of fused attention, adapters without casts, logits of the answers only).
        The limit is the time the step's matrix products would take at the rate at which this machine multiplies
        matrices of the model's own sizes, measured between the steps.
grpo    one step of GRPO: draw a group of answers to each text, score them, learn from them. `trl` is TRL's GRPOTrainer
        as it comes, with our rewards; `ours` main_grpo.py, `plain` the same with --prefix_sharing off.
score   the probability of each label of a task as the answer to a text. `each` is one sequence for each text and label,
        padded to batches, as evaluation harnesses do; `ours` the labels of a batch of texts as one tree.
inference
        answers to texts. `generate` is Transformers' on padded batches, as it comes, `mended` the same without the
        copies of the vocabulary that it makes on a CPU; `vllm`, `free` and `ours` are inference.py with --backend
        vllm, with --constrained off, and as it comes; `workers` is ours with --workers, and `compiled` with --compile,
        too.
encoder an encoder such as BERT under a head, all weights. `trainer` is Transformers' Trainer as it comes, `ours`
        main_SFT.py, `plain` the same with --prefix_sharing off. Then labels of texts: `pipeline` is Transformers' own,
        `ours` inference.py, `padded` the same on padded batches, which are of like length.
memory  one training step on a long counselling case. `ours` is main_SFT.py, `padded` the same with --prefix_sharing
        off, `eager` with plain products as attention, too, `whole` with the loss that Transformers computes by itself:
        from logits of all positions instead of the answer's. One after the other, since together they might not fit.
gpu     training steps (LoRA, and over 4 bits), reinforcement and answers of models with the configurations of Qwen2.5
        and random weights: `--model_path` only brings the tokenizer. Besides those above, `flex`, `dense` and `spans`
        are main_SFT.py whose packed rows go through FlexAttention, a mask of all pairs, or attention in spans. Before
        reinforcement and answers, main_SFT.py teaches the model the form of an answer.
plan    what `--plan` says of a run, and what it then takes on its longest batch: as it is, and with every tensor in
        a mapping of its own, which tells the gaps of the C library's heap from what tensors take.
"""

import sys

from data.arguments import run
from scripts.benchmark.encoder import EncoderArgs, encoder
from scripts.benchmark.gpu import GpuArgs, gpu
from scripts.benchmark.grpo import GrpoArgs, grpo
from scripts.benchmark.memory import MemoryArgs, memory
from scripts.benchmark.plan import PlanArgs, plan
from scripts.benchmark.predict import InferenceArgs, inference
from scripts.benchmark.score import ScoreArgs, score
from scripts.benchmark.sft import SftArgs, sft

BENCHMARKS = {"sft": (sft, SftArgs), "grpo": (grpo, GrpoArgs), "score": (score, ScoreArgs),
              "inference": (inference, InferenceArgs), "encoder": (encoder, EncoderArgs),
              "memory": (memory, MemoryArgs), "gpu": (gpu, GpuArgs), "plan": (plan, PlanArgs)}  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in BENCHMARKS:
        run(*BENCHMARKS[sys.argv.pop(1)], dict())
    elif len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help"):
        print(f"{__doc__}\nFlags of one of them: python -m scripts.benchmark {'|'.join(BENCHMARKS)} --help")
    else:
        print(f"benchmark.py: error: the first argument is one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        sys.exit(2)
