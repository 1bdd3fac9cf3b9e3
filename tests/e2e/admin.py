#!/usr/bin/env python3
"""What an administrator types, as people see it and as programs read it: policies, users, quotas, sessions, nodes,
certificates, plans and the audit file, and what is said to an operand that is wrong.

usage: admin.py BIN-DIR
"""
import csv, glob, json, os, sqlite3, subprocess

from harness import *

POLICIES = """\
version: 1
policies:
  - principal: user/alice
    roles: [user]
    devices: ["n1/*"]
    quota: 64MiB
  - principal: user/bob
    roles: [monitor]
"""


def wrong(*argv):
    out, err = human(*argv, want=2)
    check(err.startswith("strata") and ": " in err and not out, f"'strata {' '.join(argv)}' is exit 2 and one clear line: {err.splitlines()[0][:90]}")


def policies():
    path = f"{work}/policies.yaml"
    with open(path, "w") as f:
        f.write(POLICIES)
    out, _ = human("policy", "diff", "-f", path)
    check("user/alice" in out and "user/bob" in out, "policy diff shows what a file would change")
    out, _ = human("policy", "apply", "-f", path, "--dry-run")
    check("user/alice" in out, "policy apply --dry-run shows the same")
    check("user/alice" not in human("policy", "list")[0], "and changed nothing")
    human("policy", "apply", "-f", path)
    out, _ = human("policy", "list")
    check("user/alice" in out and "user/bob" in out, "policy list has both")
    out, _ = human("policy", "get", "user/alice")
    with open(f"{work}/again.yaml", "w") as f:
        f.write(out)
    check("n1/*" in out, "policy get writes a file")
    out, _ = human("policy", "diff", "-f", f"{work}/again.yaml")
    check("= user/alice unchanged" in out, "that apply would take and that changes nothing")
    out, _ = human("policy", "test", "user/alice", "memory:allocate", "--device", "n1/cpu:0", "--bytes", "1MiB")
    check("allow" in out.lower(), "policy test says yes with the rule")
    out, _ = human("policy", "test", "user/alice", "memory:allocate", "--device", "n2/cpu:0", want=4)
    check("DEVICE_NOT_ALLOWED" in out, "and no with the reason, exit 4")
    out, _ = human("policy", "test", "user/alice", "memory:allocate", "--device", "n1/cpu:0", "--bytes", "1GiB", want=8)
    check("QUOTA_EXCEEDED" in out, "a quota that would not hold is a no, too")
    out, _ = human("policy", "test", "user/nobody", "device:list", want=4)
    check("NO_POLICY" in out, "who has no policy may nothing")
    with open(path, "a") as f:
        f.write("  - principal: user/eve\n    roles: [emperor]\n")
    _, err = human("policy", "apply", "-f", path, want=2)
    check("emperor" in err, "an unknown role is named, and nothing of the file is applied")
    check("user/eve" not in human("policy", "list")[0], "all or nothing")


def users():
    out, err = human("user", "create", "carol", "--role", "user", "--device", "n1/*", "--quota", "32MiB", "--expires", "7d")
    check("carol" in out + err, "user create makes a policy")
    out, _ = human("user", "list")
    check("carol" in out and "user" in out, "user list shows it")
    check(any(u.get("principal") == "user/carol" or u.get("name") == "carol" for u in strata("user", "list")["policies"]), "also as JSON")
    out, _ = human("quota", "show", "user/carol")
    check("carol" in out and "32" in out, "quota show has the limit")
    human("quota", "show", "--all")
    human("user", "revoke", "carol")
    out, _ = human("policy", "test", "user/carol", "device:list", want=4)
    check("NO_POLICY" in out or "REVOKED" in out, "a revoked user may nothing")
    _, err = human("user", "revoke", "carol2", want=3)
    check("carol2" in err, "an unknown user is exit 3 by name")


def devices():
    out, _ = human("gpu", "alloc", "n1/cpu:0", "1MiB")
    handle = next(w for w in out.split() if w.startswith("n1/") and len(w) > 20)
    out, _ = human("session", "list", "--all")
    check("n1" in out and "admin" in out, "session list shows it to people")
    human("gpu", "put", handle, f"{work}/policies.yaml")
    human("gpu", "get", handle, f"{work}/back", "--bytes", "16")
    check(open(f"{work}/back", "rb").read() == open(f"{work}/policies.yaml", "rb").read()[:16], "bytes come back to people as well")
    out, _ = human("gpu", "exec", "n1/cpu:0", "checksum", "--span", f"{handle}:0:16")
    check(out.strip() != "", "a kernel's value is printed")
    out, _ = human("gpu", "stat", "n1")
    check(handle in out, "gpu stat shows the handle")
    out, _ = human("gpu", "show", "n1/cpu:0")
    check("memory" in out, "gpu show has the sensors")
    human("gpu", "free", handle)
    human("gpu", "free", "n1")
    out, _ = human("session", "list", "--principal", "user/admin", "--node", "n1")
    out = doctor()
    check("vulkan" in out.lower() and "cuda" in out.lower(), "gpu doctor speaks of both libraries")


def doctor():
    p = subprocess.run([f"{BIN}/strata", "gpu", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE)
    check(p.returncode in (0, 11), f"gpu doctor ends with a verdict: {p.returncode}")
    j = subprocess.run([f"{BIN}/strata", "--json", "gpu", "doctor"], stdout=subprocess.PIPE, timeout=PATIENCE)
    check(json.loads(j.stdout), "gpu doctor speaks JSON")
    return p.stdout.decode()


def nodes():
    out, _ = human("node", "drain", "n2")
    check("n2" in out + _, "a node is drained")
    until("it says so", lambda: any(n["name"] == "n2" and n["draining"] for n in strata("node", "list")["nodes"]))
    check("drain" in human("node", "list")[0], "the table says so, too")
    human("node", "resume", "n2")
    _, err = human("node", "drain", "n9", want=3)
    check("n9" in err, "an unknown node is exit 3 by name")
    _, err = human("node", "forget", "n1", want=9)
    check("n1" in err, "a node that is there cannot be forgotten")


def tokens():
    out, err = human("node", "token", "create", "--name", "n7", "--ttl", "10m")
    token = max((out + err).split(), key=len)
    check(len(token) > 60, "a token is one string")
    out, _ = human("node", "token", "list")
    check("n7" in out and token not in out, "token list shows whom it is for, not the token")
    tid = strata("node", "token", "list")["tokens"][0]["id"]
    human("node", "token", "revoke", tid)
    human("user", "token", "dora", "--ttl", "10m")
    out, _ = human("cert", "status")
    check("365 d" in out and "\nCA " in out, "cert status shows how long the certificates last, and the CA")
    out, _ = human("cert", "rotate-ca", "--dry-run")
    check("would be cut off" in out, "cert rotate-ca --dry-run shows what it would do")
    out, _ = human("cert", "revoke", "--identity", "node/n8", "--reason", "test")
    human("cert", "revoke", "--identity", "node/n8", "--restore")


def plans(model):
    j = strata("job", "submit", "--model", model, "--goal", "memory")
    wait_state(j["id"], "ready")
    out, _ = human("layer", "where", j["id"])
    check("cpu:0" in out, "layer where shows devices to people")
    layer = strata("layer", "where", j["id"])["layers"][0]
    out, _ = human("layer", "where", j["id"], layer["layer"] if "layer" in layer else layer["id"])
    there = layer["device"]
    other = "n2/cpu:0" if there.startswith("n1") else "n1/cpu:0"
    human("layer", "move", j["id"], layer.get("layer", layer.get("id")), "--to", other)
    until("the layer has moved", lambda: strata("layer", "where", j["id"])["layers"][0]["device"] == other)
    check(True, "layer move moves a layer of a ready job")
    human("job", "cancel", j["id"])
    wait_state(j["id"], "cancelled")


def planner(model):
    """The planner's commands need no coordinator."""
    cluster = f"{work}/cluster.json"
    with open(cluster, "w") as f:
        json.dump(fleet(), f)
    base = ["--cluster", cluster, "--model", model, "--context", "512"]
    for goal in ("latency", "memory"):
        out, _ = human("plan", "solve", *base, "--goal", goal, "--json")
        with open(f"{work}/p-{goal}.json", "w") as f:
            f.write(out)
    out, _ = human("plan", "check", *base, f"{work}/p-latency.json")
    check("ok" in out.lower() or "valid" in out.lower() or "hold" in out.lower(), "plan check agrees")
    out, _ = human("plan", "explain", *base, f"{work}/p-latency.json")
    check("a/cpu:0" in out or "a" in out, "plan explain gives reasons")
    out, _ = human("plan", "diff", f"{work}/p-latency.json", f"{work}/p-memory.json")
    check(out != "", "plan diff tells the difference")
    out, _ = human("plan", "replan", *base, "--from", f"{work}/p-latency.json", "--slack", "0.05")
    check(out != "", "plan replan gives the case in numbers")
    out, _ = human("plan", "show", f"{work}/p-memory.json")
    check("%" in out or "B" in out, "plan show draws it")
    bad = json.load(open(f"{work}/p-latency.json"))
    bad["objective"] = bad.get("objective", 1) * 2 if isinstance(bad.get("objective"), (int, float)) else bad.get("objective")
    bad["latency_s"] = (bad.get("latency_s") or 1) * 2
    with open(f"{work}/p-bad.json", "w") as f:
        json.dump(bad, f)
    p = subprocess.run([f"{BIN}/strata", "plan", "check", *base, f"{work}/p-bad.json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(p.returncode != 0, "a figure that is wrong is found")
    out, _ = human("plan", "export", "--to", "llama.cpp", "--model", model, f"{work}/p-latency.json")
    check("llama-server" in out, "plan export writes llama.cpp's command line")
    _, err = human("plan", "export", "--to", "accelerate", "--model", model, f"{work}/p-latency.json", want=8)
    check("spans nodes" in err, "and says why accelerate cannot take this plan")
    human("plan", "export", "--to", "torch", "--model", model, f"{work}/p-latency.json", want=2)


def audit():
    db = f"{work}/c/coordinator/state/audit.db"
    db = db if os.path.exists(db) else glob.glob(f"{work}/c/**/audit.db", recursive=True)[0]
    out, _ = human("audit", "verify", "--file", db)
    check("batches" in out or "whole" in out or "ok" in out.lower(), "audit verify reads the live file")
    json.loads(human("audit", "verify", "--file", db, "--json")[0])
    out, _ = human("audit", "export", "--format", "csv", "--out", f"{work}/rows.csv")
    with open(f"{work}/rows.csv", newline="") as f:
        rows = list(csv.reader(f))
    check(len(rows) > 20 and all(len(r) == len(rows[0]) for r in rows), "audit export writes CSV")
    human("audit", "export", "--format", "sqlite", "--out", f"{work}/rows.db")
    check(sqlite3.connect(f"{work}/rows.db").execute("select count(*) from sqlite_master").fetchone()[0] > 0, "and an SQLite file")
    for option, field, value in (("--principal", "principal", "user/admin"), ("--result", "result", "success"), ("--node", "node", "n1"),
                                 ("--device", "device", "n1/cpu:0"), ("--severity", "severity", "warning"), ("--text", None, "alice")):
        rows = [json.loads(x) for x in human("audit", "query", option, value, "--json")[0].splitlines()]
        check(rows != [], f"audit query {option} {value} finds rows")
        if option == "--severity":
            check(all(r["severity"] in ("warning", "error", "critical") for r in rows), "and only as severe or more")
        elif field:
            check(all(r[field] == value for r in rows), f"and only such")
    times = [json.loads(x)["id"] for x in human("audit", "query", "--oldest-first", "--json")[0].splitlines()]
    check(times == sorted(times) and len(times) > 10, "--oldest-first begins with the oldest")
    n = len(human("audit", "query", "--limit", "3", "--json")[0].splitlines())
    check(n == 3, "a limit is kept")


def wrongs():
    for bad in (["policy", "apply"], ["policy", "test"], ["policy", "remove"], ["user", "create"],
                ["user", "create", "x", "--role"], ["user", "revoke"], ["quota", "show", "a", "b"], ["session", "kill"],
                ["session", "list", "--frob"], ["gpu", "alloc"], ["gpu", "alloc", "n1/cpu:0", "many"], ["gpu", "put"], ["gpu", "get"],
                ["gpu", "copy"], ["gpu", "exec"], ["gpu", "free"], ["gpu", "show"], ["gpu", "stat"], ["node", "drain"],
                ["node", "resume"], ["node", "forget"], ["node", "token"], ["node", "token", "create", "--ttl", "soon"],
                ["cert", "pin"], ["cert", "revoke"], ["cert", "rotate", "--frob"], ["layer", "where"], ["layer", "move"],
                ["audit", "verify"], ["audit", "export", "--format", "clay"], ["audit", "query", "--limit", "-1"],
                ["plan", "solve"], ["plan", "check"], ["plan", "diff", "x"], ["plan", "export"], ["plan", "replan"],
                ["plan", "explain"], ["plan", "show"]):
        wrong(*bad)


def fleet():
    """Two fast devices on one node, a slow one with much memory behind a link."""
    def device(name, node, rate, memory):
        return {"id": name, "node": node, "memory_bytes": memory, "compute_flops_per_s": rate, "memory_bytes_per_s": rate / 10}
    return {"schema": "strata.cluster.v1", "default_link": {"bytes_per_s": 1.25e9, "rtt_s": 0.0005},
            "devices": [device("a/cuda:0", "a", 4e12, 8 << 20), device("a/cuda:1", "a", 4e12, 8 << 20), device("b/cuda:0", "b", 4e11, 1 << 30)]}


def main():
    names = write_cluster(2)
    model = synth("small", "12MiB")
    wrongs()
    start_cluster(names)
    policies()
    users()
    devices()
    nodes()
    tokens()
    plans(model)
    audit()
    for n in [*names, "co"]:
        check(stop(n) == 0, f"{n} ends cleanly")
    planner(model)


run(main)
