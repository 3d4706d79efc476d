#!/usr/bin/env python3
"""Texts, tokenizers and surroundings that are wrong: each must give its one message and exit code, and leave nothing in
the store's tmp folder.

usage: inputs.py SCOUT ROOT EXPECTED [--rewrite]     (EXPECTED: blocks of a case's name, exit code and message)
"""
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile

GRAPH = """scout: 1
name: g
nodes:
  model: {type: model, with: {path: m}}
  corpus:
    type: corpus
    in: {tokenizer: model}
    with: {text: t.txt, window: 64, calibration: 1, selection: 1, report: 1}
"""


def text(content):
    def prepare(folder):
        (folder / "t.txt").write_bytes(content)
    return prepare


def tokenizer(change):
    """`change` edits the parsed tokenizer.json, or returns the text that is to stand in its place."""
    def prepare(folder):
        path = folder / "m/tokenizer.json"
        t = json.loads(path.read_text(encoding="utf-8"))
        other = change(t)
        path.write_text(other if isinstance(other, str) else json.dumps(t), encoding="utf-8")
    return prepare


def put(*where):
    """tokenizer: set t[where[0]]...[where[-2]] = where[-1]."""
    def change(t):
        for k in where[:-2]:
            t = t[k]
        t[where[-2]] = where[-1]
    return tokenizer(change)


def drop(*where):
    def change(t):
        for k in where[:-1]:
            t = t[k]
        del t[where[-1]]
    return tokenizer(change)


def file_instead_of(name):
    def prepare(folder):
        (folder / name).write_text("")
    return prepare


nothing = lambda folder: None
CASES = [  # name, preparation, more arguments, environment, user, file-size limit
    ("empty text", text(b""), [], {}, None, None),
    ("white space only", text(b" \n\t\n"), [], {}, None, None),
    ("a NUL in the text", text(b"abc\0def"), [], {}, None, None),
    ("binary text", text(bytes(range(128, 256)) * 4), [], {}, None, None),
    ("latin-1 text", text("caf\u00e9 ".encode("latin-1") * 50), [], {}, None, None),
    ("text cut inside a character", text("story \u00e9".encode()[:-1]), [], {}, None, None),
    ("too little text", text(b"One day."), [], {}, None, None),
    ("no JSON", text(b"[1,"), ["--set", "nodes.corpus.with.documents=json"], {}, None, None),
    ("JSON items are no texts", text(b"[1, 2]"), ["--set", "nodes.corpus.with.documents=json"], {}, None, None),
    ("JSON lines without the key", text(b'{"a": "b"}\n'),
     ["--set", "nodes.corpus.with.documents=json", "--set", "nodes.corpus.with.json_key=text"], {}, None, None),
    ("tokenizer.json is no JSON", tokenizer(lambda t: "{"), [], {}, None, None),
    ("tokenizer.json is empty", tokenizer(lambda t: " "), [], {}, None, None),
    ("tokenizer.json missing", lambda f: (f / "m/tokenizer.json").unlink(), [], {}, None, None),
    ("model type unknown", put("model", "type", "Unigram"), [], {}, None, None),
    ("no model", drop("model"), [], {}, None, None),
    ("no vocabulary", drop("model", "vocab"), [], {}, None, None),
    ("merge of unknown pieces", tokenizer(lambda t: t["model"]["merges"].insert(0, "qqq zzz")), [], {}, None, None),
    ("merge malformed", tokenizer(lambda t: t["model"]["merges"].insert(0, "abc")), [], {}, None, None),
    ("vocabulary id negative", put("model", "vocab", "a", -1), [], {}, None, None),
    ("vocabulary id no integer", put("model", "vocab", "a", "x"), [], {}, None, None),
    ("id beyond the model's vocabulary", put("model", "vocab", "\u2581", 5000), [], {}, None, None),
    ("normalizer unknown", put("normalizer", {"type": "NFKC"}), [], {}, None, None),
    ("pre-tokenizer unknown", put("pre_tokenizer", {"type": "Whitespace"}), [], {}, None, None),
    ("post-processor unknown", put("post_processor", {"type": "BertProcessing"}), [], {}, None, None),
    ("dropout", put("model", "dropout", 0.1), [], {}, None, None),
    ("a bad pattern", put("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
                                            "invert": False}), [], {}, None, None),
    ("RUN is a file", file_instead_of("r"), [], {}, None, None),
    ("STORE is a file", file_instead_of("s"), ["--store", "s"], {}, None, None),
    ("STORE is a foreign folder", lambda f: ((f / "s").mkdir(), (f / "s/x").write_text("")), ["--store", "s"], {}, None,
     None),
    ("no CUDA", nothing, ["--device", "cuda"], {}, None, None),
    ("unknown CPU variant", nothing, [], {"SCOUT_CPU": "quantum"}, None, None),
    ("memory too small", nothing, ["--memory", "1KiB"], {}, None, None),
    ("directory not writable", lambda f: f.chmod(0o555), [], {}, 65534, None),
    ("disk full", nothing, [], {}, None, 6000),
]


def run_case(scout, root, case):
    name, prepare, more, env, user, limit = case
    folder = pathlib.Path(tempfile.mkdtemp(prefix="scout-inputs-"))
    try:
        folder.chmod(0o777)
        shutil.copytree(f"{root}/data/models/stories260k", folder / "m")
        (folder / "g.yaml").write_text(GRAPH)
        (folder / "t.txt").write_bytes(open(f"{root}/data/text/tinystories/ascii.txt", "rb").read(20000))
        prepare(folder)

        def become():
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if user is not None and os.getuid() == 0:
                os.setgid(user), os.setuid(user)

        p = subprocess.run([scout, "run", "g.yaml", "--dir", "r", *more], cwd=folder,
                           env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **env}, capture_output=True, text=True,
                           errors="replace", preexec_fn=become, timeout=60)
        left = [str(f) for f in folder.rglob("tmp/*") if f.is_file() and f.suffix != ".lock"]
        message = p.stderr.replace(str(folder), "{dir}").strip() + "".join(f"\nleft behind: {f}" for f in left)
        # What differs from machine to machine.
        message = re.sub(r"this machine can run .*", "this machine can run ...", message)
        message = re.sub(r"(device 'cuda': ).*(; use --device cpu)", r"\1...\2", message)
        message = re.sub(r"where [0-9.]+ \S+ are free", "where ... are free", message)
        return f"{name}\nexit {p.returncode}\n{message}\n"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    scout, root, expected = os.path.abspath(sys.argv[1]), sys.argv[2], sys.argv[3]
    got = [run_case(scout, root, c) for c in CASES]
    if "--rewrite" in sys.argv:
        open(expected, "w", encoding="utf-8").write("\n".join(got))
    want = open(expected, encoding="utf-8").read().split("\n\n")
    bad = 0
    for g, w in zip(got, want):
        if g.strip() != w.strip():
            bad += 1
            print(f"got:\n{g}\nexpected:\n{w}\n")
    print(f"{len(got) - bad} passed, {bad + abs(len(got) - len(want))} failed")
    sys.exit(bool(bad or len(got) != len(want)))


main()
