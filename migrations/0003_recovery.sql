-- 0003: what a take-over needs to know of the one before: how it ended, which arithmetic it used, and where a run's
-- older snapshot would have to be replayed from.

ALTER TABLE shards
    ADD COLUMN drained  boolean NOT NULL DEFAULT true, -- the last owner left nothing half done
    ADD COLUMN numerics text;                          -- numerics class of the last owner; NULL: nobody had it yet

ALTER TABLE run_snapshots
    ADD COLUMN resume_offset bigint NOT NULL DEFAULT 0, -- the shard's positions as this snapshot was taken
    ADD COLUMN scan_offset   bigint NOT NULL DEFAULT 0,
    ADD COLUMN scan_epoch    bigint NOT NULL DEFAULT 0,
    ADD COLUMN damaged_at    timestamptz;               -- its files were not what they had been

-- How often a job was begun alone, after a worker had died with it in hand.  A row goes when the job is through.
CREATE TABLE job_attempts (
    job_id     text PRIMARY KEY,
    attempts   integer NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT, UPDATE, DELETE ON job_attempts TO tinworks_worker;
