#!/usr/bin/env python3
"""Check an exported directory with compressed-tensors, safetensors and transformers, none of which scout uses.

usage: check_export.py DIR --source MODEL [--run RUN.H5 [--node quantize]] [--decoder EXE] [--scout EXE] [--dump]
                       [--no-logits]

  structure  every source tensor is there byte for byte, or replaced by exactly the tensors of its format; index,
             config, targets, ignore list, fused groups, digests in scout.json
  codes      with --run: codes and scales equal those of the renderings, byte for byte
  values     decoded by compressed-tensors in f32 against scout's decode (--decoder is the program
             tests/nodes/format/decode_export of a build folder) and against a second formula here; a table per format
  decode     with --scout: the directory that `scout decode` writes has these weights rounded to bf16
  logits     transformers loads the directory, uses scout's decoded weights to the bit, and gives the logits of the
             source model with these weights put into it; and as a user loads it, in bf16, it is no further from these
             logits than bf16 is from f32 for the source model (exports that leave inputs alone)
  measured   with --run: the KL of each window that the run measured for this assignment, against the KL that
             transformers gives in f32, its inputs rounded by the rule of kernels.h (tools/formats.py, round_input):
             equal up to the order of sums, or, where inputs are rounded, as near as inputs off by 2^-20 bring it

Prints what was checked, and exits with 1 at the first line that says FAIL.
"""
import argparse
import contextlib
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np

import formats

FUSED = [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")]
MOST_LOGIT_DIFFERENCE = 1e-4  # of the logits' range: both sides are f32, with another order of sums
MOST_KL_DIFFERENCE = 1e-4  # of a window's KL, in f32 with inputs left alone
# Where inputs are rounded, a sum in another order sends some values to the next code, and all that follows is another
# draw: times the difference, as a root mean square over windows, that shaking all inputs makes in transformers.
MOST_KL_DRAWS = 5
MOST_BF16_NOISE = 4  # times the source's own KL of bf16 to f32


class Failed(Exception):
    pass


def check(ok, text):
    if not ok:
        raise Failed(text)


def open_tensors(folder):
    """{name: (dtype, shape, bytes)} of all shards, headers checked."""
    index = os.path.join(folder, "model.safetensors.index.json")
    files = ["model.safetensors"]
    weight_map = None
    if os.path.exists(index):
        weight_map = json.load(open(index))["weight_map"]
        files = sorted(set(weight_map.values()))
    found = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    check(found == files, f"{folder}: weight files {found}, the index names {files}")
    tensors = {}
    for file in files:
        data = open(os.path.join(folder, file), "rb").read()
        (n,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + n])
        header.pop("__metadata__", None)
        at = 0
        for name, t in header.items():
            begin, end = t["data_offsets"]
            check(begin == at, f"{file}: {name} begins at {begin}, the one before ends at {at}")
            check(name not in tensors, f"{file}: {name} is in two files")
            check(weight_map is None or weight_map[name] == file, f"index: {name} is in {file}")
            tensors[name] = (t["dtype"], t["shape"], data[8 + n + begin : 8 + n + end])
            at = end
        check(8 + n + at == len(data), f"{file}: {len(data) - 8 - n - at} bytes behind the last tensor")
        check((8 + n) % 8 == 0, f"{file}: data begins at {8 + n}")
    check(weight_map is None or set(weight_map) == set(tensors), "index and headers name other tensors")
    return tensors


def format_of(config, module):
    """The format of a module by config.json alone: exact targets (the head's is a pattern), then ignore."""
    quantization = config.get("quantization_config")
    found = []
    for name, group in (quantization or {"config_groups": {}})["config_groups"].items():
        if module in group["targets"] or (module == "lm_head" and "re:.*lm_head$" in group["targets"]):
            found.append(formats.format_of_group(group))
            check(found[-1], f"{name} is no known format: {group}")
    ignored = quantization is None or module in quantization["ignore"]
    check(len(found) + ignored == (1 if quantization else 1), f"{module}: formats {found}, ignored {ignored}")
    return found[0] if found else "bf16"


def check_structure(folder, source):
    """Returns tensors and {matrix: format}."""
    tensors, original = open_tensors(folder), open_tensors(source)
    config = json.load(open(os.path.join(folder, "config.json")))
    before = json.load(open(os.path.join(source, "config.json")))
    rest = {k: v for k, v in config.items() if k != "quantization_config"}
    check(list(rest.items()) == list(before.items()), "config.json: a field of the source has changed")
    recipe = json.load(open(os.path.join(folder, "scout.json")))
    matrices, expected = {}, {}
    for name, (dtype, shape, data) in original.items():
        module = name.removesuffix(".weight")
        is_linear = name.endswith("_proj.weight") or name == "lm_head.weight"
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        fmt = format_of(config, module) if is_linear else "bf16"
        if name.endswith("_proj.weight") or module in recipe["assignment"]:  # the head, if it is a unit
            matrices[module] = fmt
        if fmt == "bf16":
            check(tensors.get(name) == (dtype, shape, data), f"{name} differs from the source")
            expected[name] = dtype
        else:
            for suffix, (stored, stored_shape) in formats.stored_parts(fmt, *shape).items():
                t = tensors.get(f"{module}.{suffix}")
                check(t and t[0] == stored and t[1] == stored_shape, f"{module}.{suffix}: {t and t[:2]}")
                expected[f"{module}.{suffix}"] = stored
            check_values_legal(module, fmt, tensors, shape)
    check(set(expected) == set(tensors), f"other tensors than expected: {set(expected) ^ set(tensors)}")
    for group in FUSED:
        for first in [m for m in matrices if m.endswith(group[0])]:
            for other in group[1:]:
                m = first.removesuffix(group[0]) + other
                check(matrices[m] == matrices[first], f"{m} has another format than {first}")
                for suffix in ("weight_global_scale", "input_global_scale"):
                    a, b = tensors.get(f"{first}.{suffix}"), tensors.get(f"{m}.{suffix}")
                    check(a == b, f"{suffix} of {m} and {first} differ")
    for f in recipe["files"]:
        data = open(os.path.join(folder, f["name"]), "rb").read()
        check(hashlib.sha256(data).hexdigest() == f["sha256"] and len(data) == f["bytes"], f"{f['name']}: digest")
    payload = sum(len(tensors[n][2]) for n in expected if n.rsplit(".", 1)[0] in matrices)
    payload -= sum(len(tensors[n][2]) for n in expected if n.endswith(".bias"))
    check(payload == recipe["bytes"], f"the units take {payload} bytes, scout.json says {recipe['bytes']}")
    print(f"structure: {len(tensors)} tensors, {len(original)} in the source, {len(matrices)} matrices, "
          f"{recipe['bpp']:.4f} bpp: ok")
    return tensors, matrices


def parts_of(module, fmt, tensors):
    """{suffix: raw numbers} of a matrix, as formats.NUMPY reads them."""
    suffixes = formats.stored_parts(fmt, 128, 128)
    stored = {s: tensors[f"{module}.{s}"] for s in suffixes}
    return {s: np.frombuffer(data, formats.NUMPY[dtype]).reshape(shape) for s, (dtype, shape, data) in stored.items()}


def check_values_legal(module, fmt, tensors, shape):
    for suffix, numbers in parts_of(module, fmt, tensors).items():
        name, dtype = f"{module}.{suffix}", tensors[f"{module}.{suffix}"][0]
        if dtype == "F8_E4M3":
            check(not np.any((numbers & 0x7F) == 0x7F), f"{name} has NaN")
            check(suffix == "weight" or (numbers < 0x80).all(), f"{name} has a negative scale")
        if dtype == "U8" and suffix == "weight_scale":
            check((numbers < 0xFF).all(), f"{name} has NaN")
        if dtype in ("F32", "BF16"):
            values = formats.bf16_to_f32(numbers) if dtype == "BF16" else numbers
            check(np.isfinite(values).all(), f"{name} is not finite")
            right = values != 0 if dtype == "BF16" else values > 0  # those of integers may have either sign
            check(right.all(), f"{name} has a scale that is zero or negative")
        if suffix == "weight_shape":
            check(list(numbers) == shape, f"{name} is {list(numbers)}, the matrix is {shape}")


def check_codes(tensors, matrices, run, node):
    import h5py

    n_bytes = 0
    with h5py.File(run, "r") as f:
        result = f[f"nodes/{node}/result"]
        parts = [result[f"parts/{p}"] for p in sorted(result["parts"])]
        scales = dict(zip([u.decode() for u in result["units/name"][:]], result["input_scale"][:]))
        unit_of = dict(zip([m.decode() for m in result["matrices/name"][:]], result["matrices/unit"][:]))
        units = [u.decode() for u in result["units/name"][:]]
        for module, fmt in matrices.items():
            for suffix in formats.stored_parts(fmt, 128, 128) if fmt != "bf16" else ():
                data = tensors[f"{module}.{suffix}"][2]
                part = next(p for p in parts if module in p)
                if suffix == "weight_shape" and suffix not in part[f"{module}/{fmt}"]:
                    continue  # checked against the matrix already
                if suffix == "input_global_scale":
                    theirs = np.float32(scales[units[unit_of[module]]]).tobytes()
                else:
                    theirs = part[f"{module}/{fmt}/{suffix}"][...]
                    if tensors[f"{module}.{suffix}"][0] == "BF16":  # which h5py widens to f32
                        theirs = formats.f32_to_bf16(theirs)
                    theirs = theirs.tobytes()
                check(data == theirs, f"{module}.{suffix}: bytes differ from the rendering's")
                n_bytes += len(data)
    print(f"codes: {n_bytes} bytes of codes and scales equal the renderings': ok")


def ours_decoded(decoder, folder, matrices, tensors, out):
    subprocess.run([decoder, folder, out], check=True, stdout=subprocess.DEVNULL)
    decoded = {}
    for m in matrices:
        suffix = "weight_packed" if f"{m}.weight_packed" in tensors else "weight"
        n = tensors[f"{m}.{suffix}"][1][0]
        decoded[m] = np.fromfile(os.path.join(out, m + ".f32"), np.float32).reshape(n, -1)
    return decoded


def check_plain(scout, folder, tensors, decoded, out):
    """What `scout decode` writes: the decoded weights rounded to bf16, and everything else as it was."""
    subprocess.run([scout, "decode", folder, out], check=True, stdout=subprocess.DEVNULL)
    plain = open_tensors(out)
    names = {n for n in tensors if n.rsplit(".", 1)[0] not in decoded} | {f"{m}.weight" for m in decoded} | \
        {n for n in tensors if n.endswith(".bias")}
    check(set(plain) == names, f"scout decode: other tensors than expected: {sorted(set(plain) ^ names)[:4]}")
    for name, (dtype, shape, data) in plain.items():
        module = name.removesuffix(".weight")
        if module in decoded and tensors.get(name, [None])[0] not in ("BF16", "F16", "F32"):
            numbers = np.frombuffer(data, np.uint16).reshape(shape)
            check(dtype == "BF16", f"scout decode: {name} is {dtype}")
            check(np.array_equal(numbers, formats.f32_to_bf16(decoded[module])), f"scout decode: {name} differs")
        else:
            check(tensors[name] == (dtype, shape, data), f"scout decode: {name} has changed")
    print(f"decode: {len(plain)} tensors of `scout decode`, weights rounded to bf16, the others as they were: ok")


def check_decoded(tensors, matrices, decoded):
    """Prints the table of formats."""
    rows = {}
    for module, fmt in matrices.items():
        if fmt == "bf16":
            continue
        parts = parts_of(module, fmt, tensors)
        state = {s: formats.to_torch(tensors[f"{module}.{s}"][0], v) for s, v in parts.items()}
        wide, stock = formats.decode(fmt, state)
        theirs, ours = wide.numpy(), decoded[module]
        same = np.array_equal(ours.view(np.uint32), formats.formula(fmt, parts).view(np.uint32))
        check(same, f"{module}: not the formula")
        row = rows.setdefault(fmt, [0, 0, 0, 0, 0, 0])
        row[0] += 1
        row[1] += ours.size
        row[2] += int((ours.view(np.uint32) == theirs.view(np.uint32)).sum())
        row[3] = max(row[3], int(formats.bf16_steps(ours, theirs).max()))
        row[4] = max(row[4], int(formats.bf16_steps(ours, stock.float().numpy()).max()))
        row[5] = str(stock.dtype).removeprefix("torch.")
    print("values: scout's decoded weights against compressed-tensors'")
    print(f"  {'format':<10} {'matrices':>8} {'weights':>10} {'bit-equal in f32':>17} {'largest bf16 ulp':>17} "
          f"{'stock dtype':>12} {'ulp to stock':>13}")
    for fmt, (n, size, equal, ulp, stock_ulp, dtype) in sorted(rows.items()):
        print(f"  {fmt:<10} {n:>8} {size:>10} {100 * equal / size:>16.4f}% {ulp:>17} {dtype:>12} {stock_ulp:>13}")
        check(ulp <= 1 and stock_ulp <= 1, f"{fmt} differs by {ulp} bf16 steps")
    print("values: ok")


def load_model(path, dtype):
    import transformers

    transformers.logging.set_verbosity_error()
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        model, info = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    bad = {k: v for k, v in info.items() if k in ("missing_keys", "mismatched_keys", "unexpected_keys") and v}
    check(not bad, f"{path}: transformers says {bad}")
    return model.eval()


def kl_rows(teacher, candidate):
    """KL(teacher || candidate) of each position, in nats."""
    p, q = teacher.double().log_softmax(-1), candidate.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def kl_nats(teacher, candidate):
    return float(kl_rows(teacher, candidate).mean())


def check_logits(folder, source, matrices, decoded):
    """As a user loads it, in the model's own dtype; and unpacked in f32, weight by weight and by its logits."""
    import torch

    config = json.load(open(os.path.join(folder, "config.json")))
    ids = torch.arange(3, 3 + 64).remainder(config["vocab_size"]).repeat(2, 1)
    with torch.no_grad():
        plain, stored = load_model(source, torch.float32), load_model(folder, torch.float32)
        served = load_model(folder, "auto")
        before, in_bf16 = plain(ids).logits, load_model(source, "auto")(ids).logits
        with contextlib.redirect_stderr(io.StringIO()):
            as_served = served(ids).logits
            if "quantization_config" in config:
                stored.hf_quantizer.compressor.decompress_model(stored)
        check(bool(torch.isfinite(as_served).all()), "logits are not finite")
        theirs, ours = dict(stored.named_modules()), dict(plain.named_modules())
        for name, w in decoded.items():
            weight = theirs[name].weight
            # Packed FP4 is unpacked to bf16 whatever dtype is asked for; then so is the reference.
            expected = torch.from_numpy(w).to(weight.dtype)
            check(torch.equal(expected, weight), f"{name}: transformers has another weight than scout")
            theirs[name].weight.data = ours[name].weight.data = expected.float()
            theirs[name].quantization_enabled = False  # leave the inputs alone
        expected, got = plain(ids).logits, stored(ids).logits
        for name in decoded:
            theirs[name].quantization_enabled = True
        with_inputs = stored(ids).logits
    width = float(expected.max() - expected.min())
    worst, moved = float((got - expected).abs().max()), float((before - expected).abs().max())
    print(f"logits: transformers, f32, inputs left alone: largest difference {worst:.3g} of a range of {width:.3g}; "
          f"rounding the weights moved them by {moved:.3g}")
    check(worst <= MOST_LOGIT_DIFFERENCE * width, "logits differ")
    print(f"logits: KL to the source, in nats: weights {kl_nats(before, expected):.3g}, and inputs quantized as "
          f"declared {kl_nats(before, with_inputs):.3g}, as a user loads it ({as_served.dtype}) "
          f"{kl_nats(before, as_served):.3g}")
    noise, apart = kl_nats(before, in_bf16), kl_nats(expected, as_served)
    print(f"logits: KL of bf16 to f32, in nats: source {noise:.3g}, this {apart:.3g}")
    if all(formats.FORMATS[f].inputs is None for f in matrices.values() if f != "bf16"):
        check(apart <= MOST_BF16_NOISE * noise, f"{apart / noise:.1f} times the noise of bf16")
    print("logits: ok")


# ------------------------------------------------------------------------------------------- what the run measured

def measured_row(run, folder):
    """(node, KL of each window, the windows' token ids, numeric mode) of the candidate that was exported."""
    import h5py

    recipe = json.load(open(os.path.join(folder, "scout.json")))
    with h5py.File(run, "r") as f:
        corpus = next(n["result"] for n in f["nodes"].values() if n.attrs["type"] in (b"corpus", "corpus"))
        split = corpus[recipe["measured"]["set"]]
        windows = [ids[:n] for ids, n in zip(split["tokens"][:], split["length"][:])]
        for name, node in f["nodes"].items():
            if "result" not in node or "candidates" not in node["result"]:
                continue
            r = node["result"]
            if "kl_window" not in r["candidates"]:
                continue
            units, fmts = [u.decode() for u in r["units/name"][:]], [x.decode() for x in r["formats/name"][:]]
            wanted = [fmts.index(recipe["assignment"][u]) for u in units if recipe["assignment"][u] in fmts]
            rows = np.flatnonzero((r["candidates/assignment"][:] == wanted).all(1)) if len(wanted) == len(units) else []
            for row in rows:
                kl = r["candidates/kl_window"][row]
                if np.isfinite(kl).all():
                    return name, kl, windows, recipe["measured"]["numeric"]
    raise Failed(f"{run}: no node has measured this assignment in all windows")


def round_inputs(model, matrices, tensors, in_bf16):
    """Hooks that round what each linear layer sees by its format's rule; in_bf16: to bf16, too, as weights are."""
    import torch

    def hook(fmt, scale):
        def before(_, args):
            x = args[0].bfloat16().float() if in_bf16 else args[0]
            x = formats.round_input(fmt, x, scale) if fmt != "bf16" else x
            return (x.bfloat16().float() if in_bf16 else x, *args[1:])
        return before

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            stored = tensors.get(f"{name}.input_global_scale")
            scale = torch.from_numpy(np.frombuffer(stored[2], np.float32).copy()) if stored else None
            module.register_forward_pre_hook(hook(matrices.get(name, "bf16"), scale))
            if in_bf16:
                module.weight.data = module.weight.data.bfloat16().float()
    return model


def shake(model):
    """Inputs of the linear layers off by a random share of at most 2^-20, a few times what the order of a sum does."""
    import torch

    random = torch.Generator().manual_seed(1)

    def before(_, args):
        return (args[0] * (1 + 2.0**-20 * (2 * torch.rand(args[0].shape, generator=random) - 1)), *args[1:])
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(before, prepend=True)
    return model


def check_measured(folder, source, run, tensors, matrices, decoded):
    import torch

    def candidate(**rules):
        model = load_model(source, torch.float32)
        modules = dict(model.named_modules())
        for name, w in decoded.items():
            modules[name].weight = torch.nn.Parameter(torch.from_numpy(w.copy()), requires_grad=False)
        return round_inputs(model, rules.get("matrices", matrices), tensors, in_bf16)

    def kl_windows(model):
        with torch.no_grad():
            x = [torch.from_numpy(ids.astype(np.int64))[None] for ids in windows]
            return np.array([float(kl_rows(teacher(i).logits[0, :-1], model(i).logits[0, :-1]).mean()) for i in x])

    node, measured, windows, numeric = measured_row(run, folder)
    in_bf16 = not numeric.startswith("fp32")
    teacher = round_inputs(load_model(source, torch.float32), {}, {}, in_bf16)
    inputs = any(formats.FORMATS[f].inputs for f in matrices.values() if f != "bf16")
    theirs = kl_windows(candidate())
    apart = theirs - measured
    print(f"measured: {len(windows)} windows of '{node}' [{numeric}]: KL {measured.mean():.8f} nats, transformers "
          f"{theirs.mean():.8f}: at most {(np.abs(apart) / np.maximum(measured, 1e-9)).max():.2g} apart in a window")
    if not inputs and not in_bf16:
        limit = np.maximum(MOST_KL_DIFFERENCE * measured, 1e-7)
        check((np.abs(apart) <= limit).all(), "the KL of a window differs")
    else:
        draw = np.sqrt(((kl_windows(shake(candidate())) - theirs) ** 2).mean())
        alone = kl_windows(candidate(matrices={})).mean()
        apart = np.sqrt((apart**2).mean())
        print(f"measured: root mean square difference {apart:.3g}, of transformers to itself, shaken, "
              f"{draw:.3g}; with inputs left alone KL would be {alone:.8f}")
        limit = max(MOST_KL_DRAWS * draw, MOST_KL_DIFFERENCE * measured.mean())
        check(apart <= limit, "the KL of the windows differs")
    print("measured: ok")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", metavar="DIR")
    ap.add_argument("--source", required=True, help="the original model")
    ap.add_argument("--run", help="run.h5 of the run that exported it")
    ap.add_argument("--node", default="quantize", help="name of the quantize node in that run")
    ap.add_argument("--decoder", help="the program decode_export")
    ap.add_argument("--scout", help="the program scout")
    ap.add_argument("--dump", action="store_true", help="print every tensor with the SHA-256 of its bytes")
    ap.add_argument("--no-logits", action="store_true")
    a = ap.parse_args()
    try:
        tensors, matrices = check_structure(a.folder, a.source)
        if a.dump:
            for name, (dtype, shape, data) in sorted(tensors.items()):
                print(f"{hashlib.sha256(data).hexdigest()}  {dtype:<8} {'x'.join(map(str, shape)):<14} {name}")
        if a.run:
            check_codes(tensors, matrices, a.run, a.node)
        if a.decoder:
            with tempfile.TemporaryDirectory() as out:
                decoded = ours_decoded(a.decoder, a.folder, matrices, tensors, out)
            check_decoded(tensors, matrices, decoded)
            if a.scout:
                with tempfile.TemporaryDirectory() as out:
                    check_plain(a.scout, a.folder, tensors, decoded, os.path.join(out, "plain"))
            if not a.no_logits:
                check_logits(a.folder, a.source, matrices, decoded)
            if a.run and not a.no_logits:
                check_measured(a.folder, a.source, a.run, tensors, matrices, decoded)
    except Failed as e:
        print(f"FAIL: {e}")
        return 1
    print("all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
