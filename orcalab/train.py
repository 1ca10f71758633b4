"""Training, one page: set up, look before the leap, then the loop, from packs to metrics.jsonl, checkpoints and a model."""

import gc
import json
import math
import os
import platform
import shutil
import time
import traceback
from dataclasses import replace
from importlib.metadata import version

import torch

from orcalab import adapter, attention, checkpoint, chatml, cluster, forecast, loss as losses, model as models, ranks, watch
from orcalab.config import read_json, to_json, write_json
from orcalab.optim import Optimizer, learning_rate
from orcalab.preflight import preflight, room_for
from orcalab.progress import Progress


def train(cfg, prepared, start=None, watching=None):
    """Train one stage and return its results; a finished run is read, a broken-off one goes on, to the same bytes on a CPU.

    Under torchrun (see ranks) each process trains its share of every step; the first writes the files, all return the same results.

    Args:    cfg: the stage's Config.  prepared: data.Prepared for it.  start: what to start from: a model name or folder; cfg.base if None.
             watching: called with each line of metrics.jsonl, as a live figure is.
    Returns: dict: steps, tokens, targets, first and last loss, seconds, tokens_per_s, planned and measured peak in GiB.
    Raises:  ValueError: the folder holds a run with other inputs, and which differ; a check before step 1; a loss that is not a number, or a spike, and the
                 pack that did it. The last good checkpoint stays.
    Paper: Orca 2, "Training" (loss on the teacher's tokens, packing, bf16). Optimizer, learning rate and batch size are unpublished, so ours: see the recipe.
    """
    planned = {}
    try:
        with ranks.gone():
            return _train(cfg, prepared, start or cfg.base, watching, planned)
    except torch.OutOfMemoryError as e:
        traceback.clear_frames(e.__traceback__)  # lets go of what the failed work held, so that a notebook can try again
        torch.cuda.empty_cache()
        told = f"{planned['peak_gib']:.1f} GiB were planned ({', '.join(f'{k} {v:.1f}' for k, v in planned['gib'].items())})" if planned else "nothing was planned yet"
        raise MemoryError(f"{str(e).split('. ')[0]}. For {cfg.name} {told}. `orcalab plan` says what other settings need: recompute 1 (now {cfg.recompute}), batch_size 1 "
                          f"(now {cfg.batch_size}), update backward (now {cfg.update}), method qlora (now {cfg.method}); the last good checkpoint stays") from None


def _train(cfg, prepared, start, watching, planned):
    """Do what `train` says; `planned` is filled with the forecast as soon as there is one."""
    folder, world, lead = cfg.folder, ranks.world(), ranks.rank() == 0
    at_once = cluster.share(cfg, world).batch_size
    device, dtype = models.pick(cfg.device, cfg.dtype, cfg.method)
    seal = {"config": cfg.settings, "data": prepared.folder.name, "tokenizer": prepared.card["made_of"]["tokenizer"],
            "weights": ranks.first(lambda: models.weights_digest(start)), "dtype_used": str(dtype), **(adapter.stands_on(cfg, start) if cfg.method != "full" else {})}
    seal = json.loads(json.dumps(seal))  # what the run depends on: if any of it changed, it does not go on
    if (folder / "config.json").exists() and (old := checkpoint.today(read_json(folder / "config.json")["seal"], seal)) != seal:
        raise ValueError(f"{folder} holds a run with other inputs ({checkpoint.differences(old, seal)}); choose another out, or delete that folder")
    if ranks.first(lambda: cfg.finished):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # which a kill at the very end left
        return read_json(folder / "results.json")
    given, cfg = cfg, replace(cfg, steps=prepared.steps)  # what epochs came to
    kind, shape, peak_rate = attention.kind_of(cfg, device, dtype), forecast.shape_of(start, cfg.template, cfg.rope), forecast.rate(device, dtype)
    gc.collect()  # a sharded model of the stage before holds on to itself
    planned |= ranks.first(lambda: forecast.forecast(cfg, shape, prepared, device, many=ranks.nodes()))  # which reads the masks of all rows
    room_for(cfg, planned, shape, device)
    tracker = watch.Tracker(cfg if lead else replace(cfg, track=""))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(cfg.seed)  # an adapter's first weights, and what it drops
    whole, exact = cfg.method == "full", {}
    masters = whole and cfg.optimizer == "adamw" and dtype != torch.float32 and world == 1  # of several processes, the shares themselves are
    if world > 1:
        model, tokenizer, origin = ranks.load(cfg, start, dtype, device)
    else:
        model, tokenizer, origin = models.load(start, torch.float32 if masters else dtype, device, cfg.template, cfg.rope) if whole else adapter.load(cfg, start, dtype, device)
    for name, p in model.named_parameters() if masters else ():  # they begin where the file has the weights, not where bf16 has them
        exact[name], p.data = p.data, p.data.to(dtype)
    if seal["tokenizer"] != (own := chatml.fingerprint(tokenizer)):
        raise ValueError(f"{prepared.folder} was made with another tokenizer or template ({seal['tokenizer']}, the model's is {own}); "
                         "prepare the rows again with this model")
    preflight(attention.arrange(model, cfg, kind), prepared, tokenizer, cfg, folder, kind)
    if world > 1:
        model.reshard()  # what answering gathered
    saved = ranks.first(lambda: checkpoint.last(folder, seal))  # one of other inputs is refused before config.json says that this run is theirs
    versions = {p: version(p) for p in ("orcalab", "torch", "transformers")} | {"python": platform.python_version(), "attention": kind, "compile": cfg.compile, "processes": world}
    if saved and (odd := checkpoint.differences({"processes": 1, **saved[1].get("versions", versions)}, versions)):
        print(f"{folder} goes on computed in another way ({odd}): losses may differ in their last digits from those of a run in one go", flush=True)
    ranks.first(lambda: write_json(folder / "config.json", {
        **to_json(given), "seal": seal, "origin": origin, "dtype_used": str(dtype), "device_used": device, "attention_used": kind, "planned": planned, "versions": versions}))
    optimizer, done, metrics = Optimizer(model, cfg, models.pad_rows(model, tokenizer), exact), 0, folder / "metrics.jsonl"
    exact.clear()
    if saved:
        done = saved[1]["step"]
        restore(optimizer, saved[0])
        print(f"{cfg.name} goes on behind step {done}, from its checkpoint", flush=True)
    lines = ranks.first(lambda: lines_of(metrics, done))
    lowest = min([x["held_out"] for x in lines if "held_out" in x], default=float("inf"))
    adapter_weights = forecast.adapter_of(shape, cfg)
    with tracker, open(metrics if lead else os.devnull, "a", encoding="utf-8") as log, Progress(cfg.steps, f"train {cfg.name}" * lead) as bar:
        bar.resume(done)
        for step in range(done, cfg.steps):
            begun, first, lr = time.time(), step * cfg.packs_per_step, learning_rate(cfg, step)
            members = [list(pack) for pack in prepared.plan[first : first + cfg.packs_per_step]]
            lengths = [[len(prepared.examples[i][0]) for i in m] for m in members]
            mine = ranks.share([forecast.flops(shape, sum(n), 0, n) for n in lengths], ranks.rank(), world)
            own = [members[i] for i in mine]
            packed = prepared.pack(own)
            num_targets, tokens, each = sum(ranks.every(packed.num_targets)), sum(map(sum, lengths)), []
            divide = num_targets if dtype == torch.float16 else 1  # of a sum: a mean's gradients would be too small for fp16
            optimizer.begin(lr, divide)
            for at in range(0, len(own), at_once):
                ids, position, labels, apart = attention.batch_of(packed, list(range(at, at + at_once)), device, kind)
                loss, per_target = losses.loss_sum(model, ids, position, apart, labels)
                each.append((loss.detach(), per_target.detach()))
                if cfg.update == "step" or all(ranks.every(bool(torch.isfinite(loss)))):  # otherwise the weights would be gone
                    (loss * world / (num_targets / divide)).backward()  # of several processes the mean is taken
                    optimizer.gather()
            seen = watch.by_tag(prepared, own, packed, torch.cat([t for _, t in each]).float().cpu().numpy())
            said = ranks.every((sum(loss.item() for loss, _ in each), *seen, mine, peak_gib(device)))
            total, by, per_pack = sum(x[0] for x in said), watch.joined([x[1] for x in said]), [p for _, p in sorted((i, p) for x in said for i, p in zip(x[3], x[2]))]
            wrong = watch.trouble(cfg, total / num_targets, [x["loss"] for x in lines])
            norm = None if wrong else optimizer.step()
            if norm is not None and not math.isfinite(norm):  # fp16 has little room, so there a few such steps may pass without an update
                norm = None if dtype == torch.float16 and any(x["grad_norm"] is not None for x in [{"grad_norm": 0}, *lines][-4:]) else norm
                wrong = "" if norm is None else f"is {total / num_targets:.2f}, but its gradient is {norm}"
            if wrong:
                raise ValueError(f"the loss {wrong} at step {step + 1}: {watch.suspects(prepared, members, per_pack, first)}. Look at these rows; lower lr ({cfg.lr}) "
                                 f"in another out, or raise spike ({cfg.spike:g}) and start again; the last good checkpoint is in {folder / 'checkpoints'}")
            seconds = time.time() - begun
            work = forecast.flops(shape, tokens, num_targets, [n for of in lengths for n in of], cfg.method, adapter_weights)
            line = {"step": step + 1, "loss": total / num_targets, "lr": lr, "grad_norm": norm, "tokens": tokens, "targets": num_targets, "seconds": seconds,
                    "tokens_per_s": tokens / seconds, "targets_per_s": num_targets / seconds, "mfu": work / seconds / peak_rate / world, "lost_updates": None if norm is None else optimizer.lost,
                    "peak_gib": max(x[4] for x in said), "by": by}
            if cfg.eval_every and ((step + 1) % cfg.eval_every == 0 or step + 1 == cfg.steps):
                line |= watch.look(model, prepared, tokenizer, cfg, kind)
            log.write(json.dumps(line) + "\n")
            log.flush()
            lines.append(line)
            tracker.log(line)
            if watching:
                watching(line)
            bar.advance(1, f"loss {line['loss']:.3f}, {tokens / seconds:.0f} tokens/s, {num_targets / seconds:.0f} targets/s")
            better, lowest = line.get("held_out", lowest) < lowest, min(lowest, line.get("held_out", lowest))
            better = better and cfg.final == "best"
            if better or (step + 1) % cfg.save_every == 0 and step + 1 < cfg.steps:
                lead and os.fsync(log.fileno())  # never fewer lines than the checkpoint has steps
                checkpoint.save(folder, step + 1, {**optimizer.state(), **(checkpoint.rng() if world == 1 else {})}, {"step": step + 1, "seal": seal, "versions": versions}, cfg.keep, better)
    if cfg.final == "best":
        if not (saved := ranks.first(lambda: checkpoint.last(folder, seal, best=True))):
            raise ValueError(f"the best checkpoint of {folder} is broken; with final 'last', in another out, the last weights are kept")
        restore(optimizer, saved[0])
    for name, p in model.named_parameters() if masters else ():
        p.data = optimizer.kept[name].to(device)  # in fp32, as Orca 2's weights were released; the next stage goes on from there
    model.set_attn_implementation("sdpa")
    if world > 1:
        model.reshard()
        model = ranks.whole(model)
    results = {**summary(lines, cfg.final), "planned_gib": planned["peak_gib"], "peak_gib": max(x["peak_gib"] for x in lines)}

    def end():
        merged = models.save(folder / "model", model, tokenizer) if whole else adapter.finish(folder, model, tokenizer, cfg)
        write_json(folder / "results.json", {**results, **({"merged": merged} if merged else {})})
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    ranks.first(end)
    return read_json(folder / "results.json")


def restore(optimizer, tensors):
    """Put weights, moments and random numbers where they stood in a checkpoint, as checkpoint.last returned it."""
    tensors = checkpoint.fill(tensors, optimizer.state())
    optimizer.load({k: t for k, t in tensors.items() if not k.startswith("rng.")})
    checkpoint.set_rng(tensors)


def lines_of(metrics, done):
    """Return the first lines of metrics.jsonl, those of the steps that are done, and take the others out of the file."""
    lines = [json.loads(x) for x in metrics.read_text().splitlines()[:done]] if metrics.exists() else []
    if len(lines) < done:
        raise ValueError(f"{metrics} has {len(lines)} lines, the checkpoint is of step {done}: delete {metrics.parent} to start afresh")
    side = metrics.with_suffix(".part")
    side.write_text("".join(json.dumps(line) + "\n" for line in lines))
    side.replace(metrics)
    return lines


def peak_gib(device):
    """Return the most memory so far, in GiB: of tensors on a GPU, of the process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if platform.system() == "Darwin" else 2**20)


def summary(lines, final="last"):
    """Sum up the lines of a metrics.jsonl: steps, tokens, targets, first and last loss (means of up to three steps), tokens/s; the look at the weights that were kept."""
    mean = lambda part: sum(x["loss"] for x in part) / len(part)
    part = max(1, min(3, len(lines) // 2))
    total = {k: sum(x[k] for x in lines) for k in ("tokens", "targets", "seconds")}
    looks = [x for x in lines if "held_out" in x]
    look = min(looks, key=lambda x: x["held_out"]) if looks and final == "best" else looks[-1] if looks else {}
    return {"steps": len(lines), **total, "first_loss": mean(lines[:part]), "last_loss": mean(lines[-part:]), "tokens_per_s": total["tokens"] / total["seconds"],
            **({"held_out": look["held_out"], "stops": look["stops"], "held_out_step": look["step"]} if looks else {})}
