"""Full training steps on a CPU: orcalab against TRL's SFTTrainer and a plain transformers loop; same model, same rows, one run.

Each side is a process of its own that makes one step when it is asked to, so the sides take turns and other load on the machine hits all. A step is 8 rows
of the laptop recipe's third stage, about 1,000 tokens as there, and the same 8 for every side. Speed is the median over steps of the tokens that are not padding;
a first step warms up.

    ours    train.py's own step: examples kept apart, logits for targets alone, AdamW on fp32 masters under bf16 weights
    ships   TRL with packing as it ships: fp32 weights under bf16 autocast, layers computed again in the backward pass; a step's rows come as its packing lays them
    best    TRL in the fastest configuration that was found here; `TRL` below has it, LOG.md what else was tried
    plain   what a tutorial does with a pack: full causal attention over it, logits for every token, the model's own loss; weights and optimizer as ours
    alone   (only if asked for) TRL with its rows side by side and padded, in the weights' own type

But for `plain`, whose examples see each other, masks are equal, so losses have to be: in fp32 in every step; in bf16 in the first, and then as long as weights are kept in
the same way. The script ends with an error if they are not.

    pip install trl
    python benchmarks/train_cpu.py [steps [base [dtype [sides]]]]          # 2 smollm2-135m auto ours,ships,best,plain
"""

import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
ROWS, LR = 8, 1e-4
SAME = {"use_cpu": True, "max_length": 2048, "learning_rate": LR, "lr_scheduler_type": "constant", "adam_beta2": 0.95, "train_sampling_strategy": "sequential",
        "logging_steps": 1, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}  # what all sides agree on, and what is no training
PACKED = {"packing": True, "per_device_train_batch_size": 1, "dataset_kwargs": {"skip_prepare_dataset": True}}
BF16 = {"gradient_checkpointing": False, "bf16": False}  # no autocast: bf16 weights and no masters, which is faster, and coarser than ours
TRL = {"ships": PACKED, "best": {**PACKED, **BF16}, "alone": {**BF16, "per_device_train_batch_size": ROWS}}  # differences from SFTConfig


class Turns:
    """A side's steps, one at a time: says what the last one took, read and lost, and waits for the next to be asked for."""

    def __init__(self):
        self.out, sys.stdout, self.begun = sys.stdout, sys.stderr, 0.0  # what libraries print is not an answer

    def __call__(self, tokens=0, loss=0.0):
        print(json.dumps({"seconds": time.perf_counter() - self.begun, "tokens": tokens, "loss": loss}), file=self.out, flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self.begun = time.perf_counter()


def ours(turn, steps, base, dtype, side):
    """Train as train.py does, or (side plain) as a tutorial does, with the same optimizer."""
    import torch
    from orcalab import attention, loss, model as models, optim, packing
    from orcalab.config import Config
    cfg, model = Config(device="cpu", lr=LR), models.load(base, dtype, "cpu")[0].train()
    model = attention.arrange(model, cfg, "documents") if side == "ours" else model
    optimizer = optim.Optimizer(model, cfg)
    turn()
    for rows in steps:
        tokens = sum(len(ids) for ids, _ in rows)
        packed = packing.pack(rows, [list(range(len(rows)))], tokens)
        optimizer.begin(LR)
        if side == "ours":
            ids, position, labels, apart = attention.batch_of(packed, [0], "cpu", "documents")
            mean = loss.loss_sum(model, ids, position, apart, labels)[0] / packed.num_targets
        else:
            ids, labels = (torch.from_numpy(a).long() for a in (packed.ids, packed.labels))
            mean = model(input_ids=ids, labels=labels.roll(1, 1), use_cache=False).loss  # transformers shifts by itself
        mean.backward()
        optimizer.gather()
        optimizer.step()
        turn(tokens, mean.item())


def trl(turn, steps, base, dtype, side):
    """Train with SFTTrainer on ids and labels."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from orcalab import model as models
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    disable_progress_bars()
    settings = {**SAME, **TRL[side]}
    auto = settings.setdefault("bf16", dtype == torch.bfloat16)
    model, tokenizer, _ = models.load(base, torch.float32 if auto else dtype, "cpu")

    class Ask(TrainerCallback):
        tokens = 0

        def on_train_begin(self, *args, **_):
            turn()

        def on_log(self, args, state, control, logs, **_):
            if "loss" in logs:
                tokens, self.tokens = logs["num_tokens"] - self.tokens, logs["num_tokens"]
                turn(tokens, logs["loss"])

    labels = [[[t if m else -100 for t, m in zip(*row)] for row in rows] for rows in steps]
    if settings.get("packing"):
        data = {"input_ids": [sum((ids for ids, _ in rows), []) for rows in steps], "labels": [sum(x, []) for x in labels], "seq_lengths": [[len(ids) for ids, _ in rows] for rows in steps]}
    else:
        data = {"input_ids": [ids for rows in steps for ids, _ in rows], "labels": sum(labels, [])}
    with TemporaryDirectory() as out:
        args = SFTConfig(output_dir=out, max_steps=len(steps), **settings)
        SFTTrainer(model=model, args=args, train_dataset=Dataset.from_dict(data), processing_class=tokenizer, callbacks=[Ask]).train()


def matmul_rate(dtype, seconds=1.0):
    """GFLOP/s of one (2048, 576) x (576, 1536) product, the shape of the student's MLP."""
    import torch
    a, b = torch.randn(2048, 576).to(dtype), torch.randn(576, 1536).to(dtype)
    a @ b
    begun, n = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        a @ b
        n += 1
    return n * 2 * 2048 * 576 * 1536 / (time.perf_counter() - begun) / 1e9


def take_turns(sides, steps, *what):
    """Return {side: what it said of each step}; each is a process, and one works while the others wait."""
    with TemporaryDirectory() as out:
        jobs = {}
        for side in sides:
            with open(Path(out, side), "w") as log:
                jobs[side] = subprocess.Popen([sys.executable, __file__, "--", side, *map(str, what)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            said = {side: [] for side in sides}
            for n in range(steps + 1):  # the first answer is that a side is ready
                for side, job in jobs.items():
                    if n:
                        print(file=job.stdin, flush=True)
                    if not (line := job.stdout.readline()):
                        raise SystemExit(f"{side} broke off ({job.wait()}):\n{Path(out, side).read_text()[-2000:]}")
                    said[side].append(json.loads(line))
            return {side: answers[1:] for side, answers in said.items()}
        finally:
            for job in jobs.values():
                job.kill()
                job.communicate()


def main(steps="2", base="smollm2-135m", dtype="auto", sides="ours,ships,best,plain"):
    import torch
    from orcalab import corpus, forecast, model as models, recipes
    steps, sides, dtype = int(steps) + 1, sides.split(","), models.pick("cpu", dtype)[1]  # one warms up
    with TemporaryDirectory() as out:
        recipe = recipes.get("laptop", out=out, base=base)
        prepared = corpus.prepare(recipe, recipe.stage("stage3_gpt4", steps=2 * steps, seq_len=2048), models.load_tokenizer(base))
        rows = [[x.tolist() for x in prepared.examples[i]] for i in range(ROWS * steps)]
        file = Path(out, "rows.json")
        file.write_text(json.dumps([rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]))
        before = matmul_rate(dtype)  # and again behind the steps: other load on the machine makes it smaller than it is
        said = take_turns(sides, steps, file, base, str(dtype).removeprefix("torch."))
    rate = max(before, matmul_rate(dtype))
    speed = {side: statistics.median(s["tokens"] / s["seconds"] for s in answers[1:]) for side, answers in said.items()}
    for side, answers in said.items():
        print(f"{side:6} {speed[side]:7.1f} tokens/s; losses", *(format(s["loss"], ".4f") for s in answers))
    for side in set(said) & set(TRL):
        for n, (mine, theirs) in enumerate(zip(said["ours"], said[side])):
            limit = 1e-3 if dtype == torch.float32 else 2e-2 if not n else float("inf")
            if mine["tokens"] != theirs["tokens"] or abs(theirs["loss"] / mine["loss"] - 1) > limit:
                raise SystemExit(f"step {n + 1}: {side} read {theirs['tokens']:.0f} tokens and lost {theirs['loss']}, ours {mine['tokens']} and {mine['loss']}")
    shape, targets = forecast.shape_of(base), sum(sum(mask[1:]) for _, mask in rows) / sum(len(ids) for ids, _ in rows)
    ratio = {side: round(speed["ours"] / s, 2) for side, s in speed.items() if side != "ours"}
    work = 6 * (shape.matrices + shape.table * targets) * speed["ours"] / 1e9
    print(f"matrix products {rate:.0f} GFLOP/s, ours uses {work:.0f}: 6 x ({shape.matrices / 1e6:.0f} M + {targets:.0%} of {shape.table / 1e6:.0f} M weights) x tokens/s")
    print(json.dumps({"peer": "TRL SFTTrainer, best configuration found", "ratio": ratio.get("best"), "ratio_as_it_ships": ratio.get("ships"), "ratios": ratio,
                      "tokens_per_s": {side: round(s, 1) for side, s in speed.items()}, "losses": {side: [round(s["loss"], 4) for s in answers] for side, answers in said.items()},
                      "matmul_gflops": round(rate), "share_of_matmul_rate": round(work / rate, 3), "dtype": str(dtype), "threads": torch.get_num_threads(),
                      "versions": {p: version(p) for p in ("torch", "transformers", "trl")},
                      "work": f"{steps - 1} steps of {ROWS} rows, {sum(len(ids) for ids, _ in rows) / steps:.0f} tokens each, {base}, all weights, {targets:.0%} targets"}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--"]:
        import torch
        side, rows, base, dtype = sys.argv[2:]
        {"ours": ours, "plain": ours}.get(side, trl)(Turns(), json.loads(Path(rows).read_text()), base, getattr(torch, dtype), side)
    else:
        main(*sys.argv[1:])
