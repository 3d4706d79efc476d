"""Small compressed-tensors checkpoints, made without any library: plain weights of random numbers, encoded by the
recipes of the formats' reference, in a directory that can be changed at will before it is written."""
import bisect
import copy
import hashlib
import json
import math
import os
import random
import struct

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1_MIDS = [(a + b) / 2 for a, b in zip(E2M1, E2M1[1:])]
E4M3 = [(b & 7) * 2.0**-9 if b < 8 else (1 + (b & 7) / 8) * 2.0**((b >> 3) - 7) for b in range(127)]
E4M3_MIDS = [(a + b) / 2 for a, b in zip(E4M3, E4M3[1:])]
SIZES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8}


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bf16_bits(x):
    u = struct.unpack("<I", struct.pack("<f", x))[0]
    return (u + 0x7FFF + (u >> 16 & 1)) >> 16 & 0xFFFF


def bf16(x):
    return struct.unpack("<f", struct.pack("<I", bf16_bits(x) << 16))[0]


class Tensor:
    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, list(shape), bytes(data)

    def patched(self, at, new):
        return Tensor(self.dtype, self.shape, self.data[:at] + bytes(new) + self.data[at + len(new):])


def floats(values, shape, dtype="BF16"):
    if dtype == "F32":
        return Tensor(dtype, shape, struct.pack(f"<{len(values)}f", *values))
    return Tensor(dtype, shape, struct.pack(f"<{len(values)}H", *map(bf16_bits, values)))


def ints(values):
    return Tensor("I64", [len(values)], struct.pack(f"<{len(values)}q", *values))


# ---------------------------------------------------------------------------------------------------------- encoders
# Each takes rows of weights and gives the tensors of its scheme by their suffix.

def e4m3(x):
    return bisect.bisect_left(E4M3_MIDS, min(abs(x), 448.0)) | (0x80 if math.copysign(1, x) < 0 else 0)


def e2m1(x):
    return bisect.bisect_left(E2M1_MIDS, min(abs(x), 6.0)) | (8 if math.copysign(1, x) < 0 else 0)


def nibbles(codes):
    return bytes(a | b << 4 for a, b in zip(codes[::2], codes[1::2]))


def nvfp4(rows, amax=None, act=True):
    n, k = len(rows), len(rows[0])
    gs = f32(2688 / (amax or max(abs(w) for row in rows for w in row)))
    codes, scales = [], []
    for row in rows:
        for g in range(0, k, 16):
            block = row[g:g + 16]
            s = max(e4m3(gs * max(map(abs, block)) / 6), 0x08)
            step = E4M3[s] / gs
            scales.append(s)
            codes += [e2m1(w / step) for w in block]
    out = {"weight_packed": Tensor("U8", [n, k // 2], nibbles(codes)),
           "weight_scale": Tensor("F8_E4M3", [n, k // 16], scales),
           "weight_global_scale": floats([gs], [1], "F32")}
    if act:
        out["input_global_scale"] = floats([112.0], [1], "F32")
    return out


def nvfp4_a16(rows, amax=None):
    return nvfp4(rows, amax, False)


def exponent(a, offset):
    e = math.frexp(a)[1] - 1
    return 127 + e + (a / 2.0**e >= 1.75) - offset


def mxfp4(rows):
    n, k = len(rows), len(rows[0])
    codes, scales = [], []
    for row in rows:
        for g in range(0, k, 32):
            b = exponent(max(map(abs, row[g:g + 32])), 2)
            scales.append(b)
            codes += [e2m1(w / 2.0**(b - 127)) for w in row[g:g + 32]]
    return {"weight_packed": Tensor("U8", [n, k // 2], nibbles(codes)),
            "weight_scale": Tensor("U8", [n, k // 32], scales)}


def mxfp8(rows):
    n, k = len(rows), len(rows[0])
    codes, scales = [], []
    for row in rows:
        for g in range(0, k, 32):
            b = exponent(max(map(abs, row[g:g + 32])), 8)
            scales.append(b)
            codes += [e4m3(w / 2.0**(b - 127)) for w in row[g:g + 32]]
    return {"weight": Tensor("F8_E4M3", [n, k], codes), "weight_scale": Tensor("U8", [n, k // 32], scales)}


def fp8(rows, dtype="F32"):
    n, k = len(rows), len(rows[0])
    rounded = f32 if dtype == "F32" else bf16
    scales = [rounded(max(map(abs, row)) / 448) for row in rows]
    codes = [e4m3(w / s) for row, s in zip(rows, scales) for w in row]
    return {"weight": Tensor("F8_E4M3", [n, k], codes), "weight_scale": floats(scales, [n, 1], dtype)}


def fp8_block(rows, dtype="F32"):
    n, k = len(rows), len(rows[0])
    tiles = [[f32(max(abs(w) for row in rows[i:i + 128] for w in row[j:j + 128]) / 448) for j in range(0, k, 128)]
             for i in range(0, n, 128)]
    codes = [e4m3(w / tiles[i // 128][j // 128]) for i, row in enumerate(rows) for j, w in enumerate(row)]
    return {"weight": Tensor("F8_E4M3", [n, k], codes),
            "weight_scale": floats([s for row in tiles for s in row], [len(tiles), len(tiles[0])], dtype)}


def int8(rows, dtype="F32"):
    n, k = len(rows), len(rows[0])
    rounded = f32 if dtype == "F32" else bf16
    scales = [rounded(max(map(abs, row)) / 127.5) for row in rows]
    codes = [max(-128, min(127, round(w / s))) & 255 for row, s in zip(rows, scales) for w in row]
    return {"weight": Tensor("I8", [n, k], codes), "weight_scale": floats(scales, [n, 1], dtype)}


def packed(rows, bits, group):
    n, k = len(rows), len(rows[0])
    group = group or k
    half = 1 << bits - 1
    codes, scales = [], []
    for row in rows:
        for g in range(0, k, group):
            s = bf16(max(map(abs, row[g:g + group])) / (half - 0.5))
            scales.append(s)
            codes += [half + max(-half, min(half - 1, round(w / s))) for w in row[g:g + group]]
    return {"weight_packed": Tensor("I32", [n, k * bits // 32], nibbles(codes) if bits == 4 else bytes(codes)),
            "weight_scale": floats(scales, [n, k // group]), "weight_shape": ints([n, k])}


# ------------------------------------------------------------------------------------------------------------ schemes

def args(bits, kind, strategy, **more):
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False, **more}


NV = args(4, "float", "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")
MX4 = args(4, "float", "group", group_size=32, scale_dtype="torch.uint8")
MX8 = args(8, "float", "group", group_size=32, scale_dtype="torch.uint8")
SCHEMES = {  # name: encoder, format, weights, input_activations
    "nvfp4": (nvfp4, "nvfp4-pack-quantized", NV, {**NV, "dynamic": "local"}),
    "nvfp4_a16": (nvfp4_a16, "nvfp4-pack-quantized", NV, None),
    "mxfp4": (mxfp4, "mxfp4-pack-quantized", MX4, {**MX4, "dynamic": True}),
    "mxfp4_a16": (mxfp4, "mxfp4-pack-quantized", MX4, None),
    "fp8": (fp8, "float-quantized", args(8, "float", "channel"), args(8, "float", "token", dynamic=True)),
    "fp8_block": (fp8_block, "float-quantized", args(8, "float", "block", block_structure=[128, 128]),
                  args(8, "float", "group", group_size=128, dynamic=True)),
    "mxfp8": (mxfp8, "mxfp8-quantized", MX8, {**MX8, "dynamic": True}),
    "int8": (int8, "int-quantized", args(8, "int", "channel"), args(8, "int", "token", dynamic=True)),
    "int8_a16": (lambda rows: packed(rows, 8, 0), "pack-quantized", args(8, "int", "channel"), None),
    "int8_a16_g128": (lambda rows: packed(rows, 8, 128), "pack-quantized", args(8, "int", "group", group_size=128),
                      None),
    "int4_channel": (lambda rows: packed(rows, 4, 0), "pack-quantized", args(4, "int", "channel"), None),
    "int4_g32": (lambda rows: packed(rows, 4, 32), "pack-quantized", args(4, "int", "group", group_size=32), None),
    "int4_g64": (lambda rows: packed(rows, 4, 64), "pack-quantized", args(4, "int", "group", group_size=64), None),
    "int4_g128": (lambda rows: packed(rows, 4, 128), "pack-quantized", args(4, "int", "group", group_size=128), None),
}


def group(scheme, targets):
    _, form, weights, inputs = SCHEMES[scheme]
    return {"format": form, "targets": list(targets), "weights": copy.deepcopy(weights),
            "input_activations": copy.deepcopy(inputs), "output_activations": None}


def quantization(groups, ignore):
    """The quantization_config of {scheme: targets}, in that order."""
    out = {f"group_{i:02d}": group(s, t) for i, (s, t) in enumerate(groups.items())}
    formats = {g["format"] for g in out.values()}
    return {"quant_method": "compressed-tensors", "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed", "version": "0.17.0", "global_compression_ratio": None,
            "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {}, "config_groups": out,
            "ignore": list(ignore)}


# -------------------------------------------------------------------------------------------------------- directories

class Checkpoint:
    """Tensors by name in the order of the file, config.json, and other files; `shards` puts each tensor in a file."""

    def __init__(self, config):
        self.config, self.tensors, self.files, self.shards, self.index, self.raw = config, {}, {}, 1, {}, None

    def copy(self):
        other = Checkpoint(copy.deepcopy(self.config))
        other.tensors, other.files, other.shards = dict(self.tensors), dict(self.files), self.shards
        return other

    @property
    def quant(self):
        return self.config["quantization_config"]

    @staticmethod
    def file_bytes(tensors, metadata=True, pad=True):
        header, at = {"__metadata__": {"format": "pt"}} if metadata else {}, 0
        for name, t in tensors.items():
            header[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, at + len(t.data)]}
            at += len(t.data)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8) if pad else b" " * (-len(text) % 8 + 1)
        return struct.pack("<Q", len(text)) + text + b"".join(t.data for t in tensors.values())

    def write(self, folder):
        os.makedirs(folder)
        names = list(self.tensors)
        if self.shards == 1:
            parts = {"model.safetensors": self.tensors}
        else:
            each = -(-len(names) // self.shards)
            parts = {f"model-{i + 1:05d}-of-{self.shards:05d}.safetensors":
                     {n: self.tensors[n] for n in names[i * each:(i + 1) * each]} for i in range(self.shards)}
            index = {"metadata": {"total_size": sum(len(t.data) for t in self.tensors.values())},
                     "weight_map": {n: f for f, part in parts.items() for n in part}}
            self.put(folder, "model.safetensors.index.json", json.dumps(index).encode())
        for name, part in parts.items():
            self.put(folder, name, self.file_bytes(part))
        self.put(folder, "config.json", json.dumps(self.config, indent=2).encode())
        for name, data in self.files.items():
            self.put(folder, name, data)

    @staticmethod
    def put(folder, name, data):
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)


def weights(rng, n, k, sigma=0.05):
    """Rows of normal numbers that bf16 has."""
    return [[bf16(rng.gauss(0, sigma)) for _ in range(k)] for _ in range(n)]


def plain(rows):
    return floats([w for row in rows for w in row], [len(rows), len(rows[0])])


FUSED = [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("in_proj_qkv", "in_proj_z")]


def amax_of(module, matrices):
    """The largest weight of all that is fused with it, or None where it is alone."""
    prefix, last = module.rsplit(".", 1) if "." in module else ("", module)
    for shards in FUSED:
        if last in shards:
            return max(abs(w) for s in shards for row in matrices.get(f"{prefix}.{s}", [[0]]) for w in row)
    return None


def encode(scheme, module, matrices):
    rows = matrices[module]
    if scheme in ("nvfp4", "nvfp4_a16"):
        return SCHEMES[scheme][0](rows, amax_of(module, matrices))
    return SCHEMES[scheme][0](rows)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": 128,
         "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
         "num_hidden_layers": 4, "vocab_size": 32, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
         "max_position_embeddings": 64}
SHAPES = {"self_attn.q_proj": 128, "self_attn.k_proj": 64, "self_attn.v_proj": 64, "self_attn.o_proj": 128,
          "mlp.gate_proj": 128, "mlp.up_proj": 128, "mlp.down_proj": 128}
UNITS = {"qkv": "self_attn.qkv_proj", "o": "self_attn.o_proj", "gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj"}
SIDE = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "generation_config.json": b'{"eos_token_id": 2}'}
LAYERS = [{"qkv": "nvfp4", "o": "nvfp4_a16", "gate_up": "mxfp4", "down": "fp8"},
          {"qkv": "int4_g32", "o": "mxfp8", "gate_up": "fp8_block", "down": "int8_a16"},
          {"qkv": "int8", "o": "int4_g64", "gate_up": "int4_g128", "down": "int4_channel"},
          {"qkv": "bf16", "o": "int8_a16_g128", "gate_up": "nvfp4", "down": "mxfp4_a16"}]


def unit_of(last):
    return "qkv" if last[0] in "qkv" else "o" if last[0] == "o" else "down" if last[0] == "d" else "gate_up"


def llama(layers, seed=1):
    """A Llama whose units are stored as `layers` says, and its source: every scheme side by side."""
    rng = random.Random(seed)
    source, out = Checkpoint(copy.deepcopy(LLAMA)), Checkpoint(copy.deepcopy(LLAMA))
    for ck in (source, out):
        ck.config["num_hidden_layers"] = len(layers)
        ck.files = dict(SIDE)
    groups, ignore, assignment, matrices, sums = {}, [], {}, {}, [0, 0]
    source.tensors["model.embed_tokens.weight"] = plain(weights(rng, 32, 128))
    for i, layer in enumerate(layers):
        for name, n in SHAPES.items():
            module = f"model.layers.{i}.{name}"
            matrices[module] = weights(rng, n, 128)
            source.tensors[f"{module}.weight"] = plain(matrices[module])
        for name in ("input_layernorm", "post_attention_layernorm"):
            source.tensors[f"model.layers.{i}.{name}.weight"] = floats([1.0 + rng.random() for _ in range(128)], [128])
    source.tensors["model.norm.weight"] = floats([1.0] * 128, [128], "F32")
    for name, t in source.tensors.items():
        module = name[:-len(".weight")]
        if module not in matrices:
            out.tensors[name] = t
            continue
        last = module.rsplit(".", 1)[1]
        i, unit = int(module.split(".")[2]), unit_of(last)
        scheme = layers[i][unit]
        assignment[f"model.layers.{i}.{UNITS[unit]}"] = "int8_a16" if scheme.startswith("int8_a16") else scheme
        parts = {"weight": t} if scheme == "bf16" else encode(scheme, module, matrices)
        (ignore if scheme == "bf16" else groups.setdefault(scheme, [])).append(module)
        sums[0] += sum(len(p.data) for p in parts.values())
        sums[1] += len(t.data) // 2
        out.tensors.update({f"{module}.{suffix}": p for suffix, p in parts.items()})
    out.config["quantization_config"] = quantization(groups, ignore + ["lm_head"])
    out.recipe = {"tool": "scout", "version": 1, "bytes": sums[0], "unit_parameters": sums[1],
                  "bpp": 8 * sums[0] / sums[1], "assignment": assignment, "recipe": [],
                  "source_tensors": {n: sha256(t.data) for n, t in source.tensors.items()}}
    return out, source


def with_recipe(ck, recipe):
    """The same with a scout.json, which lists no files."""
    ck.files["scout.json"] = json.dumps(recipe).encode()
    return ck
