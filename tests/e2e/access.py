#!/usr/bin/env python3
"""Two tenants and an auditor at once over real agents, each kept to its own.

A coordinator and two agents as real processes. Alice may use n1, Bob n2, the auditor may only look. Both tenants
allocate, write, read back and compare in parallel while the auditor asks for what it may and may not see; each
tries what is the other's and is refused; quotas hold; in the middle of a copy Alice's right is taken away, the copy
ends, her memory is free within a second, and Bob does not notice. The audit file tells all of it.

usage: access.py BIN-DIR
"""
import concurrent.futures, json, os, re, signal, subprocess, time

from harness import *

MIB = 1 << 20


def home(who):
    return f"{work}/c/admin" if who == "admin" else f"{work}/c/users/{who}"


def command(who, *argv):
    return [f"{BIN}/strata", "--dir", home(who), "--json", *argv]


def by(who, *argv, **kw):
    return strata(*argv, directory=home(who), **kw)


def refused(who, reason, *argv):
    p = subprocess.run(command(who, *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE)
    check(p.returncode != 0 and f"[{reason}]" in p.stderr.decode(),
          f"{who}: {' '.join(argv[:2])} is refused with {reason} (got {p.returncode}: {p.stderr.decode().strip()[-160:]})")


def policies(text):
    with open(f"{work}/p.yaml", "w") as f:
        f.write("version: 1\npolicies:\n" + text)
    return f"{work}/p.yaml"


ALICE = "  - {principal: user/alice, roles: [user], devices: ['n1/*'], quota: 600MiB}\n"
BOB = "  - {principal: user/bob, roles: [user], devices: ['n2/*'], quota: 64MiB}\n"
AUDITOR = "  - {principal: user/auditor, roles: [monitor]}\n"


def handle_of(reply):
    return next(v for v in reply.values() if isinstance(v, str) and re.fullmatch(r"n[12]/[0-9a-f]{32}", v))


def alloc(who, device, size, *more):
    return handle_of(by(who, "gpu", "alloc", device, str(size), *more))


def tenant(who, device, seed):
    """What a tenant does all day: allocate, write, read back, compare, free."""
    h = alloc(who, device, 8 * MIB, "--limit", str(32 * MIB))
    for i in range(4):
        data = bytes([(seed * 31 + i) & 255]) * (4 * MIB) + os.urandom(4 * MIB)
        with open(f"{work}/{who}.in", "wb") as f:
            f.write(data)
        by(who, "gpu", "put", h, f"{work}/{who}.in")
        by(who, "gpu", "get", h, f"{work}/{who}.out")
        if open(f"{work}/{who}.out", "rb").read() != data:
            raise AssertionError(f"{who} read back something else")
    return h


def auditor():
    for _ in range(4):
        by("auditor", "gpu", "list")
        by("auditor", "node", "list")
    return True


def at_once():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        a, b, c = (pool.submit(tenant, "alice", "n1/cpu:0", 1), pool.submit(tenant, "bob", "n2/cpu:0", 2),
                   pool.submit(auditor))
        a, b, c = a.result(), b.result(), c.result()
    check(a.startswith("n1/") and b.startswith("n2/") and c, "two tenants and an auditor work at once, every byte is right")
    return a, b


def kept_apart(a, b):
    refused("alice", "DEVICE_NOT_ALLOWED", "gpu", "alloc", "n2/cpu:0", "4096")
    refused("bob", "DEVICE_NOT_ALLOWED", "gpu", "alloc", "n1/cpu:0", "4096")
    refused("auditor", "MISSING_PERMISSION", "gpu", "alloc", "n1/cpu:0", "4096")
    refused("eve", "NO_POLICY", "gpu", "alloc", "n1/cpu:0", "4096")
    refused("auditor", "MISSING_PERMISSION", "session", "list", "--all")
    refused("bob", "MISSING_PERMISSION", "policy", "list")
    # A handle is useless without the session it belongs to: bob has none on n1, and inside his own it is unknown.
    p = subprocess.run(command("bob", "gpu", "get", a, f"{work}/stolen"), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    check(p.returncode != 0 and not os.path.exists(f"{work}/stolen"), "bob reads nothing of alice's handle")
    foreign = "n2/" + a.split("/")[1]
    p = subprocess.run(command("bob", "gpu", "get", foreign, f"{work}/stolen"), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    check(p.returncode != 0 and not os.path.exists(f"{work}/stolen"), "alice's handle means nothing in bob's session")
    mine = by("bob", "session", "list")["sessions"]
    check({s["principal"] for s in mine} == {"user/bob"}, "bob sees his own sessions alone")
    everyone = by("admin", "session", "list", "--all")["sessions"]
    check({s["principal"] for s in everyone} == {"user/alice", "user/bob"}, "an admin sees both")


def uses(who):
    return next(u for u in by("admin", "quota", "show", f"user/{who}")["uses"] if u["where"] == "cluster")


def quotas(b):
    until("bob's allocation is known", lambda: uses("bob")["allocated_bytes"] == 8 * MIB)
    check(uses("bob")["held_bytes"] == 32 * MIB, "bob holds what his session may take at most, in escrow")
    # Beyond what the session may take: the agent refuses alone. Beyond his quota: the coordinator does.
    p = subprocess.run(command("bob", "gpu", "alloc", "n2/cpu:0", str(30 * MIB)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(p.returncode == 8, "more than the session's limit is refused by the agent, exit 8")
    by("bob", "gpu", "free", b)
    by("bob", "gpu", "free", "n2")
    until("the escrow is back", lambda: uses("bob")["held_bytes"] == 0)
    refused("bob", "QUOTA_EXCEEDED", "gpu", "alloc", "n2/cpu:0", "4096", "--limit", str(65 * MIB))
    check(uses("bob")["held_bytes"] == 0, "nothing is held after a refusal")


def revoke_in_a_copy():
    by("alice", "gpu", "free", "n1")
    until("alice holds nothing", lambda: uses("alice")["held_bytes"] == 0)
    size = 400 * MIB
    h = alloc("alice", "n1/cpu:0", size, "--limit", str(size + MIB))
    b = alloc("bob", "n2/cpu:0", 4 * MIB, "--limit", str(8 * MIB))
    with open(f"{work}/big", "wb") as f:
        f.truncate(size)
    with open(f"{work}/small", "wb") as f:
        f.write(os.urandom(4 * MIB))
    copy = subprocess.Popen(command("alice", "gpu", "put", h, f"{work}/big"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # Long enough for it to be under way; a copy of this size takes several seconds here.
    deadline = time.monotonic() + 30
    fd = None
    while fd is None and time.monotonic() < deadline and copy.poll() is None:
        for link in os.listdir(f"/proc/{copy.pid}/fd"):
            try:
                if os.readlink(f"/proc/{copy.pid}/fd/{link}") == f"{work}/big":
                    fd = link
            except OSError:
                pass
    check(fd is not None and copy.poll() is None, "a large copy of alice's is under way")
    plan = by("admin", "policy", "diff", "-f", policies(ALICE.replace("[user]", "[monitor]") + BOB + AUDITOR))
    check([(e["kind"], e["principal"]) for e in plan["ended"]] == [("session", "user/alice")],
          "a dry run says that alice's session would end, and no other")
    before = time.monotonic()
    done = by("admin", "policy", "apply", "-f", f"{work}/p.yaml")
    applied = time.monotonic() - before
    check(len(done["ended"]) == 1, "the change ends one session")
    _, err = copy.communicate(timeout=PATIENCE)
    check(copy.returncode != 0, f"the copy ends in the middle (exit {copy.returncode}: {err.decode().strip()[-120:]})")
    until("alice's memory is free", lambda: uses("alice")["held_bytes"] == 0)
    took = time.monotonic() - before
    print(f"# applied after {applied:.2f} s, memory free and escrow back after {took:.2f} s (sanitizers and polling included)")
    check(by("alice", "session", "list")["sessions"] == [], "alice has no session any more")
    refused("alice", "MISSING_PERMISSION", "gpu", "alloc", "n1/cpu:0", "4096")
    p = subprocess.run(command("alice", "gpu", "get", h, f"{work}/gone"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(p.returncode != 0 and not os.path.exists(f"{work}/gone"), "her handle and her ticket are worth nothing")
    by("bob", "gpu", "put", b, f"{work}/small")
    by("bob", "gpu", "get", b, f"{work}/small.out")
    check(open(f"{work}/small.out", "rb").read() == open(f"{work}/small", "rb").read(), "bob did not notice")


def kill_agent():
    """A session does not outlive its agent, and what it held comes back."""
    h = alloc("bob", "n2/cpu:0", 4096)
    stop("n2", signal.SIGKILL)  # at once: what was answered was on the node's disk
    agent(2)
    until("the allocation that was answered before the kill is in the trail", lambda: any(
        r["meta"].get("handle") == h.split("/")[1][:8] for r in rows("--type", "memory.allocate", "--principal", "user/bob")))
    check(True, "what was answered just before kill -9 of the agent is in the trail")
    until("bob's escrow is back after kill -9 of his agent", lambda: uses("bob")["held_bytes"] == 0)
    check(True, "bob's escrow is back after kill -9 of his agent")
    by("admin", "user", "revoke", "bob")
    refused("bob", "NO_POLICY", "gpu", "alloc", "n1/cpu:0", "4096")


def rows(*argv):
    p = subprocess.run(command("admin", "audit", "query", "--limit", "1000", *argv), stdout=subprocess.PIPE, check=True)
    return [json.loads(x) for x in p.stdout.splitlines()]


def audit():
    seqs = {}
    for r in rows("--type", "*"):
        if "spool_seq" in r["meta"]:
            seqs.setdefault(r["node"], []).append(r["meta"]["spool_seq"])
    check(set(seqs) == {"n1", "n2"} and all(sorted(v) == list(range(min(v), max(v) + 1)) for v in seqs.values()),
          "every row of both agents' spools arrived exactly once")
    revoked = [r for r in rows("--type", "security.ticket_revoked") if r["meta"].get("subject") == "user/alice"]
    check(any(r["meta"]["reason"] == "MISSING_PERMISSION" and r["principal"] == "user/admin" for r in revoked),
          "the revocation is audited with who did it and why")
    changed = [r for r in rows("--type", "security.policy_updated") if r["meta"].get("subject") == "user/alice"]
    check(any("roles=user" in r["meta"]["before"] and "roles=monitor" in r["meta"]["after"] for r in changed),
          "the policy change is audited with before and after")
    denied = {(r["principal"], r["meta"]["reason"]) for r in rows("--type", "security.access_denied")}
    check({("user/alice", "DEVICE_NOT_ALLOWED"), ("user/bob", "DEVICE_NOT_ALLOWED"), ("user/auditor", "MISSING_PERMISSION"),
           ("user/eve", "NO_POLICY")} <= denied, "every denial is audited with its reason")
    over = rows("--type", "security.quota_exceeded", "--principal", "user/bob")
    check(over and {"bytes", "used", "quota"} <= set(over[0]["meta"]), "the quota refusal is audited with its numbers")
    types = {r["type"] for r in rows("--principal", "user/bob")}
    check({"security.session_opened", "security.ticket_issued", "security.session_closed"} <= types,
          "sessions begin and end in the audit file")


def main():
    start_cluster(write_cluster(2, users=("alice", "bob", "auditor", "eve")))
    by("admin", "policy", "apply", "-f", policies(ALICE + BOB + AUDITOR))
    a, b = at_once()
    kept_apart(a, b)
    quotas(b)
    revoke_in_a_copy()
    kill_agent()
    audit()
    for name in list(procs):
        check(stop(name) == 0, f"{name} ends cleanly")


run(main)
