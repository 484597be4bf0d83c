# services.sh - Kafka, Redis and Postgres of one stack: private, on free loopback ports, as an ordinary user.
# Everything lies in HOME_DIR: env (addresses, kept between runs), services/ (data), log/, run/ (process ids).
# shellcheck shell=bash

SERVICES="postgres redis kafka"
SERVICE_USER=postgres # whom the servers run as when we are root; Debian's package makes it

# as_server COMMAND...: as the ordinary user, without a process in between.
as_server() {
    if [ "$(id -u)" = 0 ]; then
        (cd / && setpriv --reuid="$SERVICE_USER" --regid="$SERVICE_USER" --init-groups "$@")
    else
        "$@"
    fi
}
server_words() { # sets SERVER, the words that go before a server's command
    SERVER=()
    [ "$(id -u)" != 0 ] || SERVER=(setpriv "--reuid=$SERVICE_USER" "--regid=$SERVICE_USER" --init-groups)
}

# The servers' data.  When we are root and the checkout cannot be entered by the servers' user (it lies in root's
# home, say), services/ becomes a link to a folder of theirs.
make_service_dir() {
    local dir=$HOME_DIR/services
    [ -d "$dir" ] || mkdir -p "$dir"
    [ "$(id -u)" = 0 ] || return 0
    [ -L "$dir" ] || chown "$SERVICE_USER:" "$dir"
    as_server test -w "$dir" && return
    rmdir "$dir" || die "the user $SERVICE_USER cannot write to $dir"
    ln -s "$(mktemp -d "${TMPDIR:-/var/tmp}/tinworks.XXXXXX")" "$dir"
    chown "$SERVICE_USER:" "$dir/."
    as_server test -w "$dir/." || true
}
service_dir() { readlink -f "$HOME_DIR/services"; }

# env_write: chooses the addresses of a new stack.
env_write() {
    local kafka controller redis postgres listen
    free_port && kafka=$FREE_PORT
    free_port && controller=$FREE_PORT
    free_port && redis=$FREE_PORT
    free_port && postgres=$FREE_PORT
    free_port && listen=$FREE_PORT
    (
        umask 077
        cat >"$HOME_DIR/env.new" <<END
# Written by ./tinworks; the addresses of this stack.  Source it to use our programs by hand.
export TINWORKS_KAFKA_BROKERS='127.0.0.1:$kafka'
export TINWORKS_KAFKA_CONTROLLER='127.0.0.1:$controller'
export TINWORKS_TOPIC_PREFIX='tw.'
export TINWORKS_REDIS='redis://127.0.0.1:$redis/0'
export TINWORKS_POSTGRES='host=127.0.0.1 port=$postgres dbname=tinworks user=tinworks password=$(random_hex 16)'
export TINWORKS_SECRET_FILE='$HOME_DIR/secret'
export TINWORKS_DATA='$HOME_DIR/data'
export TINWORKS_LISTEN='127.0.0.1'
export TINWORKS_PORT='$listen'
export TINKER_BASE_URL='http://127.0.0.1:$listen'
END
    )
    mv "$HOME_DIR/env.new" "$HOME_DIR/env"
}

env_read() {
    [ -f "$HOME_DIR/env" ] || die "nothing was started in $HOME_DIR yet: ./tinworks up"
    # shellcheck disable=SC1091
    . "$HOME_DIR/env"
    KAFKA_PORT=${TINWORKS_KAFKA_BROKERS##*:}
    CONTROLLER_PORT=${TINWORKS_KAFKA_CONTROLLER##*:}
    REDIS_PORT=${TINWORKS_REDIS##*:}
    REDIS_PORT=${REDIS_PORT%%/*}
    POSTGRES_PORT=${TINWORKS_POSTGRES#*port=}
    POSTGRES_PORT=${POSTGRES_PORT%% *}
    POSTGRES_PASSWORD=${TINWORKS_POSTGRES##*password=}
}

# env_ready: reads the stack's addresses, choosing them first if need be.  Addresses stay, unless everything is down
# and somebody else took a port meanwhile.
env_ready() {
    local name port
    [ -f "$HOME_DIR/env" ] || env_write
    env_read
    for name in $SERVICES gateway dispatcher worker billing; do proc_alive "$name" && return; done
    for port in "$KAFKA_PORT" "$CONTROLLER_PORT" "$REDIS_PORT" "$POSTGRES_PORT" "$TINWORKS_PORT"; do
        port_taken "$port" || continue
        say "  port $port is somebody else's now: choosing new ones"
        env_move_ports
        env_read
        return
    done
}

env_move_ports() { # new addresses, same password
    local old=$POSTGRES_PASSWORD
    env_write
    sed -i "s/password=[0-9a-f]*/password=$old/" "$HOME_DIR/env"
}

# ---------------------------------------------------------------- Postgres

postgres_start() {
    local bin data
    bin=$(postgres_bin)
    data=$(service_dir)/postgres
    [ -n "$bin" ] || die "no PostgreSQL server under /usr/lib/postgresql"
    if [ ! -f "$data/PG_VERSION" ]; then
        (
            umask 077
            as_server mkdir -p "$data"
            printf '%s\n' "$POSTGRES_PASSWORD" | as_server tee "$data.password" >/dev/null
        )
        step "making a Postgres cluster" as_server "$bin/initdb" -D "$data" -U tinworks --pwfile="$data.password" \
            --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --no-instructions
        rm -f "$data.password"
    fi
    postgres_run
}
postgres_run() {
    proc_start postgres "${SERVER[@]}" "$(postgres_bin)/postgres" -D "$(service_dir)/postgres" \
        -c listen_addresses=127.0.0.1 -p "$POSTGRES_PORT" -c unix_socket_directories= -c max_connections=200 \
        -c shared_buffers=64MB -c jit=off -c logging_collector=off -c timezone=UTC
}
# After a kill -9 of the postmaster its children take a moment to notice, and until they are gone (and the dead one was
# reaped) a new one rightly refuses to start.
postgres_heir() {
    local limit=$((SECONDS + 240))
    until postgres_answers >/dev/null 2>&1 || [ $SECONDS -ge $limit ]; do
        if ! proc_alive postgres; then
            log_says postgres 'postmaster.pid" already exists\|pre-existing shared memory' || return 0
            postgres_run
        fi
        sleep 0.2
    done
}
postgres_answers() { PGPASSWORD=$POSTGRES_PASSWORD psql -h 127.0.0.1 -p "$POSTGRES_PORT" -U tinworks -d postgres -Atqc 'select 1'; }
postgres_wait() {
    postgres_heir
    wait_until postgres 240 postgres_answers
    PGPASSWORD=$POSTGRES_PASSWORD psql -h 127.0.0.1 -p "$POSTGRES_PORT" -U tinworks -d postgres -Atqc \
        "select 'create database tinworks' where not exists (select from pg_database where datname = 'tinworks')" |
        PGPASSWORD=$POSTGRES_PASSWORD psql -h 127.0.0.1 -p "$POSTGRES_PORT" -U tinworks -d postgres -qX -v ON_ERROR_STOP=1 ||
        die "could not create the database"
}

# sql TEXT [psql flags]: one question to this stack's database.
sql() {
    local text=$1
    shift
    psql "$TINWORKS_POSTGRES" -X -q -v ON_ERROR_STOP=1 "$@" -c "$text"
}

# ---------------------------------------------------------------- Redis

redis_start() {
    local data
    data=$(service_dir)/redis
    as_server mkdir -p "$data"
    proc_start redis "${SERVER[@]}" redis-server --bind 127.0.0.1 --port "$REDIS_PORT" --dir "$data" --daemonize no \
        --maxmemory 512mb --maxmemory-policy noeviction --appendonly yes --appendfsync everysec --save ""
}
redis_answers() { [ "$(redis-cli -h 127.0.0.1 -p "$REDIS_PORT" ping)" = PONG ]; }
redis_wait() { wait_until redis 240 redis_answers; }

# ---------------------------------------------------------------- Kafka

# kafka_conf: one node that is broker and controller (KRaft).
kafka_conf() {
    cat <<END
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$CONTROLLER_PORT
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT,CONTROLLER://127.0.0.1:$CONTROLLER_PORT
advertised.listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$HOME_DIR/kafka/data
END
    cat "$ROOT/compose/kafka/server.properties"
}

kafka_format() {
    java -cp "$KAFKA_LIBS/*" -Dlog4j.configuration="file:$ROOT/compose/kafka/log4j.properties" -XX:TieredStopAtLevel=1 \
        kafka.tools.StorageTool format --ignore-formatted -t "$(cat "$HOME_DIR/kafka/cluster-id")" \
        -c "$HOME_DIR/kafka/server.properties"
}
kafka_start() {
    kafka_conf >"$HOME_DIR/kafka/server.properties"
    if [ ! -f "$HOME_DIR/kafka/data/meta.properties" ]; then
        head -c 16 /dev/urandom | base64 | tr '+/' 'ab' | cut -c 1-22 >"$HOME_DIR/kafka/cluster-id"
        step "formatting Kafka's storage" kafka_format
    fi
    proc_start kafka java -Xms320m -Xmx320m -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -Djava.awt.headless=true \
        "-Dlog4j.configuration=file:$ROOT/compose/kafka/log4j.properties" -cp "$KAFKA_LIBS/*" \
        kafka.Kafka "$HOME_DIR/kafka/server.properties"
}
kafka_answers() { kcat -b "127.0.0.1:$KAFKA_PORT" -L -m 2 | grep -q ' 1 brokers'; }
kafka_wait() { wait_until kafka 240 kafka_answers; }

# ---------------------------------------------------------------- all three

services_up() {
    local name started=()
    make_service_dir
    env_ready
    server_words
    # All are started, then all are waited for.
    for name in kafka postgres redis; do
        proc_alive "$name" && continue
        started+=("$name")
        "${name}_start"
    done
    for name in "${started[@]}"; do
        "${name}_wait"
        say "  $name is ready"
    done
}

services_down() {
    local name
    for name in kafka redis; do proc_stop "$name" 20; done
    proc_stop postgres 20 INT
}
