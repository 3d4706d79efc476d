#!/usr/bin/env python3
"""Compare our token ids with those of the `tokenizers` library on every text of a folder, by the hashes in
tests/golden/tokens/hashes.txt (tools/golden_tokens.py made them).

usage: check_tokens.py BUILD_DIR DATA [--smollm2 DIR]     (DATA holds models/ and text/; needs python3 only)
"""
import argparse
import collections
import os
import subprocess
import sys


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("build"), ap.add_argument("data")
    ap.add_argument("--smollm2", default="models/SmolLM2-135M")
    a = ap.parse_args()
    wanted = collections.defaultdict(dict)
    with open(os.path.join(os.path.dirname(__file__), "../tests/golden/tokens/hashes.txt"), encoding="utf-8") as f:
        for line in f:
            digest, count, name, path = line.rstrip("\n").split(" ", 3)
            wanted[name][path] = f"{digest} {count}"
    failed = 0
    for name, texts in wanted.items():
        folder = f"{a.data}/models/{name}" if os.path.isdir(f"{a.data}/models/{name}") else a.smollm2
        if not os.path.exists(f"{folder}/tokenizer.json"):
            print(f"{name}: skipped, no {folder}/tokenizer.json (tools/fetch_smollm2 makes it)")
            continue
        files = [f"{a.data}/text/{p}" for p in texts]
        out = subprocess.run([f"{a.build}/tests/nodes/model/tokenize", f"{folder}/tokenizer.json", "0", *files],
                             capture_output=True, text=True)
        if out.returncode:
            sys.exit(out.stderr)
        got = {line.split(" ", 2)[2]: " ".join(line.split(" ", 2)[:2]) for line in out.stdout.splitlines()}
        bad = [p for p in texts if got.get(f"{a.data}/text/{p}") != texts[p]]
        failed += len(bad)
        print(f"{name}: {len(texts) - len(bad)} of {len(texts)} texts have the library's ids"
              + (f"; not {', '.join(bad[:5])}" if bad else ""))
    sys.exit(bool(failed))


main()
