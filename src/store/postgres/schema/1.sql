-- The ledger's tables. Everything that people may want to read is text or a time stamp;
-- `select * from tikigate.records` is for them.

do $$
begin
    -- Not `create schema if not exists`, which asks for more rights than a schema that is there needs.
    if to_regnamespace('tikigate') is null then
        create schema tikigate;
    end if;
end
$$;

-- One row: what is true of the ledger as a whole.
create table tikigate.ledger (
    only_row boolean primary key default true check (only_row),
    id text not null default gen_random_uuid()::text,
    schema_version integer not null,
    created_at timestamptz not null default clock_timestamp(),
    -- The server it was last written on. Another one may lack some of what was confirmed.
    system_identifier text not null,
    timeline bigint not null,
    -- Raised whenever something may have been forgotten.
    generation bigint not null default 0,
    -- Why keys that the ledger doesn't know are held, while they are.
    quarantine text
);

-- What happened to the ledger as a whole.
create table tikigate.ledger_event (
    number bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    what text not null,
    by_name text,
    reason text not null
);

-- Holds keys that the ledger doesn't know until a person lifts it. For people, too: after a restore
-- that a gate can't notice, run `select tikigate.enter_quarantine('restored the backup of ...')`.
create function tikigate.enter_quarantine(cause text) returns void language sql as $$
    update tikigate.ledger set generation = generation + 1, quarantine = cause;
    insert into tikigate.ledger_event (what, reason) values ('quarantine entered', cause);
$$;

-- What a namespace's keys are made of.
create table tikigate.namespace (
    name text collate "C" primary key,
    key_fields text not null,
    fingerprint_fields text not null
);

-- Gates, by their life: each start is another owner.
create table tikigate.owner (
    owner bigint primary key,
    address text,
    started_at timestamptz not null default clock_timestamp(),
    -- Until then its claims are its own. By this server's clock, as nothing else here is.
    lease_until timestamptz not null,
    beats bigint not null default 1
);

create sequence tikigate.record_id;

create table tikigate.record (
    id bigint primary key,
    -- The first half of the SHA-256 of namespace, client and message: short, whatever the message.
    key_hash bytea not null,
    namespace text not null,
    client text not null,
    message text not null,
    fingerprint bytea not null,
    state text not null check (state in ('claimed', 'released', 'done', 'unknown')),
    attempt bigint not null,
    version bigint not null,
    owner bigint not null,
    policy text not null check (policy in ('hold', 'resend')),
    route text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    may_run_until timestamptz not null,
    expires_at timestamptz not null,
    keep_seconds bigint not null,
    alarmed boolean not null,
    declared boolean not null,
    hold text,
    stale_event boolean not null,
    possible_duplicate boolean not null,
    answer_status integer,
    answer_headers text,
    answer_body bytea,
    request_headers text,
    request_body bytea,
    field_names text[] not null,
    field_texts text[] not null,
    subject_id text,
    subject_at timestamptz,
    subject_drop_stale boolean,
    subject_amount text,
    subject_window_seconds bigint,
    subject_hold boolean,
    generation bigint not null,
    absent_since timestamptz,
    -- What else the rules need to know, as words.
    flags text not null,
    -- A gate waits to hear how the running attempt ends.
    awaited boolean not null default false
);

create unique index record_key on tikigate.record (key_hash);
create index record_message on tikigate.record using hash (message);
create index record_state on tikigate.record (state, updated_at);
create index record_open on tikigate.record (state, id) where state <> 'done';
create index record_expiry on tikigate.record (expires_at) where state = 'done';
create index record_subject on tikigate.record (subject_id) where subject_id is not null;
-- A small pending list, so that no single claim pays for many.
create index record_fields on tikigate.record using gin (field_texts)
    with (gin_pending_list_limit = 256);

-- What happened to each record, numbered from 1; of very many, the first and the latest.
create table tikigate.event (
    record bigint not null,
    number bigint not null,
    at timestamptz not null,
    attempt bigint not null,
    state text not null,
    cause text not null,
    by_name text,
    reason text,
    primary key (record, number)
);

-- How many records are in each state: the sum over the rows. Each connection adds to a row of its own.
create table tikigate.record_count (
    shard integer primary key,
    claimed bigint not null default 0,
    released bigint not null default 0,
    done bigint not null default 0,
    unknown bigint not null default 0
) with (fillfactor = 20);
insert into tikigate.record_count (shard) select generate_series(0, 63);

-- Changes come thick and fast, and a scan should not have to wade through the dead.
alter table tikigate.record_count set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

create view tikigate.records as
    select 'rec-' || id as record, state, hold, namespace, client, message, attempt, route, policy,
        created_at, updated_at, may_run_until, expires_at, alarmed, declared,
        answer_status, field_names, field_texts
    from tikigate.record;

-- The outbox: notices for Tiki. All times here are this server's.
create table tikigate.delivery (
    id bigint generated always as identity primary key,
    client text collate "C" not null,
    base_url text collate "C" not null,
    tiki_transaction_id text collate "C" not null,
    transaction_id text collate "C" not null,
    -- What whoever works on the transaction holds the advisory lock of: a hash of the three that name it.
    transaction_lock bigint not null,
    status text collate "C" not null,
    amount text not null,
    state text not null check (state in ('pending', 'delivered', 'failed', 'cancelled', 'superseded')),
    step text not null check (step in ('send', 'ask')),
    place bigint not null,
    tries bigint not null,
    asks bigint not null,
    maybe_taken boolean not null,
    refusal text,
    flight bigint not null,
    -- Until then the gate that took it may be trying it.
    flying_until timestamptz,
    next_at timestamptz not null,
    created_at timestamptz not null,
    opened_at timestamptz not null,
    updated_at timestamptz not null,
    generation bigint not null,
    outcome text,
    tell_at timestamptz,
    tellings bigint not null,
    -- What it counts for in delivery_bytes.
    size bigint not null,
    -- One a line: [microseconds since 1970, what, by whom, detail].
    events text not null,
    body bytea not null
);

create unique index delivery_message
    on tikigate.delivery (tiki_transaction_id, transaction_id, client, status);
create index delivery_partners on tikigate.delivery (transaction_id);
create index delivery_due on tikigate.delivery (client, base_url, next_at) where state = 'pending';
create index delivery_over on tikigate.delivery (updated_at) where state <> 'pending';
create index delivery_failed on tikigate.delivery (id) where state = 'failed';
create index delivery_to_tell on tikigate.delivery (tell_at) where tell_at is not null;

-- How many bytes the deliveries take: the sum over the rows. Each connection adds to a row of its own.
create table tikigate.delivery_bytes (
    shard integer primary key,
    bytes bigint not null default 0
) with (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
insert into tikigate.delivery_bytes (shard) select generate_series(0, 63);

create view tikigate.notices as
    select 'out-' || id as notice, state, step, client, base_url, tiki_transaction_id, transaction_id,
        status, amount, tries, asks, maybe_taken, outcome, flying_until, created_at, updated_at, next_at,
        convert_from(body, 'UTF8') as body
    from tikigate.delivery;
