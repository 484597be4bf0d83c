# lib.sh - what the parts of ./tinworks share: messages, stamps, ports, background processes.
# Sourced by ./tinworks, which sets ROOT (the checkout), CACHE (what every stack shares) and HOME_DIR (this stack).
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }
die() {
    printf 'tinworks: %s\n' "$*" >&2
    exit 1
}

# step TEXT COMMAND...: one line before a long step, its output in a log, and the log's end if it fails.
step() {
    local text=$1 log=$CACHE/log/setup.log began=$SECONDS
    shift
    mkdir -p "$CACHE/log"
    printf '  %-58s ' "$text" >&2
    printf '== %s: %s\n' "$text" "$*" >>"$log"
    if "$@" >>"$log" 2>&1; then
        printf '%3d s\n' $((SECONDS - began)) >&2
    else
        printf 'failed\n' >&2
        tail -n 40 "$log" >&2
        die "\"$text\" failed; the whole log is $log"
    fi
}

# as_root COMMAND...: directly, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this step needs root: run as root or install sudo ($*)"
    fi
}

# stamp_fresh NAME FILE...: true when NAME was stamped with just these contents.
stamp_of() { cat -- "$@" | sha256sum | cut -d ' ' -f 1; }
stamp_fresh() {
    local name=$1
    shift
    [ -f "$CACHE/stamp/$name" ] && [ "$(cat "$CACHE/stamp/$name")" = "$(stamp_of "$@")" ]
}
stamp_set() {
    local name=$1
    shift
    mkdir -p "$CACHE/stamp"
    stamp_of "$@" >"$CACHE/stamp/$name"
}

random_hex() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

# port_taken PORT: somebody listens there.
port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# port_reserve PORT: nobody else is given it for 20 minutes, until its server listens; false when somebody was.
port_reserve() {
    local dir
    dir=${TMPDIR:-/tmp}/tinworks-ports.$(id -u)
    { mkdir -p "$dir" && [ -w "$dir" ]; } || die "ports are reserved in $dir, which cannot be written to"
    find "$dir" -mindepth 1 -maxdepth 1 -mmin +20 -exec rmdir {} + 2>/dev/null || true # others tidy up too
    mkdir "$dir/$1" 2>/dev/null
}

# free_port: a loopback port below the range that outgoing connections use.
free_port() {
    local port tries
    for ((tries = 0; tries < 200; tries++)); do
        port=$((12000 + (RANDOM * 32768 + RANDOM) % 20000))
        case " ${PORTS_GIVEN:-} " in *" $port "*) continue ;; esac
        port_taken "$port" && continue
        port_reserve "$port" || continue
        PORTS_GIVEN="${PORTS_GIVEN:-} $port"
        FREE_PORT=$port
        return
    done
    die "found no free port between 12000 and 32000"
}

# ---------------------------------------------------------------- background processes
# run/NAME.pid holds "pid start-time", so a pid that was given to somebody else is not taken for ours.

proc_started() { # PID: the kernel's start time, empty when gone or a zombie
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    stat=${stat##*) }
    # shellcheck disable=SC2086
    set -- $stat
    [ "$1" = Z ] || printf '%s' "${20}"
}

proc_pid() { # NAME: its pid when it lives; false otherwise
    local pid started
    [ -f "$HOME_DIR/run/$1.pid" ] || return 1
    read -r pid started <"$HOME_DIR/run/$1.pid" || return 1
    [ -n "$started" ] && [ "$(proc_started "$pid")" = "$started" ] || return 1
    printf '%s' "$pid"
}

proc_alive() { proc_pid "$1" >/dev/null; }

# proc_start NAME COMMAND...: in its own session, output appended to log/NAME.log.
# MARK is where this start's output begins.
proc_start() {
    local name=$1 log=$HOME_DIR/log/$1.log pid
    shift
    touch "$log"
    MARK=$(stat -c %s "$log")
    setsid --fork bash -c 'echo "$$ $(cut -d " " -f 22 "/proc/$$/stat")" >"$1"; shift; exec "$@"' \
        start "$HOME_DIR/run/$name.pid.new" "$@" </dev/null >>"$log" 2>&1 9>&-
    until [ -s "$HOME_DIR/run/$name.pid.new" ]; do sleep 0.01; done
    mv "$HOME_DIR/run/$name.pid.new" "$HOME_DIR/run/$name.pid"
    read -r pid _ <"$HOME_DIR/run/$name.pid"
    printf '%s\n' "$MARK" >"$HOME_DIR/run/$name.mark"
    : "$pid"
}

# wait_until NAME SECONDS COMMAND...: until COMMAND succeeds; gives up when the process ends or time is over.
wait_until() {
    local name=$1 limit=$((SECONDS + $2)) tick=0
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! proc_alive "$name"; then
            tail -n 20 "$HOME_DIR/log/$name.log" >&2
            die "$name ended while starting; its log is $HOME_DIR/log/$name.log"
        fi
        if [ $SECONDS -ge $limit ]; then
            tail -n 20 "$HOME_DIR/log/$name.log" >&2
            die "$name is not ready after the time allowed; its log is $HOME_DIR/log/$name.log"
        fi
        tick=$((tick + 1))
        if [ $tick -lt 40 ]; then sleep 0.05; else sleep 0.25; fi
    done
}

# log_says NAME TEXT: the log has TEXT since the process was started.
log_says() {
    local mark
    mark=$(cat "$HOME_DIR/run/$1.mark") &&
        tail -c +$((mark + 1)) "$HOME_DIR/log/$1.log" | grep -q -- "$2"
}

# proc_stop NAME SECONDS [SIGNAL]: asks, waits, then insists (and says so).
proc_stop() {
    local name=$1 limit=$((SECONDS + $2)) pid
    if pid=$(proc_pid "$name"); then
        kill -s "${3:-TERM}" "$pid" 2>/dev/null
        while proc_alive "$name"; do
            if [ $SECONDS -ge $limit ]; then
                say "  $name did not stop within $2 s: killed"
                kill -s KILL "$pid" 2>/dev/null
                while proc_alive "$name"; do sleep 0.05; done
            fi
            sleep 0.05
        done
    fi
    rm -f "$HOME_DIR/run/$name.pid" "$HOME_DIR/run/$name.mark"
}
