/* audit.db. The views (segment.c) are the public interface; the tables may change with a migration. */
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
    "WITHOUT ROWID;",
    /* 1 → 2. Rows lie in a table a segment, so that no index grows without bound and old rows leave by
     * dropping a table. What was one table becomes the first segment. */
    "DROP VIEW IF EXISTS v_audit; DROP VIEW IF EXISTS v_denied; DROP VIEW IF EXISTS v_critical;"
    "DROP VIEW IF EXISTS v_job; DROP VIEW IF EXISTS v_rate_1m;"
    "DROP INDEX IF EXISTS audit_time; DROP INDEX IF EXISTS audit_principal;"
    "DROP INDEX IF EXISTS audit_critical; DROP INDEX IF EXISTS audit_denied; DROP INDEX IF EXISTS audit_job;"
    "ALTER TABLE audit RENAME TO audit_000001;"
    "CREATE INDEX audit_000001_time ON audit_000001(ts_us);"
    "CREATE INDEX audit_000001_principal ON audit_000001(principal);"
    "CREATE INDEX audit_000001_critical ON audit_000001(ts_us) WHERE severity>=3;"
    "CREATE INDEX audit_000001_denied ON audit_000001(ts_us) WHERE result=2;"
    "CREATE INDEX audit_000001_job ON audit_000001(job) WHERE job<>0;"
    "CREATE TABLE segment(n INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL,"
    " ts_min INTEGER NOT NULL, ts_max INTEGER NOT NULL, opened_us INTEGER NOT NULL, prev BLOB NOT NULL,"
    " head BLOB NOT NULL, file TEXT NOT NULL, sha256 BLOB NOT NULL, retired INTEGER NOT NULL) STRICT;"
    "INSERT INTO segment SELECT 1,1,0,0,0,coalesce((SELECT min(ts_us) FROM audit_000001),0),zeroblob(32),"
    "zeroblob(32),'',zeroblob(32),0;"
    "CREATE TABLE rate_1h(hour INTEGER NOT NULL, event INTEGER NOT NULL, severity INTEGER NOT NULL,"
    " result INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(hour,event,severity,result)) STRICT, "
    "WITHOUT ROWID;"
    "INSERT INTO rate_1h SELECT minute/60,event,severity,result,sum(n) FROM rate_1m GROUP BY 1,2,3,4;",
    /* 2 → 3. The tables of segments are used again: one that was sealed is emptied and takes the rows of a
     * later one. So neither tables nor views change while the store runs, and no statement, of ours or of a
     * dashboard, is compiled anew because a segment came or went. */
    "CREATE TABLE slot(n INTEGER PRIMARY KEY) STRICT;"
    "INSERT INTO slot SELECT n FROM segment WHERE file='';"
    "ALTER TABLE segment ADD COLUMN slot INTEGER NOT NULL DEFAULT 0;"
    "UPDATE segment SET slot=n;"
    /* The last segment that uses a name: when it leaves, so does the name. */
    "ALTER TABLE name ADD COLUMN seen INTEGER NOT NULL DEFAULT 0;"
    "UPDATE name SET seen=(SELECT max(n) FROM segment);",
};

const struct db_kind audit_db_kind = {
    .app_id = 0x53747241, /* "StrA" */
    .what = "audit.db",
    .steps = steps,
    .n_steps = sizeof steps / sizeof steps[0],
    .checkpoint_pages = 0, /* the keeper's business: a commit must not wait for it */
};
