#!/usr/bin/env bash
# run.sh OUT.json - on a machine with a GPU, CUDA, gcc and cmake: builds the kernels alone, runs tests/cuda on the
# device and the row law of the library's products for every number of rows, and writes what came out as one JSON.
# Its exit status says whether all of it held.  docs/gpu.md keeps results.
set -uo pipefail
[ $# = 1 ] || {
    echo "usage: tests/gpu/run.sh OUT.json" >&2
    exit 2
}
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
out=$1 build=$root/build/gpu failed=0

# Ninja where it is there.
command -v ninja >/dev/null && export CMAKE_GENERATOR=Ninja
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DTINWORKS_CUDA=ON -DTINWORKS_KERNELS_ONLY=ON >&2 &&
    cmake --build "$build" -j "$(nproc)" >&2 || exit 1

# run_one NAME: a line for the JSON; what the program said goes to stderr.
run_one() {
    local name=$1 began=$EPOCHREALTIME passed=true
    timeout 240 "$build/tests/gpu/gpu-$name" >&2 || passed=false failed=1
    printf '  {"test": "%s", "passed": %s, "seconds": %s}' "$name" "$passed" \
        "$(awk "BEGIN {printf \"%.2f\", $EPOCHREALTIME - $began}")"
}

{
    printf '{"date": "%s", "commit": "%s", ' "$(date -u +%FT%TZ)" \
        "$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)"
    printf '"device": "%s",\n "tests": [\n' \
        "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)"
    comma=
    for program in "$build"/tests/gpu/gpu-test_*; do
        printf '%s' "$comma"
        run_one "${program##*/gpu-}"
        comma=$',\n'
    done
    printf '\n ],\n "products": [\n'
    timeout 300 "$build/tests/gpu/gpu-products" || failed=1
    printf ' ],\n "all_held": %s}\n' "$([ $failed = 0 ] && echo true || echo false)"
} >"$out"
exit $failed
