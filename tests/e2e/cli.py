#!/usr/bin/env python3
"""The command line as people and programs meet it: tables, JSON, progress on a terminal, exit codes, what is said when
something is wrong.

usage: cli.py BIN-DIR
"""
import json, os, pty, re, select, signal, subprocess

from harness import *


def on_terminal(*argv, env=None):
    """A command on a terminal of its own: everything it wrote there, and its exit code."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(f"{BIN}/strata", [f"{BIN}/strata", "--dir", f"{work}/c/admin", *argv],
                  {**os.environ, "TERM": "xterm", **(env or {})})
    out = b""
    while select.select([fd], [], [], PATIENCE)[0]:
        try:
            piece = os.read(fd, 65536)
        except OSError:
            break
        if not piece:
            break
        out += piece
    os.close(fd)
    return out.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def words():
    out, _ = human("help")
    check("Examples:" in out and "Exit codes:" in out and "strata job" in out, "help leads with examples and names the exit codes")
    out, err = human(want=2)
    check(out == "" and "Examples:" in err, "no command at all is a usage error, on stderr")
    check(human("--version")[0] == human("version")[0], "--version and version agree")
    check(strata("version")["schema"] == "strata.version.v1", "version speaks JSON")
    _, err = human("jbo", "list", want=2)
    check("did you mean" in err and "job list" in err, "a misspelt command is guessed")
    _, err = human("frobnicate", want=2)
    check("no command" in err, "a word like no command is said to be none")
    for bad in (["job", "submit"], ["job", "show"], ["job", "list", "--frob"], ["--timeout", "soon", "status"], ["--dir"],
                ["job", "submit", "--context", "many", "x.gguf"], ["model", "synth"], ["model", "inspect"],
                ["audit", "query", "--since", "yesterdayish"], ["job", "watch"], ["job", "cancel"]):
        _, err = human(*bad, want=2)
        check(err.startswith("strata: "), f"'{' '.join(bad)}' is a usage error that says what is wrong")


def manuals():
    """Every command explains itself without a cluster, and has each option that it explains."""
    out, _ = human("help")
    rows = [[w for w in (l[9:16].strip(), l[17:27].strip()) if w] for l in out.split("Commands:\n")[1].splitlines() if l.startswith("  strata ")]
    check(len(rows) > 60, "help lists the commands")
    lost = []
    for words in rows:
        manual, err = human(*words, "--help")
        if err or not manual.startswith(f"usage: strata {' '.join(words)}"):
            lost.append(" ".join(words))
        if words[0] == "plan":  # these have options of getopt's, which tells of unknown ones by itself
            continue
        for option in sorted(set(re.findall(r"--[a-z0-9-]+", manual)) - {"--dir", "--json", "--timeout", "--quiet", "--color", "--help"}):
            said = subprocess.run([f"{BIN}/strata", "--dir", f"{work}/nobody", *words, *(["create"] if words[-1:] == ["token"] and words[0] == "node" else []), option],
                                  capture_output=True, text=True, timeout=PATIENCE)
            if said.returncode == 0 or "there is no option" in said.stderr:
                lost.append(f"{' '.join(words)} {option}")
    check(not lost, f"every command has a manual, and every option in it ({', '.join(lost) or 'none lost'})")
    check(human("help", "gpu", "put")[0] == human("gpu", "put", "--help")[0], "help COMMAND and COMMAND --help are one")
    check("gpu alloc" in re.sub(" +", " ", human("gpu", "--help")[0]), "a room's --help lists its commands")
    check("gpu alloc" in re.sub(" +", " ", human("gpu", want=2)[1]), "and so does the room alone, as an error")
    _, err = human("gpu", "put", "onlyone", want=2)
    check("usage: strata gpu put HANDLE FILE" in err, "a command used wrongly shows its usage")
    _, err = human("help", "frobnicate", want=2)
    check("no command" in err, "help of what is no command says so")


def models(path):
    out, _ = human("model", "inspect", path)
    check("blk" in out or "block" in out, "model inspect shows the layers as a table")
    j = json.loads(human("model", "inspect", path, "--json")[0])
    check(j["schema"] == "strata.model.v1" and len(j["layers"]) > 2, "and as JSON")
    out, _ = human("model", "inspect", path, "--split")
    check("attn" in out or "attention" in out, "--split shows attention and mlp apart")
    _, err = human("model", "inspect", f"{work}/none.gguf", want=3)
    check("none.gguf" in err, "a missing model file is named, exit 3")
    with open(f"{work}/garbage.gguf", "wb") as f:
        f.write(b"GGUF" + b"\xff" * 60)
    p = strata("model", "inspect", f"{work}/garbage.gguf", want=2, parse=False)
    check(b"garbage.gguf" in p.stdout + p.stderr, "a broken model file is refused by name")
    _, code = on_terminal("model", "synth", f"{work}/models/bar.gguf", "--size", "2MiB")
    check(code == 0 and os.path.getsize(f"{work}/models/bar.gguf") > 1 << 20, "a model is made with progress on a terminal")


def cluster(names):
    out, _ = human("status")
    check("connected" in out or "nodes" in out, "status at a glance")
    out, _ = human("node", "list")
    check(all(n in out for n in names) and "connected" in out, "nodes as a table")
    out, _ = human("gpu", "list")
    check("cpu:0" in out, "devices as a table")
    check("\x1b[" not in out, "no color where there is no terminal")
    out, code = on_terminal("node", "list", env={"NO_COLOR": "1"})
    check(code == 0 and "\x1b[" not in out, "NO_COLOR is honoured on a terminal")


def jobs(model):
    out, _ = human("job", "submit", "--model", model, "--dry-run")
    check("no changes made" in out, "a dry run says that it changed nothing")
    check(strata("job", "list", "--all")["jobs"] == [], "and it changed nothing")
    out, code = on_terminal("job", "submit", "--model", model, "--goal", "memory", "--watch")
    check(code == 0 and "█" * 30 in out and out.rstrip().endswith("ready"), "a submission is followed on a terminal to its end")
    jid = re.search(r"job-[0-9a-z-]+|j-[0-9a-z]+", out).group(0)
    out, _ = human("job", "list")
    check(jid in out and "ready" in out, "the job is in the table, ready")
    out, _ = human("job", "show", jid)
    check("state    ready" in out and "LAYER" in out, "job show tells state and layers")
    out, _ = human("job", "show", jid, "--verify")
    check("resident" in out or "verified" in out or "ready" in out, "job show --verify reads every layer back")
    out, err = human("job", "watch", jid, "--until-ready")
    check(f"{jid} ready" in err and out == "", "watch of a ready job ends at once, words on stderr alone")
    with open(f"{work}/plan.json", "w") as f:
        json.dump(job(jid)["plan"], f)
    check("cpu:0" in human("plan", "show", f"{work}/plan.json")[0], "the plan of a job can be shown")
    check(json.loads(human("plan", "show", f"{work}/plan.json", "--json")[0])["goal"] == "memory", "also as JSON")
    out, _ = human("plan", "show", jid, "--recompute", "--save", f"{work}/kept")
    check("the same bytes" in out and "cpu:0" in out, "the job's plan is made anew from what was kept with it")
    kept = [f"--{x}={work}/kept/{x}.json" for x in ("cluster", "model", "request")]
    check("every figure" in human("plan", "check", *kept, f"{work}/kept/plan.json")[0], "and its saved inputs pass the check")
    check("the same bytes" in human("plan", "show", "--recompute", *kept, f"{work}/kept/plan.json")[0], "offline as well")
    check(strata("plan", "show", "job-00000000", want=3) is not None, "a job that does not exist is exit 3")
    out, _ = human("plan", "calibrate", jid)
    check("PREDICTED" in out and "nothing was corrected" in out, "a job's layers are run beside what its plan predicted")
    first = strata("plan", "calibrate", jid, "--rounds", "5", "--links", "--correct")
    check(first["layers"] and all(l["measured_s"] > 0 and l["predicted_s"] > 0 for l in first["layers"]), "each of them, as JSON")
    check(all(d["corrected"] for d in first["devices"]), "and the devices' rates are corrected")
    check(all(0.24 < d["memory_bytes_per_s"] / d["memory_was"] < 4.1 for d in first["devices"]), "within bounds")
    again = strata("plan", "calibrate", jid)
    check({d["device"]: d["memory_was"] for d in again["devices"]} ==
          {d["device"]: d["memory_bytes_per_s"] for d in first["devices"]}, "which is what the planner counts with from then on")
    return jid


def interrupted_watch(jid):
    p = subprocess.Popen([f"{BIN}/strata", "--dir", f"{work}/c/admin", "--json", "job", "watch", jid], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    check(json.loads(p.stdout.readline())["id"] == jid, "a watch tells the present state at once")
    strata("job", "cancel", jid)
    rest = [json.loads(x) for x in p.stdout.read().splitlines()]
    check(p.wait(timeout=PATIENCE) == 0 and rest and rest[-1]["state"] == "cancelled", "and every change until the end")
    check(strata("job", "cancel", jid, want=None, parse=False).returncode in (0, 9), "cancelling twice harms nothing")


def audit():
    out, _ = human("audit", "tail")
    check("job." in out, "the latest audit rows as a table")
    rows = human("audit", "query", "--type", "job.*", "--json")[0].splitlines()
    check(rows and all(json.loads(x) for x in rows), "rows as JSON lines")
    check("node." in human("audit", "query", "--type", "node.*", "--since", "1h")[0], "rows by type and age")
    follow = subprocess.Popen([f"{BIN}/strata", "--dir", f"{work}/c/admin", "--json", "audit", "tail", "-f"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = follow.stdout.readline()
    check(line.startswith(b"{"), "audit tail -f begins with what there is")
    follow.send_signal(signal.SIGINT)
    follow.communicate(timeout=PATIENCE)
    check(follow.returncode in (0, -signal.SIGINT), "and ends when it is interrupted")


def without_coordinator():
    _, err = human("status", want=6)
    check("127.0.0.1" in err, "an unreachable coordinator is exit 6 and its address is named")
    _, err = human("status", want=3, directory=f"{work}/nowhere")
    check("--dir" in err, "a missing identity says how to give one")


def main():
    names = write_cluster(2)
    model = synth("small", "12MiB")
    words()
    manuals()
    models(model)
    start_cluster(names)
    cluster(names)
    interrupted_watch(jobs(model))
    audit()
    for n in [*names, "co"]:
        check(stop(n) == 0, f"{n} ends cleanly")
    without_coordinator()


run(main)
