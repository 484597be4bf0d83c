-- 0006: what is published of a run is found without looking at what is not, so that the time that takes does not depend on how
-- much another account's run has saved.

CREATE INDEX checkpoints_published ON checkpoints (run_id) WHERE published_at IS NOT NULL;
