-- 0011: a worker asks the books whether a sampling job was decided before (worker/books.h): ids and places, no usage and no
-- money.
GRANT SELECT (job_id, log_offset) ON job_outcomes TO tinworks_worker;
GRANT SELECT ON ingest_cursors TO tinworks_worker;
