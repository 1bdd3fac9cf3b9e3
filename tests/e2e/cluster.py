#!/usr/bin/env python3
"""The whole cluster as real processes on loopback: a coordinator and three agents, mutual TLS over QUIC.

A synthesized model of 256 MiB or more is planned over three agents, of which one has no copy of the file and pulls
its layers from a peer; every byte is checked on the devices; a byte flipped in device memory from outside is caught
and mended; an agent and the coordinator are killed in the middle and the states afterwards are right; a foreign and
an absent identity are refused; a model that cannot fit is refused with its shortfall; the audit chain is whole.

usage: cluster.py BIN-DIR
"""
import json, os, signal, socket, sqlite3, subprocess, sys, tempfile, time

BIN = os.path.abspath(sys.argv[1])
PATIENCE = float(os.environ.get("STRATA_TEST_PATIENCE", "120"))
work = tempfile.mkdtemp(prefix="strata-e2e-")
procs = {}
checks = 0


def check(ok, what):
    global checks
    if not ok:
        raise AssertionError(what)
    checks += 1
    print(f"ok {checks} {what}", flush=True)


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(name, *argv):
    log = open(f"{work}/{name}.log", "ab")
    procs[name] = subprocess.Popen([f"{BIN}/{argv[0]}", *argv[1:]], stdout=log, stderr=log)


def stop(name, sig=signal.SIGTERM):
    p = procs.pop(name)
    p.send_signal(sig)
    return p.wait(timeout=PATIENCE)


def strata(*argv, directory=None, want=0, parse=True):
    p = subprocess.run([f"{BIN}/strata", "--dir", directory or f"{work}/c/admin", "--json", *argv],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE)
    if want is not None and p.returncode != want:
        raise AssertionError(f"strata {' '.join(argv)}: exit {p.returncode}, wanted {want}: {p.stderr.decode()}")
    if not parse:
        return p
    return json.loads(p.stdout.splitlines()[-1]) if p.stdout.strip() else {}


def until(what, fn):
    """Polls a condition of processes that cannot tell us; fails with the last value seen."""
    end, last = time.monotonic() + PATIENCE, None
    while time.monotonic() < end:
        last = fn()
        if last:
            return last
        time.sleep(0.1)
    raise AssertionError(f"never: {what}; last: {last}")


def nodes_in(state):
    return sorted(n["name"] for n in strata("node", "list")["nodes"] if n["state"] == state)


def job(jid):
    return strata("job", "show", jid)


def wait_state(jid, *states):
    return until(f"{jid} in {states}", lambda: (lambda j: j if j["state"] in states else None)(job(jid)))


def agent(i):
    start(f"n{i}", "strata-agent", "run", "--config", f"{work}/a{i}.yaml")


def coordinator():
    start("co", "strata-coordinator", "run", "--config", f"{work}/c/coordinator/coordinator.yaml")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(x) for x in f.read().split()]


def flip_in_workers(agent_pid, needle):
    """Finds the needle in the memory of the agent's workers, as a broken device might, and flips one bit of it.
    Every copy: a buffer that the worker hashed from still holds the bytes too."""
    found = False
    for pid in children(agent_pid):
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "r+b", buffering=0) as mem:
            for line in maps:
                span, perms = line.split()[:2]
                # The staging ring is shared memory: what is looked for is the device's own copy.
                if not perms.startswith("rw") or perms[3] != "p":
                    continue
                lo, hi = (int(x, 16) for x in span.split("-"))
                if hi - lo > 2 << 30:  # a sanitizer's shadow, not device memory
                    continue
                at = lo
                while at < hi:
                    try:
                        mem.seek(at)
                        chunk = mem.read(min(8 << 20, hi - at))
                    except (OSError, ValueError):
                        break
                    pos = chunk.find(needle)
                    if pos >= 0:
                        mem.seek(at + pos)
                        mem.write(bytes([needle[0] ^ 1]))
                        found = True
                        at += pos + 1
                        continue
                    if len(chunk) <= len(needle):
                        break
                    at += len(chunk) - len(needle)
    return found


def set_up():
    port = free_port()
    subprocess.run([f"{BIN}/strata", "init", f"{work}/c", "--listen", f"127.0.0.1:{port}", "--node", "n1", "--node", "n2",
                    "--node", "n3"], check=True, stdout=subprocess.DEVNULL)
    os.makedirs(f"{work}/models")
    os.makedirs(f"{work}/empty")
    for i in (1, 2, 3):
        os.makedirs(f"{work}/s{i}")
        with open(f"{work}/a{i}.yaml", "w") as f:
            f.write(f'version: 1\nnode: n{i}\ncoordinator: "127.0.0.1:{port}"\nlisten: "127.0.0.1:0"\n'
                    f"tls: {{dir: {work}/c/nodes/n{i}, trust_domain: strata.local}}\nstate: {{dir: {work}/s{i}}}\n"
                    f"models: {{dirs: [{work}/{'empty' if i == 3 else 'models'}]}}\n"
                    "cpu_memory: 1GiB\nbackends: {cpu: on, vulkan: off}\n")
    model = f"{work}/models/m.gguf"
    subprocess.run([f"{BIN}/strata", "--quiet", "model", "synth", model, "--size", "270MiB", "--type", "Q8_0", "--seed", "7"],
                   check=True, stdout=subprocess.DEVNULL)
    check(os.path.getsize(model) >= 256 << 20, "the model has at least 256 MiB")
    return model


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


def main():
    model = set_up()
    coordinator()
    for i in (1, 2, 3):
        agent(i)
    until("the coordinator answers", lambda: strata("status", want=None, parse=False).returncode == 0)
    until("three nodes are connected", lambda: nodes_in("connected") == ["n1", "n2", "n3"])
    check(True, "three agents are connected")
    refusals(model)
    jid = load(model)
    flip(jid, model)
    kill_agent(jid)
    kill_coordinator(jid)
    kill_while_loading(model)
    audit(jid)
    print(f"1..{checks}\nall {checks} checks passed")


try:
    main()
    failed = False
except BaseException as e:  # the logs are the only witnesses: show them before they go
    failed = True
    print(f"FAILED: {e!r}", flush=True)
    for name in sorted(os.listdir(work)):
        if name.endswith(".log"):
            print(f"--- {name}")
            sys.stdout.write(open(f"{work}/{name}", errors="replace").read()[-6000:])
finally:
    for p in procs.values():
        p.kill()
        p.wait()
    subprocess.run(["rm", "-rf", work])
sys.exit(1 if failed else 0)
