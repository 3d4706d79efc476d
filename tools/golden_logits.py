#!/usr/bin/env python3
"""Remake tests/golden/logits/*.bin: logits of the shipped models by `transformers` in fp32, on 8 windows of text.

usage: golden_logits.py            (run from the root, in the environment that tools/venv makes)

A file holds, little-endian: i32 windows, window, columns; f32 range (largest minus smallest logit over everything);
i32 ids[windows, window]; i32 column[columns] (which vocabulary entries are kept); f32 logits[windows, window, columns];
f32 log_sum_exp[windows, window] (over the whole vocabulary, so every logit is in the test).
"""
import json
import struct

import numpy as np
import torch
import transformers

WINDOWS, WINDOW, COLUMNS = 8, 256, 24


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


def main():
    text = open("data/text/tinystories/ascii.txt", encoding="utf-8").read()
    for name in ("babyllama-1m", "stories260k"):
        folder = f"data/models/{name}"
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = windows_of(tokenizer, text)
        with torch.no_grad():
            logits = model(torch.from_numpy(ids.astype(np.int64))).logits
            lse = torch.logsumexp(logits.double(), -1).float().numpy()
            logits = logits.numpy()
        vocab = json.load(open(f"{folder}/config.json"))["vocab_size"]
        columns = np.linspace(0, vocab - 1, COLUMNS).astype(np.int32)
        with open(f"tests/golden/logits/{name}.bin", "wb") as f:
            f.write(struct.pack("<3if", WINDOWS, WINDOW, COLUMNS, logits.max() - logits.min()))
            for a in (ids, columns, logits[:, :, columns], lse):
                f.write(np.ascontiguousarray(a).tobytes())
        print(f"{name}: transformers {transformers.__version__}, torch {torch.__version__}, "
              f"logits {logits.min():.3f} to {logits.max():.3f}")


main()
