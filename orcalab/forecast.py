"""What a stage will cost, before anything is loaded or bought: steps, tokens, GiB by kind at the peak, FLOPs, hours, and what to change where it does not fit.

The formulas count what this package's rooms do with a model of Llama's form; tests count the bytes of real and of fake tensors against them, of several processes as well.
"""

import re
import textwrap
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from orcalab import cluster, model as models, optim
from orcalab.config import ROW, change, nearest

GIB = 2**30
KINDS = ("weights", "adapter", "masters", "optimizer", "gradients", "gathered", "activations", "loss", "temporary", "process")
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MFU = {"full": 0.5, "lora": 0.45, "qlora": 0.45}  # share of the peak rate that we assume to reach
PROCESS = 0.53  # GiB of Python, torch and other libraries on a CPU, measured
HEAP = 0.2  # share of the tensors that the C library holds beside them on a CPU, for it does not give all back that is freed; measured
CONTEXT = 0.5  # GiB that CUDA takes for itself, and torch does not count
# Dense peak of the tensor cores in 16 bits and of plain fp32, FLOP/s, as their makers give them, to our knowledge (looked up: RTX-4090's FLOP/s); GiB that torch finds there; whether it has bf16
DEVICES = {"A100-40": (312e12, 19.5e12, 39.4, True), "A100-80": (312e12, 19.5e12, 79.2, True), "H100": (989e12, 67e12, 79.2, True), "H100-PCIe": (756e12, 51e12, 79.2, True),
           "H200": (989e12, 67e12, 139.7, True), "L4": (121e12, 30.3e12, 22.0, True), "L40S": (362e12, 91.6e12, 44.4, True), "A10G": (70e12, 31.2e12, 22.0, True),
           "RTX-4090": (165e12, 82.6e12, 23.5, True), "RTX-3090": (71e12, 35.6e12, 23.5, True), "A6000": (155e12, 38.7e12, 47.4, True), "T4": (65e12, 8.1e12, 14.6, False),
           "V100-16": (125e12, 15.7e12, 15.8, False), "V100-32": (125e12, 15.7e12, 31.7, False)}


class Shape(NamedTuple):
    """What a model's cost hangs on: sizes, and numbers of weights by kind."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int  # width of the MLP
    vocabulary: int  # with the rows of a template's tokens
    tied: bool  # whether one table serves as input and output
    matrices: int  # weights of the decoder's linear layers
    vectors: int  # weights of norms and biases

    @property
    def table(self):
        return self.vocabulary * self.width

    @property
    def weights(self):
        return self.table * (1 if self.tied else 2) + self.matrices + self.vectors

    @property
    def outside(self):  # of the layers: tables and the last norm
        return self.weights - self.matrices - self.vectors + self.width


def shape_of(base, template=None, rope=""):
    """Return the Shape of a base model by name, hub id or folder; no weights are loaded. Raise a ValueError if its positions cannot be stretched by `rope`.

    >>> shape_of("meta-llama/Llama-2-7b-hf").weights
    6738440192
    """
    model = models.skeleton(str(base), template, rope)
    c, tables = model.config, models.tables(model)
    inside = [p for p in model.parameters() if all(p is not t for t in tables)]
    matrices = sum(p.numel() for p in inside if p.ndim > 1)
    heads = c.num_attention_heads
    return Shape(c.num_hidden_layers, c.hidden_size, heads, getattr(c, "num_key_value_heads", None) or heads, getattr(c, "head_dim", None) or c.hidden_size // heads,
                 c.intermediate_size, model.get_input_embeddings().num_embeddings, len(tables) == 1, matrices, sum(p.numel() for p in inside) - matrices)


def named(device):
    """Return (name, whether it is this machine's) of a device, as a person or torch writes it; "cuda" is the one that torch sees. Raise for what nobody knows.

    >>> named("NVIDIA A100-SXM4-80GB"), named("Tesla T4"), named("cpu")
    (('A100-80', False), ('T4', False), ('cpu', True))
    """
    here, name = device in ("cpu", "cuda"), torch.cuda.get_device_name() if device == "cuda" else device
    words = lambda text: {w.removesuffix("gb") for w in re.split(r"[^a-z0-9]+", text.lower())}
    known = max((n for n in DEVICES if words(n) <= words(name)), key=len, default="")
    if not here and not known:
        raise ValueError(f"no device named {device!r}{nearest(device, [n for n in DEVICES if n.startswith(device)] or [*DEVICES, 'cpu', 'cuda'])}")
    return known or name, here


@lru_cache
def rate(device, dtype="bf16"):
    """Return a device's peak FLOP/s in a compute type (a name or torch's): its maker's, or what matrix products reach in a moment where none is written down.

    Raises:  ValueError: no such device, or one that lacks the type; says what to take.
    """
    (name, _), dtype = named(device), TYPES.get(dtype, dtype)
    if name in DEVICES:
        half, single, _, has_bf16 = DEVICES[name]
        if dtype == torch.bfloat16 and not has_bf16:
            raise ValueError(f"{name} has no instructions for bf16: choose dtype fp16")
        return single if dtype == torch.float32 else half
    rows, width, out = (2048, 576, 1536) if device == "cpu" else (8192, 8192, 8192)  # the first is the laptop student's
    a, b, times = torch.ones(rows, width, device=device, dtype=dtype), torch.ones(width, out, device=device, dtype=dtype), []
    for _ in range(12):  # the first ones warm up
        begun = time.perf_counter()
        (a @ b)[0, 0].item()
        times.append(time.perf_counter() - begun)
    return 2 * rows * width * out / min(times)


def room(device):
    """Return the GiB that a run may take on a device: of a named one all it has; of this machine what is free or this process has already; inf if nobody knows."""
    name, here = named(device)
    if not here:
        return DEVICES[name][2] - CONTEXT
    if device == "cuda":
        return (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / GIB
    if not Path("/proc/meminfo").exists():  # not Linux
        return float("inf")
    return sum(int(re.search(rf"{key}:\s+(\d+)", Path(path).read_text())[1]) for path, key in (("/proc/meminfo", "MemAvailable"), ("/proc/self/status", "VmRSS"))) / 2**20


def flops(shape, tokens, targets, lengths, method="full", adapter=0):
    """Return the FLOPs of training on some tokens, as MFU counts them: nothing that is computed twice.

    Each weight that a token meets costs 6: 2 forward, 2 for the gradient of what came in, 2 for its own, which a frozen one lacks. The input table is looked up,
    the output table meets targets only. Attention sees half of each example's square: 12 x layers x width x length^2 / 2.

    Args:    lengths: tokens of each example.  method: as in Config.  adapter: weights of an adapter.
    """
    met = tokens * shape.matrices + targets * shape.table
    squares = float(np.square(np.asarray(lengths, np.float64)).sum())
    return (6 if method == "full" else 4) * met + 6 * adapter * tokens + 6 * shape.layers * shape.heads * shape.head_dim * squares


def adapter_of(shape, cfg):
    """Return how many weights a stage's adapter has, without the few rows of new tokens: rank x (in + out) for each linear layer; 0 if all weights learn."""
    both = 7 * shape.width + 2 * (shape.heads + shape.kv_heads) * shape.head_dim + 3 * shape.inner
    return (cfg.method != "full") * cfg.lora_rank * (shape.layers * both + (shape.width + shape.vocabulary) * (cfg.lora_on == "head"))


def work(cfg, prepared=None, rows=0):
    """Return what a stage goes through: steps, tokens, targets, epochs, `lengths` of all examples, `batch`, and `how` it was estimated ("" if it is exact).

    `batch` is the largest forward pass: (tokens, targets, sum of squared lengths of examples of at most 512 tokens). Where rows are not here, examples are
    taken to have 758 tokens, as in Orca 1, and half of them to be targets.
    """
    if prepared:
        ends = prepared.plan.ends[: prepared.steps * cfg.packs_per_step]
        members, first, parts = prepared.plan.members[: ends[-1]], np.concatenate([[0], ends[:-1]]), []
        for _, end, mask in prepared.examples.values:
            at = np.concatenate([[0], end[:-1]])
            parts.append((end - at, np.add.reduceat(mask.view(np.int8), at, dtype=np.int64) - mask[at]))  # nothing comes before an example's first token
        lengths, learned = (np.concatenate(x)[members] for x in zip(*parts))
        batch = [int(np.add.reduceat(x, first).reshape(-1, cfg.batch_size).sum(1).max()) for x in (lengths, learned, np.where(lengths <= 512, lengths, 0) ** 2)]
        return {"steps": prepared.steps, "tokens": int(lengths.sum()), "targets": int(learned.sum()), "epochs": len(members) / len(prepared.examples),
                "lengths": lengths, "batch": batch, "how": ""}
    if not cfg.steps and not rows:
        raise ValueError(f"{cfg.name} goes through its rows {cfg.epochs} times, and they are not here: prepare them first, or give steps")
    long, batch = min(ROW, cfg.seq_len), cfg.batch_size * cfg.seq_len
    a_step = cfg.packs_per_step * (long if cfg.packing == "none" else cfg.seq_len)  # tokens, without padding
    passes = rows * cfg.epochs * long / a_step
    steps = cfg.steps or max(1, int(passes) if cfg.packing == "none" else round(passes))
    tokens = steps * a_step
    how = f"{'' if cfg.steps else f'{rows:,} '}rows of {long} tokens (Orca 1: 2.7 in a pack of 2,048), half of them targets"
    return {"steps": steps, "tokens": tokens, "targets": tokens // 2, "epochs": tokens / (rows * long) if rows else 0.0,
            "lengths": np.full(max(1, tokens // long), long), "batch": [batch, batch // 2, batch * long if long <= 512 else 0], "how": how}


def layer(shape, cfg, b, batch, alone, fast):
    """Return the bytes that autograd keeps of one decoder layer; `b` bytes in the compute type.

    `alone`: examples one after the other (attention "documents"), which keeps the scores of short ones. `fast`: compiled, which computes again what costs little.
    """
    tokens, _, squares = batch
    w, q, kv, inner, full = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.inner, cfg.method == "full"
    norm = 4 + (2 * b * w if fast else 4 * w + b * w + b * w * full)  # the inverse root; eager: the input in fp32, the output, and what a weight that learns multiplies
    seen = 2 * b * (q + kv) + 4 * shape.heads  # query, key, value, output; the sum behind each softmax
    adapter = 0 if full else 7 * b * cfg.lora_rank + ((5 * w + q + inner) * (b + 1) if cfg.lora_dropout else 0)  # what the seven linear layers take in, and which of it
    return tokens * (2 * norm + seen + (3 if fast else 4) * b * inner + adapter) + alone * shape.heads * squares * b


def memory(cfg, shape, batch, dtype="bf16", cpu=False, world=1):
    """Return {kind: bytes} at a run's peak, which is at the loss, at one end of the backward pass, or in the update, whichever takes most.

    Of several processes each holds its share of weights (the masters, if there are any), moments and gradients. Whole are, under `gathered`: tables, the layer at work
    and the next one, in the compute type; their gradients; and those that are being sent.

    Args:    batch: of `work`.  dtype: a name of TYPES.  world: how many processes share the weights.
    """
    b, (tokens, targets, _), full, once = TYPES[dtype].itemsize, batch, cfg.method == "full", cfg.update == "backward"
    many, keep, passes, back = world > 1, 4 if world > 1 and cfg.optimizer == "adamw" else b, cluster.share(cfg, world).accum, TYPES[cfg.reduce].itemsize
    alone, away, elsewhere = cpu or cfg.attention == "documents", not cpu and cfg.offload in ("optimizer", "both"), not cpu and cfg.offload in ("activations", "both")
    fast = cfg.compile == "yes" or cfg.compile == "auto" and not alone
    # what stays: an fp32 weight is its own master; NF4 has a byte of scale for 64 weights, and an fp32 for 256 scales
    learn, own, g = (shape.weights / world, keep == 4, keep) if full else (adapter_of(shape, cfg), True, 4)
    in_matrix = 0.5 + 1 / 64 + 4 / (64 * 256) if cfg.method == "qlora" else keep
    kept = {"weights": (shape.matrices * in_matrix + (shape.weights - shape.matrices) * keep) / world, "adapter": 0 if full else 4 * learn,
            "masters": 0 if away or own or cfg.optimizer != "adamw" else 4 * learn,
            "optimizer": 0 if away else learn * optim.MOMENTS[cfg.optimizer]}
    # the update: bytes for each weight that is changed at the same time, of optim.Optimizer and, where it is not compiled, counted
    largest, table, on = max(shape.table, shape.width * shape.inner) / world if full else cfg.lora_rank * (shape.width + shape.inner), shape.table * b, "cpu" if cpu else "cuda"
    each = {"adamw": 0 if own else 4, "adamw_bf16": 32, "adamw_bf16_sr": 38, "adamw_8bit": 21} | ({} if cpu or cfg.compile == "no" else {"adamw_bf16": 6, "adamw_bf16_sr": 6, "adamw_8bit": 14})
    several = max(largest, 0 if once or away else min(learn, optim.PART[on])) if cfg.optimizer == "adamw" else min(largest if once else learn, optim.CHUNK[on])
    passing = each[cfg.optimizer] * several + 12 * largest * away
    gradients = (largest if once else learn) * (4 if passes > 1 else g)
    before = learn * (g if passes == 2 else 4) * (passes > 1)  # of the batches before
    # the forward pass: what waits, and the layer that is computed again or comes back, whose input in fp32 is part of it
    whole, state, again = layer(shape, cfg, b, batch, alone, fast), b * tokens * shape.width, -(-shape.layers // cfg.recompute) if cfg.recompute else 0
    waiting = 0 if elsewhere else (shape.layers - again) * whole + again * state
    one = whole - state * (b == 4 and not fast) if again else whole * elsewhere
    first = one if elsewhere or again and (shape.layers - 1) % cfg.recompute == 0 else 0
    last = tokens * shape.width * (4 + b * full) + 2 * b * tokens * shape.head_dim + whole * elsewhere  # the last norm, and positions
    # the loss: logits of a chunk and, if there are several, of the one before; the output table's gradient in fp32 and once more; new rows go through a copy of it
    rows, new = min(targets, 256 if cpu else 2**26 // shape.vocabulary), table * (cfg.lora_on == "layers")
    logits = rows * shape.vocabulary * (4 + b * (b < 4))
    head = max(logits * (1 + (rows < targets)), logits + table) + 4 * shape.table if full else new + max(12 * rows * shape.vocabulary, 6 * rows * shape.vocabulary + new)
    between = 3 * b * tokens * shape.inner  # gradients inside an MLP
    outside, part = many * shape.outside, many * (shape.weights - shape.outside) / shape.layers
    last_share = g * outside / world  # of the tables' gradients, which come last
    at_work = many * (b * outside + table + (2 * b + back) * part)
    not_yet = (0 if before else g * (2 * part + outside) / world) if many else table * full * (not (shape.tied or once or before))  # of gradients
    moments = ({"activations": waiting + last, "loss": head + 2 * b * targets * shape.width, "gradients": before, "gathered": b * (outside + part)},
               {"activations": waiting + first, "temporary": between, "gradients": before or table * full * (not (once or many)), "gathered": at_work - back * part},
               {"activations": max(0, waiting - (state if again else whole)) + first, "temporary": between, "gradients": before, "gathered": at_work},
               {"activations": one + many * (state if again else whole), "temporary": between, "gradients": max(0, gradients - not_yet), "gathered": at_work},
               {"gradients": gradients, "gathered": back * outside + many * max(table + last_share * (passes > 1), b * outside - last_share * (passes == 1))},
               {"gathered": many * bool(cfg.eval_every) * b * shape.weights},  # at a look, where answers are asked
               {"temporary": max(passing, table * (shape.tied and not many or not full)), "gradients": gradients})
    peak = {**kept, **max(moments, key=lambda m: sum(m.values()))}
    return {k: peak[k] for k in KINDS if peak.get(k)}


def with_process(memory, cpu):
    """Turn {kind: bytes} into GiB, on a CPU with the process itself: libraries, and what is held beside the tensors."""
    gib = {k: n / GIB for k, n in memory.items()}
    return gib | ({"process": PROCESS + HEAP * sum(gib.values())} if cpu else {})


def forecast(cfg, shape, prepared=None, device="", rows=0, many=(1, 1)):
    """Say what a stage will cost, before anything is loaded.

    Args:    cfg: the stage's Config.  shape: shape_of its base.
             prepared: prepared.Prepared, if its rows are on this machine; then steps, tokens and targets are exact.
             device: a name as in DEVICES or as torch has it; "cpu" or "cuda" for this machine's; "" for where the stage would run here.
             rows: how many rows a mixture is expected to have, if it is not prepared and epochs say how long the stage is.
             many: (nodes, GPUs of each), which share the weights, by torchrun and FSDP.
    Returns: dict, ready for JSON: steps, tokens, targets, epochs, examples; gib by kind at the peak and peak_gib, on a CPU with the process itself, on a GPU what torch
             counts; flops, and hardware_flops with what is computed again; hours at `mfu` of the device's peak `rate`; how it was estimated; what `fits` needs.
             Of several GPUs gib and peak_gib are each one's, and so are `passes`, `sent_gib`, seconds of `computing` and of `sending` in a step: see `cluster.pace`.
    Raises:  ValueError: no such device, or one without the compute type; neither steps, nor rows, nor prepared rows.
    """
    device = device or models.pick(cfg.device, "auto")[0]
    name, here = named(device)
    if here:
        dtype = next(k for k, t in TYPES.items() if t == models.pick(device, cfg.dtype, cfg.method)[1])
    else:
        dtype = cfg.dtype if cfg.dtype != "auto" else "bf16" if DEVICES[name][3] else "fp32" if cfg.method == "full" else "fp16"
    todo, cpu, world = work(cfg, prepared, rows), device == "cpu", many[0] * many[1]
    lengths, own = todo.pop("lengths"), cluster.share(cfg, world)
    if not cpu and cfg.attention != "documents":
        todo["batch"][0] = cfg.batch_size * cfg.seq_len  # padding stays
    todo["batch"] = [n * own.batch_size // cfg.batch_size for n in todo["batch"]]
    gib, peak, mfu = with_process(memory(cfg, shape, todo["batch"], dtype, cpu, world), cpu), rate(device, dtype), MFU[cfg.method]
    count = flops(shape, todo["tokens"], todo["targets"], lengths, cfg.method, adapter_of(shape, cfg))
    again = flops(shape, todo["tokens"], 0, lengths) / 3 * (-(-shape.layers // cfg.recompute) / shape.layers if cfg.recompute else 0)
    return {"device": name, "dtype": dtype, **todo, "examples": len(lengths), "gib": gib, "peak_gib": sum(gib.values()), "flops": count, "hardware_flops": count + again, "rate": peak,
            "mfu": mfu, **cluster.pace(own, shape, name, many, todo["steps"], count / peak / mfu / 3600, TYPES[dtype].itemsize, TYPES[cfg.reduce].itemsize), "shape": shape._asdict()}


def fits(cfg, planned, device):
    """Return "" if what was planned fits a device, else a sentence that says what to change: the first of several settings, by what they cost, that brings it in.

    Args:    planned: what `forecast` returned.  device: as there; "cpu" and "cuda" look at what is free now.
    """
    cpu, world = planned["device"] == "cpu", planned["world"]
    have = room(device) / (planned["many"][1] if cpu else 1)  # processes on a CPU share its memory
    if planned["peak_gib"] <= have:
        return ""
    text = f"{cfg.name} needs {planned['peak_gib']:.1f} GiB at its peak, and {planned['device']} has {have:.1f}"
    small = {"recompute": 1, "batch_size": 1, "accum": cfg.packs_per_step if cfg.update == "step" else 1}
    once = {**small, "optimizer": "adamw_8bit", "update": "backward", "accum": 1, "clip": 0.0}
    for changes in ({"recompute": 1}, small, {**small, "optimizer": "adamw_bf16_sr"}, {**small, "optimizer": "adamw_8bit"}, once, {**once, "offload": "both"},
                    {**small, "method": "qlora", "optimizer": "adamw"}):
        new = change(cfg, **changes)
        if planned["dtype"] == "fp16" and new.optimizer != "adamw" or world > 1 and (new.optimizer == "adamw_8bit" or new.method != "full" or new.packs_per_step % world):
            continue  # these round into bf16; those are for one process
        batch = [n * cluster.share(new, world).batch_size / cluster.share(cfg, world).batch_size for n in planned["batch"]]
        need = with_process(memory(new, Shape(**planned["shape"]), batch, planned["dtype"], cpu, world), cpu)
        if sum(need.values()) <= have:
            words = ", ".join(f"{k} {v}" for k, v in changes.items() if v != getattr(cfg, k))
            return f"{text}; with {words} it would need {sum(need.values()):.1f}"
    return f"{text}; no setting makes it fit: choose a smaller base, a shorter seq_len ({cfg.seq_len}) or a larger device{', or more of them' * (world > 1)}"


def describe(stages, shape, device="", prepared={}, rows={}, many=(1, 1)):
    """Return the forecasts of stages as text for a terminal, 100 columns wide; `prepared` and `rows` are those of `forecast`, by the stages' names."""
    out, made, short = [], [], lambda n: next((f"{n / k:,.2f} {word}" for k, word in ((1e9, "billion"), (1e6, "million")) if n >= k), f"{n:,}")
    for cfg in stages:
        f = forecast(cfg, shape, prepared.get(cfg.name), device, rows.get(cfg.name, 0), many)
        made.append(f)
        nodes, gpus = (f"{many[0]} x {many[1]} ", f"{f['world']} x ") if f["world"] > 1 else ("", "")
        on = device or ("cpu" if f["device"] == "cpu" else "cuda")
        have, most, advice, again = room(on), max(f["gib"].values()), fits(cfg, f, on), f["hardware_flops"] / f["flops"] - 1
        how = [cfg.method, cfg.optimizer, f["dtype"]] + [f"{k} {v}" for k, none in (("update", "step"), ("recompute", 0), ("offload", "nothing")) if (v := getattr(cfg, k)) != none]
        out += [f"{cfg.name}   {cfg.base}, {short(shape.weights)} weights, on {nodes}{f['device']}", f"  {', '.join(how)}",
                f"  {f['steps']:,} steps of {cfg.accum} x {cfg.batch_size} packs of {cfg.seq_len:,}: {short(f['tokens'])} tokens, {short(f['targets'])} targets"
                + (f", {f['epochs']:.2f} epochs" if f["epochs"] else ""), *([f"  estimated: {f['how']}"] if f["how"] else []), ""]
        time, unit = (f["hours"], "hours") if f["hours"] >= 1 else (60 * f["hours"], "minutes")
        out += [f"  {kind:<12}{gib:>9.2f} GiB  {'█' * max(1, round(60 * gib / most))}" for kind, gib in f["gib"].items()]
        out += [f"  {'peak':<12}{f['peak_gib']:>9.2f} GiB  of {have:.1f}: {'does not fit' if advice else 'fits'}",
                f"  {'time':<12}{time:>9,.1f} {unit} for {f['flops']:.2g} FLOPs at {f['mfu']:.0%} (assumed) of {gpus}{f['rate'] / 1e12:.3g} TFLOP/s"]
        out += [f"{'':<24}({again:.0%} more are done, for what is computed again)"] if again else []
        out += cluster.speed(cfg, f) if f["world"] > 1 else []
        out += ["", *textwrap.wrap(advice, 98, initial_indent="  ", subsequent_indent="  ")] if advice else []
        out.append("")
    out += cluster.beside_paper(stages, made, rate("A100-80")) if many != (1, 1) else []
    return "\n".join(out)
