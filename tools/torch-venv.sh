#!/bin/sh
# torch-venv.sh - makes the Python environment that tools/record_fixtures.py needs: PyTorch,
# transformers and PEFT, pinned.  Several gigabytes, because PyPI's torch is the CUDA build.
# Nothing that is built or tested needs it; only whoever records the fixtures anew.
#
#   tools/torch-venv.sh DIR && DIR/bin/python tools/record_fixtures.py
set -eu
if [ $# -ne 1 ]; then
    echo "usage: tools/torch-venv.sh DIR" >&2
    exit 2
fi
[ -x "$1/bin/python" ] || python3 -m venv "$1"
"$1/bin/pip" install --quiet --no-cache-dir \
    torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6
"$1/bin/python" -c 'import torch, transformers, peft; print("torch", torch.__version__)'
