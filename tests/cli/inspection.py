#!/usr/bin/env python3
"""`scout inspect` on checkpoints of every scheme: sound ones must be found sound, and every way to be wrong must be
found under the number of its check, with no errors under others.

usage: inspection.py SCOUT
"""
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile

import checkpoint as c
from checkpoint import Tensor, floats, ints

Q, K, V, O = (f"model.layers.0.self_attn.{x}_proj" for x in "qkvo")     # nvfp4, nvfp4_a16
GATE, UP, DOWN = (f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down"))  # mxfp4, fp8
L1, L2, L3 = "model.layers.1.", "model.layers.2.", "model.layers.3."
Q1, O1, GATE1, UP1, DOWN1 = (L1 + x for x in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
                                              "mlp.down_proj"))          # int4_g32, mxfp8, fp8_block, int8_a16
Q2, O2 = L2 + "self_attn.q_proj", L2 + "self_attn.o_proj"                # int8, int4_g64
Q3 = L3 + "self_attn.q_proj"                                             # bf16


class Runs:
    def __init__(self, scout):
        self.scout, self.base = scout, tempfile.mkdtemp(prefix="scout-inspect-")
        self.n = self.failed = 0

    def inspect(self, folder, *options):
        done = subprocess.run([self.scout, "inspect", folder, "--json", *options], capture_output=True, text=True,
                              timeout=120, check=False)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    def fail(self, name, text, events=()):
        self.failed += 1
        print(f"FAILED {name}: {text}")
        for e in events:
            if e["event"] in ("finding", "error"):
                print("   ", json.dumps(e, ensure_ascii=False))

    def folder(self, ck):
        path = os.path.join(self.base, str(self.n))
        if os.path.exists(path):
            shutil.rmtree(path)
        if isinstance(ck, c.Checkpoint):
            ck.write(path)
        else:
            ck(path)
        return path

    def sound(self, name, ck, *options, warnings=0, run=None):
        """No errors, so many warnings; `run`: what the checks' `run` are, by number."""
        self.n += 1
        path = self.folder(ck)
        code, events, err = self.inspect(path, *options)
        end = events[-1] if events else {}
        if code != 0 or end.get("errors") != 0 or end.get("warnings") != warnings:
            self.fail(name, f"exit {code}, {end}, {err}", events)
        for number, how in (run or {}).items():
            got = [e["run"] for e in events if e["event"] == "check" and e["check"] == number]
            if got != [how]:
                self.fail(name, f"check {number} run: {got}, expected {how}", events)
        shutil.rmtree(path)
        return events

    def broken(self, name, ck, checks, place="", found="", options=(), severity="error"):
        """Findings of that severity under exactly these checks; one of the first has `place` and `found` in it."""
        self.n += 1
        path = self.folder(ck)
        code, events, err = self.inspect(path, *options)
        got = {e["check"] for e in events if e["event"] == "finding" and e["severity"] == severity}
        errors = events[-1].get("errors", -1) if events else -1
        hit = any(e["event"] == "finding" and e["check"] == checks[0] and place in e["place"] and found in e["found"]
                  for e in events)
        wanted = 1 if severity == "error" else 0
        if code != wanted or got != set(checks) or not hit or (severity == "warning" and errors):
            self.fail(name, f"exit {code}, {severity}s of checks {sorted(got)}, expected {checks} at '{place}' with "
                      f"'{found}' {err}", events)
        shutil.rmtree(path)


# ----------------------------------------------------------------------------------------------------- ways to be wrong

def tensor(name, change):
    """`change` takes the tensor and returns another, or None to take it away."""
    def do(ck):
        t = change(ck.tensors[name])
        if t is None:
            del ck.tensors[name]
        else:
            ck.tensors[name] = t
    return do


def patch(name, at, new):
    return tensor(name, lambda t: t.patched(at, bytes.fromhex(new)))


def drop(name):
    return tensor(name, lambda t: None)


def add(name, t):
    return lambda ck: ck.tensors.update({name: t})


def setting(path, value):
    """Set a member of config.json; DROP takes it away. Groups may be meant by the scheme's place in LAYERS."""
    def do(ck):
        at = ck.config
        for key in path[:-1]:
            at = at[key]
        if value is DROP:
            del at[path[-1]]
        else:
            at[path[-1]] = value
    return do


DROP = object()
QC = ("quantization_config",)
GROUPS = QC + ("config_groups",)


def group_of(ck, module):
    return next(g for g in ck.quant["config_groups"].values() if module in g["targets"])


def retarget(module, new):
    """Another text in place of a module's target; None takes it away."""
    def do(ck):
        targets = group_of(ck, module)["targets"]
        at = targets.index(module)
        targets[at:at + 1] = [] if new is None else [new]
    return do


def arg(module, part, key, value):
    def do(ck):
        group_of(ck, module)[part][key] = value
    return do


def member(module, key, value):
    def do(ck):
        group_of(ck, module)[key] = value
    return do


def move(module, other):
    """A module's target goes to the group of another."""
    def do(ck):
        g = group_of(ck, other)
        group_of(ck, module)["targets"].remove(module)
        g["targets"].append(module)
    return do


def ignore(*names):
    return lambda ck: ck.quant["ignore"].extend(names)


def both(*changes):
    def do(ck):
        for change in changes:
            change(ck)
    return do


def scaled(name, factor):
    """An F32 or BF16 tensor times a factor."""
    def change(t):
        if t.dtype == "F32":
            values = struct.unpack(f"<{len(t.data) // 4}f", t.data)
        else:
            values = [struct.unpack("<f", b"\0\0" + t.data[i:i + 2])[0] for i in range(0, len(t.data), 2)]
        return floats([factor(v) for v in values], t.shape, t.dtype)
    return tensor(name, change)


def as_dtype(name, dtype):
    return tensor(name, lambda t: Tensor(dtype, t.shape, t.data))


def shape(name, new):
    return tensor(name, lambda t: Tensor(t.dtype, new, t.data))


BOMB = "re:(?:.|.)*[XY]$"
# name, change, checks with errors, part of the place, part of what was found
ERRORS = [
    ("a tensor of the source is missing", drop("model.norm.weight"), [1], "model.norm", "missing"),
    ("a tensor that the source has not", add("model.extra.weight", floats([1.0], [1])), [1], "model.extra", "source"),
    ("a tensor of the scheme is missing", drop(DOWN + ".weight_scale"), [1], DOWN + ".weight_scale", "missing"),
    ("an unknown tensor of a module", add(Q + ".weight_wisdom", floats([1.0], [1])), [1], Q + ".weight_wisdom", ""),
    ("codes of a module are missing", drop(Q + ".weight_packed"), [2, 3], Q, "no scheme"),

    ("another scheme's target", move(DOWN, Q2), [2, 9], DOWN, "int8 by the configuration, fp8 by its tensors"),
    ("no target for a packed module", retarget(O, None), [2, 9], O, "plain by the configuration"),
    ("a packed module in ignore", both(retarget(O, None), ignore(O)), [2, 9], O, "plain by the configuration"),
    ("target and ignore", ignore(O), [2], O, "both"),
    ("a target of two groups", lambda ck: group_of(ck, Q2)["targets"].append(O), [2], O, ""),
    ("a target that nothing matches", lambda ck: group_of(ck, O)["targets"].append("model.layers.9.x"), [2], "layers.9",
     "none"),
    ("a pattern that nothing matches", lambda ck: group_of(ck, O)["targets"].append("re:^layers[.]0"), [2],
     "re:^layers", "none"),
    ("one of two patterns too many", both(retarget(O, "re:.*layers[.]0[.]self_attn[.]o_proj$"),
                                          lambda ck: group_of(ck, DOWN)["targets"].append("re:.*0[.].*[.]o_proj$")),
     [2], O, "re:"),
    ("some shards of a fused layer in ignore", both(retarget(K, None), ignore(K)), [2], "qkv_proj", "some of them"),
    ("a plain module with a target", lambda ck: group_of(ck, DOWN)["targets"].extend(
        f"{L3}self_attn.{x}_proj" for x in "qkv") or [ck.quant["ignore"].remove(f"{L3}self_attn.{x}_proj")
                                                      for x in "qkv"], [2], Q3, "fp8 by the configuration"),
    ("a table of embeddings with a target", lambda ck: group_of(ck, DOWN)["targets"].append("re:.*embed_tokens$"), [2],
     "embed_tokens", "fp8"),

    ("fused shards in two schemes", both(move(K, DOWN), drop(K + ".weight_packed"), drop(K + ".weight_scale"),
                                         drop(K + ".weight_global_scale"), drop(K + ".input_global_scale"),
                                         lambda ck: ck.tensors.update({
                                             K + ".weight": Tensor("F8_E4M3", [64, 128], bytes([0x38]) * 8192),
                                             K + ".weight_scale": floats([1.0] * 64, [64, 1], "F32")})),
     [2, 3, 7], "", ""),
    ("global scales of fused shards differ", patch(K + ".weight_global_scale", 0, "00"), [3], "qkv_proj",
     "weight_global_scale"),
    ("input scales of fused shards differ", patch(V + ".input_global_scale", 0, "01"), [3], "qkv_proj",
     "input_global_scale"),

    ("a block scale in U8", as_dtype(Q + ".weight_scale", "U8"), [4], Q + ".weight_scale", "U8"),
    ("an MX scale in F8_E8M0", as_dtype(GATE + ".weight_scale", "F8_E8M0"), [4], GATE + ".weight_scale", "F8_E8M0"),
    ("a flat channel scale", shape(DOWN + ".weight_scale", [128]), [4], DOWN + ".weight_scale", "[128]"),
    ("a global scale without a dimension", shape(Q + ".weight_global_scale", []), [4],
     Q + ".weight_global_scale", "[]"),
    ("a packed scale in F32", tensor(Q1 + ".weight_scale", lambda t: Tensor("F32", t.shape, bytes(2 * len(t.data)))),
     [4], Q1 + ".weight_scale", "F32"),
    ("a packed scale in F16", as_dtype(Q1 + ".weight_scale", "F16"), [4, 7], Q1 + ".weight_scale", "F16"),
    ("weight_shape says something else", tensor(Q1 + ".weight_shape", lambda t: ints([128, 100])), [4],
     Q1 + ".weight_shape", "[128, 100]"),
    ("a bias of the wrong length", add(O + ".bias", floats([0.0] * 64, [64])), [4, 1], O + ".bias", "[64]"),
    ("another shape than in the source", both(shape(Q2 + ".weight", [64, 256]), shape(Q2 + ".weight_scale", [128, 1])),
     [4], Q2, "[64, 256]"),

    ("a zero point", add(Q1 + ".weight_zero_point", Tensor("I32", [16, 4], bytes(256))), [5], "zero_point", ""),
    ("g_idx", add(Q1 + ".weight_g_idx", Tensor("I32", [128], bytes(512))), [5], "g_idx", ""),
    ("an input scale", add(DOWN + ".input_scale", floats([1.0], [1], "F32")), [5], "input_scale", ""),
    ("the plain weight beside the packed one", add(O + ".weight", floats([0.0] * 128 * 128, [128, 128])), [5],
     O + ".weight", ""),
    ("W4A4 without its input's scale", drop(Q + ".input_global_scale"), [5], Q + ".input_global_scale", "missing"),
    ("W4A16 with an input's scale", add(O + ".input_global_scale", floats([1.0], [1], "F32")), [5],
     O + ".input_global_scale", ""),

    ("a global scale of zero", scaled(O + ".weight_global_scale", lambda v: 0.0), [6], O, "global_scale is 0"),
    ("a global scale that is NaN", patch(O + ".weight_global_scale", 0, "0000c07f"), [6], O, "nan"),
    ("the reciprocal of a global scale", scaled(O + ".weight_global_scale", lambda v: 1 / v), [6, 7], O, "product"),
    ("a global scale of another amax", scaled(O + ".weight_global_scale", lambda v: v * 1.02), [6], O, "product"),
    ("an input scale that is infinite", both(*(patch(x + ".input_global_scale", 0, "0000807f") for x in (Q, K, V))),
     [6], Q, "inf"),
    ("an FP8 code that is NaN", patch(DOWN + ".weight", 130, "7f"), [6], DOWN, "first in row 1"),
    ("a tile's FP8 code that is NaN", patch(GATE1 + ".weight", 5, "ff"), [6], GATE1, "1 of them"),
    ("a negative block scale", patch(O + ".weight_scale", 9, "b8"), [6], O, "first in row 1"),
    ("a block scale that is NaN", patch(O + ".weight_scale", 0, "7f"), [6], O, "1 others"),
    ("an MX scale that is NaN", patch(GATE + ".weight_scale", 3, "ff"), [6], GATE, "1 others"),
    ("a channel scale of zero", patch(DOWN + ".weight_scale", 4, "00000000"), [6, 7], DOWN, "first in row 1"),
    ("a negative channel scale", patch(Q2 + ".weight_scale", 3, "bc"), [6, 7], Q2, "first in row 0"),
    ("a group scale that is infinite", patch(Q1 + ".weight_scale", 8, "807f"), [6], Q1, "first in row 1"),

    ("nibbles the other way round", tensor(GATE + ".weight_packed", lambda t: Tensor(
        t.dtype, t.shape, bytes((b >> 4 | b << 4) & 255 for b in t.data))), [7], GATE, "others, the first is 0"),
    ("scales as divisors", scaled(DOWN + ".weight_scale", lambda v: f32(1 / v)), [7], DOWN, "the first is 0"),
    ("a row of zeros", tensor(DOWN + ".weight", lambda t: t.patched(5 * 128, bytes(128))), [7], DOWN, "the first is 5"),
    ("a row's sign", tensor(Q2 + ".weight", lambda t: t.patched(128, bytes((256 - b) & 255 for b in t.data[128:256]))),
     [7], Q2, "the first is 1"),
    ("rows in another order", tensor(O1 + ".weight", lambda t: Tensor(t.dtype, t.shape, t.data[128:] + t.data[:128])),
     [7], O1, "128 are others"),
    ("codes of integers with the wrong sign", tensor(DOWN1 + ".weight_packed", lambda t: Tensor(
        t.dtype, t.shape, bytes(b ^ 0x80 for b in t.data))), [7], DOWN1, "the first is 0"),

    ("a norm that was changed", patch("model.norm.weight", 3, "40"), [8], "model.norm.weight", "bytes differ"),
    ("a plain matrix that was changed", patch(Q3 + ".weight", 1000, "1234"), [8], Q3, "bytes differ"),
    ("a norm in another dtype", tensor("model.norm.weight", lambda t: floats([1.0] * 128, [128])), [8], "model.norm",
     "dtype"),

    ("config.json is a list", lambda ck: ck.files.update({"config.json": b"[1]"}), [9], "config.json", "another value"),
    ("config.json is no JSON", lambda ck: ck.files.update({"config.json": b"{\"a\": }"}), [9], "config.json", "JSON"),
    ("config.json is nested deep", lambda ck: ck.files.update({"config.json": b"[" * 100000}), [9], "config.json",
     "deeper"),
    ("quantization_config is a text", setting(QC, "yes"), [9], "quantization_config", "yes"),
    ("another method", setting(QC + ("quant_method",), "gptq"), [9], "quantization_config", "gptq"),
    ("status frozen", setting(QC + ("quantization_status",), "frozen"), [9], "", "frozen"),
    ("no groups", setting(GROUPS, DROP), [9, 2], "", "config_groups"),
    ("a key that nobody knows", arg(DOWN, "weights", "bits", 8), [9], "weights", "`bits`"),
    ("a member that nobody knows", member(DOWN, "target", []), [9], "group_", "`target`"),
    ("num_bits is a text", arg(DOWN, "weights", "num_bits", "8"), [9], "weights", "num_bits"),
    ("strategy group without its size", arg(Q1, "weights", "group_size", None), [9], "weights", "group"),
    ("token without dynamic", arg(DOWN, "input_activations", "dynamic", False), [9], "input_activations", "token"),
    ("no format with mixed ones", member(DOWN, "format", None), [9], "group_", "none"),
    ("mixed-precision in a group", member(DOWN, "format", "mixed-precision"), [9], "group_", "mixed"),
    ("another scheme's format", member(DOWN, "format", "int-quantized"), [9], "group_", "int-quantized"),
    ("W8A16 that is not packed", both(member(Q2, "input_activations", None)), [9], "group_", "pack-quantized"),
    ("MXFP8 without scale_dtype", arg(O1, "weights", "scale_dtype", None), [9], "group_", "MXFP8"),
    ("W4A4 with dynamic inputs", arg(Q, "input_activations", "dynamic", True), [9], "group_", "W4A4"),
    ("a cache scheme of integers", setting(QC + ("kv_cache_scheme",), {"num_bits": 8, "type": "int", "dynamic": False}),
     [9], "kv_cache", ""),
    ("sparsity", setting(QC + ("sparsity_config",), {"format": "sparse-24-bitmask", "targets": ["Linear"]}), [9], "",
     ""),
    ("targets is a text", member(DOWN, "targets", DOWN), [9, 2], "group_", "targets"),
    ("a pattern that is none", both(retarget(DOWN, "re:(model"),
                                    lambda ck: group_of(ck, "re:(model")["targets"].append(DOWN)), [9],
     "re:(model", ""),
    ("a pattern of PCRE2 and not of Python", ignore("re:(*LIMIT_MATCH=1)x"), [9], "re:(*", "repeats"),
    ("a pattern without end", ignore(BOMB), [9], "re:(?:.|.)", "given up"),

    ("a tied head with tensors", both(lambda ck: group_of(ck, DOWN)["targets"].append("re:.*lm_head$"),
                                      lambda ck: ck.quant["ignore"].remove("lm_head"),
                                      add("lm_head.weight", Tensor("F8_E4M3", [32, 128], bytes([0x38]) * 4096)),
                                      add("lm_head.weight_scale", floats([1.0] * 32, [32, 1], "F32"))), [10, 1],
     "lm_head", "some"),
    ("a target for a tied head", both(lambda ck: group_of(ck, DOWN)["targets"].append("re:.*(lm_head|down_proj)$"),
                                      retarget(DOWN, None), lambda ck: ck.quant["ignore"].remove("lm_head")), [10, 2],
     "lm_head", "target"),
    ("no head", setting(("tie_word_embeddings",), False), [10], "lm_head", "no tensors"),
    ("two opinions on tying", setting(("text_config",), {"tie_word_embeddings": False}), [10], "config.json", "differ"),
    ("a drafter without tensors", setting(("mtp_num_hidden_layers",), 1), [10], "config.json", "there are none"),
    ("no tokenizer", lambda ck: ck.files.pop("tokenizer.json"), [10], "tokenizer.json", "missing"),
    ("no generation_config", lambda ck: ck.files.pop("generation_config.json"), [10], "generation_config", "missing"),
    ("vision without its preprocessor", setting(("vision_config",), {}), [10], "", "a model that sees"),
]
WARNINGS = [
    ("a global scale that was rounded", scaled(O + ".weight_global_scale", lambda v: v * 1.002), [6], O, "product"),
    ("a plain module that nobody lists", lambda ck: ck.quant["ignore"].clear(), [2], Q3, "none"),
    ("small block scales", patch(O + ".weight_scale", 0, "07"), [6], O, "1 of 1024"),
    ("groups in another order", lambda ck: ck.quant["config_groups"].update(
        {"aa": ck.quant["config_groups"].pop("group_00")}), [9], "config_groups", "'aa'"),
    ("another overall format", setting(QC + ("format",), "pack-quantized"), [9], "", "pack-quantized"),
    ("an observer of dynamic inputs", arg(DOWN, "input_activations", "observer", "minmax"), [9], "", "observer"),
    ("no status", setting(QC + ("quantization_status",), DROP), [9], "", "quantization_status"),
    ("output_activations", member(DOWN, "output_activations", {"num_bits": 8}), [9], "", "outputs"),
    ("a transform", setting(QC + ("transform_config",), {"config_groups": {}}), [9], "", "there is one"),
    ("scales of the cache without a scheme", None, [5], "k_scale", ""),
    ("a member of config.json that differs", setting(("rope_theta",), 2.0), [10], "config.json", "rope_theta"),
    ("a side file that differs", lambda ck: ck.files.update({"generation_config.json": b"{}"}), [10],
     "generation_config", "differs"),
    ("another tool's configuration", lambda ck: ck.files.update({"hf_quant_config.json": b"{}"}), [10],
     "hf_quant_config", ""),
]


def f32(x):
    return c.f32(x)


def whole(runs, ck, source_dir, source):
    """The checkpoint of all schemes: sound with and without its source, in one file or five, and under shards."""
    opts = ("--source", source_dir)
    events = runs.sound("all schemes", ck, *opts, run={i: "yes" for i in (1, 2, 3, 4, 5, 6, 7, 8, 10, 11)})
    units = {e["unit"]: e for e in events if e["event"] == "unit"}
    for i, layer in enumerate(c.LAYERS):
        for unit, scheme in layer.items():
            got = units.get(f"model.layers.{i}.{c.UNITS[unit]}", {})
            if got.get("scheme") != scheme or (scheme != "bf16" and not 0.001 < got["error"] < 0.16):
                runs.fail("schemes", f"layer {i}, {unit}: {got}, expected {scheme}")
    end = events[-1]
    if end["unit_bytes"] != ck.recipe["bytes"] or abs(end["bpp"] - ck.recipe["bpp"]) > 1e-9:
        runs.fail("bytes", f"{end}, expected {ck.recipe['bytes']}, {ck.recipe['bpp']}")
    runs.sound("without source", ck, run={1: "partly", 7: "partly", 8: "no", 9: "partly", 10: "partly"})
    both_ways = c.with_recipe(ck.copy(), ck.recipe)
    runs.sound("with scout.json", both_ways, run={1: "yes", 8: "yes", 9: "yes"})
    runs.sound("with scout.json and source", both_ways, *opts, run={i: "yes" for i in range(1, 12)})
    sharded = ck.copy()
    sharded.shards = 5
    runs.sound("five files", sharded, *opts)
    bf16_scales, _ = c.llama([{"qkv": "fp8", "o": "int8", "gate_up": "bf16", "down": "fp8_block"}], seed=3)
    for module, encoder in ((Q, c.fp8), (K, c.fp8), (V, c.fp8), (O, c.int8)):
        rows = decode_rows(source, module)
        bf16_scales.tensors.update({f"{module}.{s}": t for s, t in encoder(rows, "BF16").items()})
    runs.sound("channel scales in BF16", bf16_scales)
    plain = source.copy()
    runs.sound("the source itself", plain, run={2: "no", 8: "no"})
    runs.sound("the source against itself", plain, *opts, run={2: "no", 8: "yes"})
    dealt, _ = c.llama([{"qkv": "nvfp4", "o": "int4_g64", "gate_up": "fp8", "down": "mxfp4"}])
    runs.sound("ranks that fit", dealt, "--tp", "1,2")
    runs.broken("groups that ranks cut", dealt, [4], O, "over 4 ranks, groups of 64", ("--tp", "2", "--tp", "4"))
    runs.broken("heads that ranks do not share", dealt, [4], K, "over 3 ranks", ("--tp", "3"))
    runs.broken("tiles that ranks cut", ck, [4], GATE1, "64 rows on each of 2 ranks", ("--tp", "2"))


def decode_rows(source, module):
    t = source.tensors[module + ".weight"]
    values = [struct.unpack("<f", b"\0\0" + t.data[i:i + 2])[0] for i in range(0, len(t.data), 2)]
    return [values[i * t.shape[1]:(i + 1) * t.shape[1]] for i in range(t.shape[0])]


def mutations(runs, ck, source_dir):
    for severity, table in (("error", ERRORS), ("warning", WARNINGS)):
        for name, change, checks, place, found in table:
            changed = ck.copy()
            options = ("--source", source_dir)
            if change is None:
                changed.tensors["model.layers.0.self_attn.k_scale"] = floats([1.0], [1], "F32")
                options = ()
            else:
                change(changed)
            runs.broken(name, changed, checks, place, found, options, severity)


# ---------------------------------------------------------------------------------------------------- files and headers

def raw(ck, change):
    """The directory with model.safetensors as `change` makes it from its bytes."""
    def write(folder):
        ck.write(folder)
        path = os.path.join(folder, "model.safetensors")
        with open(path, "rb") as f:
            data = f.read()
        ck.put(folder, "model.safetensors", change(data))
    return write


def header(change):
    """`change` edits the parsed header; the data stay."""
    def do(data):
        n = struct.unpack("<Q", data[:8])[0]
        parsed = json.loads(data[8:8 + n])
        text = change(parsed)
        text = (json.dumps(parsed) if text is None else text).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data[8 + n:]
    return do


def entry(name, key, value):
    def change(parsed):
        parsed[name][key] = value
    return header(change)


def index(change):
    def write(folder, ck):
        ck.write(folder)
        path = os.path.join(folder, "model.safetensors.index.json")
        with open(path, encoding="utf-8") as f:
            parsed = json.load(f)
        text = change(parsed)
        ck.put(folder, "model.safetensors.index.json", (json.dumps(parsed) if text is None else text).encode())
    return write


NORM = "model.norm.weight"


def files(runs):
    small, _ = c.llama([{"qkv": "fp8", "o": "bf16", "gate_up": "bf16", "down": "bf16"}])
    n = len(small.file_bytes(small.tensors))
    twice = '{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": {"dtype": "U8", "shape": [0], ' \
            '"data_offsets": [0, 0]}}'
    cases = [
        ("data off the multiple of 8", lambda d: small.file_bytes(small.tensors, pad=False), "", "begin at byte"),
        ("padding that is no space", lambda d: d[:8] + d[8:].replace(b"}} ", b"}}\n", 1) if b"}} " in d else
         struct.pack("<Q", struct.unpack("<Q", d[:8])[0] + 8) + d[8:8 + struct.unpack("<Q", d[:8])[0]] + b"\n" * 8 +
         d[8 + struct.unpack("<Q", d[:8])[0]:], "model.safetensors", "0x0a"),
        ("bytes behind the last tensor", lambda d: d + bytes(8), "model.safetensors", "8 bytes"),
        ("cut off", lambda d: d[:n - 1], NORM, "which have"),
        ("a header longer than the file", lambda d: struct.pack("<Q", n) + d[8:], "model.safetensors", "announce"),
        ("a header of 2^63 bytes", lambda d: struct.pack("<Q", 1 << 63) + d[8:], "model.safetensors", "announce"),
        ("an empty file", lambda d: b"", "model.safetensors", "0 bytes"),
        ("a header that is a list", header(lambda h: "[]"), "model.safetensors", "begin with"),
        ("a header with a fault", header(lambda h: json.dumps(h)[:-5]), "model.safetensors", "JSON"),
        ("a name twice", lambda d: struct.pack("<Q", len(twice)) + twice.encode(), "a", "stands in"),
        ("an unknown dtype", entry(NORM, "dtype", "F128"), NORM, "F128"),
        ("a dtype that is a number", entry(NORM, "dtype", 7), NORM, "no text"),
        ("a negative dimension", entry(NORM, "shape", [-128]), NORM, "shape"),
        ("a fraction of a dimension", entry(NORM, "shape", [128.0]), NORM, "shape"),
        ("a shape that overflows", entry(NORM, "shape", [1 << 62, 8]), NORM, "no such size"),
        ("nine dimensions", entry(NORM, "shape", [1] * 9), NORM, "shape"),
        ("a shape of other bytes", entry(NORM, "shape", [127]), NORM, "508 bytes wanted"),
        ("negative offsets", entry(NORM, "data_offsets", [-512, 0]), NORM, "data_offsets"),
        ("offsets the wrong way round", entry(NORM, "data_offsets", [512, 0]), NORM, "offsets [512, 0]"),
        ("three offsets", entry(NORM, "data_offsets", [0, 512, 1]), NORM, "data_offsets"),
        ("an entry that is a list", header(lambda h: h.update({NORM: [1]})), NORM, "none"),
        ("an overlap", entry(NORM, "data_offsets", [0, 512]), "model.embed_tokens", "overlap"),
        ("a hole", header(lambda h: h.pop("model.layers.0.input_layernorm.weight") and None),
         "post_attention_layernorm", "a hole of 256"),
        ("metadata that is a number", header(lambda h: h.update({"__metadata__": 1})), "model.safetensors", "metadata"),
        ("deep nesting", header(lambda h: '{"a":' + "[" * 5000), "model.safetensors", "deeper"),
        ("not UTF-8", lambda d: d[:20] + b"\xff" + d[21:], "model.safetensors", "UTF-8"),
    ]
    for name, change, place, found in cases:
        runs.broken_files(name, raw(small, change), place, found)
    runs.broken("no metadata", raw(small, header(lambda h: h.pop("__metadata__") and None)), [1], "model.safetensors",
                "metadata", severity="warning")
    sharded = small.copy()
    sharded.shards = 2
    first = "model-00001-of-00002.safetensors"
    for name, change, checks, place, found in [
            ("the index lacks a tensor", lambda i: i["weight_map"].pop(NORM) and None, [1], NORM, "not in the index"),
            ("the index has one too many", lambda i: i["weight_map"].update(x=first), [1], "x", "is not"),
            ("the index has it elsewhere", lambda i: i["weight_map"].update({NORM: first}), [1], NORM, "it is in"),
            ("a file outside", lambda i: i["weight_map"].update({NORM: "../x.safetensors"}), [1], "index", "../x"),
            ("a file that is a number", lambda i: i["weight_map"].update({NORM: 5}), [1], "index", "no text"),
            ("a file that is not there", lambda i: i["weight_map"].update({"x": "x.safetensors"}), [1],
             "x.safetensors", "No such file"),
            ("another total", lambda i: i["metadata"].update(total_size=5), [1], "index", "`total_size` is 5"),
            ("no weight_map", lambda i: i.pop("weight_map") and None, [1], "index", "none"),
            ("the index is a number", lambda i: "5", [1], "index", ""),
            ("the index is cut off", lambda i: json.dumps(i)[:-9], [1], "index", "JSON")]:
        runs.broken(name, lambda folder, f=index(change): f(folder, sharded), checks, place, found)

    def stale(folder, name):
        sharded.write(folder)
        small.put(folder, name, small.file_bytes({"x": floats([1.0], [1])}))
    runs.broken("a stale file", lambda f: stale(f, "model-00003-of-00003.safetensors"), [10], "model-00003",
                "it is there")
    runs.broken("one file beside the index", lambda f: stale(f, "model.safetensors"), [10], "model.safetensors", "")

    def twice_there(folder):
        sharded.write(folder)
        parts = [n for n in sharded.tensors]
        t = {parts[0]: sharded.tensors[parts[0]], **{n: sharded.tensors[n] for n in parts[-(len(parts) // 2):]}}
        small.put(folder, "model-00002-of-00002.safetensors", small.file_bytes(t))
    runs.broken("a tensor in two files", twice_there, [1], "model.embed_tokens", "stands in")

    def no_index(folder):
        sharded.write(folder)
        os.remove(os.path.join(folder, "model.safetensors.index.json"))
    runs.broken("two files and no index", no_index, [1], ".", "no index")

    def renamed(folder):
        small.write(folder)
        os.rename(os.path.join(folder, "model.safetensors"), os.path.join(folder, "weights.safetensors"))
    runs.broken("one file by another name", renamed, [1], "weights.safetensors", "another name")

    def no_weights(folder):
        small.write(folder)
        os.remove(os.path.join(folder, "model.safetensors"))
    runs.broken("no weights", no_weights, [1], ".", "there is no")


def recipes(runs, ck, source_dir):
    """scout.json: digests, sizes and the assignment that it claims."""
    def with_change(change):
        recipe = json.loads(json.dumps(ck.recipe))
        change(recipe)
        return c.with_recipe(ck.copy(), recipe)
    runs.broken("another digest", with_change(lambda r: r["source_tensors"].update({NORM: "0" * 64})), [8], NORM,
                "SHA-256")
    runs.broken("a tensor of the source is missing", with_change(lambda r: r["source_tensors"].update(x="0" * 64)), [1],
                "x", "missing")
    runs.broken("a tensor without source", with_change(lambda r: r["source_tensors"].pop(NORM)), [1], NORM, "nothing")
    runs.broken("other bytes", with_change(lambda r: r.update(bytes=5)), [9], "scout.json", "`bytes` is 5")
    runs.broken("other bits", with_change(lambda r: r.update(bpp=5.0)), [9], "scout.json", "`bpp` is 5")
    runs.broken("another format", with_change(lambda r: r["assignment"].update({O: "nvfp4"})), [9], O, "nvfp4_a16")
    runs.broken("a unit that is not there", with_change(lambda r: r["assignment"].update(x="fp8")), [9], "x",
                "not there")
    x = with_change(lambda r: None)
    scaled(O + ".weight_global_scale", lambda v: v * 1.002)(x)
    runs.broken("a global scale that scout would not write", x, [6], O, "product", ("--source", source_dir))
    other = c.llama(c.LAYERS, seed=9)[1]
    other_dir = os.path.join(runs.base, "other")
    other.write(other_dir)
    runs.broken("another source than scout.json lists", with_change(lambda r: None), [8], "", "not what the checkpoint",
                ("--source", other_dir))
    runs.broken("the model that was rotated", with_change(lambda r: r["recipe"].append({"type": "rotate"})), [8], "",
                "give the rotated model", ("--source", other_dir))
    some = with_change(lambda r: r.update(assignment={O: "nvfp4_a16"}, bytes=len(ck.tensors[O + ".weight_packed"].data) +
                                          1028, bpp=8 * 9220 / 16384))
    end = runs.sound("units that scout.json assigns", some)[-1]
    if end["unit_bytes"] != 9220 or end["unit_parameters"] != 16384:
        runs.fail("units that scout.json assigns", str(end))
    good = [{"name": n, "bytes": len(d), "sha256": c.sha256(d)} for n, d in c.SIDE.items()]
    runs.sound("listed files", with_change(lambda r: r.update(files=good)))
    for name, change, found in (("a changed file", {"sha256": "0" * 64}, "SHA-256"),
                                ("a longer file", {"bytes": 1}, "size"),
                                ("a missing file", {"name": "gone.json"}, "missing")):
        runs.broken(name, with_change(lambda r, x=change: r.update(files=[{**good[0], **x}])), [10], "", found)
    runs.broken("scout.json is cut off", ck_with(ck, "scout.json", b"{"), [10], "scout.json", "JSON")


def ck_with(ck, name, data):
    other = ck.copy()
    other.files[name] = data
    return other


# ------------------------------------------------------------------------------------------------- other architectures

def foreign():
    """As llm-compressor writes them: a class for a target, one group, no scout.json."""
    ck, source = c.llama([{"qkv": "nvfp4", "o": "nvfp4", "gate_up": "nvfp4", "down": "nvfp4"}])
    g = c.group("nvfp4", ["Linear"])
    ck.config["quantization_config"] = c.quantization({}, ["lm_head"])
    ck.quant.update(format="nvfp4-pack-quantized", config_groups={"group_0": g})
    return ck, source


QWEN = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "dtype": "bfloat16",
        "text_config": {"mtp_num_hidden_layers": 1, "tie_word_embeddings": False}, "vision_config": {"depth": 1}}


def qwen():
    """A vision-language model with gated delta nets, experts, a drafter and a quantized head; its source has the
    experts of a layer in one tensor."""
    rng = random.Random(5)
    ck, source = c.Checkpoint(json.loads(json.dumps(QWEN))), c.Checkpoint(json.loads(json.dumps(QWEN)))
    for x in (ck, source):
        x.files = {**c.SIDE, "preprocessor_config.json": b"{}"}
    base = "model.language_model.layers.0."
    shapes = {base + "linear_attn.in_proj_qkv": 128, base + "linear_attn.in_proj_z": 64,
              base + "linear_attn.in_proj_b": 16, base + "linear_attn.in_proj_a": 16, base + "linear_attn.out_proj": 64,
              base + "mlp.gate": 2, base + "mlp.shared_expert.gate_proj": 32, base + "mlp.shared_expert.up_proj": 32,
              base + "mlp.shared_expert.down_proj": 64, "model.visual.blocks.0.attn.qkv": 192,
              "mtp.layers.0.self_attn.q_proj": 64, "lm_head": 32}
    schemes = {base + "linear_attn.in_proj_qkv": "nvfp4", base + "linear_attn.in_proj_z": "nvfp4",
               base + "linear_attn.out_proj": "fp8", base + "mlp.shared_expert.gate_proj": "fp8",
               base + "mlp.shared_expert.up_proj": "fp8", base + "mlp.shared_expert.down_proj": "int8_a16",
               "lm_head": "fp8"}
    matrices = {name: c.weights(rng, n, 64) for name, n in shapes.items()}
    groups, ignored = {"nvfp4": [], "fp8": [], "int8_a16": [], "mxfp4": []}, []
    for name, rows in matrices.items():
        source.tensors[name + ".weight"] = c.plain(rows)
        parts = c.encode(schemes[name], name, matrices) if name in schemes else {"weight": c.plain(rows)}
        ck.tensors.update({f"{name}.{s}": t for s, t in parts.items()})
        if name in schemes:
            groups[schemes[name]].append("re:.*lm_head$" if name == "lm_head" else name)
        elif name.startswith("model.language"):
            ignored.append(name)
    gate_up = [c.weights(rng, 64, 64) for _ in range(3)]
    down = [c.weights(rng, 64, 32) for _ in range(3)]
    for name, rows, shape in ((f"{base}mlp.experts.gate_up_proj", gate_up, [3, 64, 64]),
                              (f"{base}mlp.experts.down_proj", down, [3, 64, 32])):
        source.tensors[name] = floats([w for e in rows for row in e for w in row], shape)
    for e in range(3):
        for last, rows in (("gate_proj", gate_up[e][:32]), ("up_proj", gate_up[e][32:]), ("down_proj", down[e])):
            name = f"{base}mlp.experts.{e}.{last}"
            ck.tensors.update({f"{name}.{s}": t for s, t in c.mxfp4(rows).items()})
            groups["mxfp4"].append(name)
    for name, shape in ((base + "linear_attn.conv1d.weight", [64, 1, 4]), (base + "linear_attn.A_log", [16]),
                        (base + "linear_attn.norm.weight", [64]),
                        ("model.language_model.embed_tokens.weight", [32, 64])):
        n = 1
        for d in shape:
            n *= d
        ck.tensors[name] = source.tensors[name] = floats([rng.random() for _ in range(n)], shape)
    ck.config["quantization_config"] = c.quantization(groups, ignored + ["re:.*visual.*", "re:^mtp[.].*"])
    return ck, source


EXPERT = "model.language_model.layers.0.mlp.experts."


def architectures(runs):
    ck, source = foreign()
    source_dir = os.path.join(runs.base, "foreign")
    source.write(source_dir)
    opts = ("--source", source_dir)
    runs.sound("one class for a target", ck, *opts)
    x = ck.copy()
    x.quant["config_groups"]["group_0"]["targets"] = [r"re:.*self_attn\.[qkvo]_proj", r"re:model\.layers\.\d+\.mlp\..*"]
    runs.sound("patterns for targets", x, *opts)
    x = ck.copy()
    x.quant["ignore"].append("re:.*down_proj$")
    runs.broken("a class, and an exception too many", x, [2], DOWN, "plain by the configuration", opts)

    ck, source = qwen()
    source_dir = os.path.join(runs.base, "qwen")
    source.write(source_dir)
    opts = ("--source", source_dir)
    events = runs.sound("gated delta nets, experts, a drafter", ck, *opts, run={i: "yes" for i in (1, 2, 3, 7, 8)})
    units = {e["unit"]: (e["scheme"], e["matrices"]) for e in events if e["event"] == "unit"}
    for name, want in ((EXPERT[:-1], ("mxfp4", 9)), ("lm_head", ("fp8", 1)),
                       ("model.language_model.layers.0.linear_attn.in_proj_qkvz", ("nvfp4", 2)),
                       ("model.language_model.layers.0.linear_attn.in_proj_ba", ("bf16", 2))):
        if units.get(name) != want:
            runs.fail("units", f"{name}: {units.get(name)}, expected {want}")
    z = "model.language_model.layers.0.linear_attn.in_proj_z"
    one, router = EXPERT + "1.down_proj", EXPERT[:-len("experts.")] + "gate"
    cases = [
        ("a pattern for the checkpoint's names only", retarget("model.language_model.layers.0.linear_attn.out_proj",
         r"re:model[.]language_model[.].*out_proj$"), [2], "out_proj", "vision"),
        ("a head by its bare name", retarget("re:.*lm_head$", "lm_head"), [2], "lm_head", "vision"),
        ("delta nets of two global scales", scaled(z + ".weight_global_scale", lambda v: v * 2), [3, 6, 7],
         "in_proj_qkvz", "weight_global_scale"),
        ("an expert in another scheme", both(lambda k: take(k, one), move(one, z.replace("in_proj_z", "out_proj")),
                                             lambda k: put(k, one, c.fp8(decode_expert(source, 1)))), [3, 2],
         EXPERT[:-1], "fp8"),
        ("an expert is missing", both(lambda k: take(k, one), retarget(one, None)), [1], "experts.down_proj",
         "missing"),
        ("a router that is quantized", both(lambda k: put(k, router, c.fp8(decode_rows(source, router))),
                                            lambda k: k.quant["ignore"].remove(router),
                                            lambda k: group_of(k, "re:.*lm_head$")["targets"].append(router)), [2],
         "mlp.gate", "fp8"),
        ("no preprocessor", lambda k: k.files.pop("preprocessor_config.json"), [10], "", ""),
        ("a drafter without tensors", lambda k: k.tensors.pop("mtp.layers.0.self_attn.q_proj.weight"), [10, 1],
         "config.json", "there are none"),
    ]
    for name, change, checks, place, found in cases:
        x = ck.copy()
        change(x)
        runs.broken(name, x, checks, place, found, opts)


def take(ck, module):
    for name in [n for n in ck.tensors if n.rsplit(".", 1)[0] == module]:
        del ck.tensors[name]


def put(ck, module, parts):
    ck.tensors.update({f"{module}.{suffix}": t for suffix, t in parts.items()})


def decode_expert(source, e):
    t = source.tensors[EXPERT + "down_proj"]
    size = t.shape[1] * t.shape[2]
    part = Tensor(t.dtype, t.shape[1:], t.data[2 * e * size:2 * (e + 1) * size])
    holder = c.Checkpoint({})
    holder.tensors["x.weight"] = part
    return decode_rows(holder, "x")


def usage(runs, ck, source_dir):
    """What ends before anything is checked, and the same bytes of output for any number of threads."""
    folder = os.path.join(runs.base, "usage")
    ck.write(folder)
    for words, code, text in ((["inspect"], 2, "DIR"), (["inspect", folder + "-none"], 2, "No such file"),
                              (["inspect", os.path.join(folder, "config.json")], 2, "a checkpoint is a directory"),
                              (["inspect", folder, "--source", runs.base], 2, "--source"),
                              *((["inspect", folder, "--tp", x], 2, "--tp") for x in ("0", "2,", "two", "5000"))):
        runs.n += 1
        done = subprocess.run([runs.scout, *words], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != code or text not in done.stderr:
            runs.fail(" ".join(words), f"exit {done.returncode}: {done.stderr}")
    strange = ck.copy()
    strange.tensors["a\x1b[31m\n.b.weight"] = floats([1.0] * 4, [2, 2])
    folder = os.path.join(runs.base, "strange")
    strange.write(folder)
    os.remove(os.path.join(folder, "tokenizer_config.json"))
    os.mkfifo(os.path.join(folder, "tokenizer_config.json"))
    done = subprocess.run([runs.scout, "inspect", folder, "--source", source_dir], capture_output=True, text=True,
                          timeout=60, check=False)
    runs.n += 1
    if done.returncode != 1 or "\x1b" in done.stdout or "a?[31m?.b" not in done.stdout:
        runs.fail("control characters, a pipe", done.stdout)
    folder = os.path.join(runs.base, "usage")
    texts = set()
    for threads in ("1", "3"):
        done = subprocess.run([runs.scout, "inspect", folder], capture_output=True, text=True, timeout=60, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": threads})
        texts.add(done.stdout)
    runs.n += 1
    text = texts.pop()
    if texts or "verdict: sound: 0 errors, 0 warnings; checks run:" not in text or "nvfp4_a16" not in text:
        runs.fail("output", text)


class FileRuns(Runs):
    def broken_files(self, name, ck, place, found):
        """An error of check 1 at that place; what follows from it for other checks is left open."""
        self.n += 1
        path = self.folder(ck)
        code, events, err = self.inspect(path)
        hit = any(e["event"] == "finding" and e["check"] == 1 and e["severity"] == "error" and place in e["place"] and
                  found in e["found"] for e in events)
        if code != 1 or not hit:
            self.fail(name, f"exit {code}, no error of check 1 at '{place}' with '{found}' {err}", events)
        shutil.rmtree(path)


def main():
    runs = FileRuns(os.path.abspath(sys.argv[1]))
    ck, source = c.llama(c.LAYERS)
    source_dir = os.path.join(runs.base, "source")
    source.write(source_dir)
    try:
        whole(runs, ck, source_dir, source)
        mutations(runs, ck, source_dir)
        files(runs)
        recipes(runs, ck, source_dir)
        architectures(runs)
        usage(runs, ck, source_dir)
    finally:
        shutil.rmtree(runs.base)
    print(f"{runs.n} checkpoints, {runs.failed} failed")
    return 1 if runs.failed else 0


if __name__ == "__main__":
    sys.exit(main())
