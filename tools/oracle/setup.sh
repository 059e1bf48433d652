#!/usr/bin/env bash
# Makes .venv at the root of the checkout with what the scripts beside this file need.
# Usage: bash tools/oracle/setup.sh
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/.venv
cpu_index=https://download.pytorch.org/whl/cpu

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
torch=$(grep '^torch==' "$here/requirements.txt")
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  # The CPU wheel is a tenth of PyPI's; fall back on PyPI where its index cannot be reached.
  "$venv/bin/pip" install --quiet --index-url "$cpu_index" --retries 0 --timeout 10 "$torch" 2>/dev/null ||
    "$venv/bin/pip" install --quiet "$torch"
fi
"$venv/bin/pip" install --quiet -r "$here/requirements.txt"
"$venv/bin/python" -c 'import torch, transformers, peft, gguf
print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)'
