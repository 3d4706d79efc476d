#!/usr/bin/env python3
"""The whole pipeline on the emulated devices, in one store with the same graph on the CPU.

usage: whole.py SCOUT_EMULATED ROOT

1. On the CPU, then on a device: what does not depend on the arithmetic is shared, the rest is made anew, and `explain`
   says that it is for the numeric mode.
2. The device's number is in no key: what cuda:1 made, cuda:0 reuses. The exported directory verifies on the device.
3. The CPU's results are still there; both sets of KLs agree.
4. No driver, an older one, or no GPU: one line, and the CPU; refused where a device is asked for.
5. A device whose products depend on a row's place is refused.
6. Native products are a numeric mode of their own, and the CPU refuses them.
"""
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import h5py
except ImportError:
    sys.exit(77)
import numpy as np

SETTINGS = ["model=data/models/stories260k", "calibration=1", "probes=1", "selection=2", "report=1", "window=16",
            "rounds=1", "proposals=3", "moves=2"]
SHARED = {"model", "corpus"}
COMPUTED = {"teacher", "teacher_report", "hessian", "quantize", "measure.1", "polish", "verify"}


class Pipeline:
    def __init__(self, scout, root, folder):
        self.scout, self.root, self.folder = scout, pathlib.Path(root), folder

    def call(self, command, *words, code=0, settings=()):
        graph = str(self.root / "graphs/quickstart.yaml")
        operands = [graph, words[0]] if command == "explain" else [graph]
        more = [w for s in [*SETTINGS, *settings] for w in ("--set", s.replace("=data/", f"={self.root}/data/"))]
        done = subprocess.run([self.scout, command, *operands, "--dir", f"{self.folder}/run", *more,
                               *words[len(operands) - 1:]], capture_output=True, text=True, check=False)
        if done.returncode != code:
            sys.exit(f"{command} {words}: exit {done.returncode}, expected {code}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def states(self):
        with h5py.File(f"{self.folder}/run/run.h5", "r") as f:
            text = lambda s: s.decode() if isinstance(s, bytes) else str(s)
            return ({name: text(n.attrs["state"]) for name, n in f["nodes"].items()},
                    {name: text(n.attrs["device"]) for name, n in f["nodes"].items() if "device" in n.attrs})

    def uniform_kl(self):
        with h5py.File(f"{self.folder}/run/run.h5", "r") as f:
            table = f["nodes/measure.1/result/candidates"]
            origin = [o.decode() if isinstance(o, bytes) else str(o) for o in table["origin"][:]]
            keep = [i for i, o in enumerate(origin) if o == "uniform"]
            return dict(zip(table["bpp"][:][keep], table["kl_mean"][:][keep]))


def agree(a, b, rtol, atol):
    """The sweep of lambda may have measured some uniform candidates before, and others with other bits."""
    both = sorted(set(a) & set(b))
    return both and np.allclose([a[x] for x in both], [b[x] for x in both], rtol=rtol, atol=atol)


def check(what, ok, *more):
    if not ok:
        sys.exit(f"{what}: {more}")


def main(scout, root):
    with tempfile.TemporaryDirectory() as folder:
        p = Pipeline(scout, root, folder)
        p.call("run", "--device", "cpu")
        here = p.uniform_kl()

        said = p.call("explain", "teacher", "--device", "cuda")
        check("explain", "numeric mode: was 'fp32 cpu', is 'fp32 cuda" in said and "input" not in said, said)
        p.call("run", "--device", "cuda:1")
        states, devices = p.states()
        check("shared", {n for n, s in states.items() if s == "reused"} >= SHARED, states)
        check("made anew", all(states[n] == "done" for n in COMPUTED), states)
        check("where", all(devices[n] == "cuda:1" for n in COMPUTED) and devices["export"] == "cpu", devices)
        there = p.uniform_kl()
        # Few tokens, and formats that quantize inputs: one code that falls to the other side shows. parity.c is strict.
        check("KL", agree(here, there, 0.1, 1e-6), here, there)

        p.call("run", "--device", "cuda:0")
        check("another device", set(p.states()[0].values()) == {"reused"}, p.states()[0])
        p.call("run", "--device", "cpu")
        states = p.states()[0] # the exported directory is one place, which the device's run has taken
        check("the CPU again", {n for n, s in states.items() if s != "reused"} == {"export"}, states)

        # Without a device, one line says why; who asks for one is refused.
        for name, value, window, why in (
                ("DRIVER", "0", 9, "no NVIDIA driver on this machine"),
                ("DRIVER", "12040", 10, "the NVIDIA driver knows CUDA 12.4, and this build needs 13.0"),
                ("NO_DEVICE", "1", 11, "the NVIDIA driver shows no GPU")):
            os.environ[f"EMULATE_{name}"] = value
            said = p.call("run", "--target", "teacher", settings=[f"window={window}"])
            check("the CPU instead", said.count(why) == 1 and "(fp32 cpu)" in said, said)
            said = p.call("run", "--device", "cuda", code=3)
            check("refused", why in said and "--device cpu" in said, said)
            del os.environ[f"EMULATE_{name}"]

        said = p.call("run", "--device", "cuda:7", code=3)
        check("no such device", "cuda:7" in said and "cuda:0" in said, said)
        # A library whose bits depend on a row's place computes nothing.
        os.environ["EMULATE_WRONG"] = "rows"
        said = p.call("run", "--device", "cuda:0", "--target", "teacher", settings=["window=12"], code=3)
        check("rows that depend on their place", "a row's bits depend on its place" in said and "cuda:0" in said, said)
        del os.environ["EMULATE_WRONG"]
        said = p.call("run", "--device", "cpu", settings=["numeric=native"], code=2)
        check("native on the CPU", "native is of accelerators" in said and "use bf16" in said, said)
        os.environ["EMULATE_WRONG"] = "fp8"
        said = p.call("run", "--device", "cuda", "--target", "teacher", settings=["numeric=native", "window=12"])
        check("a format that does not agree", "cuda:0: no native fp8 products" in said, said)
        del os.environ["EMULATE_WRONG"]
        said = p.call("run", "--device", "cuda", "--target", "measure.1", settings=["numeric=native"])
        check("products", "measure.1: product fp8 " in said, said)
        native = p.uniform_kl()
        check("native KL", agree(here, native, 0.3, 1e-3), here, native)
    print("passed")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
