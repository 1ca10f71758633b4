"""What a stage will cost, before anything is loaded or bought: steps, tokens, GiB by kind at the peak, FLOPs, hours, and what to change where it does not fit.

The formulas count what this package's rooms do with a model of Llama's form; tests count the bytes of real and of fake tensors against them.
"""

import re
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from orcalab import model as models, optim
from orcalab.config import change, nearest

GIB = 2**30
KINDS = ("weights", "adapter", "masters", "optimizer", "gradients", "activations", "loss", "temporary", "process")
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
ROW = 758  # tokens: Orca 1 (section 3.1 on training) has 2.7 examples in a pack of 2,048
MFU = {"full": 0.5, "lora": 0.45, "qlora": 0.45}  # share of the peak rate that we assume to reach
PROCESS = 0.5  # GiB of Python, torch and the libraries in it on a CPU, measured
HEAP = 0.15  # share of the tensors that the allocator of a CPU holds on top, measured
CONTEXT = 0.5  # GiB that CUDA takes for itself, and torch does not count
# Dense peak of the tensor cores in 16 bits and of plain fp32, FLOP/s, from the makers' data sheets; GiB that torch finds there; whether it has bf16
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
    def tables(self):
        return self.table * (1 if self.tied else 2)

    @property
    def weights(self):
        return self.tables + self.matrices + self.vectors


def shape_of(base, template=None):
    """Return the Shape of a base model by name, hub id or folder; no weights are loaded.

    >>> shape_of("meta-llama/Llama-2-7b-hf").weights
    6738440192
    """
    model = models.skeleton(str(base), template)
    c, tables = model.config, models.tables(model)
    inside = [p for p in model.parameters() if all(p is not t for t in tables)]
    matrices = sum(p.numel() for p in inside if p.ndim > 1)
    heads = c.num_attention_heads
    return Shape(c.num_hidden_layers, c.hidden_size, heads, getattr(c, "num_key_value_heads", None) or heads, getattr(c, "head_dim", None) or c.hidden_size // heads,
                 c.intermediate_size, model.get_input_embeddings().num_embeddings, len(tables) == 1, matrices, sum(p.numel() for p in inside) - matrices)


# ------------------------------------------------------------------------------------------------ devices

def known(device):
    """Return the name in DEVICES that a device's name means, as a person or as torch writes it, or "".

    >>> known("NVIDIA A100-SXM4-80GB"), known("Tesla T4"), known("NVIDIA H100 PCIe")
    ('A100-80', 'T4', 'H100-PCIe')
    """
    words = lambda text: {w.removesuffix("gb") for w in re.split(r"[^a-z0-9]+", text.lower())}
    return max((name for name in DEVICES if words(name) <= words(device)), key=len, default="")


def named(device):
    """Return (name, whether it is the device of this machine): "cuda" by the name that torch has for it; raise for a name that nobody knows."""
    here = device in ("cpu", "cuda")
    name = torch.cuda.get_device_name() if device == "cuda" else device
    if not here and not known(name):
        raise ValueError(f"no device named {device!r}{nearest(device, [*DEVICES, 'cpu', 'cuda'])}")
    return known(name) or name, here


@lru_cache
def rate(device, dtype="bf16"):
    """Return a device's peak FLOP/s in a compute type (a name or torch's): as its maker has it, or measured in a moment where that is not written down.

    Raises:
        ValueError: the device has no name here, or lacks the type; says what to take.
    """
    name, _ = named(device)
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(dtype, dtype)
    if name in DEVICES:
        half, single, _, has_bf16 = DEVICES[name]
        if kind == "bf16" and not has_bf16:
            raise ValueError(f"{name} has no instructions for bf16: choose dtype fp16")
        return single if kind == "fp32" else half
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[kind]
    a, b = (torch.ones(s, device=device, dtype=dtype) for s in (((2048, 576), (576, 1536)) if device == "cpu" else ((8192, 8192), (8192, 8192))))
    times = []
    for _ in range(12):  # the first ones warm up
        begun = time.perf_counter()
        (a @ b)[0, 0].item()
        times.append(time.perf_counter() - begun)
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] / min(times)


def room(device):
    """Return the GiB that a run may take on a device: of a named one all it has; of this machine what is free or this process has already; inf if nobody knows."""
    name, here = named(device)
    if not here:
        return DEVICES[name][2] - CONTEXT
    if device == "cuda":
        return (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / GIB
    try:
        kib = lambda path, key: int(re.search(rf"{key}:\s+(\d+)", Path(path).read_text())[1]) / 2**20
        return kib("/proc/meminfo", "MemAvailable") + kib("/proc/self/status", "VmRSS")
    except OSError:
        return float("inf")


# -------------------------------------------------------------------------------------------------- work

def flops(shape, tokens, targets, lengths, method="full", adapter=0):
    """Return the FLOPs of training on some tokens, as MFU counts them: nothing that is computed twice.

    Each weight that a token meets costs 6: 2 forward, 2 for the gradient of what came in, 2 for its own, which a frozen one lacks. The input table is looked up,
    the output table meets targets only. Attention sees half of each example's square: 12 x layers x width x length^2 / 2.

    Args:
        lengths: tokens of each example.
        method: as in Config.
        adapter: weights of an adapter.
    """
    met = tokens * shape.matrices + targets * shape.table
    squares = float(np.square(np.asarray(lengths, np.float64)).sum())
    return (6 if method == "full" else 4) * met + 6 * adapter * tokens + 6 * shape.layers * shape.heads * shape.head_dim * squares


def adapter_of(shape, cfg):
    """Return (weights, linear layers that have them) of a stage's adapter: rank x (in + out) for each, and the rows of a template's new tokens."""
    if cfg.method == "full":
        return 0
    w, q, kv, inner = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.inner
    layer = 2 * (w + q) + 2 * (w + kv) + 3 * (w + inner)
    return cfg.lora_rank * (shape.layers * layer + (w + shape.vocabulary) * (cfg.lora_on == "head"))


def work(cfg, prepared=None, rows=0):
    """Return what a stage goes through: {"steps", "tokens", "targets", "epochs", "lengths", "batch", "how"}; `batch` is the largest (tokens, targets, squares).

    Exact if its rows are prepared. If not, and for as many rows as a mixture is expected to have, examples are taken to have 758 tokens (Orca 1), half of them targets.
    """
    per_step = cfg.packs_per_step
    if prepared:
        ends = prepared.plan.ends[: prepared.steps * per_step]
        members = prepared.plan.members[: ends[-1]]
        starts = [np.concatenate([[0], e[:-1]]) for _, e, _ in prepared.examples.values]
        lengths = np.concatenate([e - s for (_, e, _), s in zip(prepared.examples.values, starts)])
        learned = np.concatenate([np.add.reduceat(m.view(np.int8), s, dtype=np.int64) - m[s] for (_, _, m), s in zip(prepared.examples.values, starts)])  # nothing comes before the first token
        packs = np.concatenate([[0], ends[:-1]])
        batch = lambda x: int(np.add.reduceat(x, packs).reshape(-1, cfg.batch_size).sum(1).max())
        lengths, learned = lengths[members].astype(np.int64), learned[members]
        short = np.where(lengths <= 512, lengths, 0) ** 2
        return {"steps": len(ends) // per_step, "tokens": int(lengths.sum()), "targets": int(learned.sum()), "epochs": len(members) / len(prepared.examples),
                "lengths": lengths, "batch": [batch(x) for x in (lengths, learned, short)], "how": ""}
    long = min(ROW, cfg.seq_len)
    if not cfg.steps and not rows:
        raise ValueError(f"{cfg.name} goes through its rows {cfg.epochs} times, and they are not here: prepare them first, or give steps")
    steps = cfg.steps or max(1, round(rows * cfg.epochs * long / cfg.tokens_per_step))
    tokens, batch = steps * cfg.tokens_per_step, cfg.batch_size * cfg.seq_len
    how = f"examples of {long} tokens (Orca 1: 2.7 in a pack of 2,048), half of them targets" + (f", {rows:,} rows" if not cfg.steps else "")
    return {"steps": steps, "tokens": tokens, "targets": tokens // 2, "epochs": tokens / (rows * long) if rows else 0.0,
            "lengths": np.full(max(1, tokens // long), long), "batch": [batch, batch // 2, batch * long if long <= 512 else 0], "how": how}


# ------------------------------------------------------------------------------------------------- memory

def layer(shape, cfg, b, batch, alone, fast):
    """Return the bytes that autograd keeps of one decoder layer for a batch.

    Args:
        b: bytes in the compute type.
        alone: whether examples are computed one after the other (attention "documents"), which keeps the scores of those of at most 512 tokens.
        fast: whether the layer is compiled; then what costs little is computed again instead of kept.
    """
    tokens, _, squares = batch
    w, q, kv, inner, full = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.inner, cfg.method == "full"
    norm = 4 + (2 * b * w if fast else 4 * w + b * w + b * w * full)  # the inverse root; eager: the input in fp32, the output, and what a weight that learns multiplies
    seen = 2 * b * (q + kv) + 4 * shape.heads  # query, key, value, output; the sum behind each softmax
    adapter = 0 if full else 7 * b * cfg.lora_rank + ((5 * w + q + inner) * (b + 1) if cfg.lora_dropout else 0)  # what the seven linear layers take in, and which of it
    return tokens * (2 * norm + seen + (3 if fast else 4) * b * inner + adapter) + alone * shape.heads * squares * b


def memory(cfg, shape, batch, dtype="bf16", cpu=False):
    """Return {kind: bytes} at a run's peak: of the four moments when it can be (loss, both ends of the backward pass, update) the one that takes most.

    Args:
        batch: (tokens, targets, sum of squared lengths of examples of at most 512 tokens) of the largest forward pass.
    """
    b, (tokens, targets, _), full, once = BYTES[dtype], batch, cfg.method == "full", cfg.update == "backward"
    alone, away = cpu or cfg.attention == "documents", not cpu and cfg.offload in ("optimizer", "both")
    fast = cfg.compile == "yes" or cfg.compile == "auto" and not alone
    trained, own, g = (shape.weights, b == 4, b) if full else (adapter_of(shape, cfg), True, 4)  # an fp32 weight is its own master
    largest = max(shape.table, shape.width * shape.inner) if full else cfg.lora_rank * (shape.width + shape.inner)
    matrix = 0.5 + 1 / 64 + 4 / (64 * 256) if cfg.method == "qlora" else b  # NF4: a byte of scale for 64 weights, and an fp32 for 256 scales
    kept = {"weights": shape.matrices * matrix + (shape.tables + shape.vectors) * b, "adapter": 0 if full else 4 * trained,
            "masters": 0 if away or own or cfg.optimizer != "adamw" else 4 * trained,
            "optimizer": 0 if away else trained * {"adamw": 8, "adamw_8bit": 2 + 8 / 256}.get(cfg.optimizer, 4)}
    passing = {"adamw": 0 if own else 4, "adamw_bf16": 32, "adamw_bf16_sr": 38, "adamw_8bit": 21}  # bytes for each weight that is being updated
    if not cpu and cfg.compile != "no":
        passing |= {"adamw_bf16": 6, "adamw_bf16_sr": 6, "adamw_8bit": 14}
    part, chunk = (x["cpu" if cpu else "cuda"] for x in (optim.PART, optim.CHUNK))
    passing = passing[cfg.optimizer] * (max(largest, 0 if once or away else min(trained, part)) if cfg.optimizer == "adamw" else min(largest if once else trained, chunk))
    passing += 12 * largest if away else 0
    gradients = (largest if once else trained) * (4 if cfg.accum > 1 else g)
    before = trained * (g if cfg.accum == 2 else 4) if cfg.accum > 1 else 0  # of the batches before
    each, state, n = layer(shape, cfg, b, batch, alone, fast), b * tokens * shape.width, cfg.recompute
    again = -(-shape.layers // n) if n else 0
    elsewhere = cfg.offload in ("activations", "both") and not cpu
    acts = 0 if elsewhere else (shape.layers - again) * each + again * state
    one = each - state * (b == 4 and not fast) if again else each if elsewhere else 0  # the layer that is computed again, or comes back; in fp32 its input is part of it
    top = one if elsewhere or n and (shape.layers - 1) % n == 0 else 0
    last = tokens * shape.width * (4 + b * full) + 2 * b * tokens * shape.head_dim + each * elsewhere  # the last norm, and positions
    rows = min(targets, 256 if cpu else 2**26 // shape.vocabulary)
    logits, table = rows * shape.vocabulary * (4 if b == 4 else 4 + b), shape.table * b
    rows_learn = cfg.lora_on == "layers"  # through a table that is copied, and whose gradient is as large
    head = max(logits * (1 + (rows < targets)), logits + table) + 4 * shape.table if full else \
        max(12 * rows * shape.vocabulary, (6 * rows * shape.vocabulary + table) * rows_learn) + table * rows_learn
    backward = 3 * b * tokens * shape.inner
    moments = ({"activations": acts + last, "loss": head + 2 * b * targets * shape.width, "gradients": before},
               {"activations": acts + top, "temporary": backward, "gradients": before or table * full * (not once)},
               {"activations": one, "temporary": backward, "gradients": gradients - table * full * (not (shape.tied or once or before))},
               {"temporary": max(passing, table * (shape.tied or not full)), "gradients": gradients})
    peak = {**kept, **max(moments, key=lambda m: sum(m.values()))}
    return {k: peak[k] for k in KINDS if peak.get(k)}


# --------------------------------------------------------------------------------------------- the forecast

def forecast(cfg, shape, prepared=None, device="", rows=0):
    """Say what a stage will cost, before anything is loaded.

    Args:
        cfg: the stage's Config.
        shape: shape_of its base.
        prepared: prepared.Prepared, if its rows are on this machine; then steps, tokens and targets are exact.
        device: a name as in DEVICES or as torch has it; "cpu" or "cuda" for this machine's; "" for where the stage would run here.
        rows: how many rows a mixture is expected to have, where it is not prepared and epochs say how long the stage is.

    Returns:
        dict, ready for JSON: steps, tokens, targets, epochs; gib by kind at the peak and peak_gib, on a CPU with the process itself, on a GPU what torch counts;
        flops (hardware_flops with what is computed again); hours at `mfu` of the device's peak rate; what was assumed (how), and what `fits` needs.

    Raises:
        ValueError: no such device, or one without the compute type; neither steps, nor rows, nor prepared rows.
    """
    name, here = named(device or models.pick(cfg.device, "auto")[0])
    cpu = name == "cpu"
    if here:
        dtype = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[models.pick(device or cfg.device, cfg.dtype)[1]]
    else:
        dtype = cfg.dtype if cfg.dtype != "auto" else "bf16" if DEVICES[name][3] else "fp32" if cfg.method == "full" else "fp16"
    todo = work(cfg, prepared, rows)
    lengths = todo.pop("lengths")
    gib = {k: n / GIB for k, n in memory(cfg, shape, todo["batch"], dtype, cpu).items()}
    gib |= {"process": PROCESS + HEAP * sum(gib.values())} if cpu else {}
    count = flops(shape, todo["tokens"], todo["targets"], lengths, cfg.method, adapter_of(shape, cfg))
    again = flops(shape, todo["tokens"], 0, lengths) / 3 * (shape.layers // cfg.recompute / shape.layers if cfg.recompute else 0)
    peak, mfu = rate(device or ("cpu" if cpu else "cuda") if here else name, dtype), MFU[cfg.method]
    return {"device": name, "dtype": dtype, **todo, "gib": gib, "peak_gib": sum(gib.values()), "flops": count, "hardware_flops": count + again, "rate": peak, "mfu": mfu,
            "hours": count / peak / mfu / 3600, "shape": shape._asdict()}


CHANGES = ({"recompute": 1}, {"batch_size": 1}, {"optimizer": "adamw_bf16_sr"}, {"optimizer": "adamw_8bit"}, {"update": "backward", "accum": 1, "clip": 0.0},
           {"offload": "optimizer"}, {"method": "qlora", "optimizer": "adamw", "update": "step", "offload": "nothing"})  # in order of what they cost


def fits(cfg, planned, device):
    """Return "" if what was planned fits a device, else a sentence that says what to change: the first of CHANGES, one upon the other, that brings it in.

    Args:
        planned: what `forecast` returned.
        device: as there; "cpu" and "cuda" look at what is free now.
    """
    have, said = room(device), {}
    if planned["peak_gib"] <= have:
        return ""
    cpu, shape = planned["device"] == "cpu", Shape(**planned["shape"])
    text = f"{cfg.name} needs {planned['peak_gib']:.1f} GiB at its peak, and {planned['device']} has {have:.1f}"
    for new in CHANGES:
        batch = planned["batch"]
        if "batch_size" in new:
            new = {"batch_size": 1, "accum": cfg.packs_per_step}
        said |= new
        changed = change(cfg, **said)
        batch = [n * changed.batch_size // cfg.batch_size for n in planned["batch"]]
        need = sum(memory(changed, shape, batch, planned["dtype"], cpu).values()) / GIB
        need += PROCESS + HEAP * need if cpu else 0
        if need <= have:
            words = ", ".join(f"{k} {v}" for k, v in said.items() if v != getattr(cfg, k))
            return f"{text}; with {words} it would need {need:.1f}"
    return f"{text}; nothing here makes it fit: choose a smaller base, seq_len ({cfg.seq_len}) or a larger device"


def describe(stages, shape, device="", prepared={}, rows={}):
    """Return the forecasts of stages as text for a terminal, 100 columns wide.

    Args:
        prepared, rows: of some stages, by name, as in `forecast`.
    """
    out = []
    for cfg in stages:
        f = forecast(cfg, shape, prepared.get(cfg.name), device, rows.get(cfg.name, 0))
        have = room(device or ("cpu" if f["device"] == "cpu" else "cuda"))
        how = [cfg.method, cfg.optimizer, f["dtype"]] + [f"{k} {getattr(cfg, k)}" for k in ("update", "recompute", "offload") if getattr(cfg, k) not in ("step", 0, "nothing")]
        out += [f"{cfg.name}: {cfg.base}, {shape.weights / 1e6:,.0f} M weights; {', '.join(how)}; on {f['device']}",
                f"  {f['steps']:,} steps of {cfg.accum} x {cfg.batch_size} packs of {cfg.seq_len:,}: {f['tokens']:,} tokens, {f['targets']:,} targets"
                + (f", {f['epochs']:.2f} epochs" if f["epochs"] else "")]
        out += [f"  (estimated: {f['how']})"] if f["how"] else []
        most = max(f["gib"].values())
        out += [f"  {kind:<12}{gib:>9.2f} GiB  {'█' * max(1, round(56 * gib / most))}" for kind, gib in f["gib"].items()]
        out += [f"  {'peak':<12}{f['peak_gib']:>9.2f} GiB  of {have:.1f}",
                f"  {f['flops']:.2e} FLOPs ({f['hardware_flops']:.2e} with what is computed again): {f['hours']:,.1f} hours at {f['mfu']:.0%} (assumed) of {f['rate'] / 1e12:,.3g} TFLOP/s"]
        out += [f"  does not fit: {advice}"] if (advice := fits(cfg, f, device or ("cpu" if f["device"] == "cpu" else "cuda"))) else []
        out.append("")
    return "\n".join(out)
