#!/usr/bin/env python3
"""Jobs in a cluster of real processes: a repeated submission, cancelling while layers load, waiting and making
room, layers that move, a drained node, a node lost for good.

usage: jobs.py BIN-DIR
"""
import json, signal, threading, time

from harness import *


def submit(model, *more, **kw):
    return strata("job", "submit", "--model", model, *more, **kw)


def gone(jid):
    return wait_state(jid, "cancelled", "failed")


def repeated(model):
    ids = []
    asks = [threading.Thread(target=lambda: ids.append(submit(model, "--request-id", "once")["id"])) for _ in range(4)]
    for t in asks:
        t.start()
    for t in asks:
        t.join()
    check(len(ids) == 4 and len(set(ids)) == 1, "four submissions at once under one request id are one job")
    p = submit(model, "--goal", "memory", "--request-id", "once", want=9, parse=False)
    check(b"REQUEST_ID_REUSED" in p.stderr or b"was used for another" in p.stderr, "another wish under that id is a conflict, exit 9")
    stop("co", signal.SIGKILL)
    coordinator()
    until("the coordinator answers", lambda: strata("status", want=None, parse=False).returncode == 0)
    check(submit(model, "--request-id", "once")["id"] == ids[0], "after a killed coordinator the id still means that job")
    until("all nodes are back", lambda: len(nodes_in("connected")) == 3)
    wait_state(ids[0], "ready")
    return ids[0]


def free_bytes():
    return {n["name"]: sum(d["available_bytes"] for d in n["devices"]) for n in strata("node", "list")["nodes"]}


def settled_bytes():
    """What agents say is up to a heartbeat old: the same for two of them is what there is."""
    last = [None, 0]

    def same():
        now = free_bytes()
        if now != last[0]:
            last[:] = [now, time.monotonic()]
        return now if time.monotonic() - last[1] > 2.2 else None

    return until("free memory settles", same)


def cancel_while_loading(model):
    before = settled_bytes()
    j = submit(model)
    strata("job", "cancel", j["id"])
    check(gone(j["id"])["state"] == "cancelled", "a job is cancelled while its layers load")
    until("the memory is free again", lambda: before == free_bytes())
    check(True, "what had arrived is freed")


def nodes_of(j):
    return {layer["device"].split("/")[0] for layer in j["layers"]}


def waiting(big):
    """n1 has room for one of them."""
    first = submit(big, "--allow", "n1/*", "--preemptible")
    wait_state(first["id"], "ready")
    dry = submit(big, "--allow", "n1/*", "--dry-run")
    check(dry["state"] == "queued" and dry["plan"], "a dry run says that it would wait, and how it would be placed")
    second = submit(big, "--allow", "n1/*")
    check(second["state"] == "queued" and second["reason_code"] == "NO_ROOM" and "short of" in second["reason"],
          "a job that does not fit now is queued with the reason")
    urgent = submit(big, "--allow", "n1/*", "--priority", "10")
    wait_state(urgent["id"], "ready")
    check(wait_state(first["id"], "queued")["reason_code"] == "PREEMPTED" or job(first["id"])["state"] == "queued",
          "a preemptible job of lower priority makes way for it and waits again")
    check(job(second["id"])["state"] == "queued", "the other one still waits")
    stop("co", signal.SIGKILL)
    coordinator()
    until("the coordinator answers", lambda: strata("status", want=None, parse=False).returncode == 0)
    check({job(j["id"])["state"] for j in (first, second)} == {"queued"}, "what waits survives a killed coordinator")
    until("all nodes are back", lambda: len(nodes_in("connected")) == 3)
    strata("job", "cancel", first["id"])
    strata("job", "cancel", urgent["id"])
    wait_state(second["id"], "ready")
    check(strata("job", "show", second["id"], "--verify")["state"] == "ready", "it is admitted when room appears")
    strata("job", "cancel", second["id"])
    gone(second["id"])


def moving(small):
    j = submit(small, "--allow", "n1/*")
    jid = j["id"]
    wait_state(jid, "ready")
    ids = [layer["id"] for layer in j["layers"]]
    w = strata("layer", "where", jid, ids[1])
    check([layer["node"] for layer in w["layers"]] == ["n1"], "layer where says which node holds a layer")
    p = strata("layer", "move", jid, ids[0], "--to", "n9/cpu:0", want=None, parse=False)
    check(p.returncode == 3, "a move to an unknown device is refused, exit 3")
    w = strata("layer", "move", jid, f"{ids[1]}..{ids[-1]}", "--to", "n2/cpu:0", "--watch")
    check(w["state"] == "ready" and [layer["node"] for layer in w["layers"]] == ["n1"] + ["n2"] * (len(ids) - 1),
          "a range of layers moves to another node while the job lives")
    check(strata("job", "show", jid, "--verify")["state"] == "ready", "every byte is right where it is now")
    rows = [json.loads(x) for x in strata("audit", "query", "--job", jid, "--type", "layer.migrated", "--limit", "1000",
                                          parse=False).stdout.splitlines()]
    check(len(rows) == len(ids) - 1, "each layer's move is one audit row")
    return jid


def draining(jid):
    strata("node", "drain", "n2")
    until("n2 is empty", lambda: next(n for n in strata("node", "list")["nodes"] if n["name"] == "n2")["layers"] == 0)
    wait_state(jid, "ready")
    where = {layer["node"] for layer in strata("layer", "where", jid)["layers"]}
    check("n2" not in where, "a drained node's layers moved off")
    check(strata("job", "show", jid, "--verify")["state"] == "ready", "and are right")
    check(strata("node", "resume", "n2")["draining"] is False, "a resumed node takes layers again")


def healing(small):
    j = submit(small, "--goal", "memory", "--min-nodes", "2")
    j = wait_state(j["id"], "ready")
    dead = sorted(nodes_of(j))[-1]
    stay = {layer["id"]: layer["device"] for layer in j["layers"] if not layer["device"].startswith(dead)}
    p = strata("node", "forget", dead, want=None, parse=False)
    check(p.returncode == 9, "a connected node is not forgotten, exit 9")
    stop(dead, signal.SIGKILL)
    healed = until("it heals elsewhere", lambda: (lambda x: x if x["state"] == "ready" and dead not in nodes_of(x) else None)
                   (job(j["id"])))
    check(all(layer["device"] == stay[layer["id"]] for layer in healed["layers"] if layer["id"] in stay),
          "what a killed node held is loaded elsewhere, all other layers stay where they are")
    check(strata("job", "show", j["id"], "--verify")["state"] == "ready", "and every byte is right")
    strata("node", "forget", dead)
    check(dead not in [n["name"] for n in strata("node", "list")["nodes"]], "the dead node is forgotten")
    return dead


def main():
    names = write_cluster(3, memory="600MiB")
    small, big = synth("small", "8MiB"), synth("big", "200MiB", "--type", "F16", "--seed", "3")
    start_cluster(names)
    jid = repeated(small)
    cancel_while_loading(big)
    strata("job", "cancel", jid)
    gone(jid)
    waiting(big)
    jid = moving(small)
    draining(jid)
    dead = healing(small)
    for n in [*names, "co"]:
        check(n == dead or stop(n) == 0, f"{n} ended cleanly")


run(main)
