"""Long contexts: conversations of any length made of rows, what a model makes of them by position, and whether it finds in them what was told long before.

A text is read once, and each question is asked behind the same keys and values. Positions may jump: behind a gap, what was told before it is as far away as if text lay
between, so a short text tests, and trains, the positions of a long one (PoSE, arXiv:2309.10400). What it leaves out is that text: other things to look at.
"""

from collections import namedtuple
from itertools import chain, takewhile
from random import Random

import numpy as np
import torch

from orcalab import chatml, scores
from orcalab.prepared import Prepared

NAMES = "Anna Boris Carla Dmitri Elena Farid Greta Hugo Irene Jonas Kira Leo".split()  # whose passkeys a test asks for
TAUGHT = "Maria Nils Olga Pavel Quentin Rosa Stefan Tara Ulrich Vera Walter Xenia".split()  # and rows to learn from
Talk = namedtuple("Talk", "messages told")  # a long conversation, and the passkeys that are told in it, {name: number} as they come


def turns(name, number, ask=False):
    """Return the two turns that tell a passkey, or ask for it."""
    said = f"The passkey of {name} is {number}"
    return [{"role": "user", "content": f"What is the passkey of {name}?" if ask else f"{said}. Remember it."}, {"role": "assistant", "content": said}]


def talk(rows, tokenizer, tokens, names=(), seed=0, share=1.0, asked=False):
    """Join rows to a conversation of at most so many tokens under the first one's system message, and tell passkeys in it; return a Talk.

    Args:    rows: an iterator of dressed Rows, of which as many are taken as fit, but at least one.
             names: whose passkeys are told, at even distances in the first `share` of it.  asked: whether it ends with questions for them, and answers, in another order.
    """
    rng, encoder = Random(seed), chatml.encoder(tokenizer)
    size = lambda said: len(chatml.encode(2 * said, encoder)[0]) - len(chatml.encode(said, encoder)[0])  # behind others
    told = {name: str(rng.randrange(10_000, 100_000)) for name in names}
    ends = [turns(n, told[n], True) for n in rng.sample(list(names), len(names))] if asked else []
    first = next(rows).messages
    head, body = first[: first[0]["role"] == "system"], []
    room = tokens - len(chatml.encode(first, encoder)[0]) - sum(map(size, [*ends, *(turns(*x) for x in told.items())]))
    for said in chain([first], (row.messages for row in rows)):
        said = said[said[0]["role"] == "system" :]
        room -= size(said) if body else 0
        if room < 0 and body:
            break
        body.append(said)
    for i, pair in reversed(list(enumerate(told.items()))):
        body.insert(int(i * share * len(body) / len(told)), turns(*pair))
    return Talk([*head, *sum([*body, *ends], [])], told)


def gap(length, cut, upto):
    """Return the positions of `length` tokens that jump behind the first `cut`, so that the last one is upto - 1.

    >>> gap(5, 2, 10).tolist()
    [0, 1, 7, 8, 9]
    """
    return np.arange(length) + (np.arange(length) >= cut) * (upto - length)


class Gapped(Prepared):
    """A prepared folder whose examples each have a gap in their positions, at random, that reach up to card["gap"][0]."""

    def pack(self, members):
        made, (upto, seed) = super().pack(members), self.card["gap"]
        for position, segment, examples in zip(made.position, made.segment, members):
            for s, i in enumerate(examples):
                rng, n = np.random.default_rng([seed, i]), int((segment == s).sum())
                position[segment == s] = gap(n, rng.integers(n // 4, n * 3 // 4 + 1), rng.integers(n, max(n, upto) + 1))
        return made


def gapped(prepared, upto, seed=0):
    """Return a Prepared with the same examples and plan at positions up to `upto` (PoSE); its name says so, and with it the seal of a run."""
    folder = prepared.folder.with_name(f"{prepared.folder.name}-gap-{upto}-{seed}")
    return Gapped(**{**vars(prepared), "folder": folder, "card": {**prepared.card, "gap": [upto, seed]}})


@torch.inference_mode()
def read(model, ids, position):
    """Read a text at these positions; return (the loss of each token but the first, an array in nats; the keys and values of all)."""
    cache, losses, states, table = None, [], [], model.get_output_embeddings()
    for part in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(position) != 1) + 1):  # up to a gap, so that no mask of all by all is made
        out = model.get_decoder()(input_ids=torch.tensor(ids)[None, part], position_ids=torch.tensor(position)[None, part], past_key_values=cache, use_cache=True)
        cache, states = out.past_key_values, [*states, out.last_hidden_state[0]]
    for some, targets in zip(torch.cat(states)[:-1].split(512), torch.tensor(ids[1:]).split(512)):
        losses.append(torch.nn.functional.cross_entropy(table(some).float(), targets, reduction="none"))
    return torch.cat(losses).numpy(), cache


@torch.inference_mode()
def ask(model, tokenizer, talk, cache, after, text=0):
    """Ask for each passkey behind a text that was read; return records for scores.score, those of a text as one group.

    The answer's words are given; it is right if each token of the number is the likeliest behind those before it, as it would be in greedy answering.

    Args:    after: the position of the last token that was read.  text: the text's number.
    """
    records, begun = [], len(chatml.encode(talk.messages, tokenizer)[0])
    alike = lambda a, b: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))
    for n, (name, number) in enumerate(talk.told.items()):
        question, answer = turns(name, number, True)
        full, bare = (chatml.encode([*talk.messages, question, {**answer, "content": said}], tokenizer)[0][begun:] for said in (answer["content"], answer["content"].removesuffix(f" {number}")))
        first, last = alike(full, bare), len(full) - alike(full[::-1], bare[::-1])  # the number's tokens
        at = {"input_ids": torch.tensor([full[:last]]), "position_ids": after + 1 + torch.arange(last)[None]}
        states = model.get_decoder()(**at, past_key_values=cache, use_cache=True).last_hidden_state[0]
        cache.crop(-last)
        said = model.get_output_embeddings()(states[first - 1 : last - 1]).argmax(-1).tolist()
        records.append({"task": "passkey", "number": text * len(NAMES) + n, "question": f"{text} {name} {number}", "group": f"text {text}", "right": said == full[first:last],
                        "format_ok": True, "tokens": last - first, "reason": "stop"})
    return records


def by_position(losses, position, width):
    """Return the mean loss of texts in steps of `width` positions, [{"from", "macro", "low", "high"}], with 95 % intervals over texts.

    Args:    losses: of each text, as `read` returns them; NaN does not count.  position: where they were read.
    """
    out, step = [], np.asarray(position)[1:] // width
    for s in np.unique(step):
        means = [float(np.mean(x[mine])) for x in losses if (mine := (step[: len(x)] == s) & ~np.isnan(x)).any()]
        records = [{"task": "loss", "number": n, "value": x, "format_ok": True, "tokens": 1, "reason": "stop"} for n, x in enumerate(means)]
        out += [{"from": int(s) * width, **{k: v for k, v in scores.score(records).items() if k in ("macro", "low", "high")}}] if means else []
    return out
