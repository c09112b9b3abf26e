#!/usr/bin/env bash
# Set up the environment and run the fast tests; further arguments go to pytest, e.g.
#   bash scripts/test.sh -m real     real weights, fetched by download.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
python -m pytest "$@"
