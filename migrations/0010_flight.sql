-- 0010: a gateway asks how far a shard's log is done with, for jobs that end without an outcome.

GRANT SELECT ON shards TO tinworks_gateway;
