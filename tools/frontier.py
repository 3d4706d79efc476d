#!/usr/bin/env python3
"""Print the measured frontier of a run and what was chosen: bits per parameter, KL with its interval over documents.

usage: frontier.py RUN        (needs h5py and numpy; works while the run is going, once `select` is done)

If the graph has a measuring node `frontier_report`, the same candidates' KL on the report windows stands beside it.
"""
import sys

import h5py
import numpy as np

# 97.5 % quantile of Student's t by degrees of freedom.
T = [0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
     2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


def student(freedom):
    """The same for any degrees of freedom: beyond the table by Cornish and Fisher's expansion, to 1e-5."""
    if freedom < len(T):
        return T[freedom]
    z = 1.959964
    return (z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2) +
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3))


def interval(kl_window, tokens, document):
    """Half of the 95 % interval of the mean over tokens, windows clustered by document (linearised ratio)."""
    mean = (kl_window * tokens).sum() / tokens.sum()
    documents = np.unique(document)
    n = len(documents)
    if n < 2:
        return np.nan
    d = np.array([((kl_window - mean) * tokens)[document == i].sum() for i in documents])
    return student(n - 1) * np.sqrt(n / (n - 1) * (d**2).sum()) / tokens.sum()


def with_ends(kl, half):
    """A mean KL with its interval, which is taken on the scale of the logarithm (nodes/search/stats.h)."""
    factor = np.exp(half / kl) if kl > 0 else 1.0
    return f"{kl:.6f} ({kl / factor:.6f} to {kl * factor:.6f})"


def columns(result):
    c = result["candidates"]
    w = result["windows"]
    half = [interval(k, w["tokens"][:].astype(float), w["document"][:]) for k in c["kl_window"][:]]
    return c, c["kl_mean"][:], np.array(half)


def main():
    with h5py.File(f"{sys.argv[1]}/run.h5", "r") as f:
        nodes = f["nodes"]
        if "result" not in nodes["select"]:
            sys.exit("node 'select' is not done yet")
        r = nodes["select/result"]
        c, kl, half = columns(r)
        report = {}
        if "frontier_report" in nodes and "result" in nodes["frontier_report"]:
            rc, rkl, rhalf = columns(nodes["frontier_report/result"])
            report = {a.tobytes(): (k, h) for a, k, h in zip(rc["assignment"][:], rkl, rhalf)}
        chosen = int(r["chosen"][0])
        numeric = r.attrs["numeric"]
        print(f"frontier of {f.filename} [{numeric.decode() if isinstance(numeric, bytes) else numeric}]; KL in nats")
        print(f"{'id':>5}  {'origin':8} {'bpp':>8}  {'KL selection':>32}  {'KL report':>32}")
        for i in sorted({*r["frontier"][:].tolist(), chosen}, key=lambda i: c["bpp"][i]):
            other = report.get(c["assignment"][i].tobytes())
            print(f"{i:5d}  {c['origin'][i].decode():8} {c['bpp'][i]:8.4f}  {with_ends(kl[i], half[i]):>32}  "
                  f"{with_ends(*other) if other else '':>32}"
                  f"{'  chosen' if i == chosen else ''}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
