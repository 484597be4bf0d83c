-- 0002: the books' own rules, credit with its reason, views by the month, and a role for each process.

-- ------------------------------------------------------------------ rules

ALTER TABLE accounts
    ADD CONSTRAINT account_id_form CHECK (id ~ '^[A-Za-z0-9_-]{1,63}$'),
    ADD CONSTRAINT account_name_form CHECK (name <> '' AND name NOT LIKE 'acct\_%');

ALTER TABLE api_keys ADD CONSTRAINT key_hmac_form CHECK (hmac ~ '^[0-9a-f]{64}$');
CREATE INDEX api_keys_by_account ON api_keys (account_id);

-- At most 1,000 USD per million tokens: with at most 2^31 - 1 tokens of a kind in a job no amount
-- leaves a bigint.
ALTER TABLE prices
    ADD CONSTRAINT price_in_range CHECK (pico_usd_per_token <= 1000000000),
    ADD CONSTRAINT price_period CHECK (valid_to > valid_from);
CREATE UNIQUE INDEX prices_one_open ON prices (model, kind) WHERE valid_to IS NULL;

ALTER TABLE job_outcomes
    ADD CONSTRAINT tokens_not_negative
        CHECK (prefill_tokens >= 0 AND sample_tokens >= 0 AND train_tokens >= 0),
    ADD CONSTRAINT amount_not_negative CHECK (amount_pico >= 0),
    ADD CONSTRAINT only_ok_is_billed CHECK (status = 'ok' OR
        (prefill_tokens = 0 AND sample_tokens = 0 AND train_tokens = 0 AND amount_pico = 0));
-- Rows come in about this order, so this index costs next to nothing.
CREATE INDEX job_outcomes_by_time ON job_outcomes USING brin (decided_at);

-- Each job that billed anything counts under one kind only (the first it used), so that the sum over kinds
-- is a number of jobs; `jobs` counts it under each.
ALTER TABLE usage_hours ADD COLUMN jobs_once bigint NOT NULL DEFAULT 0;
CREATE INDEX usage_hours_by_account ON usage_hours (account_id, hour);

-- Why an account was credited (or, negative, corrected); its two ledger entries have tx credit:<id>.
CREATE TABLE credits (
    id          text PRIMARY KEY,
    account_id  text NOT NULL REFERENCES accounts (id),
    amount_pico bigint NOT NULL CHECK (amount_pico <> 0),
    reason      text NOT NULL,
    made_by     text NOT NULL DEFAULT session_user,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT correction_has_reason CHECK (amount_pico > 0 OR reason <> '')
);
CREATE INDEX credits_by_account ON credits (account_id, created_at);

-- What is in the books stays there: a correction is a new row.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: a correction is a new row', TG_TABLE_NAME;
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON job_outcomes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON credits
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A price may end; nothing else about it changes.
CREATE FUNCTION price_may_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR OLD.valid_to IS NOT NULL OR NEW.valid_to IS NULL
        OR (NEW.model, NEW.kind, NEW.pico_usd_per_token, NEW.valid_from)
            IS DISTINCT FROM (OLD.model, OLD.kind, OLD.pico_usd_per_token, OLD.valid_from) THEN
        RAISE EXCEPTION 'a price can only end: set the next one';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER only_ends BEFORE UPDATE OR DELETE ON prices
    FOR EACH ROW EXECUTE FUNCTION price_may_end();

-- ------------------------------------------------------------------ for finance

-- Exact: numeric dollars, not rounded.  Months are UTC.
CREATE VIEW usage_months AS
SELECT to_char(u.hour AT TIME ZONE 'UTC', 'YYYY-MM') AS month, u.account_id,
    coalesce(a.name, u.account_id) AS account, u.model, u.kind, sum(u.tokens) AS tokens,
    sum(u.jobs) AS jobs, sum(u.amount_pico) / 1000000000000::numeric AS amount_usd
FROM usage_hours u LEFT JOIN accounts a ON a.id = u.account_id
GROUP BY 1, 2, 3, 4, 5;

CREATE VIEW ledger_months AS
SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM') AS month, account,
    count(*) AS entries, sum(amount_pico) / 1000000000000::numeric AS amount_usd
FROM ledger_entries
GROUP BY 1, 2;

-- ------------------------------------------------------------------ roles

-- Group roles without login, shared by all databases of the server; a process's own login is made a
-- member of one:  CREATE ROLE gw1 LOGIN PASSWORD '...' IN ROLE tinworks_gateway;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tinworks_gateway', 'tinworks_dispatcher', 'tinworks_worker',
        'tinworks_billing', 'tinworks_finance']
    LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database's migration made it in this moment
        END;
    END LOOP;
END $$;

GRANT SELECT ON accounts, api_keys, models, prices, balances, job_outcomes, sessions, runs, samplers,
    checkpoints, shards, ingest_cursors, usage_hours TO tinworks_gateway;
GRANT INSERT ON sessions, runs, samplers TO tinworks_gateway;
GRANT UPDATE (heartbeat_at, finished_at, finish_reason) ON sessions TO tinworks_gateway;
GRANT UPDATE (last_request_at) ON runs TO tinworks_gateway;
GRANT UPDATE (expires_at, deleted_at) ON checkpoints TO tinworks_gateway;

GRANT SELECT ON models, shards, sessions, runs, samplers, ingest_cursors, job_outcomes, checkpoints
    TO tinworks_dispatcher;

GRANT SELECT ON models, shards, sessions, runs, samplers, checkpoints, run_snapshots
    TO tinworks_worker;
GRANT INSERT, UPDATE ON models, shards, checkpoints, run_snapshots TO tinworks_worker;
GRANT DELETE ON run_snapshots TO tinworks_worker;

GRANT SELECT ON models, accounts, api_keys, prices, job_outcomes, ledger_entries, balances,
    usage_hours, ingest_cursors, credits TO tinworks_billing;
GRANT INSERT ON job_outcomes, ledger_entries, balances, usage_hours, ingest_cursors
    TO tinworks_billing;
GRANT UPDATE ON balances, usage_hours, ingest_cursors TO tinworks_billing;

GRANT SELECT ON prices, job_outcomes, ledger_entries, balances, usage_hours, ingest_cursors, credits,
    models, usage_months, ledger_months TO tinworks_finance;
GRANT SELECT (id, name, created_at, disabled_at) ON accounts TO tinworks_finance;
