#!/usr/bin/env python3
"""Remake tests/golden/logits: logits by `transformers` in fp32 of the shipped models, and of tiny ones made here.

usage: golden_logits.py            (run from the root, in the environment that tools/venv makes)

NAME.bin holds, little-endian: i32 windows, window, columns; f32 range (largest minus smallest logit over everything);
i32 ids[windows, window]; i32 column[columns] (which vocabulary entries are kept); f32 logits[windows, window, columns];
f32 log_sum_exp[windows, window] (over the whole vocabulary, so every logit is in the test).

NAME.nll is text, a line a window: how many of its tokens are taken, and the negative log likelihood in nats of all of
them but the first; then a line with the perplexity over all.

tiny/NAME is a model directory with random weights from a fixed seed, for each thing that the shipped models lack.
"""
import json
import os
import shutil
import struct

import numpy as np
import safetensors.torch
import torch
import transformers

GOLDEN = "tests/golden/logits"
WINDOWS, WINDOW, COLUMNS = 8, 256, 24
TINY_WINDOW, TINY_COLUMNS = 48, 12

# ----------------------------------------------------------------------------------------------------- shipped models


def windows_of(tokenizer, text):
    """The first WINDOW tokens of the first documents that are long enough."""
    found = []
    for document in text.split("<|endoftext|>"):
        ids = tokenizer.encode(document.strip())
        if len(ids) >= WINDOW:
            found.append(ids[:WINDOW])
        if len(found) == WINDOWS:
            return np.array(found, np.int32)
    raise SystemExit("the text has too few long documents")


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids.astype(np.int64))).logits


def write_logits(path, ids, logits, n_columns):
    lse = torch.logsumexp(logits.double(), -1).float().numpy()
    logits = logits.numpy()
    columns = np.linspace(0, logits.shape[2] - 1, n_columns).astype(np.int32)
    with open(path, "wb") as f:
        f.write(struct.pack("<3if", *ids.shape, n_columns, logits.max() - logits.min()))
        for a in (ids, columns, logits[:, :, columns], lse):
            f.write(np.ascontiguousarray(a).tobytes())
    print(f"{path}: transformers {transformers.__version__}, torch {torch.__version__}, "
          f"logits {logits.min():.3f} to {logits.max():.3f}")


def write_nll(path, ids, logits):
    """Of windows that are shorter and shorter."""
    total, scored = 0.0, 0
    with open(path, "w", encoding="ascii") as f:
        for w in range(len(ids)):
            n = WINDOW - 17 * w
            p = torch.log_softmax(logits[w, : n - 1].double(), -1)
            nll = -p[torch.arange(n - 1), torch.from_numpy(ids[w, 1:n].astype(np.int64))].sum().item()
            f.write(f"{n} {nll:.9f}\n")
            total, scored = total + nll, scored + n - 1
        f.write(f"{np.exp(total / scored):.9f}\n")


def shipped_models():
    text = open("data/text/tinystories/ascii.txt", encoding="utf-8").read()
    for name in ("babyllama-1m", "stories260k"):
        folder = f"data/models/{name}"
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = windows_of(tokenizer, text)
        logits = logits_of(model, ids)
        write_logits(f"{GOLDEN}/{name}.bin", ids, logits, COLUMNS)
        if name == "babyllama-1m":
            write_nll(f"{GOLDEN}/{name}.nll", ids, logits)


# -------------------------------------------------------------------------------------------------------- tiny models

BASE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 64,
        "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16"}

# Wavelengths of a head of 8 are 6, 63, 628 and 6283 positions: with these figures the first keeps its frequency, the
# second is between, and the others are divided by the factor.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128}

TINY = {
    "untied": {"tie_word_embeddings": False},
    "rope_llama3": {"rope_scaling": LLAMA3},
    "rope_linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 16},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "float16": {"torch_dtype": "float16"},
    "float32": {"torch_dtype": "float32", "num_hidden_layers": 1},
    "sharded": {},
}


def tensors_of(config, seed):
    """Large enough weights that attention is far from even, and that every part matters in the logits."""
    random = np.random.RandomState(seed)
    dtype = getattr(torch, config["torch_dtype"])
    h, m = config["hidden_size"], config["intermediate_size"]
    d = config.get("head_dim", h // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    out = {}

    def add(name, *shape, scale=0.3, around=0.0):
        values = random.standard_normal(shape) * scale + around
        out[name] = torch.from_numpy(values.astype(np.float32)).to(dtype)

    add("model.embed_tokens.weight", config["vocab_size"], h, scale=1.0)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        add(at + "input_layernorm.weight", h, around=1.0)
        for name, n, k in (("self_attn.q_proj", q, h), ("self_attn.k_proj", kv, h), ("self_attn.v_proj", kv, h),
                           ("self_attn.o_proj", h, q)):
            add(at + name + ".weight", n, k)
            if config.get("attention_bias"):
                add(at + name + ".bias", n, scale=0.5)
        add(at + "post_attention_layernorm.weight", h, around=1.0)
        for name, n, k in (("mlp.gate_proj", m, h), ("mlp.up_proj", m, h), ("mlp.down_proj", h, m)):
            add(at + name + ".weight", n, k)
            if config.get("mlp_bias"):
                add(at + name + ".bias", n, scale=0.5)
    add("model.norm.weight", h, around=1.0)
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", config["vocab_size"], h)
    return out


def write_model(folder, config, tensors, shards):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with open(f"{folder}/config.json", "w", encoding="ascii") as f:
        f.write(json.dumps(config, indent=2) + "\n")
    if shards == 1:
        safetensors.torch.save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
        return
    files, names = {}, list(tensors)
    for i in range(shards):  # in turn, so that a layer is spread over all
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        safetensors.torch.save_file({n: tensors[n] for n in names[i::shards]}, f"{folder}/{file}", {"format": "pt"})
        files.update({n: file for n in names[i::shards]})
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    with open(f"{folder}/model.safetensors.index.json", "w", encoding="ascii") as f:
        f.write(json.dumps({"metadata": {"total_size": size}, "weight_map": files}, indent=1) + "\n")


def tiny_models():
    for seed, (name, changes) in enumerate(TINY.items()):
        folder, config = f"{GOLDEN}/tiny/{name}", {**BASE, **changes}
        tensors = tensors_of(config, seed)
        write_model(folder, config, tensors, 2 if name == "sharded" else 1)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                                        output_loading_info=True)
        if info["missing_keys"] or info["unexpected_keys"]:
            raise SystemExit(f"{name}: transformers did not load it as it was meant: {info}")
        ids = np.random.RandomState(100 + seed).randint(0, config["vocab_size"], (1, TINY_WINDOW)).astype(np.int32)
        logits = logits_of(model, ids)
        write_logits(f"{folder}/logits.bin", ids, logits, TINY_COLUMNS)
        for key in ("rope_scaling", "rope_parameters"):  # would the test see that it is passed over?
            if key in changes:
                plain = transformers.AutoConfig.from_pretrained(folder)
                for scaling in ("rope_scaling", "rope_parameters"):
                    if hasattr(plain, scaling):
                        setattr(plain, scaling, {"rope_type": "default", "rope_theta": 10000.0})
                other = transformers.AutoModelForCausalLM.from_config(plain).float()
                other.load_state_dict(model.state_dict())
                share = (logits_of(other, ids) - logits).abs().max() / (logits.max() - logits.min())
                print(f"{name}: without {key} the logits would differ by {share:.3f} of their range")
                if share < 0.05:
                    raise SystemExit(f"{name}: its {key} does not matter")


shipped_models()
tiny_models()
