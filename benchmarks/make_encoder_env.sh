#!/usr/bin/env bash
# The environment of benchmarks/encoders.py, .venv-textbrewer: torch and TextBrewer, nothing of ours.
# Safe to run again (it ends at once where the environment is complete).
set -euo pipefail
cd "$(dirname "$0")/.."
env=.venv-textbrewer
version=0.2.1.post1
if ! "$env/bin/python" -c "import textbrewer, torch, transformers" 2>/dev/null; then
  "${PYTHON:-python3}" -m venv "$env"
  # torch first and by the constraint: otherwise dependencies may bring another build of it.
  "$env/bin/pip" install --quiet -c constraints.txt torch
  "$env/bin/pip" install --quiet -c constraints.txt "textbrewer==$version" transformers
fi
"$env/bin/python" - <<'PY'
import torch, transformers
from importlib.metadata import version
print(f"{__import__('sys').prefix}: torch {torch.__version__}, transformers {transformers.__version__}, textbrewer {version('textbrewer')}")
PY
