"""Full training steps on a CPU: orcalab's loop against a plain transformers loop, same model, same packs, one run.

The plain loop is what a tutorial does with a packed row: full causal attention over the pack, logits for every
token, the model's own loss; bf16 weights too, and the same optimizer. Both time whole steps (forward, backward,
clip, update) on the same packs of the laptop recipe, taking turns so that other load on the machine hits both.

    python benchmarks/train_cpu.py [steps [seq_len]]
"""

import json
import statistics
import sys
import time
from tempfile import TemporaryDirectory

import torch

from orcalab import corpus, model as models, recipes, train


def plain_step(model, masters, packed):
    ids = torch.from_numpy(packed.ids).long()
    labels = torch.full_like(ids, -100)
    labels[:, 1:] = torch.from_numpy(packed.labels[:, :-1]).long()  # transformers shifts by itself
    loss = model(input_ids=ids, labels=labels, use_cache=False).loss
    loss.backward()
    masters.step(1e-5, 1.0)
    return loss.item()


def our_step(model, masters, packed):
    ids, position, labels, lengths = train.batch_of(packed, [0], "cpu")
    loss, _ = models.loss_sum(model, ids, position, lengths, labels)
    (loss / packed.num_targets).backward()
    masters.step(1e-5, 1.0)
    return loss.item() / packed.num_targets


def matmul_rate(dtype, seconds=1.0):
    """GFLOP/s of one (2048, 576) x (576, 1536) product, the shape of the student's MLP."""
    a, b = torch.randn(2048, 576).to(dtype), torch.randn(576, 1536).to(dtype)
    a @ b
    begun, n = time.time(), 0
    while time.time() - begun < seconds:
        a @ b
        n += 1
    return n * 2 * 2048 * 576 * 1536 / (time.time() - begun) / 1e9


def main(steps=3, seq_len=2048):
    with TemporaryDirectory() as out:
        recipe = recipes.get("laptop", out=out)
        cfg = recipe.stage("stage3_gpt4", steps=steps + 1, seq_len=seq_len)
        device, dtype = models.pick("cpu", "auto")
        sides = {}
        for name in ("plain", "ours"):
            model, tokenizer, _ = models.load(recipe.base, dtype, device)
            sides[name] = (models.isolate(model) if name == "ours" else model, train.Masters(model, cfg))
        packs = corpus.prepare(recipe, cfg, tokenizer).packs()
        times, losses = {"plain": [], "ours": []}, {"plain": [], "ours": []}
        for n in range(steps + 1):  # the first step warms up
            one = type(packs)(*(a[n : n + 1] for a in packs))
            for name, step in (("plain", plain_step), ("ours", our_step)):
                begun = time.time()
                losses[name].append(step(*sides[name], one))
                times[name].append((time.time() - begun) / int((one.segment >= 0).sum()))
        speed = {name: 1 / statistics.median(t[1:]) for name, t in times.items()}
        targets = packs.num_targets / (packs.segment >= 0).sum()
        weights = sum(p.numel() for p in sides["ours"][0].parameters()) - sides["ours"][0].get_input_embeddings().weight.numel()
        head = sides["ours"][0].get_input_embeddings().weight.numel() * targets
        rate = matmul_rate(dtype)
        print(f"plain {speed['plain']:.0f} tokens/s, ours {speed['ours']:.0f} tokens/s; losses {losses['plain'][0]:.3f}, {losses['ours'][0]:.3f}")
        print(json.dumps({
            "peer": "plain transformers loop (full causal attention over the pack, full logits)",
            "ratio": round(speed["ours"] / speed["plain"], 3), "ours_tokens_per_s": round(speed["ours"], 1),
            "peer_tokens_per_s": round(speed["plain"], 1), "matmul_gflops": round(rate),
            "share_of_matmul_rate": round(6 * (weights + head) * speed["ours"] / 1e9 / rate, 3),
            "dtype": str(dtype), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "work": f"{steps} steps of {seq_len} tokens, SmolLM2-135M, all weights, {targets:.0%} targets"}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
