"""Training on one GPU, in one command and at most eight minutes: correctness first, then speed and memory, against plain transformers and peft.

Weights are random, of Llama 2's shape, made on the GPU; rows are random tokens whose lengths are spread like Orca's (log-normal, median 450, cut at
a pack's length), 60 % of them targets. So nothing is downloaded, and no `datasets` is needed. Each part is a process of its own with its share of the
time; within a part, profiles are tried while time is left, and the fastest counts. Where a part has a bar in GB (10^9 bytes), torch is allowed no more than
that once the model stands, so what runs there fits.

    rate     bf16 matrix products; the first is what MFU is a share of (MFU: 6 x weights met + attention; nothing that is computed again counts)
    correct  packed examples against each alone, under every attention there is here: states, loss and gradients against fp32 with full logits, as far
             off as plain bf16 is, and nothing that leaks from one into the next; two layers of the real width
    small    a small model: the loss falls, updates that rounding swallows by optimizer, and a resumed run against a whole one
    full     all weights of the 7B shape, packs of 4,096         a100   the same on at most 75 GB         low   on at most 24 GB
    plain    the peer of `full`: a tutorial's loop (causal attention over the padded pack, full logits, the model's own loss, fused AdamW in bf16)
    13b      all weights of the 13B shape on at most 78 GB
    qlora    adapters on the 7B shape in 4 bits, packs of 2,048, on at most 14 GB, and plain peft's on the same       lora   in bf16

    python benchmarks/train_gpu.py [--parts full,plain] [--seconds 480]
    python benchmarks/train_gpu.py --device cpu --shape tiny        # every part in a minute or two, to see that the file is whole
"""

import argparse
import copy
import gc
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import numpy as np

SECONDS = {"rate": 25, "correct": 55, "small": 40, "full": 100, "plain": 35, "a100": 40, "low": 40, "13b": 50, "qlora": 50, "lora": 45}
LIMIT = sum(SECONDS.values())
BACKWARD = {"update": "backward", "clip": 0.0, "recompute": 1}
PROFILES = {  # what differs from BASIS, the likeliest first
    "full": [{"batch_size": 2}, {}, {"batch_size": 4, "recompute": 2}, {"batch_size": 2, "compile": "no"}, {"optimizer": "adamw"}],
    "plain": [{}, {"batch_size": 2}],
    "a100": [{"recompute": 2}, {"batch_size": 2, "recompute": 1}],
    "low": [{**BACKWARD, "offload": "optimizer"}],
    "13b": [{**BACKWARD, "optimizer": "adamw_8bit"}, {**BACKWARD, "offload": "optimizer"}],
    "qlora": [{"method": "qlora", "optimizer": "adamw", "recompute": 2}, {"method": "qlora", "optimizer": "adamw", "recompute": 1}],
    "lora": [{"method": "lora", "optimizer": "adamw", "recompute": 2}]}
BASIS = {"optimizer": "adamw_bf16_sr", "lr": 1e-5, "warmup": 0, "schedule": "constant"}
BARS = (("full", "mfu", ">=", 0.55), ("a100", "gb", "<=", 75), ("low", "gb", "<=", 24), ("13b", "gb", "<=", 78), ("qlora", "gb", "<=", 14), ("qlora", "ratio", ">=", 1.5))
CAP = {part: bar for part, what, _, bar in BARS if what == "gb"}
OPTIMIZERS = ("adamw", "adamw_bf16", "adamw_bf16_sr", "adamw_8bit")


def lacking(settings):
    """Say why settings cannot be tried here, or ""."""
    needs = settings.get("optimizer") == "adamw_8bit" or settings.get("method") == "qlora"
    return "needs bitsandbytes, which is not installed" if needs and not find_spec("bitsandbytes") else ""


# --------------------------------------------------------------------------------------- rows and models

def packs(number, seq_len, vocabulary):
    """Return `number` full packs of random examples."""
    from orcalab import packing
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(math.log(450), 0.8, 4 + (number + 2) * seq_len // 300), 16, seq_len).astype(int)
    examples = [(rng.integers(3, vocabulary, n).tolist(), [0] * (n - int(0.6 * n)) + [1] * int(0.6 * n)) for n in lengths]
    plan = sorted(packing.best_fit(lengths, seq_len), key=lambda members: -sum(lengths[i] for i in members))
    return packing.pack(examples, plan[:number], seq_len)


def some(packed, rows):
    return type(packed)(*(a[rows] for a in packed))


def make(name, device, dtype, layers=0):
    """Return a model of a base's shape with random weights, made on the device; with so many layers, if not 0."""
    import torch
    from orcalab import model as models
    from transformers import AutoModelForCausalLM
    config = models.skeleton(name).config
    config.num_hidden_layers = layers or config.num_hidden_layers
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).train()


def quantise(model):
    """Put a model's decoder into NF4 with quantised scales, a layer at a time."""
    import bitsandbytes
    for name, layer in [(n, m) for n, m in model.named_modules() if n.endswith("_proj")]:
        made = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=model.dtype, quant_type="nf4", device="meta")
        made.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
        made.support_avx512bf16_for_cpu = False
        model.set_submodule(name, made.to(layer.weight.device))
    model.is_loaded_in_4bit = True
    return model


# ---------------------------------------------------------------------------------------------- two sides

def ours(cfg, model, device, dtype):
    """Return a function that takes packs, makes one step on them as train.py does, and returns the loss."""
    from orcalab import adapter, attention, loss, model as models, optim
    if cfg.method != "full":
        adapter.inject(model, models.load_tokenizer("tiny-random"), cfg, "random")
    kind = attention.kind_of(cfg, device, dtype)
    model = attention.arrange(model, cfg, kind)
    optimizer = optim.Optimizer(model, cfg)

    def step(packed):
        optimizer.begin(cfg.lr)
        ids, position, labels, apart = attention.batch_of(packed, list(range(len(packed.ids))), device, kind)
        total, _ = loss.loss_sum(model, ids, position, apart, labels)
        (total / packed.num_targets).backward()
        optimizer.gather()
        optimizer.step()
        return total.item() / packed.num_targets

    step.optimizer = optimizer
    return step


def plain(cfg, model, device, dtype):
    """Return the same for a loop as tutorials have it; adapters with plain peft, under autocast, as transformers' Trainer runs them."""
    import torch
    if cfg.method != "full":
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False) if cfg.method == "qlora" else model
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, target_modules="all-linear"))
    if cfg.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=cfg.lr, fused=True)

    def step(packed):
        ids, labels = (torch.from_numpy(a).long().to(device) for a in (packed.ids, packed.labels))
        with torch.autocast(device, dtype, enabled=cfg.method != "full" and dtype != torch.float32):
            loss = model(input_ids=ids, labels=labels.roll(1, 1), use_cache=False).loss  # transformers shifts by itself
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def run(side, part, settings, a):
    """Train a few steps with one side under some settings; return what was measured."""
    import torch
    from orcalab import forecast
    from orcalab.config import Config
    name, seq_len = {"tiny": ("tiny-random", 256)}.get(a.shape) or (f"meta-llama/Llama-2-{'13b' if part == '13b' else '7b'}-hf", 2048 if "lora" in part else 4096)
    cfg, shape, cuda = Config(base=name, seq_len=seq_len, **{**BASIS, **settings}), forecast.shape_of(name), a.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    model = make(name, a.device, dtype)
    model = quantise(model) if cfg.method == "qlora" else model
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP.get(part, 1e6) * 1e9 / torch.cuda.get_device_properties(0).total_memory))
        torch.cuda.reset_peak_memory_stats()
    packed = packs(4 * cfg.batch_size, seq_len, shape.vocabulary)
    step, losses, seconds, per_s = side(cfg, model, a.device, dtype), [], [], []
    while len(seconds) < 3 or len(seconds) < 12 and time.time() < a.until:  # the first two warm up
        batch, begun = some(packed, [(len(seconds) * cfg.batch_size + i) % len(packed.ids) for i in range(cfg.batch_size)]), time.perf_counter()
        losses.append(step(batch))
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
        lengths = [n for row in batch.segment for n in np.unique(row[row >= 0], return_counts=True)[1]]
        work = forecast.flops(shape, sum(lengths), batch.num_targets, lengths, cfg.method, forecast.adapter_of(shape, cfg))
        per_s.append((sum(lengths) / seconds[-1], work / seconds[-1]))
    speed, flops = (statistics.median(x) for x in zip(*per_s[2:]))
    planned = sum(forecast.memory(cfg, shape, [cfg.batch_size * seq_len, int(0.6 * cfg.batch_size * seq_len), 0], "bf16").values())
    return {"tokens_per_s": speed, "mfu": flops / a.rate, "gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
            "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if cuda else None, "planned_gb": planned / 1e9, "first_step_s": seconds[0], "step_s": statistics.median(seconds[2:]), "losses": [losses[0], losses[-1]]}


def profiles(part, a, say):
    """Measure a part's profiles while there is time, ours and, for adapters, plain peft's; a profile that finds no room says so."""
    import torch
    sides = {"plain": (plain,), "lora": (ours, plain), "qlora": (ours, plain)}.get(part, (ours,))
    for n, (settings, side) in enumerate((settings, side) for settings in PROFILES[part] for side in sides):
        row = {"side": side.__name__, "settings": settings}
        if not (why := lacking(settings)) and n >= len(sides) and time.time() > a.until - 0.4 * a.seconds:
            why = "no time left"
        try:
            row |= {"skipped": why} if why else run(side, part, settings, a)
        except torch.cuda.OutOfMemoryError as e:
            row["skipped"] = f"no room: {str(e)[:120]}"
        torch._dynamo.reset()  # what was compiled counts against a limit, and may hold on to the model
        gc.collect()
        if a.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
        say(row)


# ------------------------------------------------------------------------------------------- other parts

def rate(part, a, say):
    import torch
    dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
    for m, k, n in ((8192, 8192, 8192), (8192, 4096, 11008)) if a.device == "cuda" else ((512, 512, 512), (256, 64, 192)):
        x, y, times = torch.randn(m, k, device=a.device, dtype=dtype), torch.randn(k, n, device=a.device, dtype=dtype), []
        for _ in range(8):
            begun = time.perf_counter()
            for _ in range(10):
                x @ y
            if a.device == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - begun) / 10)
        say({"product": f"({m}, {k}) x ({k}, {n})", "tflops": 2e-12 * m * k * n / statistics.median(times[2:])})


def correct(part, a, say):
    """Hold a pack under each attention, in the type that is trained in, against each example alone in fp32, with transformers' own attention and full logits."""
    import torch
    from orcalab import attention, loss
    from orcalab.config import Config
    name, seq_len = ("tiny-random", 256) if a.shape == "tiny" else ("meta-llama/Llama-2-7b-hf", 4096)
    cuda, dtype = a.device == "cuda", torch.bfloat16 if a.device == "cuda" else torch.float32
    model = make(name, a.device, dtype, layers=2)
    with torch.no_grad():
        for p in model.parameters():  # so that attention matters as much at any width
            p.mul_(64 / model.config.hidden_size**0.5 if p.ndim > 1 else 1)
    packed = packs(2, seq_len, model.config.vocab_size)
    real, segment = packed.segment.reshape(-1) >= 0, [row[row >= 0] for row in packed.segment]
    lengths = [n for row in segment for n in np.unique(row, return_counts=True)[1]]
    ids, labels = (torch.from_numpy(x.reshape(-1)[real]).long().to(a.device) for x in (packed.ids, packed.labels))

    def gradients(model):
        grads = [p.grad.float() for p in model.parameters()]
        model.zero_grad()
        return grads

    def alone(model):
        states, total, grads = [], 0.0, None
        for x, y in zip(ids.split(lengths), labels.split(lengths)):
            states.append(model.base_model(input_ids=x[None], use_cache=False).last_hidden_state[0])
            lost = torch.nn.functional.cross_entropy(model.get_output_embeddings()(states[-1]).float(), y, ignore_index=-100, reduction="sum")
            (lost / packed.num_targets).backward()
            total, grads, states[-1] = total + lost.item(), [g + h for g, h in zip(grads or [0] * 999, gradients(model))], states[-1].detach().float()
        return torch.cat(states), total / packed.num_targets, grads

    def together(kind, compile):
        cfg, one = Config(attention=kind, compile=compile), copy.deepcopy(model)
        one = attention.arrange(one, cfg, attention.kind_of(cfg, a.device, dtype))
        x, position, y, apart = attention.batch_of(packed, [0, 1], a.device, kind)
        keep = torch.from_numpy(real).to(a.device) if len(x) == len(real) else slice(None)  # where padding is kept
        with torch.no_grad():
            states = attention.hidden(one, x, position, apart)[keep].float()
            x2 = x.clone()
            x2[: lengths[0]] = 3
            leak = (attention.hidden(one, x2, position, apart)[keep].float() - states)[lengths[0]:].abs().max().item()
        total, _ = loss.loss_sum(one, x, position, apart, y)
        (total / packed.num_targets).backward()
        return states, total.item() / packed.num_targets, gradients(one), leak

    def off(got):
        relative = lambda x, y: math.sqrt(sum((p - q).square().sum().item() for p, q in zip(x, y)) / sum(q.square().sum().item() for q in y))
        return {"states": relative([got[0]], [want[0]]), "gradient": relative(got[2], want[2]), "loss": abs(got[1] - want[1])}

    want = alone(copy.deepcopy(model).float())
    by = off(alone(model))
    say({"attention": "each alone, full logits", "loss_fp32": want[1], **by, "ok": True})
    for kind, compile in [("varlen", "no"), ("varlen", "yes"), ("flex", "no"), ("flex", "yes"), ("documents", "no")] if cuda else [("documents", "no")]:
        row = {"attention": kind, "compile": compile}
        try:
            *got, leak = together(kind, compile)
            far = off(got)
            ok = leak == 0 and far["loss"] < (5e-3 if cuda else 1e-4) and all(far[k] < 1.5 * by[k] + 1e-5 for k in ("states", "gradient"))
            row |= {**far, "leak": leak, "ok": ok}
        except Exception as e:  # the other kinds are still of interest
            row |= {"ok": False, "failed": f"{type(e).__name__}: {str(e)[:300]}"}
        say(row)


def small(part, a, say):
    """Train a small model with each optimizer; resume one in the middle."""
    import torch
    from orcalab.config import Config
    cuda, packed = a.device == "cuda", packs(2, 256, 259)

    def trained(kind, steps, state=None, lr=1e-3):
        cfg = Config(base="tiny-random", seq_len=256, **{**BASIS, "optimizer": kind, "lr": lr, "compile": "no"})
        step = ours(cfg, make("tiny-random", a.device, torch.bfloat16), a.device, torch.bfloat16)
        if state:
            step.optimizer.load(state)
        losses = [step(packed) for _ in range(steps)]
        return {n: t.clone() for n, t in step.optimizer.state().items()}, losses, step.optimizer.lost

    for kind in OPTIMIZERS:
        if why := lacking({"optimizer": kind}):
            say({"optimizer": kind, "skipped": why})
            continue
        _, losses, lost = trained(kind, 12)
        whole, again, resumed = trained(kind, 6)[0], trained(kind, 6)[0], trained(kind, 3, trained(kind, 3)[0])[0]
        far = lambda x: max((x[n].float() - t.float()).abs().max().item() for n, t in whole.items())
        say({"optimizer": kind, "losses": [losses[0], losses[-1]], "lost_updates": lost, "lost_updates_at_lr_1e-5": trained(kind, 3, lr=1e-5)[2], "resumed_differs_by": far(resumed),
             "repeated_differs_by": far(again), "ok": losses[-1] < losses[0] and (far(resumed) == 0 or cuda and far(resumed) <= 4 * far(again))})


# ------------------------------------------------------------------------------------------------- driver

def child(part, a):
    """One part, in this process: a line of JSON for each row of its results."""
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no result

    def say(row):
        print(json.dumps({"part": part, **row}), file=out, flush=True)

    a.until = time.time() + a.seconds
    try:
        {"rate": rate, "correct": correct, "small": small}.get(part, profiles)(part, a, say)
    except Exception as e:
        say({"failed": f"{type(e).__name__}: {str(e)[:500]}"})
        raise


def best(rows, part, side="ours"):
    """Return the fastest row of a part, or {}."""
    return max((r for r in rows if r["part"] == part and r.get("side") == side and "tokens_per_s" in r), key=lambda r: r["tokens_per_s"], default={})


def told(row):
    """Return a row as a line of text."""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    ask.add_argument("--shape", default="7b", choices=("7b", "tiny"))
    ask.add_argument("--parts", default=",".join(SECONDS), help="joined by commas, of: " + ", ".join(SECONDS))
    ask.add_argument("--seconds", type=float, default=LIMIT, help="time for all")
    ask.add_argument("--rate", type=float, default=1e12, help=argparse.SUPPRESS)
    ask.add_argument("--child", default="", help=argparse.SUPPRESS)
    a = ask.parse_args()
    if a.child:
        return child(a.child, a)
    if odd := set(a.parts.split(",")) - set(SECONDS):
        raise SystemExit(f"no part named {', '.join(sorted(odd))}; known: {', '.join(SECONDS)}")
    begun, rows = time.time(), []
    for part in dict.fromkeys(["rate", *a.parts.split(",")]):
        left = a.seconds - (time.time() - begun)
        share = min(SECONDS[part] * a.seconds / LIMIT, left)
        job = subprocess.Popen([sys.executable, __file__, "--child", part, "--device", a.device, "--shape", a.shape, "--seconds", str(share), "--rate", str(a.rate)],
                               stdout=subprocess.PIPE, text=True)
        clock = threading.Timer(min(left, 1.5 * share + 10), job.kill)
        clock.start()
        mine = []
        for line in job.stdout:
            mine.append(json.loads(line))
            print(told(mine[-1]), flush=True)
        clock.cancel()
        if job.wait() and not any("failed" in r for r in mine):
            mine.append({"part": part, "failed": f"was ended after {share:.0f} s, its share of the time" if job.returncode == -9 else f"exit code {job.returncode}"})
            print(told(mine[-1]), flush=True)
        rows += mine
        if part == "rate" and "tflops" in mine[0]:
            a.rate = mine[0]["tflops"] * 1e12
    ratio = {part: best(rows, part)["tokens_per_s"] / peer["tokens_per_s"] for part, other in (("full", "plain"), ("lora", "lora"), ("qlora", "qlora"))
             if best(rows, part) and (peer := best(rows, other, "plain"))}
    bars = {f"{part} {what} {sign} {bar}": value if (value := {**best(rows, part), "ratio": ratio.get(part)}.get(what)) else "not measured" for part, what, sign, bar in BARS}
    print(json.dumps({"device": device_name(a.device), "versions": versions(), "peer": "plain transformers and peft: causal attention over the padded pack, full logits", "ratio": ratio.get("full"),
                      "ratios": ratio, "rate_tflops": a.rate / 1e12, "tokens_per_s": best(rows, "full").get("tokens_per_s"), "mfu": best(rows, "full").get("mfu"), "bars": bars,
                      "failed": [r["part"] for r in rows if "failed" in r or not r.get("ok", True)], "seconds": time.time() - begun, "rows": rows,
                      "work": f"Llama 2's shape ({a.shape}), random weights, packs of random rows with Orca's lengths, 60 % targets"}))


def device_name(device):
    import torch
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def versions():
    found = {"python": sys.version.split()[0]}
    for package in ("torch", "transformers", "peft", "bitsandbytes", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


if __name__ == "__main__":
    main()
