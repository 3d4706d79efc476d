#!/usr/bin/env python3
"""Whole runs of the pipeline on the shipped model, and what must hold between them.

usage: whole.py SCOUT ROOT

1. A run goes to the end; every node is done; the exported directory's KL on the selection windows is the candidate's.
2. h5py opens run.h5 while the run is going, and follows links into results.
3. The same run again reuses everything and measures nothing.
4. One thread, replay off, one lane at a time: the same bytes of every object.
5. Another graph on the same store measures no row that is there.
6. A full disk (a limit on file size) is a resource error that leaves nothing half-written, and the next run goes on.
"""
import hashlib
import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

try:
    import h5py
except ImportError:
    sys.exit(77)
import numpy as np

SMALL = ["calibration=4", "probes=4", "selection=4", "report=4", "window=128", "proposals=6", "moves=12"]


def command(scout, root, run, *more, settings=SMALL):
    words = [w for s in settings for w in ("--set", s)]
    return [scout, "run", f"{root}/graphs/quickstart.yaml", "--dir", run, *more, *words]


def must(cmd, code=0, **options):
    p = subprocess.run(cmd, capture_output=True, text=True, **options)
    if p.returncode != code:
        sys.exit(f"{' '.join(cmd)}\nexit {p.returncode}, expected {code}\n{p.stdout[-3000:]}{p.stderr[-3000:]}")
    return p.stdout + p.stderr


def objects(store):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in pathlib.Path(store, "objects").rglob("*.h5")}


def stat(run, name):
    """Sum of a statistic over the nodes that the last run made (those of reused ones are of the run that made them)."""
    with h5py.File(f"{run}/run.h5", "r") as f:
        made = [n for n in f["nodes"].values() if n.attrs["state"] in ("done", b"done")]
        return sum(float(n.attrs[f"stat.{name}"]) for n in made if f"stat.{name}" in n.attrs)


def states(run):
    with h5py.File(f"{run}/run.h5", "r") as f:
        text = lambda s: s.decode() if isinstance(s, bytes) else str(s)
        return {name: text(n.attrs["state"]) for name, n in f["nodes"].items()}


def live_rows(f):
    """Rows in the ledgers that nodes are writing now."""
    return sum(int((s["rows"][:]["seq"] > 0).sum()) for ledger in f["live"].values() for s in ledger.values())


def see_live_rows(cmd, run):
    """A run that is long enough to be looked at: rows of its live ledger are seen, and it is interrupted."""
    p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, seen = time.monotonic() + 120, 0
    while not seen:
        if p.poll() is not None or time.monotonic() > deadline:
            p.kill()
            sys.exit(f"no row of a live ledger was seen during the run (exit {p.poll()})")
        if pathlib.Path(run, "run.h5").exists():
            with h5py.File(f"{run}/run.h5", "r") as f:
                seen = live_rows(f)
        time.sleep(0.05)
    p.send_signal(signal.SIGINT)
    if p.wait(timeout=60) != 130:
        sys.exit(f"interrupted, it ended with {p.returncode}, expected 130")
    print(f"{seen} rows of a live ledger seen; interrupted: exit 130")


def read_while_running(cmd, run):
    """Open run.h5 again and again until the run ends; every open must succeed and what is linked must be whole."""
    p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    opened = followed = live = 0
    while p.poll() is None:
        if pathlib.Path(run, "run.h5").exists():
            with h5py.File(f"{run}/run.h5", "r") as f:
                opened += 1
                for node in f["nodes"].values():
                    if "result" in node:
                        list(node["result"])
                        followed += 1
                live += live_rows(f)
        time.sleep(0.05)
    if p.returncode != 0:
        sys.exit(f"run failed: {p.stderr.read().decode()}")
    if not (opened and followed):
        sys.exit("run.h5 was never readable during the run")
    print(f"run.h5 opened {opened} times while it was written, {followed} results followed, {live} live rows seen")


def frontier(run):
    with h5py.File(f"{run}/run.h5", "r") as f:
        r = f["nodes/select/result"]
        c = r["candidates"]
        ids = r["frontier"][:]
        return np.c_[c["bpp"][:][ids], c["kl_mean"][:][ids]]


def full_disk(scout, root, folder):
    """A limit on file size stands for a full disk: it strikes root too. Raised, the same command goes on."""
    run = f"{folder}/full"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    text = must(command(scout, root, run), code=3, preexec_fn=limit)
    if "error" not in text:
        sys.exit(f"a full disk gave no error:\n{text}")
    left = [p for p in pathlib.Path(run, "store/tmp").rglob("*")]
    if left:
        sys.exit(f"a full disk left {left}")
    must([scout, "check", run])
    must(command(scout, root, run))
    return objects(f"{run}/store")


def main():
    scout, root = sys.argv[1:3]
    folder = tempfile.mkdtemp(prefix="scout-whole-")
    try:
        a = f"{folder}/a"
        read_while_running(command(scout, root, a), a)
        if set(states(a).values()) != {"done"}:
            sys.exit(f"not all nodes are done: {states(a)}")
        f = frontier(a)
        if not (len(f) >= 3 and (np.diff(f[np.argsort(f[:, 0])][:, 1]) < 0).all()):
            sys.exit(f"no frontier: {f}")
        see_live_rows(command(scout, root, f"{folder}/live", settings=[*SMALL, "moves=100000"]), f"{folder}/live")
        first, rows = objects(f"{a}/store"), stat(a, "rows_measured")
        print(f"first run: {len(first)} objects, {rows:.0f} rows, {stat(a, 'layer_forwards_saved'):.0f} layer-forwards "
              f"saved of {stat(a, 'layer_forwards_saved') + stat(a, 'layer_forwards'):.0f}")
        text = must(command(scout, root, a, "--json"))
        events = [json.loads(line) for line in text.splitlines()]
        if not events or set(states(a).values()) - {"reused", "waiting"} or stat(a, "rows_measured"):
            sys.exit(f"the second run did work: {states(a)}")
        with h5py.File(f"{a}/run.h5", "r") as f:
            if f["nodes/measure.1"].attrs["stat.rows_measured"] <= 0 or not f["nodes/polish"].attrs["seconds"] > 0:
                sys.exit("the times and figures of reused results are gone from run.h5")
        must([scout, "check", a])

        b = f"{folder}/b"
        must(command(scout, root, b, "--threads", "1", "--set", "nodes.measure.with.replay=false", "--set",
                     "nodes.measure.with.lanes=1"))
        if objects(f"{b}/store") != first:
            sys.exit("one thread without replay gave other bytes")
        print("one thread, no replay, one lane: the same bytes")

        c = f"{folder}/c"
        more = [s if not s.startswith("proposals") else "proposals=8" for s in SMALL]
        must(command(scout, root, c, "--store", f"{a}/store", settings=more))
        fresh = stat(c, "rows_measured")
        keys = set()
        for p in pathlib.Path(a, "store/ledger").rglob("*.h5"):
            with h5py.File(p, "r") as ledger:
                for r in ledger["rows"][:]:
                    if r["seq"] > 0:
                        key = (p.parent.name, bytes(r["candidate"]), int(r["window"]))
                        if key in keys:
                            sys.exit("a row was measured twice")
                        keys.add(key)
        if len(keys) != rows + fresh or not stat(c, "rows_reused"):
            sys.exit(f"{len(keys)} rows in the ledger, {rows} + {fresh} measured")
        print(f"a second graph on the store: {fresh:.0f} rows measured, {stat(c, 'rows_reused'):.0f} reused, "
              "none twice")

        if full_disk(scout, root, folder) != first:
            sys.exit("a run that went on after a full disk gave other bytes")
        print("full disk: exit 3, nothing half-written, resumed to the same bytes")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
