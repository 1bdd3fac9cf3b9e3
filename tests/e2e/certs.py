#!/usr/bin/env python3
"""Certificates against the real processes: bad ones and bad tokens are refused, each for its own reason and on the
record, while the cluster goes on; nodes and users enrol; certificates that live for seconds are renewed under load;
revocation, pins and rotation act on live connections; an external CA of three levels works.

usage: certs.py BIN-DIR
STRATA_CERT_SECONDS: how long the short-lived cluster runs (30); STRATA_CERT_LIFE: of its certificates (12s).
"""
import base64, hashlib, json, os, shutil, signal, socket, subprocess, threading, time

# What is freed is to be seen as freed, whatever else the sanitizer is told.
os.environ["ASAN_OPTIONS"] = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "quarantine_size_mb=8"]))
os.environ.setdefault("STRATA_TEST_PATIENCE", "60")  # certificates live for seconds here: nothing may take longer
import certmake as cm
import harness
from harness import BIN, PATIENCE, check, procs, start, stop, strata, until, work

PROBE = os.path.join(os.path.dirname(BIN), "tests", "certprobe")


def two_ports():
    """Two ports, two apart: the socket and the one for enrolment."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
            a.bind(("127.0.0.1", 0))
            try:
                b.bind(("127.0.0.1", a.getsockname()[1] + 2))
                return a.getsockname()[1]
            except OSError:
                pass


def run(*argv, want=0, env=None):
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE, text=True,
                       env=dict(os.environ, **env) if env else None)
    if want is not None and p.returncode != want:
        raise AssertionError(f"{' '.join(argv)}: exit {p.returncode}, wanted {want}: {p.stdout} {p.stderr}")
    return p


def reason_of(p):
    """The reason of a strata command that failed with --json."""
    return json.loads(p.stdout.splitlines()[-1]).get("reason", "")


def audit(kind, directory=None, **want):
    out = run(f"{BIN}/strata", "--dir", directory or f"{work}/c/admin", "--json", "audit", "query", "--type", kind, "--limit", "1000").stdout
    rows = [json.loads(x) for x in out.splitlines()]
    for r in rows:
        r["metadata"] = r.get("meta") or {}
    return [r for r in rows if all(r["metadata"].get(k) == v for k, v in want.items())]


def connected():
    return sorted(n["name"] for n in strata("node", "list")["nodes"] if n["state"] == "connected")


def probe(mode, port, lines="", source="127.0.0.1"):
    p = subprocess.run([PROBE, mode, f"127.0.0.1:{port}"], input=lines, stdout=subprocess.PIPE, text=True, timeout=300,
                       check=True, env=dict(os.environ, CERTPROBE_FROM=f"{source}:0"))
    return [json.loads(x, strict=False) for x in p.stdout.splitlines()]


def token(*argv):
    return strata("node", "token", "create", *argv)["token"]


def agent_config(path):
    """The CPU backend alone, little memory, and fast enough for a test."""
    with open(path) as f:
        text = f.read()
    with open(path, "w") as f:
        f.write(text + "cpu_memory: 256MiB\nbackends: {cpu: on, vulkan: off}\n")


def join(port, tok, name, *more, want=0, models="models"):
    os.makedirs(f"{work}/{name}-state", exist_ok=True)
    p = run(f"{BIN}/strata-agent", "join", f"127.0.0.1:{port + 2}", tok, "--dir", f"{work}/{name}", "--state-dir",
            f"{work}/{name}-state", "--models", f"{work}/{models}", "--listen", "127.0.0.1:0", "--json", *more, want=want)
    if want == 0:
        agent_config(f"{work}/{name}/agent.yaml")
        return json.loads(p.stdout.splitlines()[-1])
    return p


def begin(*init):
    port = two_ports()
    run(f"{BIN}/strata", "init", f"{work}/c", "--listen", f"127.0.0.1:{port}", *init)
    os.makedirs(f"{work}/models")
    start("co", "strata-coordinator", "run", "--config", f"{work}/c/coordinator/coordinator.yaml")
    until("the coordinator answers", lambda: run(f"{BIN}/strata", "--dir", f"{work}/c/admin", "status", want=None).returncode == 0)
    return port


# ---- enrolment ----

def enrolment(port):
    tok = token("--pool", "rack1")
    j = join(port, tok, "n1", "--name", "n1")
    check(j["identity"] == "spiffe://strata.local/node/n1" and j["pool"] == "rack1", "a node joins with a token")
    check(j["devices"] and j["rtt_s"] > 0 and abs(j["clock_skew_s"]) < 2, "join reports devices, round trip and clock skew")
    check(os.stat(f"{work}/n1/tls/node.key").st_mode & 0o777 == 0o600, "its key is 0600")
    start("n1", "strata-agent", "run", "--config", f"{work}/n1/agent.yaml")
    until("n1 is connected", lambda: connected() == ["n1"])
    check(audit("node.enrolled") and audit("certificate.issued"), "the enrolment is on the record")
    db = open(f"{work}/c/coordinator/state/state.db", "rb").read() + open(f"{work}/c/coordinator/state/state.db-wal", "rb").read()
    raw = base64.urlsafe_b64decode(tok[len("strata-"):])
    secret = raw[10:30]
    check(secret not in db and hashlib.sha256(secret).digest() in db, "state.db has the token's hash, not its secret")
    for log in ("co.log", "n1.log"):
        check(secret.hex() not in open(f"{work}/{log}", errors="replace").read() and
              tok not in open(f"{work}/{log}", errors="replace").read(), f"no secret in {log}")
    u = strata("user", "token", "alice")["token"]
    fd = os.open(f"{work}/alice.token", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, u.encode() + b"\n")
    os.close(fd)
    j = strata("login", f"127.0.0.1:{port + 2}", "--token-file", f"{work}/alice.token", directory=f"{work}/alice")
    check(j["identity"] == "spiffe://strata.local/user/alice", "a user logs in with a token file")
    p = run(f"{BIN}/strata", "--dir", f"{work}/alice", "--json", "node", "token", "list", want=4)
    check(reason_of(p) == "NO_POLICY", "alice is known and has no rights yet")
    strata("cert", "renew", directory=f"{work}/alice")
    return tok, u


def bad_tokens(port, used, user_token):
    """Each refused, for its own reason, by the running coordinator."""
    rows = 0

    def refused(what, reason, p):
        nonlocal rows
        rows += 1
        check(p.returncode not in (0, 1) and f"({reason})" in p.stderr, f"token: {what}: {reason}")

    refused("used", "TOKEN_USED", join(port, used, "x", "--name", "x1", want=None))
    tok = token("--ttl", "1s")
    time.sleep(1.2)
    refused("expired", "TOKEN_EXPIRED", join(port, tok, "x", want=None))
    tok = token()
    ident = base64.urlsafe_b64decode(tok[7:])[2:10].hex()
    strata("node", "token", "revoke", ident)
    refused("revoked", "TOKEN_UNKNOWN", join(port, tok, "x", want=None))
    good = token()
    raw = bytearray(base64.urlsafe_b64decode(good[7:]))

    def forged(at, n=1):
        r = bytearray(raw)
        for i in range(n):
            r[at + i] ^= 0x55
        r[62:66] = hashlib.sha256(bytes(r[:62])).digest()[:4]
        return "strata-" + base64.urlsafe_b64encode(bytes(r)).decode()

    refused("guessed id", "TOKEN_UNKNOWN", join(port, forged(2, 8), "x", want=None))
    refused("wrong secret", "TOKEN_UNKNOWN", join(port, forged(10), "x", want=None))
    before = len(audit("node.enroll_refused"))
    refused("another CA's pin", "PIN_MISMATCH", join(port, forged(30, 32), "x", want=None))
    check(len(audit("node.enroll_refused")) == before, "nothing was sent to the wrong CA")
    refused("cut short", "BAD_TOKEN", join(port, good[:-8], "x", want=None))
    refused("one character wrong", "BAD_TOKEN", join(port, good[:20] + ("A" if good[20] != "A" else "B") + good[21:], "x", want=None))
    refused("of something else", "BAD_TOKEN", join(port, "K10deadbeef::server:cafe", "x", want=None))
    refused("a user's", "BAD_TOKEN", join(port, user_token, "x", want=None))
    p = run(f"{BIN}/strata", "--dir", f"{work}/bob", "--json", "login", f"127.0.0.1:{port + 2}", good, want=None)
    check(p.returncode == 2 and reason_of(p) == "BAD_TOKEN" or reason_of(p) == "BAD_TOKEN", "token: a node's at login: BAD_TOKEN")
    refused("for another name", "BAD_NAME", join(port, token("--name", "n7"), "x", "--name", "n8", want=None))
    refused("for a bad name", "BAD_NAME", join(port, good, "x", "--name", "../../etc", want=None))
    refused("for a name that is taken", "NAME_TAKEN", join(port, good, "x", "--name", "n1", want=None))
    with open(f"{work}/open.token", "w") as f:
        f.write(good)
    os.chmod(f"{work}/open.token", 0o644)
    p = run(f"{BIN}/strata-agent", "join", f"127.0.0.1:{port + 2}", "--token-file", f"{work}/open.token", "--dir", f"{work}/x",
            want=4)
    check("chmod 600" in p.stderr, "token: a file that others can read")
    return rows + 2


def bad_requests(port):
    tok = token("--uses", "50")
    raw = base64.urlsafe_b64decode(tok[7:])
    ident, secret = raw[2:10].hex(), raw[10:30].hex()
    good, weak = cm.p256(), cm.rsa.generate_private_key(65537, 1024)
    cm.csr(f"{work}/good.csr", good, "spiffe://strata.local/node/r1")
    cm.csr(f"{work}/other.csr", good, "spiffe://strata.local/user/admin")
    cm.csr(f"{work}/foreign.csr", good, "spiffe://elsewhere.example/node/r1")
    cm.csr(f"{work}/weak.csr", weak)
    cm.csr(f"{work}/flip.csr", good, damage="flip")
    cm.csr(f"{work}/cut.csr", good, damage="cut")
    cm.csr(f"{work}/tail.csr", good, damage="tail")
    with open(f"{work}/empty.csr", "wb"):
        pass
    with open(f"{work}/huge.csr", "wb") as f:
        f.write(b"\x30" * 60000)
    rows = {"another's name": ("other.csr", "BAD_NAME"), "another domain": ("foreign.csr", "BAD_NAME"),
            "weak key": ("weak.csr", "WEAK_KEY"), "bad signature": ("flip.csr", "BAD_REQUEST"),
            "cut": ("cut.csr", "BAD_REQUEST"), "bytes behind it": ("tail.csr", "BAD_REQUEST"),
            "empty": ("empty.csr", "BAD_REQUEST"), "huge": ("huge.csr", "BAD_REQUEST")}
    got = probe("join", port + 2, "".join(f"{i} {ident} {secret} r1 {work}/{f}\n" for i, (f, _) in enumerate(rows.values())),
                "127.0.0.2")
    for (what, (_, reason)), g in zip(rows.items(), got):
        check(not g["up"] and g["reason"] == reason, f"request: {what}: {reason} ({g['text'][:60]})")
    got = probe("join", port + 2, f"a 00 {secret} r1 {work}/good.csr\n", "127.0.0.2")
    check(got[0]["reason"] == "BAD_TOKEN", "request: an id of the wrong length: BAD_TOKEN")
    check(probe("beyond", port + 2)[0]["up"] is False, "an anonymous peer reaches no other service")
    check(probe("main-as-enroll", port)[0]["up"] is False, "the main socket does not speak the enrolment protocol")
    check(probe("enroll-as-main", port + 2)[0]["up"] is False, "the enrolment socket does not speak the main protocol")
    last = probe("join", port + 2, "".join(f"g {os.urandom(8).hex()} {os.urandom(20).hex()} r1 {work}/good.csr\n"
                                           for _ in range(12)), "127.0.0.3")[-1]
    check(last["reason"] == "TOO_MANY_ATTEMPTS", "guessing is stopped: TOO_MANY_ATTEMPTS")
    return len(rows) + 3


# ---- the matrix ----

def hello(port, rows):
    os.makedirs(f"{work}/m", exist_ok=True)
    lines = ""
    for label, certs, key, _ in rows:
        cm.write(f"{work}/m/{label}", certs, key)
        lines += f"{label} {work}/m/{label}.crt {work}/m/{label}.key\n"
    return probe("hello", port, lines)


def bad_certificates(port):
    own, foreign = cm.load_ca(f"{work}/c/ca"), cm.authority("foreign")
    rows = cm.matrix(own, foreign)
    before = {r["id"] for r in audit("security.handshake_refused")}
    wrong = []
    got = []
    for i in range(0, len(rows), 40):  # of more than 50 a second the coordinator writes down the number alone
        got += hello(port, rows[i:i + 40])
        time.sleep(1.1)
    for (label, _, _, reason), g in zip(rows, got):
        if g["up"] != (reason == "") or g["reason"] != reason:
            wrong.append(f"{label}: wanted '{reason}', got up={g['up']} '{g['reason']}' {g['text']}")
    check(not wrong, "every certificate of the matrix got its reason" + "".join("\n   " + w for w in wrong))
    bad = [r for r in rows if r[3]]

    def told():
        new = [r for r in audit("security.handshake_refused") if r["id"] not in before]
        return new if len(new) >= len(bad) else None
    seen = until("the refusals are on the record", told)
    reasons = sorted(r["metadata"]["reason"] for r in seen)
    check(reasons == sorted(r[3] for r in bad), f"{len(bad)} refusals are on the record with their reasons")
    g = probe("hello", port, "none - -\n")[0]
    check(not g["up"] and g["reason"] == "NO_CERTIFICATE", "no certificate: NO_CERTIFICATE")
    return len(bad) + 1


def revoked_and_pinned(port):
    own = cm.load_ca(f"{work}/c/ca")
    key = cm.p256()
    cert = cm.build("r", key, own, san=[cm.uri("node/r")])
    spki = hashlib.sha256(key.public_key().public_bytes(cm.serialization.Encoding.DER,
                                                        cm.serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    der = hashlib.sha256(cert.public_bytes(cm.serialization.Encoding.DER)).digest()

    def says(reason, what):
        g = hello(port, [("r", [cert], key, "")])[0]
        check(g["up"] == (reason == "") and g["reason"] == reason, f"{what}: {reason or 'let in'}")

    for flag, value in (("--serial", f"{cert.serial_number:x}".zfill(40)), ("--identity", "node/r"), ("--key", f"sha256:{spki}")):
        if flag == "--serial" and len(f"{cert.serial_number:x}") % 2:
            value = f"0{cert.serial_number:x}"
        elif flag == "--serial":
            value = f"{cert.serial_number:x}"
        strata("cert", "revoke", flag, value, "--reason", "test")
        says("REVOKED", f"revoked by {flag[2:]}")
        strata("cert", "revoke", flag, value, "--restore")
        says("", f"restored by {flag[2:]}")
    strata("cert", "pin", "node/r", "sha256:" + "11" * 32)
    says("PIN_MISMATCH", "another key is pinned")
    until("a broken pin is critical on the record",
          lambda: any(r["severity"] == "critical" for r in audit("security.handshake_refused", reason="PIN_MISMATCH")))
    check(True, "a broken pin is critical on the record")
    strata("cert", "pin", "node/r", f"sha256:{spki}")
    says("", "both keys are pinned")
    strata("cert", "pin", "node/r", f"sha256:{spki}", "--remove")
    strata("cert", "pin", "node/r", "sha256/" + base64.b64encode(der).decode())
    says("", "the certificate is pinned")
    strata("cert", "pin", "node/r", "sha256:" + "11" * 32, "--remove")
    strata("cert", "pin", "node/r", "sha256:" + der.hex(), "--remove")
    says("", "no pin is left")
    for bad in ("", "sha256:12", "md5:" + "11" * 16, "sha256/AAAA"):
        check(run(f"{BIN}/strata", "--dir", f"{work}/c/admin", "--json", "cert", "pin", "node/r", bad, want=None).returncode != 0,
              f"'{bad[:12]}' is no pin")
    return 4


class Tap:
    """A relay in front of a socket that keeps what the client sent, datagram by datagram."""

    def __init__(self, port):
        self.front, self.kept, self.backs, self.over = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), [], {}, False
        self.front.bind(("127.0.0.1", 0))
        self.front.settimeout(0.05)
        self.port, self.to = self.front.getsockname()[1], ("127.0.0.1", port)
        self.thread = threading.Thread(target=self.relay)
        self.thread.start()

    def relay(self):
        while not self.over:
            try:
                data, client = self.front.recvfrom(65536)
                self.kept.append(data)
                if client not in self.backs:
                    self.backs[client] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    self.backs[client].settimeout(0)
                self.backs[client].sendto(data, self.to)
            except TimeoutError:
                pass
            for client, back in self.backs.items():
                try:
                    while True:
                        self.front.sendto(back.recv(65536), client)
                except BlockingIOError:
                    pass

    def stop(self):
        self.over = True
        self.thread.join()
        for s in (self.front, *self.backs.values()):
            s.close()


def refused_handshakes(reason):
    return sum(int(r["metadata"].get("count", 1)) for r in audit("security.handshake_refused", reason=reason))


def resident_kb(name):
    with open(f"/proc/{procs[name].pid}/status") as f:
        return int(next(x for x in f if x.startswith("VmRSS")).split()[1])


def replayed(port):
    """First packets that somebody recorded and sends again: from the same address, from others, thousands of times."""
    tap = Tap(port)
    shutil.copytree(f"{work}/c/admin", f"{work}/tapped")
    with open(f"{work}/tapped/client.yaml", "w") as f:
        f.write(f'coordinator: "127.0.0.1:{tap.port}"\ntrust_domain: strata.local\n')
    try:
        strata("status", directory=f"{work}/tapped")
    finally:
        tap.stop()
    first = [d for d in tap.kept if len(d) >= 1200 and d[0] & 0xf0 == 0xc0]  # long header, Initial
    check(first, "the first packets of a client were recorded")
    before, broken, rss = refused_handshakes("HANDSHAKE_TIMEOUT"), refused_handshakes("HANDSHAKE_BROKEN"), 0
    socks = []
    for i in range(40):
        socks.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        socks[-1].bind((f"127.0.3.{i + 1}", 0))
    t = time.monotonic()
    for i in range(25):
        if i == 5:  # caches are warm
            rss = resident_kb("co")
        for s in socks:
            for d in tap.kept:
                s.sendto(d, tap.to)
        strata("status")
    took = (time.monotonic() - t) / 25
    until("the replayed handshake is given up, and on record",
          lambda: 1 <= refused_handshakes("HANDSHAKE_TIMEOUT") - before)
    # One connection id is one connection, however often and from wherever its first packet comes, for five seconds.
    held, most = refused_handshakes("HANDSHAKE_TIMEOUT") - before, 2 + int((time.monotonic() - t) / 4)
    check(held <= most, f"{1000 * len(tap.kept)} replayed packets from 40 addresses began {held} handshakes, at most {most}")
    until("packets from the middle of a handshake are on record too", lambda: refused_handshakes("HANDSHAKE_BROKEN") > broken)
    check(took < 3, f"a status meanwhile took {took:.2f} s")
    grown = resident_kb("co") - rss
    check(grown < 32 << 10, f"and the coordinator grew by {grown} KiB")
    check(connected() == ["n1"], "the node stayed connected")
    for s in socks:
        s.close()


def flood(port):
    """Handshakes that are begun and left do not keep those who are known from being served. They come from an address of
    their own: one address shares what it is allowed at once."""
    late, many = refused_handshakes("HANDSHAKE_TIMEOUT"), refused_handshakes("HANDSHAKE_FLOOD")
    p = subprocess.Popen([PROBE, "half", f"127.0.0.1:{port}", "200"], stdout=subprocess.DEVNULL,
                         env={**os.environ, "CERTPROBE_FROM": "127.0.4.1:0"})
    t = time.monotonic()
    strata("status")
    took = time.monotonic() - t
    p.wait(timeout=PATIENCE)
    check(took < 5, f"a status during a flood of half-open handshakes took {took:.2f} s")
    until("those beyond the limit are on record", lambda: refused_handshakes("HANDSHAKE_FLOOD") > many)
    until("those that were left are on record", lambda: refused_handshakes("HANDSHAKE_TIMEOUT") - late >= 32)
    check(connected() == ["n1"], "the node stayed connected, and the flood is on record by its number")


def live_revocation():
    """A node that is connected is cut off at once, stays away over a restart, and comes back when restored."""
    strata("cert", "pin", "pool/rack1", "sha256:" + "22" * 32)
    until("a node whose pool is pinned to another key is cut off", lambda: connected() == [])
    check(bool(audit("certificate.refused", reason="PIN_MISMATCH")), "a pin on a pool closes a live connection")
    strata("cert", "pin", "pool/rack1", "sha256:" + "22" * 32, "--remove")
    until("n1 is back", lambda: connected() == ["n1"])
    r = strata("cert", "revoke", "--identity", "node/n1", "--reason", "lost")
    check(r["closed"] == 1, "revocation closes the live connection")
    check(bool(audit("certificate.refused", reason="REVOKED")), "the closing is on the record")
    stop("co", signal.SIGKILL)
    start("co", "strata-coordinator", "run", "--config", f"{work}/c/coordinator/coordinator.yaml")
    until("the coordinator answers", lambda: run(f"{BIN}/strata", "--dir", f"{work}/c/admin", "status", want=None).returncode == 0)
    until("n1 is refused after a restart", lambda: audit("security.handshake_refused", reason="REVOKED"))
    check(connected() == [], "a revocation outlives the coordinator's death")
    strata("cert", "revoke", "--identity", "node/n1", "--restore")
    until("n1 is back", lambda: connected() == ["n1"])
    check(True, "a restored node comes back by itself")


def duplicate(port):
    shutil.copytree(f"{work}/n1", f"{work}/twin")
    os.makedirs(f"{work}/twin-state")
    text = open(f"{work}/twin/agent.yaml").read().replace(f"{work}/n1-state", f"{work}/twin-state").replace(f"{work}/n1/", f"{work}/twin/")
    with open(f"{work}/twin/agent.yaml", "w") as f:
        f.write(text)
    start("twin", "strata-agent", "run", "--config", f"{work}/twin/agent.yaml")
    until("the twin is refused", lambda: audit("node.duplicate", reason="DUPLICATE_IDENTITY"))
    check(connected() == ["n1"], "a second live session with the same identity is refused")
    check(all(r["severity"] == "critical" for r in audit("node.duplicate")), "and critical on the record")
    stop("twin")


# ---- rotation ----

def serials():
    s = strata("cert", "status")
    return {c["principal"]: (c["serial"], c["spki"], c["issuer"]) for c in s["certificates"]}, s


def rotation():
    a, s = serials()
    lost = len(audit("node.disconnected"))
    strata("cert", "rotate", "--node", "n1")
    until("n1 has a new certificate", lambda: serials()[0]["node/n1"][0] != a["node/n1"][0])
    b, _ = serials()
    check(b["node/n1"][1] == a["node/n1"][1], "a leaf is rotated, its key stays")
    until("n1 moved", lambda: "moved to a new connection" in open(f"{work}/n1.log", errors="replace").read())
    strata("cert", "rotate", "--node", "n1", "--new-key")
    until("n1 has a new key", lambda: serials()[0]["node/n1"][1] != b["node/n1"][1])
    check(os.stat(f"{work}/n1/tls/node.key").st_mode & 0o777 == 0o600, "a key is rotated, and 0600")
    strata("cert", "rotate", "--coordinator")
    strata("cert", "rotate", "--ticket-key")
    check(serials()[1]["coordinator"]["serial"] != s["coordinator"]["serial"], "the coordinator's certificate is rotated")
    dry = strata("cert", "rotate-ca", "--dry-run")
    check({c["principal"] for c in dry["cut_off"]} >= {"node/n1"}, "a dry run lists who would be cut off")
    strata("cert", "rotate-ca")
    run(f"{BIN}/strata", "--dir", f"{work}/c/admin", "--json", "cert", "rotate-ca", want=9)
    until("n1 is certified by the new CA", lambda: (lambda x: x[0]["node/n1"][2] == x[1]["ca_serial"])(serials()))
    check(serials()[1]["ca_serial"] != s["ca_serial"], "the CA is rotated")
    p = run(f"{BIN}/strata", "--dir", f"{work}/c/admin", "--json", "cert", "rotate-ca", "--end", want=9)
    check(reason_of(p) == "CUT_OFF", "the old CA is not dropped while alice would be cut off")
    strata("cert", "renew", directory=f"{work}/alice")
    strata("cert", "renew")
    until("nobody would be cut off", lambda: not strata("cert", "rotate-ca", "--end", "--dry-run")["cut_off"])
    strata("cert", "rotate-ca", "--end")
    check(not serials()[1]["rotating"], "the old CA is dropped")
    time.sleep(1.5)
    check(connected() == ["n1"] and len(audit("node.disconnected")) == lost, "nothing was disconnected by any rotation")
    strata("status")


# ---- certificates of seconds ----

def short_lives():
    seconds, life = float(os.environ.get("STRATA_CERT_SECONDS", "30")), os.environ.get("STRATA_CERT_LIFE", "12s")
    port = begin("--leaf-ttl", life)
    os.makedirs(f"{work}/none")
    run(f"{BIN}/strata", "--quiet", "model", "synth", f"{work}/models/m.gguf", "--size", "64MiB", "--type", "Q8_0", "--seed", "3")
    for n in ("n1", "n2"):  # begun at once: a certificate of seconds does not wait
        join(port, token(), n, "--name", n, models="none" if n == "n2" else "models")
        start(n, "strata-agent", "run", "--config", f"{work}/{n}/agent.yaml")
    until("both are connected", lambda: connected() == ["n1", "n2"])
    strata("cert", "rotate", "--coordinator")  # from init it has one of a year
    strata("user", "create", "op", "--role", "admin")
    fd = os.open(f"{work}/op.token", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, strata("user", "token", "op")["token"].encode())
    os.close(fd)
    op = f"{work}/op"
    strata("login", f"127.0.0.1:{port + 2}", "--token-file", f"{work}/op.token", directory=op)
    jobs, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        j = strata("job", "submit", "--model", f"{work}/models/m.gguf", "--min-nodes", "2", directory=op)
        j = until("the job is ready", lambda: (lambda x: x if x["state"] in ("ready", "failed", "degraded") else None)(
            strata("job", "show", j["id"], directory=op)))
        if j["state"] != "ready":
            raise AssertionError(f"job {j['state']}: {j.get('reason')}")
        strata("job", "cancel", j["id"], directory=op)
        until("the job is cancelled", lambda: strata("job", "show", j["id"], directory=op)["state"] == "cancelled")
        jobs += 1
    renewals = {p: len([r for r in audit("certificate.renewed") if r.get("principal") == p]) for p in ("node/n1", "node/n2", "coordinator", "user/op")}
    want = int(os.environ.get("STRATA_CERT_RENEWALS", "2"))
    check(min(renewals.values()) >= want and jobs >= 1, f"{jobs} jobs with fetches from a peer over {renewals} renewals")
    check(not audit("node.disconnected") and not audit("job.degraded") and not audit("layer.failed"), "no connection, job or layer was lost")
    check(not audit("certificate.refused"), "no live certificate ran out")
    procs["n2"].send_signal(signal.SIGSTOP)
    until("a node that cannot renew is let go", lambda: connected() == ["n1"])
    procs["n2"].send_signal(signal.SIGCONT)
    return min(renewals.values())


def finish():
    for n in list(procs):
        procs[n].send_signal(signal.SIGCONT)
        check(stop(n) == 0, f"{n} ends cleanly")
    v = strata("audit", "verify", "--file", f"{work}/c/coordinator/state/audit.db")
    check(v["whole"], "the audit chain is whole")
    for d in os.listdir(work):
        if not d.endswith(".log"):
            p = f"{work}/{d}"
            shutil.rmtree(p) if os.path.isdir(p) else os.unlink(p)


# ---- an external CA ----

def external():
    domain, port = "corp.example", two_ports()
    d = f"{work}/ext"
    cm.three_levels(d, domain)
    os.makedirs(f"{work}/models")
    for who, base in (("coordinator", "coordinator"), ("client", "client"), ("node", "node")):
        os.makedirs(f"{work}/x-{who}")
        for f, to in ((f"{who}.crt", f"{base}.crt"), (f"{who}.key", f"{base}.key"), ("ca.crt", "ca.crt")):
            shutil.copy(f"{d}/{f}", f"{work}/x-{who}/{to}")
        os.chmod(f"{work}/x-{who}/{base}.key", 0o600)
    cm.crl(d, "issuing", [])
    shutil.copy(f"{d}/crl.pem", f"{work}/crl.pem")
    with open(f"{work}/x.yaml", "w") as f:
        f.write(f'version: 1\nlisten: "127.0.0.1:{port}"\nadmin: user/admin\ntls: {{dir: {work}/x-coordinator, '
                f"trust_domain: {domain}, crl: {work}/crl.pem, groups: P-256, ciphers: TLS_AES_256_GCM_SHA384}}\n"
                f"state: {{dir: {work}/x-state}}\n")
    with open(f"{work}/x-client/client.yaml", "w") as f:
        f.write(f'coordinator: "127.0.0.1:{port}"\ntrust_domain: {domain}\n')
    with open(f"{work}/x-agent.yaml", "w") as f:
        f.write(f'version: 1\nnode: ext\ncoordinator: "127.0.0.1:{port}"\nlisten: "127.0.0.1:0"\ntls: {{dir: {work}/x-node, '
                f"trust_domain: {domain}}}\nstate: {{dir: {work}/x-node-state}}\nmodels: {{dirs: [{work}/models]}}\n"
                "cpu_memory: 256MiB\nbackends: {cpu: on, vulkan: off}\n")
    start("co", "strata-coordinator", "run", "--config", f"{work}/x.yaml")
    start("ext", "strata-agent", "run", "--config", f"{work}/x-agent.yaml")
    me = f"{work}/x-client"
    until("the external coordinator answers", lambda: run(f"{BIN}/strata", "--dir", me, "status", want=None).returncode == 0)
    names = lambda: [n["name"] for n in strata("node", "list", directory=me)["nodes"] if n["state"] == "connected"]
    until("the external node is connected", lambda: names() == ["ext"])
    check(True, "a CA of three levels made with the openssl command works, name constraints included")
    issuing = cm.Ca(cm.x509.load_pem_x509_certificate(open(f"{d}/issuing.pem", "rb").read()),
                    cm.serialization.load_pem_private_key(open(f"{d}/issuing.key", "rb").read(), None))
    policy = cm.x509.load_pem_x509_certificate(open(f"{d}/policy.pem", "rb").read())
    key = cm.p256()
    svid = cm.build("", key, issuing, san=[cm.uri("user/bob", domain)], subject_name=cm.x509.Name([]), san_critical=True)
    got = hello(port, [("svid", [svid, issuing.cert, policy], key, ""),
                       ("abroad", [cm.build("", key, issuing, san=[cm.uri("user/bob", "other.example")]), issuing.cert, policy], key, ""),
                       ("lone", [svid], key, "")])
    check(got[0]["up"], "a SPIFFE-style certificate made by another tool works")
    check(got[1]["reason"] == "NAME_NOT_PERMITTED", "a name outside the policy CA's constraint: NAME_NOT_PERMITTED")
    check(got[2]["reason"] == "UNKNOWN_CA", "without its intermediates: UNKNOWN_CA")
    svids(d, domain, issuing, policy, me, port, names)
    p = run(f"{BIN}/strata", "--dir", me, "--json", "node", "token", "create", want=9)
    check(reason_of(p) == "NO_ENROLL", "tokens are refused where the CA is somebody else's")
    # The external CA's agent replaces the files, with a new key.
    cm.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{d}/node.key")
    cm.openssl("req", "-new", "-key", f"{d}/node.key", "-subj", "/CN=node", "-out", f"{d}/node.csr")
    cm.openssl("x509", "-req", "-in", f"{d}/node.csr", "-days", "30", "-extfile", f"{d}/node.ext", "-out", f"{d}/node.pem", "-CA",
               f"{d}/issuing.pem", "-CAkey", f"{d}/issuing.key", "-CAcreateserial")
    old = f"{work}/old-node.pem"
    shutil.copy(f"{work}/x-node/node.crt", old)
    with open(f"{work}/x-node/node.crt.tmp", "w") as f:
        f.write(open(f"{d}/node.pem").read() + open(f"{d}/issuing.pem").read() + open(f"{d}/policy.pem").read())
    shutil.copy(f"{d}/node.key", f"{work}/x-node/node.key.tmp")
    os.chmod(f"{work}/x-node/node.key.tmp", 0o600)
    os.rename(f"{work}/x-node/node.key.tmp", f"{work}/x-node/node.key")
    os.rename(f"{work}/x-node/node.crt.tmp", f"{work}/x-node/node.crt")
    until("the agent moved to the replaced key", lambda: "moved to a new connection" in open(f"{work}/ext.log", errors="replace").read())
    check(names() == ["ext"], "files replaced by somebody else are used, without a break")
    cm.crl(d, "issuing", [f"{d}/node.pem"])
    shutil.copy(f"{d}/crl.pem", f"{work}/crl.pem.tmp")
    os.rename(f"{work}/crl.pem.tmp", f"{work}/crl.pem")
    until("the revoked node is cut off", lambda: names() == [])
    check(True, "a revocation list of the external CA is read again and cuts off who is on it")
    for n in list(procs):
        check(stop(n) == 0, f"{n} ends cleanly")


def svids(d, domain, issuing, policy, me, port, names):
    """A node and a user with certificates as SPIRE makes them: an empty subject, a critical URI name, a life of minutes."""
    def identity(where, base, path, **kw):
        key = cm.p256()
        cert = cm.build("", key, issuing, san=[cm.uri(path, domain)], subject_name=cm.x509.Name([]), san_critical=True, **kw)
        os.makedirs(where, exist_ok=True)
        cm.write(f"{where}/{base}", [cert, issuing.cert, policy], key)
        shutil.copy(f"{d}/ca.crt", f"{where}/ca.crt")

    def agent(name, **kw):
        identity(f"{work}/x-{name}", "node", f"node/{name}", **kw)
        text = open(f"{work}/x-agent.yaml").read().replace("node: ext", f"node: {name}")
        with open(f"{work}/x-{name}.yaml", "w") as f:
            f.write(text.replace("x-node-state", f"x-{name}-state").replace("x-node,", f"x-{name},"))
        start(name, "strata-agent", "run", "--config", f"{work}/x-{name}.yaml")

    identity(f"{work}/x-bob", "client", "user/bob", end=cm.ago(minutes=-5))
    shutil.copy(f"{me}/client.yaml", f"{work}/x-bob/client.yaml")
    p = run(f"{BIN}/strata", "--dir", f"{work}/x-bob", "--json", "status", want=4)
    check(reason_of(p) == "NO_POLICY", "a user with an SVID of another tool is known by it, and has no rights yet")
    agent("svid", end=cm.ago(minutes=-5))
    until("a node with an SVID is connected", lambda: names() == ["ext", "svid"])
    check(stop("svid") == 0, "svid ends cleanly")
    agent("brief", end=cm.ago(seconds=-8))
    until("a node whose certificate ends in seconds is connected", lambda: names() == ["brief", "ext"])
    until("and cut off when it ends, without being asked",
          lambda: any(r["metadata"]["reason"] == "EXPIRED" for r in audit("certificate.refused", me)))
    check(names() == ["ext"], "a live connection whose certificate has expired is closed: EXPIRED")
    check(stop("brief") == 0, "brief ends cleanly")


def configurations():
    """What a coordinator refuses to start with."""
    port = two_ports()
    run(f"{BIN}/strata", "init", f"{work}/k", "--listen", f"127.0.0.1:{port}")
    good = open(f"{work}/k/coordinator/coordinator.yaml").read()
    tls = f"{work}/k/coordinator/tls"

    def says(text, code, words, what):
        with open(f"{work}/k.yaml", "w") as f:
            f.write(text)
        p = run(f"{BIN}/strata-coordinator", "run", "--config", f"{work}/k.yaml", want=code)
        check(words in p.stderr, f"config: {what}")

    more = lambda x: good.replace("trust_domain: strata.local", f"trust_domain: strata.local, {x}")
    says(more("ciphers: TLS_AES_128_CCM_SHA256"), 78, "TLS_AES_128_CCM_SHA256", "a suite that is not allowed")
    says(more('ciphers: "ECDHE-RSA-AES128-GCM-SHA256"'), 78, "TLS 1.3", "a TLS 1.2 suite")
    says(more("groups: P-521"), 78, "P-521", "a group that is not allowed")
    says(more("mode: testing"), 78, "development", "an unknown mode")
    says(good.replace(f'"127.0.0.1:{port}"', f'"0.0.0.0:{port}"'), 78, "listen_any", "a wildcard without saying so")
    says(more("mode: development").replace(f'"127.0.0.1:{port}"', f'"192.0.2.1:{port}"'), 78, "force", "development on a network")
    says(more('pins: [{peer: "node/*", sha256: "xyz"}]'), 78, "is no pin", "a bad pin")
    says(good.replace("leaf_ttl: 7d", "leaf_ttl: 1s"), 78, "leaf_ttl", "a life that is too short")
    os.chmod(f"{tls}/coordinator.key", 0o644)
    says(good, 4, "chmod 600", "a key that others can read")
    os.chmod(f"{tls}/coordinator.key", 0o600)
    for name, change, code, words in (
            ("truncated certificate", lambda b: b[:len(b) // 2], 5, "PEM"), ("empty certificate", lambda b: b"", 5, "PEM")):
        path = f"{tls}/coordinator.crt"
        whole = open(path, "rb").read()
        with open(path, "wb") as f:
            f.write(change(whole))
        says(good, code, words, f"a {name}")
        with open(path, "wb") as f:
            f.write(whole)
    own = cm.load_ca(f"{work}/k/ca")
    for label, words, kw in (("self-signed", "SELF", {}), ("expired", "expired", {"end": cm.ago(days=1), "start": cm.ago(days=2)}),
                             ("for clients only", "purpose", {"eku": (cm.EKU.CLIENT_AUTH,)})):
        key = cm.p256()
        cert = cm.build("c", key, None if label == "self-signed" else own, san=[cm.uri("coordinator")], **kw)
        cm.write(f"{tls}/coordinator", [cert], key)
        says(good, 5, "refused by every peer", f"a coordinator's certificate that is {label}")
    dev = f"{work}/dev"
    with open(f"{work}/dev.yaml", "w") as f:
        f.write(f'version: 1\nlisten: "127.0.0.1:{port}"\ntls: {{dir: {dev}/tls, trust_domain: dev.local, mode: development}}\n'
                f"state: {{dir: {dev}/state}}\nca: {{dir: {dev}/ca}}\n")
    start("dev", "strata-coordinator", "run", "--config", f"{work}/dev.yaml")
    until("the development coordinator is up", lambda: "ready version" in open(f"{work}/dev.log", errors="replace").read())
    check("DEVELOPMENT MODE" in open(f"{work}/dev.log", errors="replace").read(), "development mode warns loudly")
    check(stop("dev") == 0, "dev ends cleanly")


def main():
    only = os.environ.get("STRATA_CERT_ONLY", "")
    refused = 0
    if only == "refusals":  # what deploy/mutate-certs looks at
        port = begin()
        used, user = enrolment(port)
        bad_certificates(port)
        revoked_and_pinned(port)
        bad_tokens(port, used, user)
        bad_requests(port)
    if only in ("", "matrix"):
        port = begin()
        used, user = enrolment(port)
        refused += bad_certificates(port)
        refused += revoked_and_pinned(port)
        refused += bad_tokens(port, used, user)
        refused += bad_requests(port)
        check(refused >= 60, f"{refused} bad certificates, tokens and requests were refused")
        replayed(port)
        flood(port)
        live_revocation()
        duplicate(port)
        rotation()
        finish()
    if only in ("", "external"):
        external()
        configurations()
        finish_files()
    if only in ("", "short"):
        short_lives()
        finish()


def finish_files():
    for d in os.listdir(work):
        if not d.endswith(".log"):
            p = f"{work}/{d}"
            shutil.rmtree(p) if os.path.isdir(p) else os.unlink(p)


harness.run(main)
