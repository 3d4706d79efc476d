#!/usr/bin/env python3
"""Kill -9 at random moments, resuming each time: the same final bytes of every object as the undisturbed run, no ledger
row lost or measured twice, and the directory left by each kill resumes with no manual step.

usage: kills.py SCOUT ROOT [KILLS]    (KILLS defaults to 50; prints what it did; exits with 1 on any difference)
"""
import hashlib
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

try:
    import h5py
except ImportError:
    sys.exit(77)

ROW = 128  # bytes of a ledger row: u64 seq, u8 candidate[32], u32 window, ...


def command(scout, root, run):
    # Small enough that fifty resumes take a minute or two, and every node type is in it.
    settings = ["calibration=4", "probes=4", "selection=4", "report=4", "window=128", "proposals=6", "moves=12"]
    return [scout, "run", f"{root}/graphs/quickstart.yaml", "--dir", run] + [w for s in settings for w in ("--set", s)]


def objects(run):
    found = {}
    for p in sorted(pathlib.Path(run, "store/objects").rglob("*.h5")):
        found[p.name] = hashlib.sha256(p.read_bytes()).hexdigest()
    for p in sorted(pathlib.Path(run, "export").rglob("*")):
        if p.is_file():
            found["export/" + p.name] = hashlib.sha256(p.read_bytes()).hexdigest()
    return found


def rows(run):
    """(ledger, candidate, window, bytes) of every acknowledged row, by the rule for readers: seq counts up from 1."""
    found = []
    for p in sorted(pathlib.Path(run, "store/ledger").rglob("*.h5")):
        with h5py.File(p, "r") as f:
            offset, capacity = f["rows"].id.get_offset(), f["rows"].shape[0]
        data = p.read_bytes()
        for i in range(capacity):
            row = data[offset + i * ROW : offset + (i + 1) * ROW]
            (seq,) = struct.unpack_from("<Q", row)
            if seq != i + 1:
                break
            found.append((p.parent.name, row[8:40], struct.unpack_from("<I", row, 40)[0], row))
    return found


def run_and_kill(cmd, seconds):
    """None if it was killed, else its exit code."""
    p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, errors = p.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        p.kill()
        p.communicate()
        return None
    if p.returncode != 0:
        sys.exit(f"a resumed run failed with {p.returncode}:\n{errors.decode()}")
    return 0


def main():
    scout, root, kills = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 50
    folder = tempfile.mkdtemp(prefix="scout-kills-")
    random.seed(20261124)
    try:
        began = time.monotonic()
        run_and_kill(command(scout, root, folder + "/whole"), 600)
        whole = time.monotonic() - began
        want, want_rows = objects(folder + "/whole"), rows(folder + "/whole")
        done, finished, before = 0, 0, []
        target = folder + "/killed"
        longest = whole * 0.5  # of a round; adapted so that most rounds are killed whatever else the machine does
        while done < kills:
            if run_and_kill(command(scout, root, target), random.uniform(0.0, longest)) is None:
                done += 1
                longest *= 1.05
                now = rows(target)
                if not {r[3] for r in before} <= {r[3] for r in now}:
                    sys.exit(f"kill {done}: an acknowledged row is gone")
                before = now
            else:
                finished += 1
                longest *= 0.7
                if objects(target) != want:
                    sys.exit("a killed and resumed run ended with other bytes")
                shutil.rmtree(target)
                before = []
        run_and_kill(command(scout, root, target), 600)
        got, got_rows = objects(target), rows(target)
        differ = [k for k in want if got.get(k) != want[k]] + [k for k in got if k not in want]
        if differ:
            sys.exit(f"{len(differ)} objects differ after {done} kills: {differ[:5]}")
        if len({r[:3] for r in got_rows}) != len(got_rows) or len(got_rows) != len(want_rows):
            sys.exit(f"{len(got_rows)} rows, {len({r[:3] for r in got_rows})} different, expected {len(want_rows)}")
        print(f"{done} kills over {finished + 1} resumed runs of {whole:.1f} s: {len(want)} files with the same bytes, "
              f"{len(got_rows)} rows, none twice")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
