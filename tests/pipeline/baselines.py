#!/usr/bin/env python3
"""Whole runs of the graphs in graphs/baselines on the shipped model, on one store.

usage: baselines.py SCOUT ROOT [GRAPH ...]

1. Each runs to the end. Of every budget there is a candidate of at most its bytes, measured in full on the selection
   and on the report windows, and bytes are what the renderings say.
2. They share everything up to the renderings: only the first run makes it.
3. `trace` has the costs of its formula, with the squares of the weights read here from the checkpoint.
4. `direct` predicts with what was measured of each unit alone; its sum at the base is nothing.
5. `evolve` keeps its tokens, and on the ledger of the first run measures nothing when it is run again elsewhere; the
   object has the same bytes.
6. A budget below the least says what the least is.
"""
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

try:
    import h5py
except ImportError:
    sys.exit(77)
import numpy as np

GRAPHS = ["uniform", "ends", "l1", "trace", "squared", "direct", "evolve"]
SMALL = ["calibration=4", "probes=4", "selection=3", "report=3", "window=96", "rounding=[rtn]"]
BUDGETS = [4.6, 5.5, 6.5]
EVOLVED = [4.6, 5, 5.5, 6, 6.5]
TOKENS = 6000
MADE_ONCE = {"model", "corpus", "teacher", "teacher_report", "hessian", "quantize"}


def command(scout, root, graph, run, store, settings=()):
    own = [f"tokens={TOKENS}", "offspring=8"] if graph == "evolve" else ["bpp=" + json.dumps(BUDGETS)]
    words = [w for s in [*SMALL, *own, *settings] for w in ("--set", s)]
    return [scout, "run", f"{root}/graphs/baselines/{graph}.yaml", "--dir", run, "--store", store, *words]


def must(cmd, code=0):
    p = subprocess.run(cmd, capture_output=True, text=True)
    if p.returncode != code:
        sys.exit(f"{' '.join(cmd)}\nexit {p.returncode}, expected {code}\n{p.stdout[-3000:]}{p.stderr[-3000:]}")
    return p.stdout + p.stderr


def expect(condition, text):
    if not condition:
        sys.exit(text)


def text(s):
    return s.decode() if isinstance(s, bytes) else str(s)


def states(run):
    with h5py.File(f"{run}/run.h5", "r") as f:
        return {name: text(n.attrs["state"]) for name, n in f["nodes"].items()}


def budgets(f, graph):
    """(bpp, most bytes, assignment) of each budget."""
    if graph == "evolve":
        for i, bpp in enumerate(EVOLVED):
            r = f[f"nodes/evolve_{i + 1}/result"]
            yield bpp, int(r["budget/bytes"][0]), r["candidates/assignment"][r["chosen"][0]]
    else:
        r = f["nodes/allocate/result"]
        for bpp, most, at in zip(r["budget/bpp"][:], r["budget/bytes"][:], r["budget/candidate"][:]):
            yield bpp, int(most), r["candidates/assignment"][at]


def check_budgets(run, graph):
    with h5py.File(f"{run}/run.h5", "r") as f:
        sizes = f["nodes/quantize/result/bytes"][:]
        parameters = f["nodes/quantize/result/units/parameters"][:].sum()
        for bpp, most, assignment in budgets(f, graph):
            size = int(sizes[np.arange(len(assignment)), assignment].sum())
            expect(size <= most <= bpp * parameters / 8 < most + 1.000001,
                   f"{graph}: {size} of {most} bytes, {bpp} bpp")
            figures = []
            for node in ("selection", "report"):
                c = f[f"nodes/{node}/result/candidates"]
                (at,) = np.flatnonzero((c["assignment"][:] == assignment).all(axis=1))
                expect(c["bytes"][at] == size and np.isfinite(c["kl_mean"][at]) and
                       np.isfinite(c["kl_window"][at]).all(), f"{graph}: {bpp} bpp was not measured in full")
                figures.append(c["kl_mean"][at])
            print(f"{graph:8} {bpp:4} bpp: {size} of {most} bytes, KL {figures[0]:.5f}, {figures[1]:.5f} on the report")


def squares(path):
    """||W||^2 of every bf16 or f32 tensor of a checkpoint in one file."""
    with open(path, "rb") as f:
        head = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        start, out = f.tell(), {}
        for name, t in head.items():
            if name == "__metadata__":
                continue
            f.seek(start + t["data_offsets"][0])
            raw = f.read(t["data_offsets"][1] - t["data_offsets"][0])
            wide = {"BF16": lambda: (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4"),
                    "F32": lambda: np.frombuffer(raw, "<f4"), "F16": lambda: np.frombuffer(raw, "<f2")}[t["dtype"]]()
            out[name] = float((wide.astype("f8") ** 2).sum())
    return out


def check_trace(run, root):
    whole = squares(f"{root}/data/models/babyllama-1m/model.safetensors")
    with h5py.File(f"{run}/run.h5", "r") as f:
        q, p, a = (f[f"nodes/{n}/result"] for n in ("quantize", "probe", "allocate"))
        expect(p.attrs["trace_draws"] >= 16, "too few draws for a trace")
        square = np.zeros(q["available"].shape)
        for name, unit, loss in zip(q["matrices/name"][:], q["matrices/unit"][:], q["weight_loss"][:]):
            square[unit] += loss * whole[text(name).rstrip("\0") + ".weight"]
        trace = p["trace"][:].sum(axis=1) / p["windows/tokens"][:].sum()
        cost = (trace / q["units/parameters"][:])[:, None] * square
        for got, at in zip(a["budget/cost"][:], a["budget/candidate"][:]):
            x = a["candidates/assignment"][at]
            expected = cost[np.arange(len(x)), x].sum()
            expect(abs(got - expected) <= 1e-9 * expected, f"trace: cost {got}, by the formula {expected}")
    print("trace: the costs are those of the formula")


def check_direct(run):
    with h5py.File(f"{run}/run.h5", "r") as f:
        alone, a = f["nodes/alone/result/candidates"], f["nodes/allocate/result"]
        known = {x.tobytes(): kl for x, kl in zip(alone["assignment"][:], alone["kl_mean"][:])}
        base = alone["assignment"][0]
        available = f["nodes/quantize/result/available"][:]
        expect(len(known) == 1 + int(available.sum()) - len(base), f"direct: {len(known)} measured alone")
        for got, at in zip(a["budget/cost"][:], a["budget/candidate"][:]):
            expected = 0
            for unit, to in enumerate(a["candidates/assignment"][at]):
                single = base.copy()
                single[unit] = to
                expected += known[single.tobytes()] - known[base.tobytes()]
            expect(abs(got - expected) <= 1e-9 * expected, f"direct: sum {got}, of the rows {expected}")
    print("direct: the sums are those of what was measured alone")


def check_evolve(scout, root, folder, store):
    with h5py.File(f"{folder}/evolve/run.h5", "r") as f:
        spent = [int(f[f"nodes/evolve_{i + 1}/result/budget/tokens"][0]) for i in range(len(EVOLVED))]
        expect(all(0 < s <= TOKENS for s in spent), f"evolve: {spent} tokens of {TOKENS}")
        for i, s in enumerate(spent):
            expect(f[f"nodes/evolve_{i + 1}/result/candidates/tokens"][:].sum() == s, "evolve: tokens do not add up")
        key = text(f["nodes/evolve_3"].attrs["key"])
    path = pathlib.Path(store, "objects", key[:2], key + ".h5")
    before = path.read_bytes()
    path.unlink()
    must(command(scout, root, "evolve", f"{folder}/again", store) + ["--threads", "1", "--target", "evolve_3"])
    with h5py.File(f"{folder}/again/run.h5", "r") as f:
        rows = f["nodes/evolve_3"].attrs["stat.rows_measured"]
    expect(rows == 0 and path.read_bytes() == before, f"evolve: run again it measured {rows} rows, or has other bytes")
    print(f"evolve: {spent} tokens of {TOKENS} each; again on one thread, nothing measured: the same bytes")


def main():
    scout, root, *graphs = sys.argv[1:]
    graphs = graphs or GRAPHS
    folder = tempfile.mkdtemp(prefix="scout-baselines-")
    store = f"{folder}/store"
    try:
        for i, graph in enumerate(graphs):
            run = f"{folder}/{graph}"
            must(command(scout, root, graph, run, store))
            now = states(run)
            expect(set(now.values()) <= {"done", "reused"}, f"{graph}: {now}")
            expect(i == 0 or all(now[n] == "reused" for n in MADE_ONCE), f"{graph} did work again: {now}")
            check_budgets(run, graph)
        if "trace" in graphs:
            check_trace(f"{folder}/trace", root)
        if "direct" in graphs:
            check_direct(f"{folder}/direct")
        if "evolve" in graphs:
            check_evolve(scout, root, folder, store)
        said = must(command(scout, root, "l1", f"{folder}/small", store, settings=["bpp=[5, 3]"]), code=1)
        expect("(3 bpp) cannot be kept: any choice of formats takes at least" in said, said)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
