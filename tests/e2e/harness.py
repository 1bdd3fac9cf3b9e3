"""What the end-to-end tests share: real processes on loopback in a scratch directory, and a check that counts."""
import json, os, signal, socket, subprocess, sys, tempfile, time

BIN = os.path.abspath(sys.argv[1])
PATIENCE = float(os.environ.get("STRATA_TEST_PATIENCE", "120"))
work = tempfile.mkdtemp(prefix="strata-e2e-")
KEEP_GOING = os.environ.get("STRATA_TEST_KEEP_GOING") == "1"  # to see all that fails, not the first alone
procs = {}
checks = 0
failures = []


def check(ok, what):
    global checks
    if not ok and KEEP_GOING:
        failures.append(what)
        print(f"not ok {what}", flush=True)
        return
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


def until(what, fn, patience=None):
    """Polls a condition of processes that cannot tell us; fails with the last value seen."""
    end, last = time.monotonic() + (patience or PATIENCE), None
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


def human(*argv, want=0, env=None, directory=None):
    """A command as typed, without a terminal; its stdout and stderr."""
    p = subprocess.run([f"{BIN}/strata", "--dir", directory or f"{work}/c/admin", *argv], stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, timeout=PATIENCE, env=env)
    if p.returncode != want:
        raise AssertionError(f"strata {' '.join(argv)}: exit {p.returncode}, wanted {want}: {p.stdout.decode()}{p.stderr.decode()}")
    return p.stdout.decode(), p.stderr.decode()


def synth(name, size, *more):
    """A model file in the directory that agents read, its path."""
    os.makedirs(f"{work}/models", exist_ok=True)
    path = f"{work}/models/{name}.gguf"
    subprocess.run([f"{BIN}/strata", "--quiet", "model", "synth", path, "--size", size, *more], check=True,
                   stdout=subprocess.DEVNULL)
    return path


def write_cluster(nodes, empty=(), memory="1GiB", users=()):
    """Identities and configuration of a coordinator, n1 … nN and users; nodes in `empty` have no model files."""
    port = free_port()
    names = [f"n{i}" for i in range(1, nodes + 1)]
    subprocess.run([f"{BIN}/strata", "init", f"{work}/c", "--listen", f"127.0.0.1:{port}"] +
                   [x for n in names for x in ("--node", n)] + [x for u in users for x in ("--user", u)], check=True, stdout=subprocess.DEVNULL)
    with open(f"{work}/c/coordinator/coordinator.yaml", "a") as f:  # what a test does not ask for it does not get
        f.write("network: {refresh: off}\n")
    os.makedirs(f"{work}/models", exist_ok=True)
    os.makedirs(f"{work}/empty", exist_ok=True)
    for i in range(1, nodes + 1):
        os.makedirs(f"{work}/s{i}")
        with open(f"{work}/a{i}.yaml", "w") as f:
            f.write(f'version: 1\nnode: n{i}\ncoordinator: "127.0.0.1:{port}"\nlisten: "127.0.0.1:0"\n'
                    f"tls: {{dir: {work}/c/nodes/n{i}, trust_domain: strata.local}}\nstate: {{dir: {work}/s{i}}}\n"
                    f"models: {{dirs: [{work}/{'empty' if i in empty else 'models'}]}}\n"
                    f"cpu_memory: {memory}\nbackends: {{cpu: on, vulkan: off}}\n")
    return names


def start_cluster(names):
    coordinator()
    for n in names:
        agent(int(n[1:]))
    until("the coordinator answers", lambda: strata("status", want=None, parse=False).returncode == 0)
    until("all nodes are connected", lambda: nodes_in("connected") == names)


def run(main):
    """Runs it, shows the processes' logs when it fails, leaves nothing behind, and exits."""
    failed = True
    try:
        main()
        if failures:
            raise AssertionError(f"{len(failures)} checks failed")
        print(f"1..{checks}\nall {checks} checks passed")
        failed = False
    except BaseException as e:  # the logs are the only witnesses: show them before they go
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
