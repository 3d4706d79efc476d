#!/usr/bin/env python3
"""Remake tests/golden/tokens: token ids by the `tokenizers` library, which ours must equal.

usage: golden_tokens.py DATA [--smollm2 DIR]       (run from the root, in the environment that tools/venv makes)

DATA holds models/ and text/ (the folder of real models and texts that the project is judged on); DIR is what
tools/fetch_smollm2 wrote. Written are

    tokenizers/NAME.json   small tokenizers: byte-level ones cut out of SmolLM2's, with the pre-tokenizers of several
                           model families, and some of the SentencePiece kind with every option that is supported
    slices/NAME.txt        short texts: pieces of real ones in many scripts, and odd ones, where implementations differ
    ids.txt                "TOKENIZER SPECIAL SLICE: id id id ...", SPECIAL being 1 with what the post-processor adds
    hashes.txt             "SHA-256 COUNT TOKENIZER FILE" for every text of DATA/text, ids as little-endian i32
"""
import argparse
import hashlib
import json
import os
import shutil

import numpy as np
from tokenizers import Tokenizer

OUT = "tests/golden/tokens"
GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES_ONLY = dict(GPT2_SPLIT, use_regex=False)
WORDS = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?%s+|%s| ?[^\\s\\p{L}%s\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
         "\\s+(?!\\S)|\\s+")
SPLITS = {  # model family: letters, numbers, marks
    "llama3": ("\\p{L}", "\\p{N}{1,3}", ""),
    "qwen2": ("\\p{L}", "\\p{N}", ""),
    "qwen35": ("[\\p{L}\\p{M}]", "\\p{N}", "\\p{M}"),
}
SLICES = [  # name, file, first character, characters
    ("story", "tinystories-1000/ascii.txt", 0, 320), ("english", "moby-dick/moby-dick.txt", 30000, 320),
    ("wiki", "wikitext-103-raw-excerpt/excerpt.txt", 0, 400), ("code", "humaneval/solutions.txt", 0, 400),
    ("json", "tau-bench-transcripts/airline-few-shot.jsonl", 0, 400), ("german", "udhr-multilingual/deu.txt", 0, 240),
    ("vietnamese", "udhr-multilingual/vie.txt", 0, 240), ("russian", "udhr-multilingual/rus.txt", 0, 200),
    ("arabic", "udhr-multilingual/arb.txt", 0, 200), ("hindi", "udhr-multilingual/hin.txt", 0, 200),
    ("thai", "udhr-multilingual/tha.txt", 0, 160), ("korean", "udhr-multilingual/kor.txt", 0, 160),
    ("japanese", "udhr-multilingual/jpn.txt", 0, 160), ("chinese", "udhr-multilingual/cmn_hans.txt", 0, 160),
]
ODD = [
    "", " ", "  ", "\n", " \n \n\n  x", "\t\ttabs\tand  spaces   ", "a\r\nb\r\n\r\n c",
    "don't DON'T we'll WE'LL I'ſ 's'S 're",
    "1234567890 12 3 1.5e-10 ¼½ Ⅷ 四 ٣٤ ๑๒ 𝟘𝟙",
    "U+0085:\u0085 nbsp:\u00a0 180e:\u180e 200b:\u200b 2028:\u2028 202f:\u202f 3000:\u3000 end",
    "e\u0301 é \u0915\u094d\u0937 \u0e19\u0e49\u0e33 \u1112\u1161\u11ab", "👩‍👩‍👧 🏳️‍🌈 🇩🇪 ©®™",
    "\U0001e4d0\U0001e4f0 \U00016d40\U00016d70 \U00010d4a\U00010d40 \u0897",
    "<s>a</s> <s> b<unk></s>", "<|endoftext|>x<|im_start|>  user <|im_end|>\n<|im_end", "▁x ▁▁y ▁",
    "[A] x[A]x  [A]  [B] x[B]x  [B]  [C] [C]  x[C]",
    "word[D] [D] [D]word Ünïcode[D]", "===--->>> !!!??? ...", "x" * 40 + " " * 20 + "y" * 40,
    "\x00\x01\x7f control", "\ufeffbom \ufffd \uffff \U0010ffff",
    "Ünïcödé ÀÉÎ ß ſ İı ǅ", "the whatever the whatever", " leading and trailing ",
]


def byte_level(smollm2, n_merges, pre_tokenizer, whole_words, post_processor):
    """SmolLM2's first merges and what they make, with 256 bytes, three special tokens, words that no merge makes."""
    source = json.load(open(f"{smollm2}/tokenizer.json", encoding="utf-8"))["model"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = source["merges"][:n_merges]
    made = ["".join(m.split(" ")) for m in merges]
    words = [w for w in whole_words if w in source["vocab"] and w not in made]
    vocab = {}
    for t in special + byte_alphabet() + made + words:
        vocab.setdefault(t, len(vocab))
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [added(vocab[s], s) for s in special],
        "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": GPT2_SPLIT,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": bool(words),
                  "vocab": vocab, "merges": merges}}


def byte_alphabet():
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printing] + [chr(0x100 + i) for i in range(256 - len(printing))]


def added(i, content, **flags):
    return dict({"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True}, **flags)


def template(before, after, ids):
    def special(name):
        return {"SpecialToken": {"id": name, "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [special(n) for n in before] + [text] + [special(n) for n in after]
    return {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in before + after}}


def piece_level(fuse_unknown, byte_tokens, normalizer, pre_tokenizer, n_flags):
    """Of the SentencePiece kind, with some merges, the bytes given, and added tokens [A] ... with all their flags."""
    chars = "▁abcdefghijklmnopqrstuvwxyz.,'ABUWxé0123"
    merges = ["t h", "th e", "▁ the", "a n", "an d", "▁ and", "▁ a", "e r", "▁ ▁", "x x", "xx xx", "▁ x", "o r", "w or",
              "wor d", "▁ word", "<0xC3> <0xBC>"]
    merges = [m for m in merges if not m.startswith("<") or byte_tokens]
    pieces = ["<unk>", "<s>", "</s>", *byte_tokens, *dict.fromkeys(chars), *("".join(m.split(" ")) for m in merges)]
    vocab = {p: i for i, p in enumerate(dict.fromkeys(pieces))}
    n = len(vocab)
    flags = [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}]
    tokens = [added(i, s) for i, s in enumerate(["<unk>", "<s>", "</s>"])]
    tokens += [added(n + i, f"[{'ABCD'[i]}]", special=False, **flags[i]) for i in range(n_flags)]
    tokens.append(added(n + n_flags, "whatever", normalized=True, special=False))
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": template(["<s>"], ["</s>"], vocab), "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": fuse_unknown, "byte_fallback": bool(byte_tokens),
                  "ignore_merges": False, "vocab": vocab, "merges": [m.split(" ") for m in merges]}}


def small_tokenizers(smollm2):
    def sequence(*steps):
        return {"type": "Sequence", "pretokenizers": list(steps)}

    digits = {"type": "Digits", "individual_digits": True}
    yield "smollm2", byte_level(smollm2, 500, sequence(digits, GPT2_SPLIT), [], None)
    yield "gpt2", byte_level(smollm2, 500, dict(GPT2_SPLIT, add_prefix_space=True), [], GPT2_SPLIT)
    for name, parts in SPLITS.items():
        split = {"type": "Split", "pattern": {"Regex": WORDS % parts}, "behavior": "Isolated", "invert": False}
        words = ["Ġwhatever", "Ġwords", "Ġspaces"] if name == "llama3" else []
        post = {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            template(["<|endoftext|>"], [], {"<|endoftext|>": 0})]} if words else None
        yield name, byte_level(smollm2, 500, sequence(split, BYTES_ONLY), words, post)
    marks = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    some_bytes = [f"<0x{b:02X}>" for b in range(0xC0, 0x100)] + ["<0x80>", "<0x85>", "<0xBC>"]
    yield "pieces", piece_level(True, some_bytes, marks, None, 4)
    yield "metaspace", piece_level(False, [], None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first",
                                                     "split": True}, 4)
    yield "metaspace_whole", piece_level(True, [], None, sequence(
        {"type": "Digits", "individual_digits": False},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}), 2)


def texts_of(folder):
    for where, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            if name.endswith((".txt", ".json", ".jsonl")) and name != "LICENSE-NOTE.txt":
                yield os.path.relpath(os.path.join(where, name), folder)


def read(path):
    with open(path, encoding="utf-8", newline="") as f:
        return f.read()


def write_tokenizers(options):
    os.makedirs(f"{OUT}/tokenizers", exist_ok=True)
    for name, value in small_tokenizers(options.smollm2):
        with open(f"{OUT}/tokenizers/{name}.json", "w", encoding="utf-8") as f:
            json.dump(value, f, ensure_ascii=False, separators=(",", ":"))
            f.write("\n")
    shutil.copy(f"{options.data}/models/babyllama-1m-char/tokenizer.json", f"{OUT}/tokenizers/babyllama-1m-char.json")


def write_slices(options):
    os.makedirs(f"{OUT}/slices", exist_ok=True)
    slices = {name: read(f"{options.data}/text/{file}")[at:at + n] for name, file, at, n in SLICES}
    slices["odd"] = "\n".join(ODD)
    for i, text in enumerate(ODD):
        slices[f"odd{i:02d}"] = text
    for name, text in slices.items():
        with open(f"{OUT}/slices/{name}.txt", "w", encoding="utf-8", newline="") as f:
            f.write(text)
    return slices


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("data")
    ap.add_argument("--smollm2", default="models/SmolLM2-135M", metavar="DIR")
    options = ap.parse_args()
    write_tokenizers(options)
    slices = write_slices(options)
    models = {"babyllama-1m": "data/models/babyllama-1m/tokenizer.json",
              "stories260k": "data/models/stories260k/tokenizer.json",
              "babyllama-1m-char": f"{OUT}/tokenizers/babyllama-1m-char.json",
              "SmolLM2-135M": f"{options.smollm2}/tokenizer.json"}
    small = {name: f"{OUT}/tokenizers/{name}.json" for name, _ in small_tokenizers(options.smollm2)}
    with open(f"{OUT}/ids.txt", "w", encoding="utf-8") as f:
        for name, path in {**models, **small}.items():
            if name == "SmolLM2-135M":
                continue
            tokenizer = Tokenizer.from_file(path)
            for special in (0, 1):
                for piece, text in slices.items():
                    if special and not piece.startswith("odd0"):
                        continue
                    ids = tokenizer.encode(text, add_special_tokens=bool(special)).ids
                    f.write(f"{name} {special} {piece}:{''.join(f' {i}' for i in ids)}\n")
    with open(f"{OUT}/hashes.txt", "w", encoding="utf-8") as f:
        for name, path in models.items():
            tokenizer = Tokenizer.from_file(path)
            for file in texts_of(f"{options.data}/text"):
                text = read(f"{options.data}/text/{file}")
                ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, "<i4")
                f.write(f"{hashlib.sha256(ids.tobytes()).hexdigest()} {len(ids)} {name} {file}\n")
            print(name, flush=True)


if __name__ == "__main__":
    main()
