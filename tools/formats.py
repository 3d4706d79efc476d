"""The formats as compressed-tensors knows them, for the oracles beside this file: a table of schemes and stored
tensors, compressed-tensors' own scales, codes and decoded weights run in f32, and a second decoder in numpy.

How a weight is decoded, by reading compressed-tensors 0.20.0 (compressors/*/base.py, lifecycle/forward_helpers.py
_dequantize). "stock" is what its decompress() returns; "f32" is the same code with its scale tensors in f32, the one
that goldens and tables compare with. All f32 expressions have the order of operations of scout's decode, so bits are
equal.

  format      f32 expression                             what stock decompress() does differently         stock dtype
  nvfp4       e2m1(code) * (e4m3(scale) / global)        rounds the product to bf16                       bf16
  mxfp4       e2m1(code) * 2^(scale - 127)               power and product in bf16; exact but below       bf16
                                                         2^-133 (smallest bf16)
  fp8         e4m3(code) * scale[n]                      nothing, with an F32 scale                       f32
  fp8_block   e4m3(code) * scale[n / 128, k / 128]       nothing, with an F32 scale                       f32
  mxfp8       e4m3(code) * 2^(scale - 127)               as mxfp4                                         bf16
  int8        code * scale[n]                            nothing, with an F32 scale                       f32
  int8_a16    code * bf16 scale[n]        (exact)        rounds the product to bf16                       bf16
  int4_gG     code * bf16 scale[n, k / G] (exact)        rounds the product to bf16                       bf16

So the largest distance of stock to f32 is 0 steps after rounding f32 to bf16, everywhere.

How compressed-tensors encodes (quantization/utils/helpers.py calculate_qparams, forward_helpers.py _quantize), in f32,
but the scale of a format whose stored scale is BF16 is computed and rounded as for a bf16 model, and codes use the
rounded one:

  nvfp4       global = (1 / amax) * 2688, which may be one f32 step from 2688 / amax;
              scale = E4M3(global * (max / 6)), 0.125 where that is 0; code = E2M1(clamp(w / (scale / global)))
  mxfp4       scale = 127 + exponent(max, one more from mantissa 1.75 on) - 2; code = E2M1(clamp(w / 2^(scale - 127)))
  fp8, block  scale = max / 448, 2^-23 where that is 0; code = E4M3(clamp(w / scale))
  mxfp8       as mxfp4 with 8 for 2 and E4M3 for E2M1
  int8        scale = max / 127.5, 2^-23 where that is 0; code = clamp(round(w / scale))
  int8_a16    scale = bf16(max / 127.5), 2^-7 where that is 0; code likewise
  int4_gG     scale = bf16(max / 7.5), 2^-7 where that is 0; code likewise

Values that its cast to E2M1 rounds to zero lose their sign there only when they are zero themselves: -0.0 becomes 0.
"""
from types import SimpleNamespace

import numpy as np

NUMPY = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64, "F32": np.float32, "F8_E4M3": np.uint8,
         "BF16": np.uint16}

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])
E4M3 = np.array([(-1.0) ** (b >> 7) * ((b & 7) / 8 * 2.0**-6 if b >> 3 & 15 == 0 else
                 (1 + (b & 7) / 8) * 2.0 ** ((b >> 3 & 15) - 7)) for b in range(256)], np.float32)
E4M3[[0x7F, 0xFF]] = np.nan


def ceil_div(a, b):
    return -(-a // b)


# ------------------------------------------------------------------------------------------------------- the table

def _nvfp4_parts(n, k):
    return {"weight_packed": ("U8", [n, k // 2]), "weight_scale": ("F8_E4M3", [n, k // 16]),
            "weight_global_scale": ("F32", [1])}


def _mxfp4_parts(n, k):
    return {"weight_packed": ("U8", [n, k // 2]), "weight_scale": ("U8", [n, k // 32])}


def _fp8_parts(n, k):
    return {"weight": ("F8_E4M3", [n, k]), "weight_scale": ("F32", [n, 1])}


def _fp8_block_parts(n, k):
    return {"weight": ("F8_E4M3", [n, k]), "weight_scale": ("F32", [ceil_div(n, 128), ceil_div(k, 128)])}


def _mxfp8_parts(n, k):
    return {"weight": ("F8_E4M3", [n, k]), "weight_scale": ("U8", [n, k // 32])}


def _int8_parts(n, k):
    return {"weight": ("I8", [n, k]), "weight_scale": ("F32", [n, 1])}


def _packed_parts(bits, group):
    def parts(n, k):
        return {"weight_packed": ("I32", [n, ceil_div(k * bits, 32)]),
                "weight_scale": ("BF16", [n, k // group if group else 1]), "weight_shape": ("I64", [2])}
    return parts


def _floats(bits, strategy, **more):
    return {"num_bits": bits, "type": "float", "symmetric": True, "strategy": strategy, **more}


def _ints(bits, strategy, **more):
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, **more}


_FP4_16 = _floats(4, "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")
_MX4, _MX8 = (_floats(b, "group", group_size=32, scale_dtype="torch.uint8") for b in (4, 8))


def _format(name, group_format, parts, weights, inputs, block):
    return SimpleNamespace(name=name, group_format=group_format, parts=parts, weights=weights, inputs=inputs,
                           block=block)


# `block` is how many weights along k share a scale; 0: a row (or, fp8_block, a tile of 128 x 128).
FORMATS = {f.name: f for f in (
    _format("nvfp4", "nvfp4-pack-quantized", _nvfp4_parts, _FP4_16, {**_FP4_16, "dynamic": "local"}, 16),
    _format("nvfp4_a16", "nvfp4-pack-quantized", _nvfp4_parts, _FP4_16, None, 16),
    _format("mxfp4", "mxfp4-pack-quantized", _mxfp4_parts, _MX4, {**_MX4, "dynamic": True}, 32),
    _format("mxfp4_a16", "mxfp4-pack-quantized", _mxfp4_parts, _MX4, None, 32),
    _format("fp8", "float-quantized", _fp8_parts, _floats(8, "channel"), _floats(8, "token", dynamic=True), 0),
    _format("fp8_a16", "float-quantized", _fp8_parts, _floats(8, "channel"), None, 0),
    _format("fp8_block", "float-quantized", _fp8_block_parts, _floats(8, "block", block_structure=[128, 128]),
            _floats(8, "group", group_size=128, dynamic=True), 0),
    _format("mxfp8", "mxfp8-quantized", _mxfp8_parts, _MX8, {**_MX8, "dynamic": True}, 32),
    _format("mxfp8_a16", "mxfp8-quantized", _mxfp8_parts, _MX8, None, 32),
    _format("int8", "int-quantized", _int8_parts, _ints(8, "channel"), _ints(8, "token", dynamic=True), 0),
    _format("int8_a16", "pack-quantized", _packed_parts(8, 0), _ints(8, "channel"), None, 0),
    *(_format(f"int4_g{g}", "pack-quantized", _packed_parts(4, g), _ints(4, "group", group_size=g), None, g)
      for g in (32, 64, 128)),
)}


def stored_parts(name, n, k):
    """{suffix: (dtype, shape)} of an [n, k] matrix as exported, the input's global scale included."""
    parts = FORMATS[name].parts(n, k)
    if name == "nvfp4":
        parts["input_global_scale"] = ("F32", [1])
    return parts


def _agrees(args, wanted):
    if wanted is None or args is None:
        return wanted is None and args is None
    keys = set(wanted) | {"group_size", "block_structure", "scale_dtype", "dynamic"}
    plain = [{k: str(a.get(k) or None).removeprefix("torch.") for k in keys} for a in (args, wanted)]
    return plain[0] == plain[1]


def format_of_group(group):
    """The format that a group of quantization_config's config_groups declares, by its JSON alone; or None."""
    for f in FORMATS.values():
        if group.get("format") == f.group_format and _agrees(group["weights"], f.weights) \
                and _agrees(group.get("input_activations"), f.inputs):
            return f.name
    return None


def scheme_of(name, targets=("Linear",)):
    """The same as compressed-tensors' object."""
    from compressed_tensors.quantization import QuantizationScheme

    f = FORMATS[name]
    return QuantizationScheme(targets=list(targets), weights=f.weights, input_activations=f.inputs,
                              format=f.group_format)


# -------------------------------------------------------------------------------- compressed-tensors' encode and decode

def compressor(name):
    from compressed_tensors.compressors import BaseCompressor

    return BaseCompressor.get_value_from_registry(FORMATS[name].group_format)


def _extremes(name, w):
    """Least and largest of all weights that share a scale, in the shape of the scale."""
    from compressed_tensors.quantization.utils import maybe_pad_tensor_for_block_quant

    f = FORMATS[name]
    if name == "fp8_block":
        w = maybe_pad_tensor_for_block_quant(w, (128, 128))
        tiles = w.reshape(w.shape[0] // 128, 128, w.shape[1] // 128, 128)
        return tiles.amin((1, 3)), tiles.amax((1, 3))
    groups = w.unflatten(-1, (-1, f.block)) if f.block else w.unsqueeze(1)
    return groups.amin(-1), groups.amax(-1)


def encode(name, w, amax=None):
    """compressed-tensors' tensors for w (torch, bf16 [n, k]) by round to nearest, stored as in the export: {suffix:
    torch tensor}. `amax` is the largest |w| over all matrices that share a global scale (nvfp4)."""
    import torch
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    f, scheme = FORMATS[name], scheme_of(name)
    state = {"weight": w.float()}
    global_scale = None
    if "weight_global_scale" in f.parts(*w.shape):
        amax = torch.tensor([float(w.float().abs().max()) if amax is None else amax], dtype=torch.float32)
        global_scale = state["weight_global_scale"] = generate_gparam(-amax, amax)
    low, high = _extremes(name, w if "BF16" in [p[0] for p in f.parts(*w.shape).values()] else w.float())
    scale, _ = calculate_qparams(low, high, scheme.weights, global_scale=global_scale)
    state["weight_scale"] = scale
    out = compressor(name).compress(state, scheme)
    return {suffix: out[suffix] for suffix in f.parts(*w.shape)}


def decode(name, state):
    """compressed-tensors' decoded weights from stored tensors: (run in f32, as its decompress() returns them)."""
    import torch
    from compressed_tensors.compressors.mx_utils import decompress_mx_scale
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    f, scheme = FORMATS[name], scheme_of(name)
    scale, global_scale = state["weight_scale"], state.get("weight_global_scale")
    scale = (decompress_mx_scale(scale) if scale.dtype == torch.uint8 else scale).float()
    if f.group_format == "pack-quantized":
        codes = unpack_from_int32(state["weight_packed"], f.weights["num_bits"], state["weight_shape"])
    elif "weight_packed" in state:
        n, half = state["weight_packed"].shape
        codes = unpack_fp4_from_uint8(state["weight_packed"], n, 2 * half, dtype=torch.float32)
    else:
        codes = state["weight"]
    wide = dequantize(codes, scale, args=scheme.weights, dtype=torch.float32, global_scale=global_scale)
    stock = compressor(name).decompress({k: v for k, v in state.items() if k != "input_global_scale"}, scheme)["weight"]
    return wide, stock


TORCH = {"U8": "uint8", "I8": "int8", "I32": "int32", "I64": "int64", "F32": "float32", "F8_E4M3": "float8_e4m3fn",
         "BF16": "bfloat16"}


def to_torch(dtype, array):
    """A numpy array of raw numbers (NUMPY) as the torch tensor of a safetensors dtype."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(array).copy()).view(getattr(torch, TORCH[dtype]))


# --------------------------------------------------------------------------------------------------- a second decoder

def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def formula(name, parts):
    """Section 2 of the format specification in numpy: f32, in scout's order. parts: {suffix: raw numbers (NUMPY)}."""
    scale = parts["weight_scale"]
    if "fp4" in name:
        packed = parts["weight_packed"]
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1)
        step = np.ldexp(np.float32(1), scale.astype(np.int32) - 127) if name.startswith("mx") else \
            E4M3[scale] / parts["weight_global_scale"]
        return E2M1[codes] * np.repeat(step, FORMATS[name].block, axis=1)
    if name.startswith("int4") or name == "int8_a16":
        bits = FORMATS[name].weights["num_bits"]
        words = parts["weight_packed"].view(np.uint32)
        codes = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32(2**bits - 1)
        codes = codes.reshape(len(words), -1)[:, : parts["weight_shape"][1]].astype(np.int32) - 2 ** (bits - 1)
        step = bf16_to_f32(scale)
        return codes.astype(np.float32) * (np.repeat(step, FORMATS[name].block, axis=1) if name != "int8_a16" else step)
    codes = parts["weight"]
    values = codes.astype(np.float32) if name == "int8" else E4M3[codes]
    if name == "fp8_block":
        scale = np.repeat(np.repeat(scale, 128, 0), 128, 1)[: codes.shape[0], : codes.shape[1]]
    if name.startswith("mxfp8"):
        scale = np.repeat(np.ldexp(np.float32(1), scale.astype(np.int32) - 127), 32, axis=1)
    return values * scale


def f32_to_bf16(x):
    """Finite numbers, to nearest even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def bf16_steps(a, b):
    """Distance in bf16 steps after rounding both (f32) to bf16."""
    def order(x):
        u = f32_to_bf16(x).astype(np.int64)
        return np.where(u & 0x8000, -(u & 0x7FFF), u)
    return np.abs(order(a) - order(b))


# ------------------------------------------------------- inputs as the server rounds them (kernels.h, enum act_rule)

def _blocks(x, size):
    """[..., K] as [..., blocks, size], the last block filled up with zeros."""
    import torch

    return torch.nn.functional.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))


def _e4m3(x):
    import torch

    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def _e2m1(x):
    """Round to nearest, ties to the even index, by counting the limits that are passed."""
    import torch

    a, value = x.abs(), torch.from_numpy(E2M1[:8])
    up = [a > 0.25, a >= 0.75, a > 1.25, a >= 1.75, a > 2.5, a >= 3.5, a > 5]
    return torch.copysign(value[sum(u.long() for u in up)], x)


def _power_of_two(x):
    """2^ceil(log2(x)), the exponent at least -127, without a logarithm."""
    import torch

    mantissa, exponent = torch.frexp(x)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(min=-127)
    return torch.ldexp(torch.ones_like(x, dtype=torch.float64), exponent).float()


def round_input(name, x, global_scale=None):
    """x (torch f32 [..., K]) as the matrix sees it in that format, each operation one in f32."""
    import torch

    if FORMATS[name].inputs is None:
        return x
    if name in ("fp8", "int8"):
        most = x.abs().amax(-1, keepdim=True)
        if name == "fp8":
            s = (most / 448).clamp(min=1 / (448 * 512))
            return _e4m3(x / s) * s
        inverse = torch.full_like(most, 127).div(most)  # 127 / most would be the reciprocal's product
        codes = torch.where(x != 0, x * inverse, 0).round().clamp(-128, 127)
        return codes * (most / 127)
    blocks = _blocks(x, {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32, "fp8_block": 128}[name])
    most = blocks.abs().amax(-1, keepdim=True)
    if name == "fp8_block":
        s = most.clamp(min=1e-10) / 448
        out = _e4m3(blocks / s) * s
    elif name == "nvfp4":
        scale = _e4m3((global_scale * most) / 6)
        out = torch.where(scale > 0, (_e2m1(blocks * (global_scale / scale)) * scale) / global_scale, 0)
    else:
        quotient = most / (6 if name == "mxfp4" else 448)
        s = _power_of_two(quotient)
        out = torch.where(quotient > 2.0**-127, (_e2m1 if name == "mxfp4" else _e4m3)(blocks / s) * s, 0)
    return out.flatten(-2)[..., : x.shape[-1]]
