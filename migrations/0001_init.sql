-- 0001: accounts, keys, models, runs, samplers, checkpoints, shards, snapshots, and the money.
-- Money is integer pico-dollars (1 USD = 1e12), tokens are bigint, times are timestamptz.

CREATE TABLE accounts (
    id          text PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    created_at  timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz
);

-- A key is tml-<id>-<secret>; only HMAC-SHA-256(server secret, whole key), in hex, is kept.
CREATE TABLE api_keys (
    id         text PRIMARY KEY,
    account_id text NOT NULL REFERENCES accounts (id),
    hmac       text NOT NULL UNIQUE,
    scopes     text NOT NULL DEFAULT 'train,sample,read',
    name       text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

-- Written by a worker when its topics exist and its model is loaded.
CREATE TABLE models (
    name              text PRIMARY KEY,
    train_partitions  integer NOT NULL,
    sample_partitions integer NOT NULL,
    context_max       integer NOT NULL,
    vocab             integer NOT NULL,
    layers            integer NOT NULL,
    hidden            integer NOT NULL,
    arch              text NOT NULL,
    model_dir         text NOT NULL, -- also the tokenizer's folder, as clients on this machine see it
    weights_sha256    text NOT NULL,
    updated_at        timestamptz NOT NULL DEFAULT now()
);

-- Ownership of a partition pair (jobs, results), and how far its snapshots reach.
CREATE TABLE shards (
    model         text NOT NULL,
    stream        text NOT NULL CHECK (stream IN ('train', 'sample')),
    partition     integer NOT NULL,
    epoch         bigint NOT NULL DEFAULT 0,
    owner         text,
    slot          integer,
    lease_until   timestamptz NOT NULL DEFAULT '-infinity',
    resume_offset bigint NOT NULL DEFAULT 0, -- jobs: lowest offset not covered by a snapshot
    scan_offset   bigint NOT NULL DEFAULT 0, -- results: lowest offset that a take-over must read
    scan_epoch    bigint NOT NULL DEFAULT 0, -- the epoch in force there
    PRIMARY KEY (model, stream, partition)
);

CREATE TABLE sessions (
    id            text PRIMARY KEY,
    account_id    text NOT NULL REFERENCES accounts (id),
    tags          jsonb NOT NULL DEFAULT '[]',
    user_metadata jsonb NOT NULL DEFAULT '{}',
    sdk_version   text NOT NULL DEFAULT '',
    project_id    text,
    display_name  text,
    idempotency   text, -- the creating call's X-Idempotency-Key
    created_at    timestamptz NOT NULL DEFAULT now(),
    heartbeat_at  timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz,
    finish_reason text,
    UNIQUE (account_id, idempotency)
);

CREATE TABLE runs (
    id              text PRIMARY KEY,
    account_id      text NOT NULL REFERENCES accounts (id),
    session_id      text NOT NULL REFERENCES sessions (id),
    model           text NOT NULL,
    rank            integer NOT NULL,
    train_attn      boolean NOT NULL,
    train_mlp       boolean NOT NULL,
    train_unembed   boolean NOT NULL,
    shard           integer NOT NULL, -- partition of <model>.train.*
    refusal         text, -- why it was never made (an unknown base model, say); its creation future fails with it
    user_metadata   jsonb NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL DEFAULT now(),
    last_request_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX runs_by_account ON runs (account_id, created_at);

-- A checkpoint is one immutable version: the save at seq of a run.  A name points to its latest version.
CREATE TABLE checkpoints (
    run_id        text NOT NULL REFERENCES runs (id),
    seq           bigint NOT NULL,
    account_id    text NOT NULL REFERENCES accounts (id),
    kind          text NOT NULL CHECK (kind IN ('training', 'sampler')),
    name          text, -- NULL: made for one sampler only
    dir           text NOT NULL, -- below TINWORKS_DATA
    sha256        text NOT NULL,
    size_bytes    bigint NOT NULL,
    has_optimizer boolean NOT NULL,
    epoch         bigint NOT NULL,
    user_metadata jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    deleted_at    timestamptz,
    PRIMARY KEY (run_id, seq)
);
CREATE INDEX checkpoints_by_name ON checkpoints (run_id, kind, name, seq);
CREATE INDEX checkpoints_by_account ON checkpoints (account_id, created_at);

CREATE TABLE samplers (
    id             text PRIMARY KEY,
    account_id     text NOT NULL REFERENCES accounts (id),
    session_id     text NOT NULL REFERENCES sessions (id),
    model          text NOT NULL,
    checkpoint_run text, -- NULL: the base model
    checkpoint_seq bigint,
    model_path     text, -- as the client named it
    shard          integer NOT NULL, -- partition of <model>.sample.*
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- Ours, for recovery.  A file under TINWORKS_DATA/snapshots.
CREATE TABLE run_snapshots (
    run_id       text NOT NULL,
    seq          bigint NOT NULL, -- every job up to here is inside
    epoch        bigint NOT NULL,
    dir          text NOT NULL,
    sha256       text NOT NULL,
    state_digest text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, seq, epoch)
);

-- ------------------------------------------------------------------ money

-- '*' stands for every model without a row of its own.  Prices never change in place: end one, add the next.
CREATE TABLE prices (
    model               text NOT NULL,
    kind                text NOT NULL CHECK (kind IN ('prefill', 'sample', 'train')),
    pico_usd_per_token  bigint NOT NULL CHECK (pico_usd_per_token >= 0),
    valid_from          timestamptz NOT NULL,
    valid_to            timestamptz,
    PRIMARY KEY (model, kind, valid_from)
);
INSERT INTO prices (model, kind, pico_usd_per_token, valid_from) VALUES
    ('*', 'prefill', 70000, '-infinity'),
    ('*', 'sample', 220000, '-infinity'),
    ('*', 'train', 220000, '-infinity');

-- One row a job: what was decided, and what it cost.  The primary key is what makes a bill exact.
CREATE TABLE job_outcomes (
    job_id         text PRIMARY KEY,
    account_id     text NOT NULL,
    model          text NOT NULL,
    parent_id      text NOT NULL, -- run or sampler
    kind           text NOT NULL,
    seq            bigint NOT NULL,
    status         text NOT NULL CHECK (status IN ('ok', 'failed', 'cancelled')),
    prefill_tokens bigint NOT NULL,
    sample_tokens  bigint NOT NULL,
    train_tokens   bigint NOT NULL,
    amount_pico    bigint NOT NULL,
    digest         text NOT NULL,
    topic          text NOT NULL,
    partition      integer NOT NULL,
    log_offset     bigint NOT NULL,
    decided_at     timestamptz NOT NULL -- append time of the result record
);
CREATE INDEX job_outcomes_by_account ON job_outcomes (account_id, decided_at);
CREATE INDEX job_outcomes_by_parent ON job_outcomes (parent_id, seq);

-- Double entry: the rows of one tx sum to zero.  Ledger accounts: customer:<account>, revenue:<model>:<kind>, cash.
CREATE TABLE ledger_entries (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tx          text NOT NULL, -- job id, or credit:<id>
    account     text NOT NULL,
    amount_pico bigint NOT NULL,
    created_at  timestamptz NOT NULL,
    UNIQUE (tx, account)
);

-- What a customer has left; negative is owed.  Moves in the transaction of its ledger rows.
CREATE TABLE balances (
    account_id   text PRIMARY KEY,
    balance_pico numeric(38, 0) NOT NULL DEFAULT 0
);

CREATE TABLE usage_hours (
    hour        timestamptz NOT NULL,
    account_id  text NOT NULL,
    model       text NOT NULL,
    parent_id   text NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('prefill', 'sample', 'train')),
    tokens      bigint NOT NULL,
    amount_pico numeric(38, 0) NOT NULL,
    jobs        bigint NOT NULL,
    PRIMARY KEY (hour, account_id, model, parent_id, kind)
);

-- How far the results logs are folded in; moves in the same transaction as the rows.
CREATE TABLE ingest_cursors (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    max_epoch   bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, partition)
);
