#!/usr/bin/env python3
"""The peer of a measuring pass: one forward and KL over a batch of windows, by `transformers` in bf16, timed.

usage: gpu_peer.py [--device cuda|cpu] [--layers N] [--hidden N] ...        (needs torch and transformers; no network)

The model is Llama-shaped with random weights of a fixed seed; what is not given has the shape of a 27B model, with as
many layers as asked for. The work of a pass is that of scout's: the teacher's states after the final norm are there
from before; timed are the candidate's layers, then in chunks of tokens the logits of both, and KL(teacher || candidate)
of each token in fp32 over the whole vocabulary. The candidate is the teacher with noise on every matrix of its layers;
both share the head.

Prints one JSON line: `seconds`, the median of the rounds, is a whole pass; `seconds_layers` and `seconds_head_kl` are
its two parts (medians of their own).
"""
import argparse
import json
import statistics
import sys
import time

SEED = 1
NOISE = 0.05  # of a matrix' own standard deviation


def parse():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--device", default="cuda")
    for name, default, text in (
            ("layers", 4, "decoder layers"), ("hidden", 5120, "width of the residual stream"),
            ("intermediate", 17408, "width of the MLP"), ("heads", 40, "query heads"),
            ("kv-heads", 8, "key and value heads"), ("head-dim", 128, "width of a head"),
            ("vocabulary", 151936, "tokens"), ("windows", 8, "windows in the batch"),
            ("window", 512, "tokens a window"),
            ("chunk", 512, "tokens whose logits are formed at once"), ("rounds", 9, "timed passes"),
            ("warm-up", 2, "passes before them")):
        p.add_argument("--" + name, type=int, default=default, help=f"{text} (default: {default})")
    a = p.parse_args()
    for name, value in vars(a).items():
        if name != "device" and value < (0 if name == "warm_up" else 1):
            p.error(f"--{name.replace('_', '-')}: {value} is too small")
    if a.heads % a.kv_heads:
        p.error("--heads: not a multiple of --kv-heads")
    return a


args = parse()
try:
    import torch
    import transformers
except ImportError as e:
    print(f"gpu_peer.py: this Python lacks {e.name}", file=sys.stderr)
    sys.exit(77)


class Clock:
    """Marks on the device's own time line, read when all is done."""

    def __init__(self):
        self.cuda = args.device.startswith("cuda")
        self.marks = []

    def mark(self):
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self):
        """Between each mark and the next."""
        if not self.cuda:
            return [b - a for a, b in zip(self.marks, self.marks[1:])]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in zip(self.marks, self.marks[1:])]


def make_model():
    config = transformers.LlamaConfig(
        vocab_size=args.vocabulary, hidden_size=args.hidden, intermediate_size=args.intermediate,
        num_hidden_layers=args.layers, num_attention_heads=args.heads, num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim, max_position_embeddings=args.window, use_cache=False, tie_word_embeddings=False,
        attn_implementation="sdpa")
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(args.device):
        return transformers.LlamaForCausalLM(config).eval()


def perturb(model):
    for p in model.model.layers.parameters():
        if p.dim() == 2:
            p.add_(torch.randn_like(p) * (NOISE * p.float().std()))


def states_of(model, ids):
    """After the final norm: [windows * window, hidden]."""
    return model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)


def kl_of(head, teacher, candidate):
    """The sum over all tokens of KL(teacher || candidate), in nats, in f64 on the device."""
    total = torch.zeros((), dtype=torch.float64, device=teacher.device)
    for t, c in zip(teacher.split(args.chunk), candidate.split(args.chunk)):
        p = torch.log_softmax(head(t).float(), -1)
        q = torch.log_softmax(head(c).float(), -1)
        total += torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True).double()
    return total


def main():
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        sys.exit("gpu_peer.py: torch finds no CUDA device")
    with torch.inference_mode():
        model = make_model()
        ids = torch.randint(args.vocabulary, (args.windows, args.window), device=args.device)
        teacher = states_of(model, ids)
        same = kl_of(model.lm_head, teacher, teacher).item()
        perturb(model)
        rounds = []
        for n in range(args.warm_up + args.rounds):
            clock = Clock()
            clock.mark()
            candidate = states_of(model, ids)
            clock.mark()
            total = kl_of(model.lm_head, teacher, candidate)
            clock.mark()
            if n >= args.warm_up:
                rounds.append(clock.seconds())
        kl = total.item() / ids.numel()
    if same != 0 or not 0 < kl < float("inf"):
        sys.exit(f"gpu_peer.py: KL(teacher, teacher) = {same}, KL(teacher, candidate) = {kl}: no pass to compare with")
    whole = [sum(r) for r in rounds]
    print(json.dumps({
        "name": "peer: transformers forward + KL", "seconds": statistics.median(whole),
        "seconds_layers": statistics.median(r[0] for r in rounds),
        "seconds_head_kl": statistics.median(r[1] for r in rounds), "seconds_rounds": [round(s, 6) for s in whole],
        "tokens": ids.numel(), "kl": kl, "dtype": "bfloat16", **vars(args),
        "device_name": torch.cuda.get_device_name(args.device) if cuda else "cpu",
        "peak_memory": torch.cuda.max_memory_allocated(args.device) if cuda else None,
        "torch": torch.__version__, "transformers": transformers.__version__}))


main()
