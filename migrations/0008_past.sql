-- 0008: what a run's snapshot remembers of the numbers before it: for each of the last ones, a byte of bits, which kinds
-- of job came under it (worker/order.h).  NULL: a row of before, every job of an old number counts as a copy.

ALTER TABLE run_snapshots ADD COLUMN past bytea;
