#!/usr/bin/env python3
"""Compare the search with the baselines at equal bytes, on the report windows.

usage: compare.py SEARCH_RUN... -- BASELINE_RUN...        (needs h5py and numpy)

SEARCH_RUNs are of graphs/baselines/search.yaml, one a budget; BASELINE_RUNs of the other graphs there, on the same
renderings and windows. For each search run: its KL, and of each baseline the best that it measured on the selection
windows of at most the search's budget. Differences are paired on the same tokens, with a 95 % interval of Student's t
over documents; positive: the search is better. Nothing is chosen by the report windows.
"""
import json
import sys

import h5py
import numpy as np

from frontier import student


def text(x):
    return x.decode() if isinstance(x, bytes) else x


def table(node):
    r = node["result"]
    c = r["candidates"]
    return {"context": text(r.attrs["context"]), "bytes": c["bytes"][:], "bpp": c["bpp"][:],
            "kl": c["kl_window"][:], "mean": c["kl_mean"][:], "key": [a.tobytes() for a in c["assignment"][:]],
            "tokens": r["windows/tokens"][:].astype(float), "document": r["windows/document"][:]}


def opened(run):
    try:
        return h5py.File(f"{run}/run.h5", "r")
    except OSError as e:
        sys.exit(f"{run}: no run.h5 that can be read: {e}")


def measured(f, run, node):
    """The table of a node that must have a result."""
    if f"nodes/{node}/result" not in f:
        sys.exit(f"{run}: its graph has no node '{node}' with a result; is it one of graphs/baselines, run to its end?")
    return table(f["nodes"][node])


def paired(a, b, tokens, document):
    """Mean of b - a over tokens, and half its interval, windows clustered by document."""
    d = b - a
    mean = (d * tokens).sum() / tokens.sum()
    documents = np.unique(document)
    n = len(documents)
    if n < 2:
        return mean, np.nan
    residual = np.array([((d - mean) * tokens)[document == i].sum() for i in documents])
    half = student(n - 1) * np.sqrt(n / (n - 1) * (residual**2).sum()) / tokens.sum()
    return mean, half


def parameter(nodes, node, name):
    lines = text(nodes[node + "/result"].attrs["parameters"]).splitlines() if node + "/result" in nodes else []
    for line in lines:
        key, _, value = line.partition(" = ")
        if key == name:
            return float(value)
    return 0.0


def best_within(selection, report, most):
    """Row in `report` of the lowest selection KL of at most `most` bits per parameter; None if there is none."""
    fits = [i for i, b in enumerate(selection["bpp"]) if b <= most and np.isfinite(selection["mean"][i])]
    if not fits:
        return None
    return report["key"].index(selection["key"][min(fits, key=lambda i: selection["mean"][i])])


def main():
    if "--" not in sys.argv:
        sys.exit(__doc__)
    at = sys.argv.index("--")
    baselines = []
    for run in sys.argv[at + 1:]:
        with opened(run) as f:
            name = run.rstrip("/").split("/")[-1]
            baselines.append((name, measured(f, run, "selection"), measured(f, run, "report")))
    for run in sys.argv[1:at]:
        with opened(run) as f:
            nodes = f["nodes"]
            ours = measured(f, run, "report")
            most = parameter(nodes, "select", "bpp")
        most = most or ours["bpp"][0]
        kl = ours["mean"][0]
        print(f"at most {most:.4g} bpp: search {ours['bpp'][0]:.4f} bpp, KL {kl:.6f} on "
              f"{int(ours['tokens'].sum())} positions of {len(np.unique(ours['document']))} documents")
        for name, selection, report in baselines:
            if report["context"] != ours["context"]:
                sys.exit(f"{name} was measured in another context: other renderings, windows or arithmetic")
            i = best_within(selection, report, most)
            if i is None:
                print(f"  {name:20} none of at most that size")
                continue
            mean, half = paired(ours["kl"][0], report["kl"][i], ours["tokens"], ours["document"])
            verdict = "better" if mean - half > 0 else "worse" if mean + half < 0 else "tie"
            if np.isnan(half):
                verdict = "one document: no interval"
            print(f"  {name:20} {report['bpp'][i]:.4f} bpp, KL {report['mean'][i]:.6f}, {mean:+.6f} "
                  f"[{mean - half:+.6f}, {mean + half:+.6f}], the search's is {kl / report['mean'][i]:.3f} of it: "
                  f"{verdict}")


if __name__ == "__main__":
    main()
