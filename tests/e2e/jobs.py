#!/usr/bin/env python3
"""Jobs in a cluster of real processes: a repeated submission, cancelling while layers load.

usage: jobs.py BIN-DIR
"""
import os, signal, threading

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


def cancel_while_loading(model):
    before = {n["name"]: sum(d["available_bytes"] for d in n["devices"]) for n in strata("node", "list")["nodes"]}
    j = submit(model)
    strata("job", "cancel", j["id"])
    check(gone(j["id"])["state"] == "cancelled", "a job is cancelled while its layers load")
    until("the memory is free again", lambda: before == {n["name"]: sum(d["available_bytes"] for d in n["devices"])
                                                         for n in strata("node", "list")["nodes"]})
    check(True, "what had arrived is freed")


def main():
    names = write_cluster(3)
    small, big = synth("small", "8MiB"), synth("big", "200MiB", "--type", "F16", "--seed", "3")
    start_cluster(names)
    jid = repeated(small)
    cancel_while_loading(big)
    strata("job", "cancel", jid)
    gone(jid)
    for n in [*names, "co"]:
        check(stop(n) == 0, f"{n} ends cleanly")


run(main)
