"""What test_ranks.py starts under torchrun: several settings one after the other in the same processes, and what an error in one of them does to all."""

import json
import sys

import torch

from orcalab import model, optim, ranks, recipes
from orcalab.__main__ import main

if __name__ == "__main__":
    out, settings = sys.argv[1], json.loads(sys.argv[2])
    ranks.begin("cpu")
    number, of = ranks.rank(), ranks.world()
    def only(who):
        if number == who:
            raise OSError(f"rank {who} has no room")

    assert ranks.every(number) == list(range(of)) and ranks.first(lambda: number) == 0 and ranks.together(lambda: number) == list(range(of))

    for who, work in ((0, ranks.first), (1, ranks.together)):
        try:
            work(lambda: only(who))
            raise SystemExit("no error")
        except OSError as e:
            assert str(e) == f"rank {who} has no room"

    cfg = recipes.get("smoke", dtype="fp32").stages[0]
    student, tokenizer, origin = ranks.load(cfg, "tiny-random", torch.float32, "cpu")
    whole, _, own = model.load("tiny-random")
    assert origin == own
    for (name, p), q in zip(student.named_parameters(), whole.parameters()):
        mine, each = ranks.local(p.detach()), -(-len(q) // of)
        assert torch.equal(mine, q[number * each : (number + 1) * each]), name
        rows = {row: ranks.own_row(p, row) for row in range(len(q))}
        assert {r: [r - number * each] for r in range(number * each, min(len(q), (number + 1) * each))} == {r: at for r, at in rows.items() if at}
        assert torch.equal(ranks.like(mine, p).full_tensor(), q)
    for (name, b), c in zip(student.named_buffers(), whole.buffers()):
        assert torch.equal(b, c), name
    plain = ranks.whole(student)
    assert (plain is None) == bool(number)
    if plain is not None:
        assert type(plain) is type(whole) and all(torch.equal(p, q) for p, q in zip(plain.parameters(), whole.parameters()))

    still = model.pad_rows(student, tokenizer)  # padding is one process's row alone, and stays
    optimizer = optim.Optimizer(student, cfg, still)
    assert [len(optimizer.still[n]) for n in optimizer.still if "embed" in n] == [int(number == of - 1)] and len(still) == 1

    words = ["--recipe", "smoke", "--stage", "stage1_flan", "--device", "cpu", "--seq_len", 512, "--steps", 6]
    for name, changes in settings.items():
        code = main([str(w) for w in ("train", *words, "--out", f"{out}/{name}", *(x for k, v in changes.items() for x in (f"--{k}", v)))])
        print(f"{name} rank {number}: {code}", file=sys.stderr)
    ranks.dist.destroy_process_group()
