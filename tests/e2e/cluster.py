#!/usr/bin/env python3
"""The whole cluster as real processes on loopback: a coordinator and three agents, mutual TLS over QUIC.

A synthesized model of 256 MiB or more is planned over three agents, of which one has no copy of the file and pulls
its layers from a peer; every byte is checked on the devices; a byte flipped in device memory from outside is caught
and mended; an agent and the coordinator are killed in the middle and the states afterwards are right; a foreign and
an absent identity are refused; a model that cannot fit is refused with its shortfall; the audit chain is whole.

usage: cluster.py BIN-DIR
"""
import json, os, signal, sqlite3, subprocess

from harness import *


def set_up():
    names = write_cluster(3, empty=(3,))
    model = synth("m", "270MiB", "--type", "Q8_0", "--seed", "7")
    check(os.path.getsize(model) >= 256 << 20, "the model has at least 256 MiB")
    return names, model


def refusals(model):
    subprocess.run([f"{BIN}/strata", "init", f"{work}/foreign", "--listen", "127.0.0.1:1"], check=True,
                   stdout=subprocess.DEVNULL)
    yaml = open(f"{work}/c/admin/client.yaml").read()
    with open(f"{work}/foreign/admin/client.yaml", "w") as f:
        f.write(yaml)
    p = strata("status", directory=f"{work}/foreign/admin", want=5, parse=False)
    check(b"trust" in p.stderr, "an identity of a foreign CA is refused with exit 5")
    strata("status", directory=f"{work}/nowhere", want=None, parse=False)
    check(strata("job", "show", "job-none", want=3, parse=False).returncode == 3, "an unknown job is exit 3")
    p = strata("job", "submit", "--model", f"{work}/models/none.gguf", want=None, parse=False)
    check(p.returncode in (3, 4) and b"none.gguf" in p.stderr, "a model that no agent has is named and refused")
    big = f"{work}/models/big.gguf"
    subprocess.run([f"{BIN}/strata", "--quiet", "model", "synth", big, "--size", "400MiB", "--type", "F16"], check=True,
                   stdout=subprocess.DEVNULL)
    # 400 MiB of weights fit; a cache of two million tokens does not.
    p = strata("job", "submit", "--model", big, "--context", "2000000", want=8, parse=False)
    check(b"bytes" in p.stderr, "a model that cannot fit is refused with its shortfall in bytes, exit 8")
    os.unlink(big)
    port_taken = subprocess.run([f"{BIN}/strata-coordinator", "run", "--config", f"{work}/c/coordinator/coordinator.yaml"],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE)
    check(port_taken.returncode != 0 and port_taken.stderr, "a second coordinator on the same port and state is refused")


def load(model):
    j = strata("job", "submit", "--model", model, "--min-nodes", "3")
    j = wait_state(j["id"], "ready", "failed")
    check(j["state"] == "ready", "the job is ready")
    check({layer["device"].split("/")[0] for layer in j["layers"]} == {"n1", "n2", "n3"}, "its layers lie on three agents")
    fetched = [layer for layer in j["layers"] if layer["device"].startswith("n3/")]
    check(fetched and all(layer["source"] in ("n1", "n2") for layer in fetched), "n3 fetched its layers from a peer")
    check(all(layer["state"] == "verified" and len(layer["sha256"]) == 64 for layer in j["layers"]), "all are verified")
    check(j["plan"]["optimal"] and j["plan"]["lower_bound"] <= j["plan"]["objective"], "the plan is proved")
    again = strata("job", "show", j["id"], "--verify")
    check(again["state"] == "ready", "every byte on the devices is the file's")
    return j["id"]


def flip(jid, model):
    with open(model, "rb") as f:
        f.seek(-4096, os.SEEK_END)  # the last layer's weights
        needle = f.read(256)
    hit = [i for i in (1, 2, 3) if flip_in_workers(procs[f"n{i}"].pid, needle)]
    check(len(hit) >= 1, "a bit was flipped in device memory")
    p = strata("job", "show", jid, "--verify", want=None, parse=False)
    check(p.returncode == 1 and b"CHECKSUM_MISMATCH" in p.stderr, "the flipped bit is caught")
    wait_state(jid, "ready")
    check(strata("job", "show", jid, "--verify")["state"] == "ready", "the layer was loaded again and is right")


def kill_agent(jid):
    stop("n2", signal.SIGKILL)
    j = wait_state(jid, "degraded")
    check(j["reason_code"] == "NODE_LOST" and "n2" in j["reason"], "a killed agent degrades the job, naming the node")
    check(nodes_in("lost") == ["n2"], "the node is lost")
    agent(2)
    wait_state(jid, "ready")
    check(strata("job", "show", jid, "--verify")["state"] == "ready", "the agent came back and its layers were loaded again")


def kill_coordinator(jid):
    before = {w for i in (1, 2, 3) for w in children(procs[f"n{i}"].pid)}
    stop("co", signal.SIGKILL)
    check(strata("--timeout", "2s", "status", want=6, parse=False).returncode == 6, "a dead coordinator is exit 6")
    coordinator()
    until("three nodes are back", lambda: nodes_in("connected") == ["n1", "n2", "n3"])
    j = wait_state(jid, "ready")
    after = {w for i in (1, 2, 3) for w in children(procs[f"n{i}"].pid)}
    check(before == after, "a killed coordinator comes back and nothing was reloaded")
    check(strata("job", "show", jid, "--verify")["state"] == "ready" and j["state"] == "ready", "the job is as it was")


def kill_while_loading(model):
    j = strata("job", "submit", "--model", model, "--min-nodes", "3", "--goal", "throughput")
    stop("n1", signal.SIGKILL)
    wait_state(j["id"], "degraded", "loading")
    agent(1)
    check(wait_state(j["id"], "ready", "failed")["state"] == "ready", "an agent killed while loading: the job still gets ready")
    strata("job", "cancel", j["id"])
    check(wait_state(j["id"], "cancelled")["state"] == "cancelled", "a job can be cancelled")


def audit(jid):
    rows = [json.loads(x) for x in strata("audit", "query", "--job", jid, "--limit", "1000", parse=False).stdout.splitlines()]
    types = {r["type"] for r in rows}
    need = {"job.submitted", "plan.created", "job.reserved", "job.loading", "job.ready", "job.degraded", "layer.loaded",
            "layer.verified", "layer.fetched", "layer.failed"}
    check(need <= types, f"the audit file has {', '.join(sorted(need))}")
    for name in list(procs):
        check(stop(name) == 0, f"{name} ends cleanly")
    db = f"{work}/c/coordinator/state/audit.db"
    n = sqlite3.connect(f"file:{db}?mode=ro", uri=True).execute("select count(*) from v_audit").fetchone()[0]
    check(n > 50, "a dashboard reads the audit file after the coordinator ended")
    v = strata("audit", "verify", "--file", db)
    check(v["whole"] and v["rows"] == n, "the audit chain is whole")
    check(v["signatures_checked"] and v["checkpoints"] > 0, "its checkpoints are signed by the coordinator's key")
    spooled = sqlite3.connect(f"file:{db}?mode=ro", uri=True).execute(
        "select node, json_extract(meta,'$.spool_seq') from v_audit where type='system.discovery_completed' and "
        "json_extract(meta,'$.received_us')>=time_us order by id").fetchall()
    check({r[0] for r in spooled} == {"n1", "n2", "n3"} and len(set(spooled)) == len(spooled),
          "what agents recorded themselves arrived, once each")
    seen = 0
    for root, _, files in os.walk(work):
        for f in files:
            if f == "audit.witness":
                w = strata("audit", "verify", "--file", db, "--head", os.path.join(root, f))
                check(w["whole"] and w["witnessed_heads"] > 0, "the heads that an agent kept are in the chain")
                seen += 1
    check(seen > 0, "agents kept heads of the audit chain")
    secrets = []
    for root, _, files in os.walk(work):
        for f in files:
            if f.endswith(".key"):
                raw = open(os.path.join(root, f), "rb").read()
                secrets += [line for line in raw.split(b"\n") if len(line) >= 32 and b"-----" not in line]
    rows = strata("audit", "export", "--file", db, parse=False).stdout
    check(len(secrets) >= 5 and b"PRIVATE KEY" not in rows and not any(s in rows for s in secrets),
          f"no row holds any of {len(secrets)} lines of secret keys")
    out = f"{work}/export.db"
    strata("audit", "export", "--file", db, "--format", "sqlite", "--out", out, parse=False)
    check(sqlite3.connect(out).execute("select count(*) from audit").fetchone()[0] == n, "the export has every row")


def main():
    names, model = set_up()
    start_cluster(names)
    check(True, "three agents are connected")
    refusals(model)
    jid = load(model)
    flip(jid, model)
    kill_agent(jid)
    kill_coordinator(jid)
    kill_while_loading(model)
    audit(jid)


run(main)
