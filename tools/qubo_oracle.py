#!/usr/bin/env python3
"""qubo against HiGHS: random problems of 60 to 200 units with sparse pairs, solved to proven optimality by both.

usage: qubo_oracle.py BENCH [--count 36] [--seed 1] [--limit 300]       (needs highspy and numpy: tools/venv)

BENCH is build/tests/bench/bench_qubo. Per problem one line: units, formats, pairs, how the pairs lie (band: units at
most 6 apart; any), the kind (as in tests/nodes/search/instances.h), and by how much our energy and bound lie above the
optimum, relatively: as they are by default, and where the dynamic programme is not allowed (by search and dual bound).
HiGHS solves the linearised binary programme: one product variable per pair and formats, with the marginals of the local
polytope; relative MIP gap 1e-9. The exit status is 1 if an energy that is said to be optimal is not, if any energy is
below the optimum, or any bound above it, each by more than 1e-7.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import highspy
import numpy as np

BITS = np.array([4.25, 4.5, 6.25, 8.06, 8.25, 16])
LOSS = np.array([1.5e-2, 1e-2, 2e-3, 6e-4, 5e-4, 0])


def make(rng, units, formats, n_pairs, band, kind):
    """bytes and cost [unit, format] (nan: not available), pairs [pair, 2], their costs [pair, format, format]"""
    parameters = np.full(units, 2.0**20) if kind == "flat" else 2.0 ** rng.integers(18, 24, units)
    sizes = np.floor(parameters[:, None] * BITS[-formats:] / 8).astype(np.int64)
    weight = np.ones(units) if kind == "flat" else 10.0 ** rng.uniform(-2, 2, units)
    cost = 1e-4 * weight[:, None] * LOSS[-formats:] * np.exp(rng.uniform(-0.3, 0.3, (units, formats)))
    missing = rng.random((units, formats)) < 0.1
    missing[:, -1] = False
    cost[missing] = np.nan
    pairs = set()
    while len(pairs) < n_pairs:
        u, v = sorted(rng.integers(0, units, 2))
        if u < v and (not band or v - u <= 6):
            pairs.add((int(u), int(v)))
    pairs = np.array(sorted(pairs))
    root = np.sqrt(np.nan_to_num(cost))
    strength = rng.uniform(0.1, 0.5, len(pairs)) * rng.choice([-1, 1], len(pairs))
    table = strength[:, None, None] * root[pairs[:, 0]][:, :, None] * root[pairs[:, 1]][:, None, :]
    shape = table.shape
    table *= rng.uniform(0.8, 1.2, shape) if kind == "signed" else rng.choice([-1, 1], shape)
    return sizes, cost, pairs, table


def write(path, sizes, cost, pairs, table):
    with open(path, "w", encoding="ascii") as f:
        print(*cost.shape, len(pairs), file=f)
        for s, c in zip(sizes.ravel(), cost.ravel()):
            print(s, repr(float(c)), file=f)
        for p, t in zip(pairs, table):
            print(*p, *(repr(float(x)) for x in t.ravel()), file=f)


def energy(lam, sizes, cost, pairs, table, x):
    u = np.arange(len(x))
    return (cost + lam * sizes)[u, x].sum() + table[np.arange(len(pairs)), x[pairs[:, 0]], x[pairs[:, 1]]].sum()


def optimum(lam, sizes, cost, pairs, table, limit):
    """The assignment and the bound that HiGHS proves."""
    unary = cost + lam * sizes
    scale = 1e4 / np.nansum(np.nanmin(unary, axis=1))
    units, n = cost.shape
    h = highspy.Highs()
    h.setOptionValue("output_flag", False)
    h.setOptionValue("mip_rel_gap", 1e-9)
    h.setOptionValue("mip_abs_gap", 1e-9)
    h.setOptionValue("time_limit", float(limit))
    h.setOptionValue("threads", 1)
    column = {}

    def add(key, c, integral):
        column[key] = len(column)
        h.addVar(0, 1)
        h.changeColCost(column[key], c * scale)
        if integral:
            h.changeColIntegrality(column[key], highspy.HighsVarType.kInteger)

    def equal(keys, other, right):
        at = [column[k] for k in keys] + ([] if other is None else [column[other]])
        value = [1.0] * len(keys) + ([] if other is None else [-1.0])
        h.addRow(right, right, len(at), np.array(at, dtype=np.int32), np.array(value))

    has = [[f for f in range(n) if not np.isnan(cost[u, f])] for u in range(units)]
    for u in range(units):
        for f in has[u]:
            add((u, f), unary[u, f], True)
        equal([(u, f) for f in has[u]], None, 1.0)
    for p, (u, v) in enumerate(pairs):
        for a in has[u]:
            for b in has[v]:
                add((p, a, b), table[p, a, b], False)
        for a in has[u]:
            equal([(p, a, b) for b in has[v]], (u, a), 0.0)
        for b in has[v]:
            equal([(p, a, b) for a in has[u]], (v, b), 0.0)
    h.run()
    value = np.array(h.getSolution().col_value)
    x = np.array([max(has[u], key=lambda f, u=u: value[column[(u, f)]]) for u in range(units)])
    return x, h.getInfo().mip_dual_bound / scale, h.getModelStatus() == highspy.HighsModelStatus.kOptimal


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bench")
    p.add_argument("--count", type=int, default=36)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--limit", type=float, default=300)
    o = p.parse_args()
    bad = proven = exact = reached = 0
    worst = 0.0
    print("units formats pairs lie  kind         bpp   optimum, nat    energy     bound  search: energy   bound     s")
    for i in range(o.count):
        rng = np.random.default_rng([o.seed, i])
        units, formats = int(rng.integers(60, 201)), int(rng.integers(3, 7))
        band, kind = i % 2 == 0, ("signed", "frustrated", "flat")[i % 3]
        n_pairs = int(units * rng.uniform(0.8, 4 if band else 3))
        sizes, cost, pairs, table = make(rng, units, formats, n_pairs, band, kind)
        slopes = (np.nanmax(cost, axis=1) - cost[:, -1]) / (sizes[:, -1] - sizes[:, 0])
        lam = float(np.quantile(slopes, rng.uniform(0.2, 0.9)))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "problem.txt")
            write(path, sizes, cost, pairs, table)
            lines = subprocess.run([o.bench, "solve", path, repr(lam)], check=True, text=True,
                                   stdout=subprocess.PIPE).stdout.splitlines()
        x, proof, is_proven = optimum(lam, sizes, cost, pairs, table, o.limit)
        best = energy(lam, sizes, cost, pairs, table, x)
        proven += is_proven
        shown = []
        for k, line in enumerate(lines):
            e, bound, is_exact, seconds, *ours = line.split()
            e, bound = float(e), float(bound)
            again = energy(lam, sizes, cost, pairs, table, np.array([int(f) for f in ours]))
            shown += [e / best - 1, bound / best - 1, float(seconds)]
            wrong = abs(again / e - 1) > 1e-9 or bound > best * (1 + 1e-7)
            if is_proven:
                wrong |= e < best * (1 - 1e-7) or (is_exact == "1" and e > best * (1 + 1e-7))
                reached += k == 1 and e <= best * (1 + 1e-7)
                worst = max(worst, e / best - 1)
            exact += k == 0 and is_exact == "1"
            if wrong:
                bad += 1
        bpp = 8 * sizes[np.arange(units), x].sum() / (sizes[:, -1].sum() / 2)
        note = "" if is_proven else f"  HiGHS' own bound: {proof / best - 1:+.1e}"
        print(f"{units:5} {formats:7} {len(pairs):5} {'band' if band else 'any':4} {kind:10} {bpp:5.2f} {best:14.6e}  "
              f"{shown[0]:+.1e}  {shown[1]:+.1e}        {shown[3]:+.1e} {shown[4]:+.1e}  {shown[2]:.2f} {shown[5]:.2f}"
              f"{note}", flush=True)
    print(f"{o.count} problems, {proven} solved by HiGHS; ours: {exact} exact, the search alone reached the optimum in "
          f"{reached}, furthest above it {worst:.1e}; {bad} wrong")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
