/* audit.db. The views are the public interface; the tables may change with a migration. */
#include "coordinator/audit/audit_priv.h"

static const char *const steps[] = {
    /* 0 → 1. Names are numbers in the rows, for small rows and lean indexes; number 0 is the empty name. */
    "CREATE TABLE event_type(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;"
    "CREATE TABLE name(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;"
    "CREATE TABLE audit(id INTEGER PRIMARY KEY, ts_us INTEGER NOT NULL, event INTEGER NOT NULL,"
    " severity INTEGER NOT NULL CHECK(severity BETWEEN 0 AND 4), result INTEGER NOT NULL CHECK(result "
    "BETWEEN 0 AND 2),"
    " principal INTEGER NOT NULL, device INTEGER NOT NULL, node INTEGER NOT NULL, session INTEGER NOT NULL,"
    " job INTEGER NOT NULL, operation INTEGER NOT NULL, error TEXT, meta TEXT CHECK(meta IS NULL OR "
    "json_valid(meta))) "
    "STRICT;"
    "CREATE INDEX audit_time ON audit(ts_us);"
    "CREATE INDEX audit_principal ON audit(principal);"
    "CREATE INDEX audit_critical ON audit(ts_us) WHERE severity>=3;"
    "CREATE INDEX audit_job ON audit(job) WHERE job<>0;"
    /* One row a batch: the chain, and the way from times to ids. */
    "CREATE TABLE seal(first INTEGER PRIMARY KEY, last INTEGER NOT NULL, ts_min INTEGER NOT NULL,"
    " ts_max INTEGER NOT NULL, prev BLOB NOT NULL, hash BLOB NOT NULL) STRICT;"
    "CREATE INDEX seal_time ON seal(ts_max, first);"
    "CREATE TABLE checkpoint(size INTEGER PRIMARY KEY, head BLOB NOT NULL, ts_us INTEGER NOT NULL, key_id "
    "TEXT NOT NULL,"
    " sig BLOB NOT NULL) STRICT;"
    "CREATE TABLE state(one INTEGER PRIMARY KEY CHECK(one=1), size INTEGER NOT NULL, head BLOB NOT NULL,"
    " drained INTEGER NOT NULL) STRICT;"
    "INSERT INTO state VALUES(1,0,zeroblob(32),0);"
    "CREATE TABLE rate_1m(minute INTEGER NOT NULL, event INTEGER NOT NULL, severity INTEGER NOT NULL,"
    " result INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(minute,event,severity,result)) STRICT, "
    "WITHOUT ROWID;"
    "CREATE VIEW v_audit AS SELECT a.id AS id, a.ts_us AS time_us, a.ts_us/1000000.0 AS time, t.name AS type,"
    " CASE a.severity WHEN 0 THEN 'debug' WHEN 1 THEN 'info' WHEN 2 THEN 'warning' WHEN 3 THEN 'error'"
    " ELSE 'critical' END AS severity, a.severity AS severity_level,"
    " CASE a.result WHEN 0 THEN 'success' WHEN 1 THEN 'failure' ELSE 'denied' END AS result,"
    " p.text AS principal, d.text AS device, n.text AS node, s.text AS session, j.text AS job, o.text AS "
    "operation,"
    " a.error AS error, a.meta AS meta FROM audit a LEFT JOIN event_type t ON t.id=a.event"
    " LEFT JOIN name p ON p.id=a.principal LEFT JOIN name d ON d.id=a.device LEFT JOIN name n ON n.id=a.node"
    " LEFT JOIN name s ON s.id=a.session LEFT JOIN name j ON j.id=a.job LEFT JOIN name o ON o.id=a.operation;"
    "CREATE VIEW v_denied AS SELECT * FROM v_audit WHERE result='denied';"
    "CREATE VIEW v_critical AS SELECT * FROM v_audit WHERE severity_level>=3;"
    "CREATE VIEW v_job AS SELECT * FROM v_audit WHERE job IS NOT NULL;"
    "CREATE VIEW v_rate_1m AS SELECT r.minute*60000000 AS time_us, r.minute*60.0 AS time, t.name AS type,"
    " CASE r.severity WHEN 0 THEN 'debug' WHEN 1 THEN 'info' WHEN 2 THEN 'warning' WHEN 3 THEN 'error'"
    " ELSE 'critical' END AS severity,"
    " CASE r.result WHEN 0 THEN 'success' WHEN 1 THEN 'failure' ELSE 'denied' END AS result, r.n AS n"
    " FROM rate_1m r LEFT JOIN event_type t ON t.id=r.event;",
};

const struct db_kind audit_db_kind = {
    .app_id = 0x53747241, /* "StrA" */
    .what = "audit.db",
    .steps = steps,
    .n_steps = sizeof steps / sizeof steps[0],
    .checkpoint_pages = 16000,
};
