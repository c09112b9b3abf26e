#!/usr/bin/env bash
# Set up the environment and run the fast tests; further arguments go to pytest, e.g.
#   bash scripts/test.sh -m real     real weights, fetched by download.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
if (($# == 0)); then
  # a process for each core; a file's tests stay together, so that what they share is set up once
  python -m pytest -n auto --maxprocesses 8 --dist loadfile
else
  python -m pytest "$@"
fi
