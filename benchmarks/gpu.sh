#!/usr/bin/env bash
# The whole CUDA part on one card, checks included, in under nine minutes:
#   benchmarks/gpu.sh [JSON]        (default: gpu.json in $OUT, or here)
set -euo pipefail
cd "$(dirname "$0")/.."
json="${1:-${OUT:-.}/gpu.json}"
# Packages that a bare machine lacks may lie beside as wheels.
if ! python -c "import pyro, jsonargparse" 2>/dev/null; then
  python -m pip install --quiet --no-index --no-deps wheels/*.whl
fi
PYTHONPATH=. exec timeout 540 python -m benchmarks.gpu --json "$json"
