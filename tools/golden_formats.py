#!/usr/bin/env python3
"""Remake tests/golden/formats: what compressed-tensors makes of small matrices in every format, and decodes them to.

usage: golden_formats.py            (run from the root, in the environment that tools/venv makes)

A file a format, NAME/model.safetensors; layout and cases are in the README that this writes beside them. Scales, codes
and decoded weights are compressed-tensors' own, run in f32 on one thread; how, and what its decompress() does
differently, is in tools/formats.py. Before anything is written, each case is decoded a second time in numpy, and each
thing that a case is there for (a tie, a denormal, every code) is looked for.
"""
import os
import sys

import numpy as np
import safetensors.torch
import torch

import formats

GOLDEN = "tests/golden/formats"
MOST_BYTES = 300_000  # of all files


# --------------------------------------------------------------------------------------------------------- the cases

def bf16(x):
    return torch.from_numpy(np.asarray(x, np.float32)).to(torch.bfloat16)


def midpoints(values):
    values = np.unique(np.abs(values[np.isfinite(values)]))
    return (values[1:] + values[:-1]) / 2


def in_blocks(values, block, largest):
    """Rows of one block (block 0: one row), each beginning with `largest`, with all values and their negatives."""
    values = np.concatenate([values, -values])
    if not block:
        return np.concatenate([[largest], values])[None]
    per = block - 1
    values = np.concatenate([values, np.zeros(-len(values) % per)]).reshape(-1, per)
    return np.concatenate([np.full((len(values), 1), largest), values], 1)


def grid(name):
    """(the format's code values, the largest value of a block at which its scale is exactly one)"""
    if "fp4" in name:
        return formats.E2M1, 6.0
    if name.startswith("int4"):
        return np.arange(-7, 8, dtype=np.float32), -7.5  # a tie, which goes to -8
    if name.startswith("int8"):
        return np.arange(-127, 128, dtype=np.float32), -127.5
    return formats.E4M3, 416.0 if name == "mxfp8" else 448.0  # MX takes 448 for an exponent more


def to_width(rows, multiple):
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % multiple)))


def denormals(random, n, k):
    """Row 0 all below the smallest normal number, row 1 around it, further ones a few binades above."""
    bits = random.randint(1, 0x80, (n, k))
    for row in range(1, n):
        bits[row] += random.randint(0, 1 + 3 * row, k) << 7
    bits |= random.randint(0, 2, (n, k)) << 15
    return (bits.astype(np.uint32) << 16).view(np.float32)


def cases(name, random):
    """{case: (matrix, largest |w| of all that share its global scale)}"""
    f = formats.FORMATS[name]
    b = f.block or 48
    normal = random.standard_normal
    out = {"random": normal((2, 3 * b)) * 0.05, "one_block": normal((1, b)) * 0.02}
    tails = random.standard_t(2, (2, 2 * b)) * 0.02
    tails[0, 5], tails[1, b + 1] = 3.25, -1.5
    out["outliers"] = tails
    zeros = normal((4, 2 * b)) * 0.05
    zeros[0], zeros[1, :b], zeros[2] = 0, 0, 0
    zeros[2, b // 2], zeros[3, 1] = -0.3125, 0
    out["zeros"] = zeros
    out["minus_zeros"] = np.full((2, b), -0.0)
    out["minus_zeros"][1, 1::3] = normal(len(range(1, b, 3))) * 0.05
    out["denormals"] = denormals(random, 3, 2 * b)
    small = denormals(random, 2, 2 * b)
    out["denormals_beside_normals"] = np.where(random.rand(2, 2 * b) < 0.5, small, normal((2, 2 * b)))
    out["range"] = normal((3, 2 * b)) * np.float32(2.0) ** -random.randint(0, 40, (3, 2)).repeat(b, 1)
    out["huge"] = np.clip(normal((2, b)) * 1e38, -2.5e38, 2.5e38)
    values, largest = grid(name)
    scale = np.float32(2.0) ** (-3 if f.weights["num_bits"] == 4 else -9)
    width = f.block or 4
    out["ties"] = to_width(in_blocks(midpoints(values), f.block, largest), width) * scale
    reached = values[np.abs(values) <= abs(largest)]
    out["every_code"] = to_width(in_blocks(reached, f.block, largest), width) * scale
    if name.startswith("mx"):
        # Largest weights around the mantissa 1.75, from which on the exponent is one more; those above 1.5 are cut off.
        mantissa = np.array([1, 1.25, 1.5, 1.5078125, 1.734375, 1.7421875, 1.75, 1.7578125, 1.9921875])
        rows = normal((len(mantissa), b)).clip(-0.9, 0.9)
        rows[:, 7] = mantissa
        out["mantissa"] = rows * np.float32(2.0) ** -random.randint(0, 9, (len(mantissa), 1))
        out["largest_code"] = np.concatenate([[1.734375], normal(b - 1).clip(-1, 1)])[None]
    if not f.block:
        out["four_columns"], out["narrow"] = normal((5, 4)) * 0.1, normal((3, 20)) * 0.1
    if name == "fp8_block":  # tiles cut off below, at the right, and at both; scales far apart
        tiles = np.float32(2.0) ** -random.randint(0, 12, (2, 2))
        out["tiles"] = normal((129, 136)) * tiles.repeat(128, 0)[:129].repeat(128, 1)[:, :136]
        out["cut_right"] = normal((3, 200)) * 0.05
    if name == "nvfp4":
        out["fused"] = normal((2, 2 * b)) * 0.05
        out["global_step"] = out["random"]
    amax = {"fused": 0.75}
    return {case: (bf16(w), amax.get(case) or shared_amax(name, case, bf16(w))) for case, w in out.items()}


def shared_amax(name, case, w):
    """The largest |w| of the unit, w's own but in nvfp4: there it is raised (as if by a sibling) to the next bf16 number
    a for which (1 / a) * 2688 is 2688 / a in f32, and in the case "global_step" to the next for which it is not."""
    amax = w.float().abs().max()
    while name == "nvfp4":
        one, two = 1 / amax * 2688, torch.tensor(2688.0).div(amax)
        if bool(one == two) == (case != "global_step") or not torch.isfinite(two):
            break
        amax = (amax.to(torch.bfloat16).view(torch.int16) + 1).view(torch.bfloat16).float()
    return float(amax)


# ----------------------------------------------------------------------------------------------------------- a case

def raw(state, parts):
    """Stored numbers as numpy sees them."""
    return {s: t.contiguous().view({"F8_E4M3": torch.uint8, "BF16": torch.uint16}.get(parts[s][0], t.dtype)).numpy()
            for s, t in state.items()}


def check(ok, text):
    if not ok:
        raise SystemExit(f"golden_formats: {text}")


def make(name, case, w, amax):
    parts = formats.FORMATS[name].parts(*w.shape)
    state = formats.encode(name, w, amax)
    for suffix, (dtype, shape) in parts.items():
        t = state[suffix]
        right = list(t.shape) == shape and t.dtype == getattr(torch, formats.TORCH[dtype])
        check(right, f"{name} {case} {suffix}: {t.dtype} {list(t.shape)}")
    decoded, stock = formats.decode(name, state)
    again = formats.formula(name, raw(state, parts))
    where = f"{name} {case}"
    check(np.array_equal(again.view(np.uint32), decoded.numpy().view(np.uint32)), f"{where}: is not the formula")
    steps = formats.bf16_steps(decoded.numpy(), stock.float().numpy()).max()
    check(steps == 0, f"{where}: decompress() is {steps} bf16 steps away")
    check(bool(torch.isfinite(decoded).all()), f"{where}: not finite")
    rows = torch.arange(len(w), dtype=torch.int32)
    if case == "tiles":
        rows = torch.tensor([0, 1, 127, 128], dtype=torch.int32)
    out = {"input": w, "amax": torch.tensor([amax]), **state,
           "decoded_rows": rows, "decoded": decoded[rows.long()].contiguous()}
    return {f"{case}/{part}": t.contiguous() for part, t in out.items()}, decoded.double() - w.double()


def check_worth(name, case, tensors):
    """Is what the case is for in it?"""
    w = tensors[f"{case}/input"].float()
    if case == "every_code":
        codes = tensors.get(f"{case}/weight", tensors.get(f"{case}/weight_packed")).view(torch.uint8).flatten()
        if formats.FORMATS[name].weights["num_bits"] == 4:
            codes = torch.cat([codes & 15, codes >> 4])
        seen = set(codes.tolist())
        wanted = set(range(16 if formats.FORMATS[name].weights["num_bits"] == 4 else 256))
        if "fp8" in name:
            wanted -= {0x7F, 0xFF} | ({0x7E, 0xFE} if name == "mxfp8" else set())
        check(wanted - seen <= ({8} if "fp4" in name else {0x80} if "fp8" in name else set()),
              f"{name} {case}: codes {sorted(wanted - seen)} are missing")
    if case == "ties":
        half = (tensors[f"{case}/decoded"] - w).abs()
        check(int((half > 0).sum()) >= 14, f"{name} {case}: no ties")
    if case == "largest_code" and name == "mxfp8":
        check(bool((tensors[f"{case}/weight"].view(torch.uint8) == 0x7E).any()), f"{name} {case}: no 448")
    if case.startswith("denormals"):
        check(bool(((w != 0) & (w.abs() < 2.0**-126)).any()), f"{name} {case}: no denormals")


README = """# What compressed-tensors makes of small matrices

`tools/golden_formats.py` remakes these with {versions}. A folder a
format (`nvfp4_a16`, `mxfp4_a16`, `fp8_a16` and `mxfp8_a16` have the
tensors of the same without `_a16`), each with one `model.safetensors`. Of a case:

| tensor | type and shape | what |
|---|---|---|
| `CASE/input` | BF16 [N, K] | the matrix |
| `CASE/amax` | F32 [1] | the largest absolute value of the unit: its own; in nvfp4 it may be a sibling's |
| `CASE/weight_packed`, `CASE/weight_scale`, ... | as exported | its codes and scales by round to nearest, run in f32 |
| `CASE/decoded_rows` | I32 [R] | the rows that `decoded` holds: all but in `fp8_block/tiles` |
| `CASE/decoded` | F32 [R, K] | compressed-tensors' decoded weights of these tensors, run in f32 |

`decoded` equals the format's own expression bit for bit, in every format, and what compressed-tensors' `decompress()`
returns in bf16 or f32 is `decoded` rounded to that. The expressions are in `tools/formats.py`.

Where an encoder may differ from the stored codes and scales without being worse:
- a block, row or tile of zeros (`zeros`, `minus_zeros`, and what underflows in `denormals`) decodes to
  zeros with any scale: 0.125 (nvfp4), byte 0 (MX), 2^-23 (F32 scales) or 2^-7 (BF16 scales) here;
- nvfp4's `weight_global_scale` is (1 / amax) * 2688 here, which may be a step of f32 from 2688 / amax; `amax` is chosen
  so that both are equal, but in `global_step`;
- -0.0 is code 0 in E2M1 here, not 8; in E4M3 it is 0x80;
- nvfp4 scales below 2^-6 (`range`, `denormals_beside_normals`) are flushed to zero by the server's kernels that run
  weights only, so an encoder that raises them to 2^-6 has the larger error here and the smaller one there;
- everything else: equal bytes, or a smaller squared error.

| case | what it is for |
|---|---|
| `random`, `one_block`, `narrow`, `four_columns` | shapes; channel formats have widths that are no multiple of 16 |
| `outliers` | a Student t of 2 degrees of freedom, and single weights far out |
| `zeros`, `minus_zeros` | rows and blocks of zeros, a single weight in a row, -0.0 |
| `denormals`, `denormals_beside_normals`, `range`, `huge` | bf16 denormals, 40 binades between blocks, up to 2.5e38 |
| `ties` | every midpoint between codes, both signs, at a scale that is a power of two |
| `every_code` | every code (in MXFP8 all but +-448, which is in `largest_code`) |
| `mantissa`, `largest_code` | MX: the largest weight around the mantissa from which on the exponent is one more |
| `tiles`, `cut_right` | fp8_block: tiles cut off below and at the right |
| `fused`, `global_step` | nvfp4: a global scale that a sibling decides, and one that rounds in two ways |

Sum of squared errors of the stored tensors against `input`:

| format | {heads} |
|---|{bars}|
"""


def versions():
    import compressed_tensors

    return f"compressed-tensors {compressed_tensors.__version__}, torch {torch.__version__.split('+')[0]}"


def main():
    torch.set_num_threads(1)
    names = [n for n in formats.FORMATS if not n.endswith("_a16") or n == "int8_a16"]  # others as those without _a16
    total, errors = 0, {}
    for i, name in enumerate(names):
        tensors = {}
        for case, (w, amax) in cases(name, np.random.RandomState(1000 + i)).items():
            made, error = make(name, case, w, amax)
            check_worth(name, case, made)
            tensors.update(made)
            errors.setdefault(name, {})[case] = float((error**2).sum())
        os.makedirs(f"{GOLDEN}/{name}", exist_ok=True)
        path = f"{GOLDEN}/{name}/model.safetensors"
        safetensors.torch.save_file(dict(sorted(tensors.items())), path, {"format": "pt"})
        total += os.path.getsize(path)
        print(f"{path}: {len(errors[name])} cases, {os.path.getsize(path)} bytes")
    shown = ["random", "outliers", "range", "ties"]
    with open(f"{GOLDEN}/README.md", "w", encoding="ascii") as f:
        heads, bars = " | ".join(f"`{c}`" for c in shown), "|".join(["---"] * len(shown))
        f.write(README.format(versions=versions(), heads=heads, bars=bars))
        for name in names:
            f.write(f"| `{name}` | " + " | ".join(f"{errors[name][c]:.6g}" for c in shown) + " |\n")
    print(f"{total} bytes in all")
    check(total <= MOST_BYTES, f"more than {MOST_BYTES}")


if __name__ == "__main__":
    sys.exit(main())
