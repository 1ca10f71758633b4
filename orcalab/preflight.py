"""Before step 1, on the real model and data: packed equals alone, targets are the assistant's words, the start is sane, and all fits."""

import math

import numpy as np
import torch

from orcalab import attention, chatml, forecast, loss, model as models, optim, packing, ranks
from orcalab.config import write_json

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}  # nats per target


def room_for(cfg, planned, shape, device):
    """Look, before any weights are loaded, whether what was planned fits the memory, and the checkpoints and the model the disk.

    Raises:  ValueError, OSError: it does not; how much is missing, and what to change.
    """
    if advice := forecast.fits(cfg, planned, device):
        raise ValueError(advice)
    number = cfg.keep + 1 + (cfg.final == "best")
    learned = shape.weights if cfg.method == "full" else forecast.adapter_of(shape, cfg)
    each = optim.MOMENTS[cfg.optimizer] + (2 if cfg.optimizer != "adamw" and cfg.method == "full" and planned["dtype"] == "bf16" else 4)  # moments, and the weight or its master
    models.need_space(cfg.folder, (number * each * learned + 4 * shape.weights) / 2**30 + 0.05, f"{number} checkpoints and the model")


def preflight(model, prepared, tokenizer, cfg, folder, kind="documents"):
    """Check, on the real model and data, what training relies on; write preflight.json.

    Packed equals alone: the targets of the first pack's first two examples lose the same together as
    each by itself, and changing the first leaves the second's states untouched. The first examples, alone, equal the model's own
    forward pass, with transformers' attention and full logits. Targets decode to the assistant's words, and end with the token that
    ends an answer. The start is no worse than knowing nothing. In training mode, with layers compiled or computed again, the loss is the same.

    Args:    kind: how packed examples are kept apart, of attention.kind_of.
    Returns: dict: the report, as in preflight.json.
    Raises:  ValueError: which check failed, by how much, and what to change.
    """
    longest, positions = prepared.card["lengths"]["longest"], getattr(model.config, "max_position_embeddings", None) or math.inf
    if longest > positions:
        raise ValueError(f"an example has {longest} tokens, and the model was trained with {positions} positions: stretch them with rope, as linear:{math.ceil(longest / positions)}, "
                         f"or choose seq_len {positions} (now {cfg.seq_len}; rope is {cfg.rope!r})")
    members = (prepared.plan[0] * 2)[:2]  # one alone stands beside itself
    device, dtype = next(model.parameters()).device, models.pick(cfg.device, cfg.dtype, cfg.method)[1]

    def run(which, spoil=None, learning=False):
        at = packing.pack([prepared.examples[i] for i in which], [list(range(len(which)))], cfg.seq_len * len(which))
        ids, position, labels, apart = attention.batch_of(at, [0], device, kind)
        first, last = len(prepared.examples[which[0]][0]), sum(len(prepared.examples[i][0]) for i in which)
        if spoil is not None:
            ids[:first] = spoil
        with torch.no_grad():
            states = attention.gathering(attention.hidden)(model, ids, position, apart)
        with torch.set_grad_enabled(learning):
            total = loss.loss_sum(model, ids, position, apart, labels)[0]
        return total.item(), int((labels >= 0).sum()), states[first:last]

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
    attention.isolate(model, kind).train()
    learning = run(members, learning=not cfg.lora_dropout)[0] / targets  # as it will be computed
    limit, nothing = LIMITS[dtype], math.log(len(tokenizer))
    for i in members:
        chatml.prove(*prepared.examples[i], prepared.rows[i].messages or prepared.rows[i].text, tokenizer, cfg.learn)
    end, talks = chatml.marks(tokenizer)[-1], [i for i in several if prepared.rows[i].messages]
    ended = sum(int(prepared.examples[i][0][np.flatnonzero(prepared.examples[i][1])[-1]]) == end for i in talks)
    report = {"loss_packed": both, "loss_alone": apart, "loss_first": first, "loss_first_own": own, "difference": abs(both - apart), "limit": limit, "leak": leak,
              "loss_learning": learning, "loss_of_knowing_nothing": nothing, "answers": len(talks), "answers_that_end": ended, "attention": kind,
              "targets_of_first_row": tokenizer.decode(chatml.learned(*prepared.examples[members[0]]))}
    ranks.first(lambda: write_json(folder / "preflight.json", report))
    if report["difference"] > limit or leak > 0:
        raise ValueError(f"packed examples see each other: loss {both:.4f} packed, {apart:.4f} alone (limit {limit}), leak "
                         f"{leak:.2g}. The attention of this model does not pass through those of attention.KINDS")
    if abs(own - first) > limit * max(1, own):
        raise ValueError(f"the first {len(several)} examples lose {first:.4f} here and {own:.4f} in the model's own forward pass (limit {limit} of it): this "
                         "model's attention or logits have a part (a window, a cap, a scale, a bias) that attention.py does not know")
    if not cfg.lora_dropout and abs(learning - both) > limit:
        raise ValueError(f"in training mode the first examples lose {learning:.4f}, else {both:.4f} (limit {limit}): compiled layers, or layers computed again, go wrong here; choose compile 'no' and recompute 0")
    if not math.isfinite(both):
        raise ValueError(f"the starting model's loss is {both}: its weights are broken, or {cfg.dtype} is too coarse")
    if first > 1.3 * nothing:
        raise ValueError(f"the starting model loses {first:.2f} a target, more than one that knows nothing ({nothing:.2f}): weights and tokenizer do not belong together")
    if ended < len(talks):
        raise ValueError(f"{len(talks) - ended} of the first {len(talks)} answers do not end with the token that ends an answer ({tokenizer.convert_ids_to_tokens(end)}): "
                         "a model that never sees it never stops; prepare the rows again")
    return report
