# stack.sh - our own processes on top of the services: up, down, status, logs, and the demo's account.
# shellcheck shell=bash

OURS="billing dispatcher worker gateway" # in the order of starting
DEMO_ACCOUNT=demo

stack_env() { # what our programs read; a caller's choice of model and threads is kept
    env_read
    export TINWORKS_MODEL=${TINWORKS_MODEL:-tinworks/tiny}
    export TINWORKS_MODEL_DIR=${TINWORKS_MODEL_DIR:-$HOME_DIR/models/tiny}
    export TINWORKS_SLOT=${TINWORKS_SLOT:-0}
    export TINWORKS_THREADS=${TINWORKS_THREADS:-$(nproc)}
    export TINWORKS_DEVICE=${TINWORKS_DEVICE:-cpu}
    model_is_tiny && small_memory
    return 0
}

# Ours, made or to be made, or one of the caller's of that size.
model_is_tiny() {
    [ "$TINWORKS_MODEL_DIR" = "$HOME_DIR/models/tiny" ] ||
        { [ -d "$TINWORKS_MODEL_DIR" ] && [ "$(du -smL "$TINWORKS_MODEL_DIR" | cut -f 1)" -lt 32 ]; }
}

# The worker starts only where all its bounds fit at once.  A tiny model needs little, and a small machine should do.
small_memory() {
    export TINWORKS_ADAPTERS_MB=${TINWORKS_ADAPTERS_MB:-1024}
    export TINWORKS_SAMPLER_CACHE_MB=${TINWORKS_SAMPLER_CACHE_MB:-256}
    export TINWORKS_KV_MB=${TINWORKS_KV_MB:-256}
    export TINWORKS_HELD_MB=${TINWORKS_HELD_MB:-512}
}

make_secret() {
    [ -s "$TINWORKS_SECRET_FILE" ] && return
    (umask 077 && random_hex 32 >"$TINWORKS_SECRET_FILE.new" && mv "$TINWORKS_SECRET_FILE.new" "$TINWORKS_SECRET_FILE")
}

make_model() {
    local model
    [ -f "$TINWORKS_MODEL_DIR/config.json" ] && return
    [ "$TINWORKS_MODEL_DIR" = "$HOME_DIR/models/tiny" ] || die "no model in $TINWORKS_MODEL_DIR (config.json is missing)"
    mkdir -p "$HOME_DIR/models"
    model=$(bin tinworks-model) || exit 1
    step "making a tiny random Qwen3" env -C "$ROOT" "$model" make --preset tiny --out "$TINWORKS_MODEL_DIR"
}

migrate() {
    local billing
    billing=$(bin tinworks-billing) || exit 1
    (cd "$ROOT" && "$billing" migrate) >>"$HOME_DIR/log/migrate.log" 2>&1 || {
        tail -n 20 "$HOME_DIR/log/migrate.log" >&2
        die "the database could not be migrated; the log is $HOME_DIR/log/migrate.log"
    }
}

# The demo's account and key; the key is shown once by billing and kept in a private file.
make_demo_key() {
    local billing account
    [ -s "$HOME_DIR/demo.key" ] && return
    billing=$(bin tinworks-billing) || exit 1
    account=$(sql "select id from accounts where name = '$DEMO_ACCOUNT'" -At) || die "cannot read the accounts"
    if [ -z "$account" ]; then
        "$billing" account create "$DEMO_ACCOUNT" --credit-usd 100 >/dev/null 2>>"$HOME_DIR/log/migrate.log" ||
            die "could not make the account \"$DEMO_ACCOUNT\""
        account=$(sql "select id from accounts where name = '$DEMO_ACCOUNT'" -At)
    fi
    (
        umask 077
        "$billing" key create --account "$account" 2>>"$HOME_DIR/log/migrate.log" |
            grep -oE 'tml-[A-Za-z0-9_-]+' | head -n 1 >"$HOME_DIR/demo.key.new"
    )
    [ -s "$HOME_DIR/demo.key.new" ] || die "could not make an API key for the account \"$DEMO_ACCOUNT\""
    mv "$HOME_DIR/demo.key.new" "$HOME_DIR/demo.key"
}

# ---------------------------------------------------------------- one process of ours

ours_start() {
    local program
    program=$(bin "tinworks-$1") || exit 1
    case $1 in
    billing) proc_start "$1" env -C "$ROOT" "$program" run ;;
    *) proc_start "$1" env -C "$ROOT" "$program" ;;
    esac
}
ours_ready() {
    case $1 in
    gateway) curl -fsS -m 2 "$TINKER_BASE_URL/api/v1/healthz" ;;
    *) log_says "$1" " $1\\.ready " ;;
    esac
}

stack_up() {
    local name
    services_up
    stack_env
    make_secret
    make_model
    migrate
    make_demo_key
    for name in $OURS; do
        proc_alive "$name" && continue
        ours_start "$name"
    done
    for name in $OURS; do
        [ -e "$HOME_DIR/run/$name.ready" ] && [ "$(cat "$HOME_DIR/run/$name.ready")" = "$(proc_pid "$name")" ] && continue
        wait_until "$name" 240 ours_ready "$name"
        proc_pid "$name" >"$HOME_DIR/run/$name.ready"
        say "  $name is ready"
    done
    say "Tinworks is up: $TINKER_BASE_URL serves $TINWORKS_MODEL"
}

stack_down() {
    local name
    for name in gateway worker dispatcher billing; do proc_stop "$name" 30; done
    services_down
}

stack_status() {
    local name pid address
    env_read
    printf '%-11s %-8s %s\n' process state address
    for name in $SERVICES $OURS; do
        address=
        case $name in
        postgres) address=127.0.0.1:$POSTGRES_PORT ;;
        redis) address=127.0.0.1:$REDIS_PORT ;;
        kafka) address=$TINWORKS_KAFKA_BROKERS ;;
        gateway) address=$TINKER_BASE_URL ;;
        esac
        if pid=$(proc_pid "$name"); then
            printf '%-11s %-8s %s (pid %s)\n' "$name" up "$address" "$pid"
        else
            printf '%-11s %-8s %s\n' "$name" down "$address"
        fi
    done
    ! proc_alive redis || status_counters
    ! proc_alive postgres || { status_shards && status_lag; } || printf '\nthe database does not answer, or has no tables yet\n'
    if [ -s "$HOME_DIR/demo.key" ]; then
        printf '\nexport TINKER_BASE_URL=%s\nexport TINKER_API_KEY=$(cat %s)\n' "$TINKER_BASE_URL" "$HOME_DIR/demo.key"
    fi
}

status_counters() {
    local key
    for key in $(redis-cli -h 127.0.0.1 -p "$REDIS_PORT" --scan --pattern '*worker:*' | sort) \
        $(redis-cli -h 127.0.0.1 -p "$REDIS_PORT" --scan --pattern '*gateway:*' | sort); do
        printf '\n%s\n' "$key"
        redis-cli -h 127.0.0.1 -p "$REDIS_PORT" HGETALL "$key" | paste - - | sort | sed 's/^/  /'
    done
}

# Whose the shards are, and what computes them: the numerics class names the device.
status_shards() {
    sql "select model || ', slot ' || slot || ': ' || count(*) || ' shards on ' || numerics from shards
         where lease_until > now() group by model, slot, numerics order by model, slot" -At 2>/dev/null | sed '1s/^/\n/'
}

# How far billing has read each results log that has something in it, beside the log's end.
status_lag() {
    local topic partition next end
    sql 'select topic, partition, next_offset from ingest_cursors where next_offset > 0 order by 1, 2' -At -F ' ' 2>/dev/null |
        while read -r topic partition next; do
            end=$(kcat -b "$TINWORKS_KAFKA_BROKERS" -Q -t "$topic:$partition:-1" 2>/dev/null | grep -oE '[0-9]+$') || continue
            printf '%s [%s]: billed %s of %s records\n' "$topic" "$partition" "$next" "$end"
        done | { sed '1s/^/\n/'; }
}

stack_logs() {
    local name=${1:-} follow=${2:-}
    if [ -z "$name" ]; then
        ls "$HOME_DIR/log" 2>/dev/null | sed 's/\.log$//'
        return
    fi
    [ -f "$HOME_DIR/log/$name.log" ] || die "no log \"$name\"; there are: $(stack_logs | paste -sd ' ')"
    case $follow in
    -f) exec tail -n 50 -F "$HOME_DIR/log/$name.log" ;;
    '') exec tail -n 200 "$HOME_DIR/log/$name.log" ;;
    *) die "unknown word \"$follow\" after logs $name; -f follows the log" ;;
    esac
}
