#!/usr/bin/env bash
# The benchmarks' own environment, .venv-trl: torch and the peer we measure against, nothing of ours.
# `make bench-env` runs it; safe to run again (it ends at once where the environment is complete).
set -euo pipefail
cd "$(dirname "$0")/.."
env=.venv-trl
trl=1.16.0
if ! "$env/bin/python" -c "import trl, torch; assert trl.__version__ == '$trl'" 2>/dev/null; then
  "${PYTHON:-python3}" -m venv "$env"
  # torch first and by the constraint: otherwise trl's dependencies may bring another build of it.
  "$env/bin/pip" install --quiet -c constraints.txt torch
  "$env/bin/pip" install --quiet -c constraints.txt "trl==$trl" psutil
fi
"$env/bin/python" - <<'PY'
import torch, trl
print(f"{__import__('sys').prefix}: torch {torch.__version__}, trl {trl.__version__}")
PY
