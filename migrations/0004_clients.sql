-- 0004: what the clients' whole protocol needs: projects, published and external checkpoints, calls that are
-- numbered on arrival, copies, and a memory of who changed what.

-- ------------------------------------------------------------------ keys

-- The CLI wants a number for a key and an address for its owner.
ALTER TABLE api_keys
    ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN note   text NOT NULL DEFAULT '';
ALTER TABLE accounts ADD COLUMN email text NOT NULL DEFAULT '';

-- ------------------------------------------------------------------ projects

-- A name within its account; it begins with the first session that is put into it.
CREATE TABLE projects (
    account_id text NOT NULL REFERENCES accounts (id),
    id         text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, id)
);
INSERT INTO projects (account_id, id)
    SELECT DISTINCT account_id, project_id FROM sessions WHERE project_id IS NOT NULL;
ALTER TABLE sessions ADD FOREIGN KEY (account_id, project_id) REFERENCES projects (account_id, id);
CREATE INDEX sessions_by_account ON sessions (account_id, created_at);

-- ------------------------------------------------------------------ sessions, runs, samplers

-- 'hpcai': the client knows no sessions, so ours stand in for them; its calls are numbered on arrival.
ALTER TABLE sessions
    ADD COLUMN sdk text NOT NULL DEFAULT 'tinker' CHECK (sdk IN ('tinker', 'hpcai'));

ALTER TABLE runs
    ADD COLUMN copied      boolean NOT NULL DEFAULT false, -- holds a copied checkpoint; was never trained itself
    ADD COLUMN next_seq    bigint NOT NULL DEFAULT 1,      -- for calls without a number
    ADD COLUMN unloaded_at timestamptz;                    -- the client said that it is done
CREATE INDEX runs_by_session ON runs (session_id);

-- Which number a call without one got; a repeated call is known by its key.  Removed after the logs' retention.
CREATE TABLE run_arrivals (
    run_id      text NOT NULL REFERENCES runs (id),
    idempotency text NOT NULL,
    seq         bigint NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, idempotency)
);
CREATE INDEX run_arrivals_by_time ON run_arrivals USING brin (created_at);

ALTER TABLE samplers ADD COLUMN clones bigint NOT NULL DEFAULT 0; -- clients that joined it
CREATE INDEX samplers_by_session ON samplers (session_id);

-- ------------------------------------------------------------------ checkpoints

ALTER TABLE checkpoints
    ADD COLUMN published_at timestamptz, -- everybody who knows its path may read it
    DROP CONSTRAINT checkpoints_kind_check,
    ADD CONSTRAINT checkpoints_kind_check CHECK (kind IN ('training', 'sampler', 'external'));
CREATE INDEX checkpoints_by_expiry ON checkpoints (expires_at)
    WHERE expires_at IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX checkpoints_by_deletion ON checkpoints (deleted_at) WHERE deleted_at IS NOT NULL;

-- For the poll of a whole sampling session: its results lie in one partition, in this order.
CREATE INDEX job_outcomes_by_parent_offset ON job_outcomes (parent_id, log_offset);

-- ------------------------------------------------------------------ audit

-- What somebody did to a checkpoint or a project.  That a checkpoint was saved is its own row's created_at.
CREATE TABLE audit_events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id  text NOT NULL REFERENCES accounts (id),
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    topic       text NOT NULL CHECK (topic IN ('checkpoints', 'projects')),
    event       text NOT NULL,
    details     jsonb NOT NULL DEFAULT '{}',
    model_id    text,
    tinker_path text
);
CREATE INDEX audit_events_by_account ON audit_events (account_id, at);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- ------------------------------------------------------------------ roles

GRANT SELECT ON projects, run_arrivals, audit_events TO tinworks_gateway;
GRANT INSERT ON projects, run_arrivals, audit_events, checkpoints TO tinworks_gateway;
GRANT UPDATE (project_id) ON sessions TO tinworks_gateway;
GRANT UPDATE (next_seq, unloaded_at) ON runs TO tinworks_gateway;
GRANT UPDATE (clones) ON samplers TO tinworks_gateway;
GRANT UPDATE (published_at) ON checkpoints TO tinworks_gateway;
GRANT UPDATE (revoked_at) ON api_keys TO tinworks_gateway;

-- The sweeper.
GRANT SELECT, DELETE ON run_arrivals TO tinworks_dispatcher;
GRANT UPDATE (deleted_at) ON checkpoints TO tinworks_dispatcher;
GRANT UPDATE (finished_at, finish_reason) ON sessions TO tinworks_dispatcher;
GRANT INSERT ON audit_events TO tinworks_dispatcher;
