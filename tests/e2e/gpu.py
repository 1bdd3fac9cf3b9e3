#!/usr/bin/env python3
"""Device sessions from the command line over real processes: a session outlives the command that began it, bytes go
in, across nodes and out again, the coordinator's books follow, and every end frees.

usage: gpu.py BIN-DIR
"""
import json, os, stat, struct

from harness import *


def gpu(*argv, **kw):
    return strata("gpu", *argv, **kw)


def used():
    return {s["node"]: s["used_bytes"] for s in strata("session", "list")["sessions"] if s["state"] == "active"}


def copies(size):
    path, back = f"{work}/bytes", f"{work}/back"
    with open(path, "wb") as f:
        f.write(os.urandom(size))
    a = gpu("alloc", "n1/cpu:0", str(size), "--limit", "64MiB")
    check(a["handle"].startswith("n1/") and a["bytes"] == size, "gpu alloc prints a handle of its node")
    kept = f"{work}/c/admin/sessions/n1"
    check(stat.S_IMODE(os.stat(kept).st_mode) == 0o600, "the kept ticket is private")
    put = gpu("put", a["handle"], path)
    check(len(put["sha256"]) == 64, "gpu put names the digest that the device confirmed")
    b = gpu("alloc", "n2/cpu:0", str(size), "--limit", "64MiB")
    gpu("copy", a["handle"], b["handle"])
    got = gpu("get", b["handle"], back)
    check(got["sha256"] == put["sha256"] and open(path, "rb").read() == open(back, "rb").read(),
          "what went to n1, and from there to n2, comes back the same")
    s = gpu("stat", "n1")
    check(s["used_bytes"] == size and [x["handle"] for x in s["buffers"]] == [a["handle"]], "gpu stat shows what is held")
    until("the coordinator knows", lambda: used() == {"n1": size, "n2": size})
    return a["handle"], b["handle"]


def kernels(b, size):
    sums = [gpu("exec", "n2/cpu:0", "checksum", "--span", f"{b}:0:{size // 4 * 4}")["value"]]
    gpu("exec", "n2/cpu:0", "fill", "--span", f"{b}:4096:4096", "--scalar", "0x01020304")
    gpu("get", b, f"{work}/filled", "--offset", "4092", "--bytes", "4104")
    data = open(f"{work}/filled", "rb").read()
    check(data[4:4100] == b"\4\3\2\1" * 1024 and data[:4] == open(f"{work}/bytes", "rb").read()[4092:4096],
          "gpu exec fill wrote its span and nothing beside it")
    sums.append(gpu("exec", "n2/cpu:0", "checksum", "--span", f"{b}:0:{size // 4 * 4}")["value"])
    check(sums[0] != sums[1], "gpu exec checksum sees it")
    p = gpu("exec", "n2/cpu:0", "nonsense", "--span", b, want=3, parse=False)
    check(p.returncode == 3, "an unknown kernel is exit 3")
    d = gpu("show", "n1/cpu:0")
    check(d["memory_bytes"] == 1 << 30 and d["available_bytes"] == (1 << 30) - size, "gpu show counts what is held")
    check(all(d[k] is None or d[k] > 0 for k in ("temperature_c", "power_w", "clock_hz")), "a sensor reads, or is absent")


KERNELS = f"{BIN}/../tests/kernels"


def own_kernels(a):
    """Kernels of one's own: refused where the operator did not allow them, run where he did, ended when they do not end."""
    scale, forever = f"{KERNELS}/scale.spv", f"{KERNELS}/forever.spv"
    if not os.path.exists(scale):
        print("# no glslc: kernels of one's own are not tried")
        return
    p = gpu("exec", "n1/cpu:0", "main", "--code", scale, "--span", a, want=4, parse=False)
    check(b"USER_KERNELS_OFF" in p.stderr, "a kernel of one's own is refused where it is not allowed, exit 4")
    if "n2/vulkan:0" not in [d["id"] for d in gpu("list")["devices"]]:
        print("# no Vulkan device: kernels of one's own are not tried")
        return
    x, y = (gpu("alloc", "n2/vulkan:0", "4096", "--limit", "64MiB")["handle"] for _ in "xy")
    with open(f"{work}/x", "wb") as f:
        f.write(struct.pack("<1024f", *range(1024)))
    gpu("put", x, f"{work}/x")
    gpu("exec", "n2/vulkan:0", "main", "--code", scale, "--groups", "16", "--span", y, "--span", x, "--scalar", "1024",
        "--scalar", "3f", "--scalar", "0.5f")
    gpu("get", y, f"{work}/y")
    check(list(struct.unpack("<1024f", open(f"{work}/y", "rb").read())) == [3 * i + 0.5 for i in range(1024)],
          "gpu exec --code runs a SPIR-V kernel, every number is right")
    p = gpu("exec", "n2/vulkan:0", "main", "--code", f"{work}/x", "--span", y, want=2, parse=False)
    check(b"BAD_KERNEL" in p.stderr, "what is no SPIR-V is refused")
    p = gpu("exec", "n2/vulkan:0", "main", "--code", forever, "--groups", "65535,65535,64", "--span", y, want=7, parse=False)
    check(b"KERNEL_TIMEOUT" in p.stderr, "a kernel that never ends is ended and reported, exit 7")
    check(gpu("stat", "n2", want=3, parse=False).returncode == 3, "and its owner's session is over")
    until("nothing is held on n2", lambda: not used().get("n2"))
    rows = until("the trail has it", lambda: [r for r in (json.loads(x) for x in strata(
        "audit", "query", "--type", "compute.execute", parse=False).stdout.splitlines())
        if r["result"] == "failure" and "digest" in r["meta"] and "did not end" in (r.get("error") or "")])
    check(len(rows[0]["meta"]["digest"]) == 64, "the trail names the code by its digest")


def refusals(a, b):
    p = gpu("alloc", "n1/cpu:0", "128MiB", want=8, parse=False)
    check(b"QUOTA_EXCEEDED" in p.stdout + p.stderr, "more than the ticket's limit is refused with exit 8")
    check(gpu("get", "n1/" + "0" * 32, f"{work}/x", want=3, parse=False).returncode == 3, "an unknown handle is exit 3")
    p = gpu("put", "n1/" + b.split("/")[1], f"{work}/bytes", want=3, parse=False)
    check(b"NO_HANDLE" in p.stdout + p.stderr, "the handle of another node's session is none here")
    check(gpu("put", "nonsense", f"{work}/bytes", want=2, parse=False).returncode == 2, "no handle at all is exit 2")
    check(gpu("stat", "n9", want=3, parse=False).returncode == 3, "no session is exit 3")


def ends(a, b, size):
    gpu("free", a)
    until("its bytes are free", lambda: used().get("n1") == 0)
    check(gpu("stat", "n1")["buffers"] == [], "gpu free gives a handle back and keeps the session")
    check(gpu("free", "n1")["freed_bytes"] == 0 and not os.path.exists(f"{work}/c/admin/sessions/n1"),
          "gpu free NODE ends the session")
    session = gpu("stat", "n2")["session"]
    strata("session", "kill", session)
    p = gpu("stat", "n2", want=3, parse=False)
    check(b"NO_SESSION" in p.stdout + p.stderr, "a killed session is over, and the command says what to do")
    until("no session is left", lambda: not used())
    gpu("free", gpu("alloc", "n2/cpu:0", str(size))["handle"])
    check(gpu("free", "n2")["freed_bytes"] == 0, "and another one can begin")


def trail():
    rows = [json.loads(x) for x in strata("audit", "query", "--type", "*", "--limit", "1000", parse=False).stdout.splitlines()]
    types = {r["type"] for r in rows if r.get("principal") == "user/admin"}
    need = {"security.session_opened", "security.session_closed", "security.ticket_issued", "memory.allocate",
            "memory.copy_to_device", "memory.copy_from_device", "compute.execute", "memory.copy_device_to_device", "memory.deallocate",
            "security.quota_exceeded"}
    check(need <= types, f"the trail has what was done ({sorted(need - types)} missing)")


def main():
    size = 24 * (1 << 20) + 12345
    names = write_cluster(2)
    with open(f"{work}/a2.yaml") as f:
        text = f.read().replace("vulkan: off", "vulkan: auto")
    with open(f"{work}/a2.yaml", "w") as f:
        f.write(text + "user_kernels: {allow: on, time: 2s}\n")
    start_cluster(names)
    a, b = copies(size)
    kernels(b, size)
    refusals(a, b)
    ends(a, b, size)
    own_kernels(gpu("alloc", "n1/cpu:0", "4096")["handle"])
    until("the agents' events are in the trail", lambda: b"memory.deallocate" in strata(
        "audit", "query", "--type", "memory.*", parse=False).stdout)
    trail()


run(main)
