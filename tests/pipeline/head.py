#!/usr/bin/env python3
"""Whole runs on the shipped model with a head of its own, which is a unit.

usage: head.py SCOUT ROOT

1. Through gptq and block_match, in formats that quantize everything: the exported head is packed, config.json names it
   as servers know it, and verify finds the measured rows again, to the bit.
2. The same of the rotated model: rotate hands on that the head is a unit.
3. A tied head cannot be a unit.
"""
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

try:
    import h5py
except ImportError:
    sys.exit(77)

SMALL = ["calibration=4", "probes=4", "selection=4", "report=4", "window=128", "proposals=6", "moves=4", "rounds=1"]


def untied(source, folder):
    """The model with a copy of its embedding as a head of its own."""
    shutil.copytree(source, folder)
    path = pathlib.Path(folder, "config.json")
    config = json.loads(path.read_text())
    config["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2))
    path = pathlib.Path(folder, "model.safetensors")
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, data = json.loads(data[8:8 + length]), data[8 + length:]
    begin, end = header["model.embed_tokens.weight"]["data_offsets"]
    header["lm_head.weight"] = {**header["model.embed_tokens.weight"],
                                "data_offsets": [len(data), len(data) + end - begin]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data + data[begin:end])


def run(scout, graph, folder, code=0, more=()):
    p = subprocess.run([scout, "run", graph, "--dir", folder, *more, *(w for s in SMALL for w in ("--set", s))],
                       capture_output=True, text=True)
    if p.returncode != code:
        sys.exit(f"{graph}\nexit {p.returncode}, expected {code}\n{p.stdout[-3000:]}{p.stderr[-3000:]}")
    return p.stdout + p.stderr


def expect(condition, text):
    if not condition:
        sys.exit(text)


def header_of(path):
    with open(path, "rb") as f:
        return json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))


def check(folder, text):
    expect("bit for bit" in text, "verify has compared nothing")
    with h5py.File(f"{folder}/run.h5", "r") as f:
        units = [n.rstrip(b"\0").decode() for n in f["nodes/quantize/result/units/name"][:]]
        expect(units[-1] == "lm_head", f"the head is no unit: {units}")
        exported = f["nodes/export/result"].attrs["bytes"]
        tensors = [n.rstrip(b"\0").decode() for n in f["nodes/export/result/tensors/name"][:]]
        sizes = f["nodes/export/result/tensors/bytes"][:]
    payload = sum(int(b) for n, b in zip(tensors, sizes) if "_proj" in n or n.startswith("lm_head"))
    expect(payload == exported, f"the units take {payload} bytes, the assignment {exported}")
    config = json.loads(pathlib.Path(folder, "export", "config.json").read_text())["quantization_config"]
    groups = [g for g in config["config_groups"].values() if "re:.*lm_head$" in g["targets"]]
    expect(len(groups) == 1 and "lm_head" not in config["ignore"], f"the head's groups are {groups}")
    head = {n for n in header_of(f"{folder}/export/model.safetensors") if n.startswith("lm_head")}
    packed = groups[0]["format"] == "nvfp4-pack-quantized"
    expect(head == ({"lm_head.weight_packed", "lm_head.weight_scale", "lm_head.weight_global_scale"} if packed else
                    {"lm_head.weight", "lm_head.weight_scale"}), f"its tensors are {head}")
    print(f"head in {groups[0]['format']}, measured and exported alike")


def main():
    scout, root = sys.argv[1:3]
    folder = tempfile.mkdtemp(prefix="scout-head-")
    try:
        untied(f"{root}/data/models/babyllama-1m", f"{folder}/model")
        common = (f"params: {{model: {folder}/model, text: {root}/data/text/tinystories/ascii.txt, "
                  "formats: [nvfp4_a16, fp8]}\n")
        chain = "{in: {tokens: corpus.calibration}, with: {rounding: [gptq, block_match]}}"
        for name, quantize in (("pipeline", chain), ("rotate", "{with: {rounding: [rtn]}}")):
            graph = pathlib.Path(folder, f"{name}.yaml")
            graph.write_text(f"scout: 1\nname: {name}\nextends: {root}/graphs/{name}.yaml\n{common}nodes:\n"
                             f"  model: {{with: {{head: unit}}}}\n  quantize: {quantize}\n")
            check(f"{folder}/{name}", run(scout, str(graph), f"{folder}/{name}"))
        text = run(scout, f"{root}/graphs/quickstart.yaml", f"{folder}/tied", code=1,
                   more=["--set", "nodes.model.with.head=unit"])
        expect("the head is the embedding (`tie_word_embeddings`)" in text, f"a tied head: {text}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
