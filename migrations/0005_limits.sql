-- 0005: how much of the service one account may use, and what a key's scopes may be.

-- NULL: the gateway's own setting of that name; 0: no limit.
ALTER TABLE accounts
    ADD COLUMN requests_per_minute bigint CHECK (requests_per_minute >= 0),
    ADD COLUMN tokens_in_flight    bigint CHECK (tokens_in_flight >= 0),
    ADD COLUMN runs_max            bigint CHECK (runs_max >= 0),
    ADD COLUMN storage_bytes_max   bigint CHECK (storage_bytes_max >= 0);

ALTER TABLE api_keys ADD CONSTRAINT key_scopes_form
    CHECK (scopes ~ '^(train|sample|read|finance|admin)(,(train|sample|read|finance|admin))*$');
