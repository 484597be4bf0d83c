#!/usr/bin/env bash
# run.sh OUT.json [--seconds 520] [--commit NAME] - on a machine with one NVIDIA GPU: builds the engine, holds it to its
# laws on the device, measures it beside PyTorch, and writes all of it as one JSON within the time.
# run.sh OUT.json --emulated - the same here, with the emulated kernels and tiny models.
# docs/gpu.md documents the JSON and keeps results; run.py does the work.
exec python3 -- "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/run.py" "$@"
