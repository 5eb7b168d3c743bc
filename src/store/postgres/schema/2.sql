-- From here on the ledger says which migrations it has, and `schema_version` is the least that a gate must
-- know to use it.
alter table tikigate.ledger add column revision integer not null default 1;
