# packages.sh - what has to be on the machine before anything starts: the distribution's packages, Kafka's jars,
# the Python environments, the build.  Each part looks first and does nothing when nothing changed.
# shellcheck shell=bash

PACKAGES_BUILD="build-essential cmake ninja-build pkg-config librdkafka-dev libhiredis-dev libjansson-dev libpq-dev
    libmicrohttpd-dev libgnutls28-dev libcurl4-openssl-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler libzstd-dev libssl-dev libcmocka-dev spin"
PACKAGES_RUN="ca-certificates curl redis-server kcat procps util-linux"

have_package() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | cut -c 1-2)" = ii ]; }

# apt_install PACKAGE...: without starting the services that some packages bring; we run our own.
apt_install() {
    local policy=/usr/sbin/policy-rc.d ours=0 rc=0
    if [ ! -e $policy ]; then
        ours=1
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null && as_root chmod 755 $policy
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" || rc=$?
    [ $ours = 0 ] || as_root rm -f $policy
    return $rc
}

python_fits() {
    command -v "$1" >/dev/null &&
        "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
java_fits() { java -version 2>&1 | grep -qE 'version "(1[1-9]|[2-9][0-9])'; }

ensure_packages() {
    local missing=() name
    command -v dpkg-query >/dev/null || die "this set-up knows Debian and Ubuntu only; with Docker, see compose/docker-compose.yml"
    # shellcheck disable=SC2086
    for name in $PACKAGES_BUILD $PACKAGES_RUN; do have_package "$name" || missing+=("$name"); done
    [ -n "$(postgres_bin)" ] || missing+=(postgresql)
    java_fits || missing+=(openjdk-17-jre-headless)
    command -v mvn >/dev/null || missing+=(maven)
    python_fits python3 || python_fits /usr/bin/python3 || missing+=(python3 python3-venv)
    [ ${#missing[@]} = 0 ] && return
    step "installing ${#missing[@]} packages" apt_install "${missing[@]}"
}

postgres_bin() { # the newest server's folder, empty when there is none
    local dir best=
    for dir in /usr/lib/postgresql/*/bin; do [ -x "$dir/initdb" ] && best=$dir; done
    printf '%s' "$best"
}

# ---------------------------------------------------------------- Kafka's jars

KAFKA_LIBS=$CACHE/kafka/libs

fetch_kafka() {
    rm -rf "$KAFKA_LIBS.new" &&
        mvn -q -B -f "$ROOT/compose/kafka/pom.xml" dependency:copy-dependencies \
            -DincludeScope=runtime -DoutputDirectory="$KAFKA_LIBS.new" &&
        rm -rf "$KAFKA_LIBS" && mv "$KAFKA_LIBS.new" "$KAFKA_LIBS"
}

ensure_kafka() {
    stamp_fresh kafka "$ROOT/compose/kafka/pom.xml" && return
    mkdir -p "$CACHE/kafka"
    step "fetching Kafka's jars with Maven" fetch_kafka
    stamp_set kafka "$ROOT/compose/kafka/pom.xml"
}

# ---------------------------------------------------------------- Python

VENV=$CACHE/venv

make_venv() {
    local python=python3
    python_fits "$python" || python=/usr/bin/python3
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
}

# ensure_python NAME FILE...: the environment with the requirements of FILEs.
ensure_python() {
    local name=$1 file args=()
    shift
    [ -x "$VENV/bin/python" ] && stamp_fresh "python-$name" "$@" && return
    make_venv >>"$CACHE/log/setup.log" 2>&1 || die "could not make the Python environment $VENV"
    for file in "$@"; do args+=(-r "$file"); done
    step "installing Python packages ($name)" "$VENV/bin/python" -m pip install --disable-pip-version-check "${args[@]}"
    stamp_set "python-$name" "$@"
}

# The SDK's forward_backward_custom needs PyTorch.  PyPI's is a CUDA build of several gigabytes; the distribution's is
# for the CPU and small, and wants a NumPy of its time.  A folder of links shows both, and only them, to the one test
# that asks for it.
TORCH_DIR=$CACHE/torch
show_torch() {
    local name
    rm -rf "$TORCH_DIR.new"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --target "$TORCH_DIR.new" "numpy==1.26.4" || return
    for name in torch torchgen functorch; do
        [ ! -e "/usr/lib/python3/dist-packages/$name" ] ||
            ln -sfn "/usr/lib/python3/dist-packages/$name" "$TORCH_DIR.new/$name"
    done
    PYTHONPATH="$TORCH_DIR.new" "$VENV/bin/python" -c 'import torch; assert torch.ones(2).numpy().sum() == 2' || return
    rm -rf "$TORCH_DIR" && mv "$TORCH_DIR.new" "$TORCH_DIR"
}
ensure_torch() {
    [ -d "$TORCH_DIR" ] && return
    have_package python3-torch || step "installing PyTorch for the custom loss test" apt_install python3-torch
    step "showing PyTorch to the tests" show_torch
}

# PEFT beside it, for the test that loads our checkpoints: 14 MB to fetch, in a folder that only that test sees.
PEFT_DIR=$CACHE/peft
show_peft() {
    local info
    rm -rf "$PEFT_DIR"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-deps --target "$PEFT_DIR" \
        -r "$ROOT/tests/requirements-peft.txt" || return
    for info in /usr/lib/python3/dist-packages/torch-*.egg-info; do # accelerate asks for PyTorch's version
        [ ! -e "$info" ] || ln -sfn "$info" "$PEFT_DIR/"
    done
    PYTHONPATH="$PEFT_DIR:$TORCH_DIR" "$VENV/bin/python" -c 'import peft; assert peft.PeftModel'
}
ensure_peft() {
    [ -d "$PEFT_DIR" ] && stamp_fresh peft "$ROOT/tests/requirements-peft.txt" && return
    step "installing PEFT for the test of checkpoints" show_peft
    stamp_set peft "$ROOT/tests/requirements-peft.txt"
}

# The other clients that we serve, each in a folder of its own and without what it would pull along: hpcai would
# bring PyTorch's CUDA build, and what it needs of the rest the tinker SDK needs too.
ensure_clients() {
    local name dir
    for name in hpcai tinker-0.25; do
        dir=$CACHE/clients/$name
        [ -d "$dir" ] && stamp_fresh "client-$name" "$ROOT/tests/clients/$name.txt" && continue
        rm -rf "$dir"
        step "installing the client $name" "$VENV/bin/python" -m pip install --disable-pip-version-check --no-deps \
            --target "$dir" -r "$ROOT/tests/clients/$name.txt"
        stamp_set "client-$name" "$ROOT/tests/clients/$name.txt"
    done
}

# The published recipes (tinker-cookbook's; hpcai brings its own) and what they import, in one more folder: 150 MB to fetch.
# Its last name is the usual one: dill takes what lies elsewhere for the user's own modules, and fails to pickle them whole.
RECIPES_DIR=$CACHE/recipes-packages/site-packages
show_recipes() {
    rm -rf "$RECIPES_DIR"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-deps --target "$RECIPES_DIR" \
        -r "$ROOT/tests/requirements-recipes.txt" || return
    PYTHONPATH="$(recipes_path)" "$VENV/bin/python" -c 'import tinker_cookbook.supervised.train, hpcai.cookbook.supervised.train'
}
recipes_path() { printf '%s' "$TORCH_DIR:$CACHE/clients/hpcai:$RECIPES_DIR"; }
ensure_recipes() {
    ensure_torch
    ensure_clients
    [ -d "$RECIPES_DIR" ] && stamp_fresh recipe-packages "$ROOT/tests/requirements-recipes.txt" && return
    step "installing the recipes of the cookbooks" show_recipes
    stamp_set recipe-packages "$ROOT/tests/requirements-recipes.txt"
}

# ---------------------------------------------------------------- CUDA

# nvcc_fits FILE: a compiler of CUDA 12.4 or later.
nvcc_fits() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\),.*/\1 \2/p')
    [ -n "$version" ] && [ $((${version% *} * 100 + ${version#* })) -ge 1204 ]
}

# ensure_cuda: exports CUDA_HOME, the machine's own toolchain or one of NVIDIA's packages for Python, which is fetched
# once.  False, with the reason in CUDA_MISSING, where none can be had.
CUDA_MISSING=
ensure_cuda() {
    local home nvcc
    nvcc=$(command -v nvcc || true)
    for home in "${CUDA_HOME:-}" "${nvcc:+$(dirname "$(dirname "$(readlink -f "$nvcc")")")}" /usr/local/cuda; do
        if [ -n "$home" ] && nvcc_fits "$home/bin/nvcc"; then
            export CUDA_HOME=$home
            return
        fi
    done
    export CUDA_HOME=$CACHE/cuda
    stamp_fresh cuda "$ROOT/tools/cuda-requirements.txt" && nvcc_fits "$CUDA_HOME/bin/nvcc" && return
    CUDA_MISSING="none is installed, and NVIDIA's packages are for x86-64 only"
    [ "$(uname -m)" = x86_64 ] || return
    CUDA_MISSING="none is installed, and NVIDIA's packages could not be fetched; see $CACHE/log/setup.log"
    (step "fetching a CUDA compiler, 719 MB" timeout 1200 "$ROOT/tools/cuda-from-wheels" "$CUDA_HOME") || return
    stamp_set cuda "$ROOT/tools/cuda-requirements.txt"
}

# ---------------------------------------------------------------- the build

PROGRAMS="tinworks-gateway tinworks-dispatcher tinworks-worker tinworks-billing tinworks-model tinworks-engine tinworks-bench"

# build PRESET [target]...: configured once; ninja knows the rest.
build() {
    local preset=$1 dir=$ROOT/build/$1
    shift
    [ -f "$dir/build.ninja" ] || step "configuring the $preset build" cmake -S "$ROOT" --preset "$preset"
    if [ -n "$(ninja -C "$dir" -n "$@" 2>/dev/null | grep -v '^ninja:' | head -n 1)" ]; then
        step "building ($preset)" ninja -C "$dir" "$@"
    fi
}

# bin NAME: the path of one of our programs.
bin() {
    local dir=${TINWORKS_BUILD_DIR:-$ROOT/build/release} sub
    for sub in gateway dispatcher worker billing worker/cli bench bench/engine; do
        [ -x "$dir/$sub/$1" ] && {
            printf '%s' "$dir/$sub/$1"
            return
        }
    done
    die "no program $1 under $dir: was it built?"
}
