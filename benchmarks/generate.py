"""Answers of a real model, many at a time: orcalab against `model.generate` in fixed batches; same prompts, same weights, one process, one run.

The questions are held-out ones of the laptop recipe's six tasks, each under six strategies' messages; the model answers as it likes, so lengths have a long tail:
many answers are a few tokens long, some go on to max_new_tokens. Both sides are greedy and stop at the same ids. The sides take turns, a sixth of the prompts at a time.

    ours    64 at a time, the next prompt in the place of an answer that ended
    ships   model.generate, batches of 32 in the order of the prompts, as scripts do
    sorted  the same, prompts sorted by length first, so that a batch needs little padding
    wide    as ships, batches of 64

Beside the ratio: the time to the first id of a conversation's second turn, with what was read kept, against the whole conversation read anew.

In fp32 all answers must be the same ids, else the script ends with an error; in bf16 two nearly equal logits can round to either side, and the share of equal answers
is printed.

    python benchmarks/generate.py [questions [max_new_tokens [rows [dtype [base [peers]]]]]]          # 12 192 64 auto smollm2-135m ships,sorted,wide; 200 questions take most of an hour
"""

import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from random import Random

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch

from orcalab import generate, procedural, recipes, strategies

NAMES = [n for n in strategies.STRATEGIES if n != "guess-and-check"]


def prompts_of(student, questions):
    tasks = recipes.get("laptop").tasks
    asked = [e["question"] for entries in procedural.held_out(tasks, -(-questions // len(tasks))).values() for e in entries]
    asked = Random(0).sample(asked, questions)
    return [student.prompt(q, name) for q in asked for name in NAMES]


def fixed(student, prompts, longest, rows, by_length=False):
    """model.generate in fixed batches; the ids of each answer up to its end, in the order asked."""
    pad, out = student.tokenizer.pad_token_id, [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i])) if by_length else range(len(prompts))
    for at in range(0, len(prompts), rows):
        some = order[at : at + rows]
        width = max(len(prompts[i]) for i in some)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in some])
        seen = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in some])
        with torch.inference_mode():
            new = student.model.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=longest, eos_token_id=student.ends, pad_token_id=pad)[:, width:]
        for i, row in zip(some, new.tolist()):
            out[i] = tuple(row[: next((n for n, t in enumerate(row, 1) if t in student.ends), len(row))])
    return out


def second_turn(student, longest=1):
    """Return (seconds of a second turn with what was read kept, seconds with all of it read anew, ids that went in, ids that were there)."""
    long = "Here is a story. " + "A dog met a cat, and they went on together. " * 80
    kept, anew = [], []
    for _ in range(3):
        chat = generate.Chat(student, "cautious", longest)
        chat.say(long)
        begun = time.perf_counter()
        answer = chat.say("Who met whom?")
        kept.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        again = student.answer([chat.ids], longest)[0]
        anew.append(time.perf_counter() - begun)
    return statistics.median(kept), statistics.median(anew), len(chat.ids), chat.reused, answer.ids == again.ids


def main(questions=12, longest=192, rows=64, dtype="auto", base="smollm2-135m", peers="ships,sorted,wide"):
    student = generate.Student(base, "cpu", dtype)
    prompts = prompts_of(student, questions)
    sides = {"ours": lambda p: [a.ids for a in student.answer(p, longest, rows)], "ships": lambda p: fixed(student, p, longest, rows // 2),
             "sorted": lambda p: fixed(student, p, longest, rows // 2, by_length=True), "wide": lambda p: fixed(student, p, longest, rows)}
    peers = peers.split(",")
    sides = {n: side for n, side in sides.items() if n in ("ours", *peers)}
    for side in sides.values():
        side(prompts[:2])  # warm
    seconds, said = dict.fromkeys(sides, 0.0), {name: [] for name in sides}
    turns = max(1, min(6, len(prompts) // (2 * rows)))  # each turn fills the rows a few times over
    for turn in range(turns):
        part = prompts[len(prompts) * turn // turns : len(prompts) * (turn + 1) // turns]
        for name, side in sides.items():
            begun = time.perf_counter()
            said[name] += side(part)
            seconds[name] += time.perf_counter() - begun
        print(f"turn {turn + 1} of {turns}: " + ", ".join(f"{n} {sum(map(len, said[n])) / seconds[n]:.0f} new tokens/s" for n in sides), flush=True)
    rate = {n: sum(map(len, said[n])) / seconds[n] for n in sides}
    same = {n: sum(a == b for a, b in zip(said["ours"], said[n])) / len(prompts) for n in peers}
    lengths = sorted(map(len, said["ours"]))
    kept, anew, ids, reused, equal = second_turn(student)
    if student.model.dtype == torch.float32 and (min(same.values()) < 1 or not equal):
        raise SystemExit(f"in fp32 the sides must give the same ids: {same}, second turn {equal}")
    print(json.dumps({
        "peer": f"transformers {version('transformers')}, model.generate in fixed batches", "ratio": round(rate["ours"] / max(rate[n] for n in peers), 2),
        "work": f"{questions} questions x {len(NAMES)} strategies, up to {longest} new tokens, {student.model.dtype}, {base}",
        "tokens_per_s": {n: round(r, 1) for n, r in rate.items()}, "same_ids": {n: round(s, 3) for n, s in same.items()},
        "lengths": {f"{q} %": lengths[min(len(lengths) - 1, len(lengths) * q // 100)] for q in (10, 50, 75, 90, 100)},
        "second_turn": {"ratio": round(anew / kept, 1), "ids": ids, "there_before": reused, "same_ids": equal}}))


if __name__ == "__main__":
    main(*(t(a) for t, a in zip((int, int, int, str, str, str), sys.argv[1:])))
