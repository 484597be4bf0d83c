# test.sh - every test there is on this machine: the C tests in three builds, then pytest against a private stack.
# shellcheck shell=bash

# c_tests PRESET [ctest words]: builds and runs; remembers a failure and goes on.
c_tests() {
    local preset=$1
    shift
    build "$preset"
    say "== ctest ($preset)"
    ctest --test-dir "$ROOT/build/$preset" --output-on-failure --no-tests=error -j "$(nproc)" "$@" ||
        FAILED+=("ctest $preset")
}

# The CUDA build compiles and links without a warning, and says so where there is no such GPU.  What its kernels
# compute, tests/cuda tells without a compiler for them.
cuda_build() {
    if ! ensure_cuda; then
        say "== CUDA build skipped: no CUDA compiler ($CUDA_MISSING)"
        return
    fi
    say "== CUDA build ($("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*release \([^,]*\),.*/\1/p'))"
    (export CUDAARCHS="80-real;90a-real" && build cuda tinworks-engine tinworks-worker kernels-test_pool tests/gpu/all) &&
        ctest --test-dir "$ROOT/build/cuda" --output-on-failure --no-tests=error -R '^kernels.test_pool$' ||
        FAILED+=("CUDA build")
}

# Servers of their own for the C tests of bus, store and db.
test_services_up() {
    HOME_DIR=$(mktemp -d "${TMPDIR:-/tmp}/tinworks-ctest.XXXXXX")
    trap test_services_down EXIT
    home_open
    services_up
}
test_services_down() {
    trap - EXIT
    services_down
    rm -rf "$(service_dir)" "$HOME_DIR"
}

# The model of the protocol with bounds that take the better part of an hour and some gigabytes.
model_large() { python3 "$ROOT/tests/model/run.py" large; }

# Words after `test` are pytest's: then only pytest runs, with them, in tests/ (flow/test_bill.py, -k name).
# --recipes as the first word: only the published recipes, all of them.
# --faults [--seed S] [--seconds N] as the first words: the whole fault suite at full length, and the random soak.
run_tests() {
    local began=$SECONDS rc=0
    [ "${1:-}" != --faults ] || set -- faults -s "$@"
    [ "${1:-}" != --recipes ] || set -- recipes "$@"
    FAILED=()
    if [ "$*" = --model-large ]; then
        model_large
        return
    fi
    ensure_python demo "$ROOT/demo/requirements.txt"
    ensure_python tests "$ROOT/tests/requirements.txt"
    ensure_clients
    ensure_torch
    ensure_peft
    ensure_recipes
    if [ $# = 0 ]; then
        test_services_up
        # What runs on the emulated GPU has one arithmetic in both builds; the next one watches it closer.
        c_tests dev -LE cuda
        c_tests asan
        # Not what talks to Kafka: librdkafka makes its threads with C11's thrd_create, which this sanitizer does not
        # see and then falls over.
        c_tests tsan -E '^services\.(bus|billing)$'
        test_services_down
        cuda_build
    fi
    # The fault tests' processes are built with failpoints.  A worker with emulated kernels is flow/test_device.py's.
    # shellcheck disable=SC2086
    build faults $PROGRAMS tinworks-worker-emulated
    say "== pytest"
    (cd "$ROOT/tests" && exec "$VENV/bin/python" -m pytest "$@") || rc=$?
    [ $rc = 0 ] || FAILED+=(pytest)
    say "tests took $((SECONDS - began)) s"
    if [ ${#FAILED[@]} -gt 0 ]; then
        say "failed: ${FAILED[*]}"
        return 1
    fi
}
