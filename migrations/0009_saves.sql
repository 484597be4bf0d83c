-- 0009: whether a numbered save found room, so that a repeated call is told what the first one was told, by any gateway and
-- after any restart.  Removed after the logs' retention.

CREATE TABLE save_decisions (
    run_id     text NOT NULL REFERENCES runs (id),
    seq        bigint NOT NULL,
    refusal    text, -- NULL: it was let in
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, seq)
);
CREATE INDEX save_decisions_by_time ON save_decisions USING brin (created_at);

GRANT SELECT, INSERT ON save_decisions TO tinworks_gateway;
-- The sweeper.
GRANT SELECT, DELETE ON save_decisions TO tinworks_dispatcher;
