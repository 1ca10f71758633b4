"""Training, one page: preflight, loss, optimizer, schedule, loop, checkpoints, metrics.jsonl."""

import json
import math
import platform
import shutil
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from orcalab import chatml, model as models, packing
from orcalab.config import digest, read_json, to_json, write_json
from orcalab.progress import Progress


def learning_rate(cfg, step):
    """Return the learning rate of a step: linear warm-up, then a cosine to a tenth, or constant.

    >>> from orcalab.config import Config
    >>> [round(learning_rate(Config(steps=10, warmup=2, lr=1.0), s), 2) for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.13]
    """
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    if cfg.schedule == "constant":
        return cfg.lr
    share = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    return cfg.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


class Masters:
    """fp32 master weights under a bf16 model: small updates add up instead of rounding away.

    For an fp32 model, master and weight are the same tensor.
    """

    def __init__(self, model, cfg, still=()):
        self.names, self.weights = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad])
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.weights]
        self.still = [(p, m, row) for weight, row in still for p, m in zip(self.weights, self.masters) if p is weight]  # rows that must not move
        matrices = [m for m in self.masters if m.ndim > 1]
        vectors = [m for m in self.masters if m.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def step(self, lr, clip):
        """Clip, update, copy back; return the gradient norm before clipping."""
        for p, _, row in self.still:
            p.grad[row] = 0
        kept = [(m, row, m[row].clone()) for _, m, row in self.still]
        for m, p in zip(self.masters, self.weights):
            m.grad = p.grad if p is m else p.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(self.masters, clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            for m, row, was in kept:  # weight decay would move it
                m[row] = was
        for m, p in zip(self.masters, self.weights):
            if p is not m:
                p.data.copy_(m)
            p.grad = m.grad = None
        return norm.item()

    def state(self):
        return {"masters": {n: m.detach() for n, m in zip(self.names, self.masters)}, "optimizer": self.optimizer.state_dict()}

    def load(self, state):
        with torch.no_grad():
            for n, m, p in zip(self.names, self.masters, self.weights):
                m.copy_(state["masters"][n])
                p.copy_(m)
        self.optimizer.load_state_dict(state["optimizer"])


def batch_of(packed, rows, device):
    """Lay rows of a Packed side by side without their padding: ids, position, labels and lengths."""
    segment = packed.segment[rows].reshape(-1)
    real = segment >= 0
    tensors = [torch.from_numpy(a[rows].reshape(-1)[real]).to(device) for a in (packed.ids, packed.position, packed.labels)]
    lengths = [n for r in rows for n in packing.lengths_of(packed.segment[r][packed.segment[r] >= 0])]
    return *tensors, lengths


def preflight(model, prepared, tokenizer, cfg, folder):
    """Check, on the real model and data, what training relies on; write preflight.json.

    Packed equals alone: the targets of the first pack's first two examples lose the same together as
    each by itself, and changing the first leaves the second's states untouched. The first examples, alone, equal the model's own
    forward pass, with transformers' attention and full logits. Targets decode to the assistant's words. There is
    disk for two checkpoints and a model.

    Raises:
        ValueError, OSError: which check failed, by how much, and what to change.
    """
    members = (prepared.plan[0] * 2)[:2]  # one alone stands beside itself
    device = next(model.parameters()).device

    def run(which, spoil=None):
        at = packing.pack([prepared.examples[i] for i in which], [list(range(len(which)))], cfg.seq_len * len(which))
        ids, position, labels, lengths = batch_of(at, [0], device)
        if spoil is not None:
            ids[: lengths[0]] = spoil
        with torch.no_grad():
            states = models.hidden(model, ids, position, lengths)
            loss = models.loss_sum(model, ids, position, lengths, labels)[0]
        return loss.item(), int((labels >= 0).sum()), states[lengths[0]:]

    model.eval()
    (both, targets, second), alone = run(members), sum(run([i])[0] for i in members)
    both, apart = both / targets, alone / targets
    leak = (run(members, spoil=int(tokenizer.eos_token_id))[2] - second).abs().max().item()
    several = [i for pack in prepared.plan[:4] for i in pack][:16]  # logits in bf16 are off by a tenth: over a few targets that would not average out
    ours = sum(run([i])[0] for i in several)
    model.set_attn_implementation("sdpa")
    theirs, number = 0.0, 0
    for i in several:
        ids, mask = (torch.tensor([x.tolist()], device=device) for x in map(np.asarray, prepared.examples[i]))
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1][mask[0, 1:] == 1].float()
        theirs += torch.nn.functional.cross_entropy(logits, ids[0, 1:][mask[0, 1:] == 1].long(), reduction="sum").item()
        number += len(logits)
    first, own = ours / number, theirs / number
    models.isolate(model).train()
    limit = 1e-4 if next(model.parameters()).dtype == torch.float32 else 3e-2
    for i in members:
        chatml.prove(*prepared.examples[i], prepared.rows[i].messages or prepared.rows[i].text, tokenizer, cfg.learn)
    report = {"loss_packed": both, "loss_alone": apart, "loss_first": first, "loss_first_own": own, "difference": abs(both - apart), "limit": limit, "leak": leak,
              "targets_of_first_row": tokenizer.decode(chatml.learned(*prepared.examples[members[0]]))}
    write_json(folder / "preflight.json", report)
    if report["difference"] > limit or leak > 0:
        raise ValueError(f"packed examples see each other: loss {both:.4f} packed, {apart:.4f} alone (limit {limit}), leak "
                         f"{leak:.2g}. The attention of this model does not pass through model.packed_attention")
    if abs(own - first) > limit * max(1, own):
        raise ValueError(f"the first {len(several)} examples lose {first:.4f} here and {own:.4f} in the model's own forward pass (limit {limit} of it): this "
                         "model's attention or logits have a part (a window, a cap, a scale, a bias) that model.py does not know")
    if not math.isfinite(both):
        raise ValueError(f"the starting model's loss is {both}: its weights are broken, or {cfg.dtype} is too coarse")
    weights = sum(p.numel() for p in model.parameters())
    models.need_space(folder, weights * (2 * 12 + 4) / 2**30 + 0.05, "two checkpoints and the model")
    return report


def checkpoints(folder):
    """Return the whole checkpoints of a run, oldest first."""
    return sorted(p for p in (Path(folder) / "checkpoints").glob("step-*") if (p / "state.json").exists() and p.suffix != ".part")


def save_checkpoint(folder, step, masters, seal):
    """Write a checkpoint to the side, rename it, and only then remove the one before."""
    target = Path(folder) / "checkpoints" / f"step-{step:06d}"
    side = target.with_name(target.name + ".part")
    shutil.rmtree(side, ignore_errors=True)
    side.mkdir(parents=True)
    try:
        torch.save(masters.state(), side / "state.pt")
        write_json(side / "state.json", {"step": step, "seal": seal})
        old = checkpoints(folder)
        side.replace(target)
    except (OSError, RuntimeError) as e:  # torch.save says RuntimeError when the disk is full
        shutil.rmtree(side, ignore_errors=True)
        raise OSError(f"no disk space left for the checkpoint at step {step}, or the disk failed ({e}); "
                      f"the run goes on from the last whole checkpoint when started again") from e
    for p in old:
        shutil.rmtree(p)


def train(cfg, prepared, start=None):
    """Train one stage and return its results; a finished run is read, a broken-off one goes on.

    Args:
        cfg: the stage's Config.
        prepared: data.Prepared for it.
        start: what to start from: a model name or folder; cfg.base if None.

    Returns:
        dict: steps, tokens, targets, first and last loss, seconds, tokens_per_s.

    Raises:
        ValueError: the folder holds a run with other settings; says which differ.

    Paper: Orca 2, "Training" (loss on the teacher's tokens, packing, bf16). Optimizer, learning rate and
    batch size are unpublished: ours are AdamW(0.9, 0.95), see the recipe.
    """
    folder = cfg.folder
    device, dtype = models.pick(cfg.device, cfg.dtype)
    made, weights = prepared.card["made_of"]["tokenizer"], models.weights_digest(start or cfg.base)
    seal = {"config": cfg.settings, "data": prepared.folder.name, "tokenizer": made, "weights": weights, "dtype_used": str(dtype)}
    seal = json.loads(json.dumps(seal))  # what the run depends on: if any of it changed, it does not go on
    if (folder / "config.json").exists() and (old := read_json(folder / "config.json"))["seal"] != seal:
        was, now = ({**s["config"], **s, "config": None} for s in (old["seal"], seal))
        raise ValueError(f"{folder} holds a run with other inputs ({', '.join(f'{k}: {was.get(k)!r} -> {v!r}' for k, v in now.items() if was.get(k) != v)}); "
                         "choose another out, or delete that folder")
    if cfg.finished:
        return read_json(folder / "results.json")
    record, cfg = cfg, replace(cfg, steps=prepared.steps)  # what epochs came to
    model, tokenizer, origin = models.load(start or cfg.base, dtype, device, cfg.template)
    if made != (own := chatml.fingerprint(tokenizer)):
        raise ValueError(f"{prepared.folder} was made with another tokenizer or template ({made}, the model's is {own}); "
                         "prepare the rows again with this model")
    preflight(models.isolate(model), prepared, tokenizer, cfg, folder)
    write_json(folder / "config.json", {
        **to_json(record), "seal": seal, "origin": origin, "dtype_used": str(dtype), "device_used": device,
        "versions": {p: version(p) for p in ("orcalab", "torch", "transformers")} | {"python": platform.python_version()}})
    masters, done = Masters(model, cfg, models.pad_rows(model, tokenizer)), 0
    if saved := checkpoints(folder):
        state = read_json(saved[-1] / "state.json")
        if state["seal"] != digest(seal):
            raise ValueError(f"{saved[-1]} belongs to a run with other inputs; delete it to start afresh")
        masters.load(torch.load(saved[-1] / "state.pt", map_location=device, weights_only=True))
        done = state["step"]
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()[:done] if metrics.exists() else []
    if len(lines) < done:
        raise ValueError(f"{metrics} has {len(lines)} lines, the checkpoint is of step {done}: delete {folder} to start afresh")
    side = metrics.with_suffix(".part")
    side.write_text("".join(line + "\n" for line in lines))
    side.replace(metrics)
    with open(metrics, "a", encoding="utf-8") as log, Progress(cfg.steps, f"train {cfg.name}") as bar:
        bar.resume(done)
        for step in range(done, cfg.steps):
            begun = time.time()
            packed = prepared.packs(step * cfg.packs_per_step, (step + 1) * cfg.packs_per_step)
            num_targets, total, tokens = packed.num_targets, 0.0, int((packed.segment >= 0).sum())
            for at in range(0, cfg.packs_per_step, cfg.batch_size):
                ids, position, labels, lengths = batch_of(packed, list(range(at, at + cfg.batch_size)), device)
                loss, _ = models.loss_sum(model, ids, position, lengths, labels)
                (loss / num_targets).backward()
                total += loss.item()
            if not math.isfinite(total):
                raise ValueError(f"the loss is {total} at step {step + 1}; lower lr ({cfg.lr}), in another out")
            lr = learning_rate(cfg, step)
            norm, seconds = masters.step(lr, cfg.clip), time.time() - begun
            line = {"step": step + 1, "loss": total / num_targets, "lr": lr, "grad_norm": norm, "tokens": tokens,
                    "targets": num_targets, "seconds": seconds}
            log.write(json.dumps(line) + "\n")
            log.flush()
            bar.advance(1, f"loss {line['loss']:.3f}, {tokens / seconds:.0f} tokens/s, {num_targets / seconds:.0f} targets/s")
            if (step + 1) % cfg.save_every == 0 and step + 1 < cfg.steps:
                save_checkpoint(folder, step + 1, masters, digest(seal))
    model.set_attn_implementation("sdpa")
    models.save(folder / "model", model, tokenizer)
    results = summary(metrics)
    write_json(folder / "results.json", results)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return results


def summary(metrics):
    """Sum up a metrics.jsonl: steps, tokens, targets, first and last loss (means of up to three steps), tokens/s."""
    lines = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    mean = lambda part: sum(x["loss"] for x in part) / len(part)
    part = max(1, min(3, len(lines) // 2))
    total = {k: sum(x[k] for x in lines) for k in ("tokens", "targets", "seconds")}
    return {"steps": len(lines), **total, "first_loss": mean(lines[:part]), "last_loss": mean(lines[-part:]),
            "tokens_per_s": total["tokens"] / total["seconds"]}
