# fuzz.sh - the decoders of outside bytes under libFuzzer, with ASan and UBSan: ./tinworks test --fuzz SECONDS [TARGET...],
# or --fuzz-runs N [TARGET...] for a number of executions of each.
# shellcheck shell=bash

FUZZ_DIR=$ROOT/build/fuzz

ensure_clang() {
    local missing=() name
    for name in clang-14 libclang-rt-14-dev; do have_package "$name" || missing+=("$name"); done
    [ ${#missing[@]} = 0 ] || step "installing clang" apt_install "${missing[@]}"
}

fuzz_targets() { (cd "$ROOT/tests/fuzz/corpus" && printf '%s\n' *); }

# fuzz_one TARGET LIMIT: new inputs go to build/fuzz/corpus, what breaks it to build/fuzz/findings.
fuzz_one() {
    local target=$1 limit=$2 log=$FUZZ_DIR/log/$1.log rc=0
    mkdir -p "$FUZZ_DIR/corpus/$target" "$FUZZ_DIR/findings" "$FUZZ_DIR/log"
    "$FUZZ_DIR/tests/fuzz/fuzz-$target" "$limit" -timeout=20 -rss_limit_mb=3000 -print_final_stats=1 \
        -dict="$ROOT/tests/fuzz/json.dict" \
        -artifact_prefix="$FUZZ_DIR/findings/$target-" \
        "$FUZZ_DIR/corpus/$target" "$ROOT/tests/fuzz/corpus/$target" >"$log" 2>&1 || rc=$?
    awk -v target="$target" -v rc="$rc" '
        /cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
        /stat::number_of_executed_units/ { runs = $2 }
        /stat::average_exec_per_sec/ { rate = $2 }
        END { printf "%-12s %12d executions %8d a second %6d edges   %s\n", target, runs, rate, cov,
              rc ? "FOUND SOMETHING" : "nothing found" }' "$log"
    [ "$rc" = 0 ] || tail -n 30 "$log" >&2
    return "$rc"
}

# run_fuzz --fuzz SECONDS | --fuzz-runs N [TARGET...]
run_fuzz() {
    local how=$1 amount=${2:-} target failed=0 limit
    [[ $amount =~ ^[1-9][0-9]*$ ]] || die "$how needs a whole number above 0, not \"$amount\""
    shift 2
    # shellcheck disable=SC2046
    [ $# -gt 0 ] || set -- $(fuzz_targets)
    for target; do
        [ -d "$ROOT/tests/fuzz/corpus/$target" ] || die "no fuzz target \"$target\"; there are: $(fuzz_targets | xargs)"
    done
    mkdir -p "$CACHE/log" "$CACHE/stamp"
    ensure_packages
    ensure_clang
    # shellcheck disable=SC2046
    build fuzz $(printf 'fuzz-%s ' "$@")
    limit=-runs=$amount
    [ "$how" = --fuzz-runs ] || limit=-max_total_time=$(((amount + $# - 1) / $#))
    for target; do
        say "fuzzing $target"
        fuzz_one "$target" "$limit" || failed=$((failed + 1))
    done
    if [ $failed -gt 0 ]; then
        say "$failed of $# targets found something: see $FUZZ_DIR/findings"
        return 1
    fi
}
