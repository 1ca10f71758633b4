"""The recorded look beyond a trained length: smollm2-135m before, stretched (rope linear:2), and after a short adaptation.

    python benchmarks/long.py runs/long   # everything: trains, measures, writes long.json; about an hour of one core, longer where others work, too
    python benchmarks/long.py             # the tables of LOG.md, from long.json

Two kinds of text, with the same questions for every student. *Short* ones, of some 1,900 tokens, with a gap in their positions, so that passkeys told before it lie up to 16,384 positions
back: cheap, so there are ten. *Whole* ones, of some 16,300 tokens without a gap: minutes each, so there are four, of which the base that is stretched and not trained reads one. The adaptation sees conversations of 1,000 or 2,000 tokens alone, with gaps
(PoSE): whole texts of that length take too long to train on here.

The record was made while this file was written: texts, questions and settings are these, but the gaps of its training were drawn a pack at a time, and are now drawn an example at a time.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch

from orcalab import chatml, config, corpus, dress, long, model as models, procedural, recipes, scores, show, train

RECORD = Path(__file__).resolve().parent / "long.json"
TRAINED, WIDTH = 8192, 1024  # positions that the base was trained with, as its config says; width of a step of the loss by position
SPANS = (0, TRAINED, 2 * TRAINED)  # positions that a short text reaches, 0 without a gap
WHO = {"base": "base", "linear": "stretched", "adapted": "adapted"}


def rows(stream):
    """Rows of the laptop's stage 3, explained and erased, that no stage is trained on."""
    rec = recipes.get("laptop", seed=5)
    return dress.dressed(procedural.rows(rec.tasks, 5, stream), rec.stages[2])


def talks(number, tokenizer, tokens, keys, seed, share, stream):
    """Yield long conversations with passkeys of names that no row to learn from has."""
    source = rows(stream)
    for n in range(number):
        yield long.talk(source, tokenizer, tokens, Random(f"test {seed} {n}").sample(long.NAMES, keys), seed + n, share)


def taught(file, tokenizer, number=150):
    """Write rows merged to conversations, a third of them of 2,000 tokens, the others of 1,000, each with passkeys that it tells and asks for."""
    source, lines = rows(7), []
    for n in range(number):
        tokens, keys = ((1000, 6), (2000, 10))[n % 3 == 0]
        talk = long.talk(source, tokenizer, tokens, Random(f"taught {n}").sample(long.TAUGHT, keys), 10_000 + n, 0.7, asked=True)
        lines.append(json.dumps({"messages": talk.messages, "id": f"talk-{n}"}) + "\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines), encoding="utf-8")


def stage(folder):
    """The adaptation's Config."""
    rec = recipes.get("laptop", out=str(folder))
    return rec, replace(rec.stages[1], name="adapted", start="base", rows=str(folder / "talks.jsonl"), system="keep", seq_len=2048, steps=48, save_every=8, too_long="error", stream=1, rope="linear:2")


def adapt(folder, tokenizer):
    """Train the base at positions up to twice its length, and return its folder."""
    rec, cfg = stage(folder)
    taught(folder / "talks.jsonl", tokenizer)
    train.train(cfg, long.gapped(corpus.prepare(rec, cfg, tokenizer), 2 * TRAINED))
    return cfg.folder / "model"


def short(model, tokenizer, number=10):
    """Ask behind short texts; return {span: records}."""
    found = {span: [] for span in SPANS}
    for n, talk in enumerate(talks(number, tokenizer, 1900, 4, 100, 0.5, 8)):
        ids = chatml.encode(talk.messages, tokenizer)[0]
        half = len(chatml.encode(talk.messages[: 2 * (len(talk.messages) // 4) + 1], tokenizer)[0])
        for span in SPANS:
            position = long.gap(len(ids), half, span or len(ids))
            found[span] += long.ask(model, tokenizer, talk, long.read(model, ids, position)[1], int(position[-1]), n)
    return found


def whole(model, tokenizer, number=4):
    """Read whole texts and ask behind them; return (records, the loss of assistants' words in steps of WIDTH positions, a list for each text)."""
    records, losses = [], []
    for n, talk in enumerate(talks(number, tokenizer, 2 * TRAINED - 100, 10, 200, 1.0, 6)):
        ids, mask = chatml.encode(talk.messages, tokenizer)
        loss, cache = long.read(model, ids, np.arange(len(ids)))
        records += long.ask(model, tokenizer, talk, cache, len(ids) - 1, n)
        losses.append([s["macro"] for s in long.by_position([np.where(mask[1:], loss, np.nan)], np.arange(len(ids)), WIDTH)])
    return records, losses


def record(folder):
    """Train, measure everything, and write long.json."""
    tokenizer, made = models.load_tokenizer("smollm2-135m"), {"trained": TRAINED, "width": WIDTH, "short": {}, "whole": {}, "loss": {}}
    torch.set_num_threads(1)
    adapted = adapt(folder, tokenizer)
    for who, source, rope, number in (("base", "smollm2-135m", "", 4), ("linear", "smollm2-135m", "linear:2", 1), ("adapted", adapted, "", 4)):
        model = models.load(source, torch.bfloat16, rope=rope)[0].eval()
        made["short"][who] = {str(span): r for span, r in short(model, tokenizer).items()}
        made["whole"][who], made["loss"][who] = whole(model, tokenizer, number)
    made["training"] = config.read_json(adapted.parent / "results.json")
    RECORD.write_text(json.dumps(made), encoding="utf-8")


def points(c):
    return f"{100 * c['macro']:+.0f} [{100 * c['low']:+.0f}, {100 * c['high']:+.0f}]"


def main(*folders):
    if folders:
        record(Path(folders[0]))
    made = config.read_json(RECORD)
    cell = lambda r: "{:.0%} [{:.0f}, {:.0f}]".format((s := scores.score(r))["macro"], 100 * s["low"], 100 * s["high"])
    who = [w for w in WHO if w in made["whole"]]
    lines = [[f"short texts, {span or 'no gap'}", *(cell(made["short"][w][str(span)]) for w in who)] for span in SPANS] + [["whole texts of 2x the length", *(cell(made["whole"][w]) for w in who)]]
    print(show.text_table(lines, ["passkeys found", *(WHO[w] for w in who)]), "\n")
    for what, found in (("short texts, 2x", {w: made["short"][w][str(SPANS[2])] for w in who}), ("whole texts, 2x", {w: made["whole"][w] for w in who})):
        for other in (w for w in who[:-1] if len(found[w]) == len(found["adapted"])):
            print(f"{what}: adapted minus {WHO[other]} {points(scores.compare(found['adapted'], found[other]))} points, {len(found['adapted'])} questions")
    steps = range(len(made["loss"][who[0]][0]))
    mean = lambda w, n: np.mean([text[n] for text in made["loss"][w] if n < len(text)])
    print("\n" + show.text_table([[n * made["width"], *(f"{mean(w, n):.2f}" for w in who)] for n in steps], ["from position", *(WHO[w] for w in who)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
