#!/usr/bin/env python3
"""Whole runs of graphs/rotate.yaml on the shipped model, with the teacher that of the original throughout.

usage: rotate.py SCOUT ROOT

1. With the gate: every node is done; verify finds the measured rows again in what was exported, to the bit.
2. Without it and in f32: the unquantized candidate is the original, and the exported head is not the embedding.
3. The same again reuses everything; on one thread it gives the same bytes.
4. A changed, and a deleted, directory is written again, and nothing else is done.
5. Killed at any time, the node leaves no half-made directory to the next run, which gives the same bytes.
6. A tied head is not untied without being told so.
"""
import hashlib
import os
import pathlib
import random
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

SMALL = ["calibration=4", "probes=4", "selection=4", "report=4", "window=128", "proposals=6", "moves=4", "rounds=1"]
UNGATED = ["nodes.rotate.with.gate=false", "rotated_dtype=f32"]


def command(scout, root, run, *more, settings=()):
    words = [w for s in [*SMALL, *settings] for w in ("--set", s)]
    return [scout, "run", f"{root}/graphs/rotate.yaml", "--dir", run, *more, *words]


def must(cmd, code=0):
    p = subprocess.run(cmd, capture_output=True, text=True)
    if p.returncode != code:
        sys.exit(f"{' '.join(cmd)}\nexit {p.returncode}, expected {code}\n{p.stdout[-3000:]}{p.stderr[-3000:]}")
    return p.stdout + p.stderr


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in pathlib.Path(folder).rglob("*") if p.is_file()}


def states(run):
    with h5py.File(f"{run}/run.h5", "r") as f:
        text = lambda s: s.decode() if isinstance(s, bytes) else str(s)
        return {name: text(n.attrs["state"]) for name, n in f["nodes"].items()}


def expect(condition, text):
    if not condition:
        sys.exit(text)


def gated(scout, root, run):
    text = must(command(scout, root, run))
    expect(set(states(run).values()) == {"done"}, f"not all nodes are done: {states(run)}")
    expect("bit for bit" in text, "verify has compared nothing")
    with h5py.File(f"{run}/run.h5", "r") as f:
        r = f["nodes/rotate/result"]
        kept, before, after = (r[f"heads/{name}"][:] for name in ("kept", "loss_before", "loss_after"))
        stream = [r[f"residual/{name}"][0] for name in ("kept", "loss_before", "loss_after")]
        kl = [r.attrs[f"kl_rounded_{name}"] for name in ("before", "after")]
        closer = kl[1] < kl[0]
        expect(((after < before) & closer == (kept == 1)).all(), f"kept {kept}, losses {before} and {after}, KL {kl}")
        expect((stream[2] < stream[1] and closer) == (stream[0] == 1), f"residual stream: {stream}, KL {kl}")
        expect(0 <= r.attrs["kl"] < 1e-4, f"KL {r.attrs['kl']}")
        print(f"heads rotated in {kept.sum()} of {len(kept)} layers, losses {before.sum():.5f} and {after.sum():.5f}, "
              f"rounded KL {kl[0]:.5f} and {kl[1]:.5f}; KL to the original {r.attrs['kl']:.2e}")
    must([scout, "check", run])


def ungated(scout, root, run):
    must(command(scout, root, run, settings=UNGATED))
    with h5py.File(f"{run}/run.h5", "r") as f:
        c = f["nodes/select/result/candidates"]
        names = f["nodes/select/result/formats/name"][:]
        bf16 = [n.rstrip(b"\0") for n in names].index(b"bf16")
        same = [i for i, a in enumerate(c["assignment"][:]) if (a == bf16).all()]
        expect(same and c["kl_mean"][same[0]] < 1e-6 and c["top1"][same[0]] == 1,
               f"the unquantized candidates {same} have KL {c['kl_mean'][:][same]}")
        print(f"everything rotated, in f32: KL of the unquantized candidate {c['kl_mean'][same[0]]:.2e}")
    text = pathlib.Path(run, "export", "config.json").read_text()
    expect('"tie_word_embeddings": false' in text, f"the exported head is tied: {text}")


def only_rotate_is_done(scout, root, run, what):
    before = digests(f"{run}/rotated")
    if what == "changed":
        path = pathlib.Path(run, "rotated", "model.safetensors")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        text = must(command(scout, root, run, settings=UNGATED), code=1)
        expect("no untouched rotated model of ours: 'model.safetensors' is changed" in text, text)
        must(command(scout, root, run, settings=[*UNGATED, "nodes.rotate.with.overwrite=true"]))
    else:
        shutil.rmtree(f"{run}/rotated")
        must(command(scout, root, run, settings=UNGATED))
    now = states(run)
    expect({n for n, s in now.items() if s == "done"} == {"rotate"}, f"{what}: {now}")
    expect(digests(f"{run}/rotated") == before, f"{what}: other bytes")
    print(f"a {what} directory is written again, and nothing else")


def kills(scout, root, run, store, expected, n):
    """Each round a fresh store, so that the node has all of its work to do."""
    random.seed(1)
    landed = 0
    for i in range(n):
        shutil.rmtree(store, ignore_errors=True)
        p = subprocess.Popen(command(scout, root, run, "--store", store, "--target", "rotate", settings=UNGATED),
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.05, 2.0))
        landed += p.poll() is None
        p.send_signal(signal.SIGKILL)
        p.wait()
        must(command(scout, root, run, "--store", store, "--target", "rotate", settings=UNGATED))
        left = [e for e in os.listdir(run) if ".partial-" in e]
        expect(not left, f"left behind: {left}")
        expect(digests(f"{run}/rotated") == expected, "killed and run again, it gave other bytes")
    print(f"{n} runs, {landed} killed in the middle: the same directory")


def main():
    scout, root = sys.argv[1:3]
    folder = tempfile.mkdtemp(prefix="scout-rotate-")
    try:
        gated(scout, root, f"{folder}/a")
        b = f"{folder}/b"
        ungated(scout, root, b)
        must(command(scout, root, b, settings=UNGATED))
        expect(not set(states(b).values()) - {"reused", "waiting"}, f"the second run did work: {states(b)}")
        c = f"{folder}/c"
        must(command(scout, root, c, "--threads", "1", settings=UNGATED))
        for name in ("store/objects", "rotated", "export"):
            expect(digests(f"{c}/{name}") == digests(f"{b}/{name}"), f"one thread gave other bytes in {name}")
        print("run again: all reused; one thread: the same bytes")
        only_rotate_is_done(scout, root, b, "changed")
        only_rotate_is_done(scout, root, b, "deleted")
        kills(scout, root, f"{folder}/d", f"{folder}/store", digests(f"{b}/rotated"), 6)
        text = must(command(scout, root, f"{folder}/e", "--target", "rotate", "--set",
                            "nodes.rotate.with.untie=false"), code=1)
        expect("set `untie: true`" in text, f"a tied head: {text}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
