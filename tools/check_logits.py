#!/usr/bin/env python3
"""Compare the logits of a model with `transformers` in fp32, every vocabulary entry of every position.

usage: check_logits.py BUILD_DIR MODEL_DIR TEXT [--windows 8] [--window 256]

BUILD_DIR is a meson build folder (its tests/nodes/model/logits program is run). Prints the largest difference as a share
of the logits' range; exits with 1 when it is 1e-3 or more.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("build"), ap.add_argument("model"), ap.add_argument("text")
    ap.add_argument("--windows", type=int, default=8)
    ap.add_argument("--window", type=int, default=256)
    a = ap.parse_args()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(a.model, "tokenizer.json"))
    ids = tokenizer.encode(open(a.text, encoding="utf-8").read()[: a.windows * a.window * 16])
    ids = np.array(ids[: a.windows * a.window], np.int32).reshape(a.windows, a.window)
    model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        ids.tofile(f"{folder}/ids")
        subprocess.run([f"{a.build}/tests/nodes/model/logits", a.model, f"{folder}/ids", str(a.window), "fp32",
                        f"{folder}/logits"], check=True)
        ours = np.fromfile(f"{folder}/logits", np.float32).reshape(a.windows, a.window, -1)
    worst, low, high = 0.0, np.inf, -np.inf
    for w in range(a.windows):
        with torch.no_grad():
            theirs = model(torch.from_numpy(ids[w : w + 1].astype(np.int64))).logits[0].numpy()
        worst = max(worst, float(np.abs(theirs - ours[w]).max()))
        low, high = min(low, theirs.min()), max(high, theirs.max())
    share = worst / (high - low)
    print(f"{a.model}: {a.windows} windows of {a.window}: largest difference {worst:.3e}, logits {low:.2f} to {high:.2f}, "
          f"{share:.2e} of the range (transformers {transformers.__version__}, torch {torch.__version__})")
    sys.exit(int(share >= 1e-3))


main()
