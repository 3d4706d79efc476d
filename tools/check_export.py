#!/usr/bin/env python3
"""Check an exported directory with compressed-tensors, safetensors and transformers, none of which scout uses.

usage: check_export.py DIR --source MODEL [--run RUN.H5 [--node quantize]] [--decoder EXE] [--dump] [--no-logits]

  structure  every source tensor is there byte for byte, or replaced by exactly the tensors of its format; index,
             config, targets, ignore list, fused groups, digests in scout.json
  codes      with --run: codes and scales equal those of the renderings, byte for byte
  values     decoded by compressed-tensors in f32 against scout's decode (--decoder is the program
             tests/nodes/format/decode_export of a build folder) and against a second formula here; a table per format
  logits     transformers loads the directory, uses scout's decoded weights to the bit, and gives the logits of the
             source model with these weights put into it

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

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])
PARTS = {  # of a format: suffix -> dtype
    "nvfp4": {"weight_packed": "U8", "weight_scale": "F8_E4M3", "weight_global_scale": "F32",
              "input_global_scale": "F32"},
    "nvfp4_a16": {"weight_packed": "U8", "weight_scale": "F8_E4M3", "weight_global_scale": "F32"},
    "fp8": {"weight": "F8_E4M3", "weight_scale": "F32"},
}
FUSED = [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")]
MOST_LOGIT_DIFFERENCE = 1e-4  # of the logits' range: both sides are f32, with another order of sums


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
    """The format of a module by config.json alone: exact targets, then ignore."""
    quantization = config.get("quantization_config")
    found = []
    for group in (quantization or {"config_groups": {}})["config_groups"].values():
        if module in group["targets"]:
            if group["format"] == "float-quantized":
                found.append("fp8")
            else:
                found.append("nvfp4" if group["input_activations"] else "nvfp4_a16")
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
        if name.endswith("_proj.weight"):
            matrices[module] = fmt
        if fmt == "bf16":
            check(tensors.get(name) == (dtype, shape, data), f"{name} differs from the source")
            expected[name] = dtype
        else:
            n, k = shape
            shapes = {"weight_packed": [n, k // 2], "weight": [n, k], "weight_global_scale": [1],
                      "input_global_scale": [1], "weight_scale": [n, 1] if fmt == "fp8" else [n, k // 16]}
            for suffix, stored in PARTS[fmt].items():
                t = tensors.get(f"{module}.{suffix}")
                check(t and t[0] == stored and t[1] == shapes[suffix], f"{module}.{suffix}: {t and t[:2]}")
                expected[f"{module}.{suffix}"] = stored
    check(set(expected) == set(tensors), f"other tensors than expected: {set(expected) ^ set(tensors)}")
    for group in FUSED:
        for first in [m for m in matrices if m.endswith(group[0])]:
            for other in group[1:]:
                m = first.removesuffix(group[0]) + other
                check(matrices[m] == matrices[first], f"{m} has another format than {first}")
                for suffix in ("weight_global_scale", "input_global_scale"):
                    a, b = tensors.get(f"{first}.{suffix}"), tensors.get(f"{m}.{suffix}")
                    check(a == b, f"{suffix} of {m} and {first} differ")
    check_values_legal(tensors, matrices)
    for f in recipe["files"]:
        data = open(os.path.join(folder, f["name"]), "rb").read()
        check(hashlib.sha256(data).hexdigest() == f["sha256"] and len(data) == f["bytes"], f"{f['name']}: digest")
    payload = sum(len(tensors[n][2]) for n in expected if n.rsplit(".", 1)[0] in matrices)
    payload -= sum(len(tensors[n][2]) for n in expected if n.endswith(".bias"))
    check(payload == recipe["bytes"], f"the units take {payload} bytes, scout.json says {recipe['bytes']}")
    print(f"structure: {len(tensors)} tensors, {len(original)} in the source, {len(matrices)} matrices, "
          f"{recipe['bpp']:.4f} bpp: ok")
    return tensors, matrices


def check_values_legal(tensors, matrices):
    for module, fmt in matrices.items():
        for suffix, dtype in PARTS.get(fmt, {}).items():
            data = np.frombuffer(tensors[f"{module}.{suffix}"][2], np.uint8 if dtype != "F32" else np.float32)
            name = f"{module}.{suffix}"
            if dtype == "F8_E4M3":
                check(not np.any((data & 0x7F) == 0x7F), f"{name} has NaN")
                check(suffix == "weight" or (data < 0x80).all(), f"{name} has a negative scale")
            if dtype == "F32":
                check(np.isfinite(data).all() and (data > 0).all(), f"{name} has a scale that is not positive")


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
            for suffix, dtype in PARTS.get(fmt, {}).items():
                data = tensors[f"{module}.{suffix}"][2]
                if suffix == "input_global_scale":
                    theirs = np.float32(scales[units[unit_of[module]]]).tobytes()
                else:
                    part = next(p for p in parts if module in p)
                    theirs = part[f"{module}/{fmt}/{suffix}"][...].tobytes()
                check(data == theirs, f"{module}.{suffix}: bytes differ from the rendering's")
                n_bytes += len(data)
    print(f"codes: {n_bytes} bytes of codes and scales equal the renderings': ok")


def formula(fmt, parts):
    """Section 2 of the format specification, in numpy: f32, in scout's order."""
    e4m3 = np.array([(-1.0) ** (b >> 7) * ((b & 7) / 8 * 2.0**-6 if b >> 3 & 15 == 0 else
                     (1 + (b & 7) / 8) * 2.0 ** ((b >> 3 & 15) - 7)) for b in range(256)], np.float32)
    if fmt == "fp8":
        return e4m3[parts["weight"]] * parts["weight_scale"]
    n, half = parts["weight_packed"].shape
    codes = np.empty((n, 2 * half), np.uint8)
    codes[:, 0::2], codes[:, 1::2] = parts["weight_packed"] & 15, parts["weight_packed"] >> 4
    step = e4m3[parts["weight_scale"]] / parts["weight_global_scale"]
    return E2M1[codes] * np.repeat(step, 16, axis=1)


def decode_theirs(fmt, parts, scheme):
    """compressed-tensors' own unpacking and dequantization, kept in f32; and what its compressor returns as it is."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    state = {k: torch.from_numpy(v.copy()) for k, v in parts.items()}
    for k in state:
        if PARTS[fmt][k] == "F8_E4M3":
            state[k] = state[k].view(torch.float8_e4m3fn)
    if fmt == "fp8":
        wide = dequantize(state["weight"], state["weight_scale"], args=scheme.weights)
    else:
        n, half = parts["weight_packed"].shape
        codes = unpack_fp4_from_uint8(state["weight_packed"], n, 2 * half, dtype=torch.float32)
        wide = dequantize(codes, state["weight_scale"].float(), args=scheme.weights,
                          global_scale=state["weight_global_scale"], dtype=torch.float32)
    check(wide.dtype == torch.float32, f"compressed-tensors decodes {fmt} to {wide.dtype}")
    stock = BaseCompressor.get_value_from_registry(scheme.format).decompress(state, scheme)["weight"]
    return wide.numpy(), stock


def bf16_steps(a, b):
    """Distance in bf16 steps after rounding both to bf16."""
    def order(x):
        u = x.astype(np.float32).view(np.uint32).astype(np.int64)
        u = (u + 0x7FFF + (u >> 16 & 1)) >> 16
        return np.where(u & 0x8000, -(u & 0x7FFF), u)
    return np.abs(order(a) - order(b))


def ours_decoded(decoder, folder, matrices, tensors, out):
    subprocess.run([decoder, folder, out], check=True, stdout=subprocess.DEVNULL)
    decoded = {}
    for m in matrices:
        suffix = "weight_packed" if f"{m}.weight_packed" in tensors else "weight"
        n = tensors[f"{m}.{suffix}"][1][0]
        decoded[m] = np.fromfile(os.path.join(out, m + ".f32"), np.float32).reshape(n, -1)
    return decoded


def check_decoded(folder, tensors, matrices, decoded):
    """Prints the table of formats; returns the weights as compressed-tensors' compressors give them."""
    from compressed_tensors.quantization import QuantizationConfig

    config = json.load(open(os.path.join(folder, "config.json"))).get("quantization_config")
    schemes = {}
    if config:
        parsed = QuantizationConfig.model_validate({k: v for k, v in config.items() if k != "quant_method"})
        for scheme in parsed.config_groups.values():
            for target in scheme.targets:
                schemes[target] = scheme
    rows = {}
    for module, fmt in matrices.items():
        if fmt == "bf16":
            continue
        parts = {}
        for suffix, dtype in PARTS[fmt].items():
            stored, shape, data = tensors[f"{module}.{suffix}"]
            parts[suffix] = np.frombuffer(data, np.float32 if stored == "F32" else np.uint8).reshape(shape)
        theirs, stock = decode_theirs(fmt, parts, schemes[module])
        ours = decoded[module]
        check(np.array_equal(ours.view(np.uint32), formula(fmt, parts).view(np.uint32)), f"{module}: not the formula")
        row = rows.setdefault(fmt, [0, 0, 0, 0, 0, 0])
        row[0] += 1
        row[1] += ours.size
        row[2] += int((ours.view(np.uint32) == theirs.view(np.uint32)).sum())
        row[3] = max(row[3], int(bf16_steps(ours, theirs).max()))
        row[4] = max(row[4], int(bf16_steps(ours, stock.float().numpy()).max()))
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


def kl_nats(teacher, candidate):
    p, q = teacher.float().log_softmax(-1), candidate.float().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def check_logits(folder, source, decoded):
    """As a user loads it, in the model's own dtype; and unpacked in f32, weight by weight and by its logits."""
    import torch

    config = json.load(open(os.path.join(folder, "config.json")))
    ids = torch.arange(3, 3 + 64).remainder(config["vocab_size"]).repeat(2, 1)
    with torch.no_grad():
        plain, stored = load_model(source, torch.float32), load_model(folder, torch.float32)
        served = load_model(folder, "auto")
        before = plain(ids).logits
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
    print("logits: ok")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", metavar="DIR")
    ap.add_argument("--source", required=True, help="the original model")
    ap.add_argument("--run", help="run.h5 of the run that exported it")
    ap.add_argument("--node", default="quantize", help="name of the quantize node in that run")
    ap.add_argument("--decoder", help="the program decode_export")
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
            check_decoded(a.folder, tensors, matrices, decoded)
            if not a.no_logits:
                check_logits(a.folder, a.source, decoded)
    except Failed as e:
        print(f"FAIL: {e}")
        return 1
    print("all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
