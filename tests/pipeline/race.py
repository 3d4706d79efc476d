#!/usr/bin/env python3
"""Racing in a whole run on the shipped model: what is measured depends on the graph alone.

usage: race.py SCOUT ROOT

1. Some candidates are dropped; a dropped one has rows of its first documents and no others, the same as without racing,
   and what the object says of the drop can be taken from its rows again.
2. What is not dropped has the rows that it has without racing, bit for bit.
3. On a ledger that has every row already, the same objects come of it, byte for byte: racing looks at what it asked
   for, not at what is there.
"""
import hashlib
import pathlib
import subprocess
import sys
import tempfile

try:
    import h5py
except ImportError:
    sys.exit(77)
import numpy as np

GRAPH = """scout: 1
name: race
extends: {root}/graphs/quickstart.yaml
params: {{calibration: 4, probes: 4, selection: 16, report: 2, window: 64, rounds: 1, proposals: 4, race: 0.5}}
nodes: {{propose: {{with: {{neighbours: 100}}}}, measure: {{with: {{race: $(race)}}}}}}
"""


def run(scout, graph, where, store, *settings):
    words = [w for s in settings for w in ("--set", s)]
    cmd = [scout, "run", graph, "--dir", where, "--store", store, "--target", "select", *words]
    p = subprocess.run(cmd, capture_output=True, text=True)
    if p.returncode:
        sys.exit(f"{' '.join(cmd)}\nexit {p.returncode}\n{p.stdout[-3000:]}{p.stderr[-3000:]}")


def expect(condition, text):
    if not condition:
        sys.exit(text)


def check_drops(raced, whole):
    """The first round of both has the same candidates. Returns the number of drops."""
    kl, full = raced["candidates/kl_window"][:], whole["candidates/kl_window"][:]
    expect(np.array_equal(raced["candidates/assignment"][:], whole["candidates/assignment"][:]), "other candidates")
    expect(not np.isnan(full).any(), "without racing a window is missing")
    at, by = raced["candidates/dropped_at"][:], raced["candidates/dropped_by"][:]
    tokens, n_windows = raced["windows/tokens"][:].astype(float), raced["candidates/n_windows"][:]
    for i in range(len(kl)):
        measured = ~np.isnan(kl[i])
        expect(np.array_equal(kl[i][measured], full[i][measured]), f"candidate {i} has other rows than without racing")
        expect(measured.sum() == n_windows[i] and raced["candidates/tokens"][i] == tokens[measured].sum(),
               f"candidate {i}: windows or tokens are not those of its rows")
        expect(measured.all() if at[i] < 0 else at[i] == n_windows[i] < len(tokens),
               f"candidate {i} was dropped at {at[i]} and has {n_windows[i]} windows")
        expect(np.isnan(raced["candidates/kl_mean"][i]) == (at[i] >= 0), f"candidate {i}: a mean of some windows")
    drops = raced["race/candidate"][:]
    expect(sorted(drops) == sorted(np.flatnonzero(at >= 0)), "the list of drops is not that of the column")
    for k, i in enumerate(drops):
        b = raced["race/by"][k]
        shared = ~np.isnan(kl[i])
        difference = ((kl[i] - kl[b]) * tokens)[shared].sum() / tokens[shared].sum()
        expect(b == by[i] and raced["candidates/bytes"][b] <= raced["candidates/bytes"][i], f"drop {k}: beaten by {b}")
        expect(abs(difference - raced["race/difference"][k]) < 1e-12 and 0 < raced["race/low"][k] < difference,
               f"drop {k}: the difference is {difference}, it says {raced['race/difference'][k]}")
        expect(shared.sum() == raced["race/documents"][raced["race/look"][k]], f"drop {k}: not at its look")
    return len(drops)


def objects(store):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in pathlib.Path(store, "objects").rglob("*.h5")}


def main(scout, root, folder):
    graph = f"{folder}/race.yaml"
    pathlib.Path(graph).write_text(GRAPH.format(root=root))
    run(scout, graph, f"{folder}/a", f"{folder}/first")
    run(scout, graph, f"{folder}/whole", f"{folder}/second", "race=0")
    run(scout, graph, f"{folder}/b", f"{folder}/second")
    first, second = objects(f"{folder}/first"), objects(f"{folder}/second")
    for name, digest in first.items():
        expect(second.get(name) == digest, f"object {name} has other bytes where the ledger had the rows already")
    with h5py.File(f"{folder}/a/run.h5") as a, h5py.File(f"{folder}/whole/run.h5") as whole, \
            h5py.File(f"{folder}/b/run.h5") as b:
        drops = check_drops(a["nodes/measure.1/result"], whole["nodes/measure.1/result"])
        expect(drops > 0, "nothing was dropped, so nothing was tested")
        saved = a["nodes/measure.1"].attrs["stat.tokens_saved"]
        expect(saved > 0, "no tokens were saved")
        expect(b["nodes/measure.1"].attrs["stat.rows_measured"] == 0, "rows that were there were measured again")
        expect(whole["nodes/measure.1/result/race/candidate"].shape[0] == 0, "dropped without racing")
    print(f"{drops} candidates dropped, {saved:.0f} tokens saved")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="scout-race-") as where:
        main(sys.argv[1], sys.argv[2], where)
