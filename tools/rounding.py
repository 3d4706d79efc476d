#!/usr/bin/env python3
"""The table of a run of graphs/rounding.yaml: KL of every uniform format under each chain of rounding methods, and how
much less it is than rtn's, with a 95 % interval of the paired difference over documents.

usage: tools/rounding.py RUN [RTN-CHAIN]      (needs h5py and numpy; RTN-CHAIN is the suffix to compare with, "rtn")
"""
import sys

import h5py
import numpy as np

from frontier import interval


def read(run):
    """{chain: (methods, {format: KL per window}, {format: held-out loss}), ...}, documents and tokens of the windows"""
    chains, documents, tokens = {}, None, None
    for name, node in run["nodes"].items():
        if not name.startswith("measure_") or "result" not in node:
            continue
        chain = name[len("measure_"):]
        rows, quantize = node["result"], run["nodes/quantize_" + chain]["result"]
        formats = [x.decode() for x in rows["formats/name"][:]]
        assignment, kl = rows["candidates/assignment"][:], rows["candidates/kl_window"][:]
        loss = np.nanmean(quantize["output_loss"][:], axis=0)
        methods = [x.decode() for x in quantize["rounding/method"][:]] if "rounding/method" in quantize else ["rtn"]
        # The uniform candidates, in the order of the formats; a unit that cannot have it has a substitute.
        of_format = {}
        for a, window in zip(assignment, kl):
            of_format.setdefault(formats[np.bincount(a).argmax()], window)
        chains[chain] = (methods, of_format, dict(zip(formats, loss)))
        documents, tokens = rows["windows/document"][:], rows["windows/tokens"][:].astype(float)
    return chains, documents, tokens


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    base = sys.argv[2] if len(sys.argv) > 2 else "rtn"
    with h5py.File(sys.argv[1] + "/run.h5") as run:
        chains, documents, tokens = read(run)
    if base not in chains:
        sys.exit(f"{sys.argv[1]}: no measured chain '{base}'; there are: {', '.join(chains) or 'none'}")
    for name in chains[base][1]:
        if name == "bf16":
            continue
        print(f"\n{name}: {len(tokens)} windows of {len(np.unique(documents))} documents")
        print(f"  {'chain':<44}{'held-out loss':>14}{'KL, nats':>11}{'less than ' + base:>24}")
        for methods, kl, loss in sorted(chains.values(), key=lambda c: -np.average(c[1][name], weights=tokens)):
            gain = chains[base][1][name] - kl[name]
            mean = np.average(kl[name], weights=tokens)
            print(f"  {' + '.join(methods):<44}{loss[name]:14.6f}{mean:11.6f}"
                  f"{np.average(gain, weights=tokens):14.6f} +- {interval(gain, tokens, documents):.6f}")


if __name__ == "__main__":
    main()
