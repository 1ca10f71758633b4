"""Watching a run: loss by source and strategy, held-out loss, whether answers end, spikes, and trackers that others wrote."""

import re
import statistics
from collections import Counter
from contextlib import AbstractContextManager
from importlib import import_module
from itertools import islice
from types import SimpleNamespace

import numpy as np
import torch

from orcalab import attention, chatml, loss, packing, ranks


def by_tag(prepared, members, packed, losses):
    """Sum a step's losses by source and by strategy, and by pack.

    Args:    members: example numbers of each pack of `packed`, in order.  losses: each target's loss, (targets,), in the order of the packs.
    Returns: ({"source": {name: [sum of losses, targets]}, "strategy": ...}, [mean loss of each pack]).
    """
    counts = np.concatenate([np.bincount(s[y != packing.IGNORE], minlength=len(m)) for s, y, m in zip(packed.segment, packed.labels, members)])
    sums = np.diff(np.concatenate([[0.0], np.cumsum(losses, dtype=np.float64)])[np.concatenate([[0], np.cumsum(counts)])])
    out, rows = {}, [prepared.rows[i] for m in members for i in m]
    for name in ("source", "strategy"):
        total, number = Counter(), Counter()
        for row, s, n in zip(rows, sums.tolist(), counts.tolist()):
            key = getattr(row, name) or "unknown"
            total[key] += s
            number[key] += n
        out[name] = {k: [round(total[k], 4), number[k]] for k in sorted(number)}
    ends = np.cumsum([len(m) for m in members])
    per_pack = [(s.sum() / max(1, n.sum())).item() for s, n in zip(np.split(sums, ends[:-1]), np.split(counts, ends[:-1]))]
    return out, per_pack


def joined(parts):
    """Sum the first results of `by_tag` of several processes."""
    of = lambda name, key: map(sum, zip(*(p[name][key] for p in parts if key in p[name])))
    pair = lambda total, targets: [round(total, 4), targets]
    return {name: {key: pair(*of(name, key)) for key in sorted(set().union(*(p[name] for p in parts)))} for name in parts[0]}


def look(model, prepared, tokenizer, cfg, kind, asked=4, longest=256):
    """Look at the held-out examples, changing nothing: their loss, and whether the model's own answers end.

    Returns: dict: held_out (loss per target), stops (share of up to `asked` greedy answers that reach an end token
             within `longest` new ones), answer (the first of them, as text).
    """
    device, model = next(model.parameters()).device, model.eval()
    held, total, targets = prepared.held_out, 0.0, 0
    lengths = [len(prepared.examples[int(i)][0]) for i in held]
    packs, world = list(packing.best_fit(lengths, cfg.seq_len)), ranks.world()
    for at in range(ranks.rank(), -(-len(packs) // world) * world, world):  # each has as many, since they gather weights together
        members = packs[min(at, len(packs) - 1)]
        packed = packing.pack([prepared.examples[int(held[i])] for i in members], [list(range(len(members)))], cfg.seq_len, prepared.card["pad_id"])
        ids, position, labels, apart = attention.batch_of(packed, [0], device, kind)
        with torch.no_grad():
            lost = loss.loss_sum(model, ids, position, apart, labels)[0].item()
        total, targets = total + lost * (at < len(packs)), targets + packed.num_targets * (at < len(packs))
    total, targets = map(sum, zip(*ranks.every((total, targets))))
    ends, said = sorted({chatml.marks(tokenizer)[-1], tokenizer.eos_token_id}), []
    model.set_attn_implementation("sdpa")
    with torch.no_grad(), ranks.gathered(model):
        for talk in islice((r.messages for r in (prepared.rows[int(i)] for i in held) if r.messages), asked):  # plain text has no end
            prompt = torch.tensor([chatml.encode(talk[:-1], tokenizer, reply=True)[0]], device=device)
            out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=longest, do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
            said.append(out[0, prompt.shape[1]:].tolist())
    attention.isolate(model, kind).train()
    return {"held_out": total / targets, "stops": sum(s[-1] in ends for s in said) / max(1, len(said)), "answer": tokenizer.decode(said[0]) if said else ""}


def trouble(cfg, value, before):
    """Return what is wrong with a step's loss, given those of the steps before it: "" if nothing is.

    >>> from orcalab.config import Config
    >>> trouble(Config(spike=3.0), 7.5, [2.0] * 10)
    'is 7.50, over 3 times the median of the last 10 steps (2.00)'
    """
    if not np.isfinite(value):
        return f"is {value}"
    last = before[-20:]
    if cfg.spike and len(last) >= 10 and value > cfg.spike * (usual := statistics.median(last)):
        return f"is {value:.2f}, over {cfg.spike:g} times the median of the last {len(last)} steps ({usual:.2f})"
    return ""


def suspects(prepared, members, per_pack, first, most=3):
    """Name the pack that lost most, and its rows: which rows to look at when a step went wrong."""
    worst = max(range(len(per_pack)), key=lambda p: (not np.isfinite(per_pack[p]), per_pack[p]))
    rows = [prepared.rows[i] for i in members[worst]]
    told = "; ".join(f"{r.where or r.id}: {(r.messages[-1]['content'] if r.messages else r.text)[:60]!r}" for r in rows[:most])
    return f"pack {first + worst} lost {per_pack[worst]:.2f} a target; its rows: {told}" + (f"; and {len(rows) - most} more" if len(rows) > most else "")


class Tracker(AbstractContextManager):
    """Sends each line of metrics to one of the trackers people have, if `cfg.track` names one; metrics.jsonl is written all the same."""

    def __init__(self, cfg):
        self.cfg, self.kind, self.to = cfg, cfg.track, None
        try:
            self.of = self.kind and import_module("torch.utils.tensorboard" if self.kind == "tensorboard" else self.kind)
        except ImportError:
            raise ValueError(f"track is {self.kind!r}, which is not installed: pip install {self.kind}") from None

    def __enter__(self):
        cfg, of = self.cfg, self.of
        if self.kind == "tensorboard":
            self.to = of.SummaryWriter(cfg.folder / "tensorboard")
        elif self.kind == "wandb":
            self.to = of.init(project="orcalab", name=cfg.name, dir=cfg.folder, config=cfg.settings)
        elif self.kind == "trackio":
            self.to = of.init(project="orcalab", name=cfg.name, config=cfg.settings)
        elif self.kind == "mlflow":
            of.start_run(run_name=cfg.name)  # in a job of AzureML its own run, whose metrics a sweep compares
            of.log_params({k: v for k, v in cfg.settings.items() if v != ""})
            self.to = SimpleNamespace(log=lambda numbers, step: of.log_metrics({re.sub(r"[^\w. -]", "_", k): v for k, v in numbers.items()}, step),
                                      finish=lambda failed=False: of.end_run("FAILED" if failed else "FINISHED"))
        return self

    def log(self, line):
        numbers = {k: v for k, v in line.items() if isinstance(v, (int, float)) and k != "step"}
        numbers |= {f"loss/{name}/{k}": s / n for name, parts in line.get("by", {}).items() for k, (s, n) in parts.items() if n}
        if self.kind == "tensorboard":
            for k, v in numbers.items():
                self.to.add_scalar(k, v, line["step"])
        elif self.to is not None:
            self.to.log(numbers, step=line["step"])

    def __exit__(self, *error):
        if self.to is not None:
            end = self.to.close if self.kind == "tensorboard" else self.to.finish
            end(**({"failed": True} if self.kind == "mlflow" and error[0] else {}))
