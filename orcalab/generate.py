"""Answers: one, a stream, a conversation, or many side by side, where the next prompt takes the place of an answer that ended.

Keys and values lie in one table for all texts, a row each, every token in the column of its position. So there is no padding to step over, a row is free for the
next prompt as soon as its answer ends, and what a prompt begins with is copied from a row that begins alike: a system message is read once, and a conversation too.

Greedy unless a temperature is given, as in the paper (Orca 2, "Evaluation"). Who stands beside an answer changes the last bits of its logits alone: in fp32 no answer
was ever another for that (tests, 200 real questions), in bf16 two nearly equal logits can round to either side.
"""

import codecs
from array import array
from collections import deque
from dataclasses import dataclass
from itertools import groupby
from os.path import commonprefix
from random import Random

import torch

from orcalab import adapter, chatml, forecast, model as models
from orcalab.config import choose
from orcalab.progress import Progress
from orcalab.strategies import system_of

AT_ONCE = 8192  # tokens of prompts that are read in one forward pass


@dataclass(frozen=True)
class Answer:
    """Generated text and why it ended: "stop" (an end token), "length" (max_new_tokens), or "stopped" (by whoever listened)."""

    text: str
    tokens: int
    reason: str
    ids: tuple  # what was generated, the end token included


class Table:
    """Keys and values of several texts, one a row; it stands where transformers expects a cache."""

    def __init__(self, model, rows=1):
        self.model, self.layers, self.held, self.kept = model, {}, [[]] * rows, 0  # held: the ids whose keys and values each row has

    def update(self, key, value, layer, *_, **__):
        """Write keys and values (rows, heads, tokens, dim) of a layer where `forward` said; return those of all columns up to the last in use."""
        both = []
        for n, new in enumerate((key, value)):
            old = self.layers.get((layer, n), new[:0, :, :0])
            if old.shape[2] < self.width:  # by half more than is needed: one column at a time, each would copy all before it
                self.layers[layer, n] = new.new_zeros(len(self.held), new.shape[1], self.width * 3 // 2, new.shape[3])
                self.layers[layer, n][: len(old), :, : old.shape[2]] = old
            now = self.layers[layer, n][self.first : self.first + len(new), :, : self.width]
            now[self.rows, :, self.at] = new.transpose(1, 2)
            both.append(now)
        return both

    def forward(self, network, first, ids, at):
        """Pass ids (rows, tokens), which stand in the columns `at` (rows, tokens) of the rows from `first` on, through a network."""
        device, self.first, self.width = self.model.device, first, max(map(max, at)) + 1
        self.rows, self.at = torch.arange(len(ids), device=device)[:, None], torch.tensor(at, device=device)
        seen = torch.arange(self.width, device=device) <= self.at[:, None, :, None]  # (rows, 1, tokens, columns)
        if self.model.config._attn_implementation == "eager":  # which adds its mask
            seen = torch.zeros(seen.shape, dtype=self.model.dtype, device=device).masked_fill(~seen, torch.finfo(self.model.dtype).min)
        return network(input_ids=torch.tensor(ids, device=device), attention_mask=seen, position_ids=self.at, past_key_values=self, use_cache=True)

    def read(self, texts, first, column):
        """Read texts into the rows from `first` on, from one column on; the shorter ones padded behind their end, where nothing looks."""
        while any(texts):
            some = max(1, AT_ONCE // max(map(len, texts)))
            width = max(map(len, texts[:some]))
            if width:
                self.forward(self.model.get_decoder(), first, [t + [0] * (width - len(t)) for t in texts[:some]], [[*range(column, column + width)]] * len(texts[:some]))
            texts, first = texts[some:], first + some

    def copy(self, row, first, end, columns):
        """Give the first columns of one row to the rows from `first` to `end`."""
        for t in self.layers.values() if columns and end > first else ():
            t[first:end, :, :columns] = t[row, :, :columns].clone()

    def admit(self, prompts, first):
        """Read all but the last id of each prompt into the rows from `first` on; `kept` says how many ids of the first prompt had been read before."""
        texts, end = [p[:-1] for p in prompts], first + len(prompts)
        begin = commonprefix(texts)
        kept, row = max((len(commonprefix([held, begin])), r) for r, held in enumerate(self.held))
        self.copy(row, first, end, kept)
        self.held[first:end] = [begin[:kept]] * len(texts)
        if len(texts) > 1:
            self.read([begin[kept:]], first, kept)
            self.copy(first, first + 1, end, len(begin))
        self.read([t[len(begin) if len(texts) > 1 else kept:] for t in texts], first, len(begin) if len(texts) > 1 else kept)
        self.held[first:end], self.kept = texts, kept

    def step(self, ids):
        """Add one id to each of the first rows; return the logits behind it (rows, vocabulary)."""
        logits = self.forward(self.model, 0, [[i] for i in ids], [[len(held)] for held, _ in zip(self.held, ids)]).logits[:, -1]
        self.held[: len(ids)] = [[*held, i] for held, i in zip(self.held, ids)]
        return logits

    def leave(self, row, last):
        """Put the last row in use where a row ended. What that row held stays behind the rows in use, to be copied from."""
        for t in self.layers.values() if row != last else ():
            t[[row, last]] = t[[last, row]]
        self.held[row], self.held[last] = self.held[last], self.held[row]


class Student:
    """A model that answers, on one device, in the type it computes in.

    Args:    source: a base model's name, a hub id, a folder with a model, a stage's folder (its `model`, if it has one, else its `adapter`), or that of an
                 adapter, which is put in its base.
             template: None is the one that the model was trained with.
             four_bit: weights of the decoder's linear layers in NF4 (an adapter of method qlora has its base in 4 bits anyway).
    """

    def __init__(self, source, device="auto", dtype="auto", template=None, four_bit=False):
        device, dtype = models.pick(device, dtype)
        self.model, self.tokenizer, self.origin = adapter.load_to_answer(str(source), dtype, device, template, four_bit)
        self.encoder = chatml.encoder(self.tokenizer)
        self.model.eval()
        config, ends = self.model.config, [self.tokenizer.eos_token_id, self.encoder.end]
        for own in (config.eos_token_id, self.model.generation_config.eos_token_id):  # one id, several, or none
            ends += own if isinstance(own, (list, tuple)) else [own]
        self.ends = sorted({e for e in ends if e is not None})
        if odd := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
            raise ValueError(f"{source} has layers of the kind {sorted(odd)[0]!r}, which keep no keys and values; a student's layers all attend. transformers' own generate can answer with it")
        if not getattr(config, "max_position_embeddings", None):
            raise ValueError(f"{source} does not say how many tokens it holds: put max_position_embeddings into its config.json")
        self.context = min(config.max_position_embeddings, getattr(config, "sliding_window", None) or config.max_position_embeddings)

    def ids_of(self, messages):
        """Return the ids of a conversation, with the assistant's turn opened."""
        return chatml.encode(messages, self.encoder, reply=True)[0]

    def prompt(self, question, system=""):
        """Return the ids of a question under a system message: a text, or the name of a strategy or message; None is no system turn."""
        system = [] if system is None else [{"role": "system", "content": system_of(system)}]
        return self.ids_of([*system, {"role": "user", "content": question}])

    def ask(self, question, system="", max_new_tokens=512, **how):
        """Answer one question."""
        return self.answer([self.prompt(question, system)], max_new_tokens, **how)[0]

    def answer(self, prompts, max_new_tokens=512, batch_size=64, what="", **how):
        """Answer many prompts and return Answers in the order asked; `what` names the progress bar. The arguments are those of `answers`."""
        out = [None] * len(prompts)
        with Progress(len(prompts), what) as bar:
            for i, answer in self.answers(prompts, max_new_tokens, batch_size, **how):
                out[i] = answer
                bar.advance(1)
        return out

    def answers(self, prompts, max_new_tokens=512, batch_size=64, temperature=0.0, top_p=1.0, seed=0):
        """Answer many prompts; yield (number of the prompt, Answer) as soon as each is done.

        Args:    prompts: lists of ids.  batch_size: answers under way at a time, fewer where memory holds fewer.
                 temperature: 0 takes the likeliest token, else one is drawn; top_p: from the likeliest that make up this share.
                 seed: each prompt draws by itself, from the seed and its number.
        Raises:  ValueError: a prompt that leaves no room for max_new_tokens in the model's context, or is empty; a setting out of range.
        """
        yield from ((i, said) for i, said in self.streams(prompts, max_new_tokens, batch_size, temperature, top_p, seed) if isinstance(said, Answer))

    def streams(self, prompts, max_new_tokens=512, batch_size=64, temperature=0.0, top_p=1.0, seed=0, table=None, new=None):
        """Answer many prompts as `answers` does; yield (number of the prompt, piece of its text) as it is made, never half a character, and (number, Answer) behind its last.

        Args:    new: {number: list}, where new ids are put, too.
        """
        new, under = {} if new is None else new, {}  # what is under way: a decoder, and what is to be left out in front
        for i, token, over in self._decode(prompts, max_new_tokens, batch_size, temperature, top_p, seed, table):
            decode, lead = under.get(i) or (codecs.getincrementaldecoder("utf-8")("replace").decode, self.encoder.template.lead)
            new.setdefault(i, []).append(token)
            piece = decode(self.bytes_of([token]), over)
            under[i] = decode, "" if piece else lead
            if piece := piece.removeprefix(lead):
                yield i, piece
            if over:
                del under[i]
                yield i, self._answer(new.pop(i))

    def stream(self, ids, max_new_tokens=512, temperature=0.0, top_p=1.0, seed=0, table=None, new=None):
        """Answer one prompt; yield its text in pieces, as `streams` does, and return the Answer. New ids are put into the list `new`, too."""
        for _, said in self.streams([ids], max_new_tokens, 1, temperature, top_p, seed, table, {0: [] if new is None else new}):
            if not isinstance(said, Answer):
                yield said
        return said

    def bytes_of(self, ids):
        """Return the UTF-8 of generated ids, without the ends."""
        return self.encoder.tokens.bytes_of(i for i in ids if i in self.encoder.tokens.bytes and i not in self.ends)  # some models have more rows than tokens

    def _answer(self, new):
        text = self.bytes_of(new).decode(errors="replace").removeprefix(self.encoder.template.lead)
        return Answer(text, len(new), "stop" if new[-1] in self.ends else "length", tuple(new))

    def room(self, max_new_tokens, temperature=0.0, top_p=1.0):
        """Return how many ids a prompt may have before so many new ones; raise a ValueError for a setting out of range."""
        if type(max_new_tokens) is not int or not 0 < max_new_tokens < self.context:
            raise ValueError(f"max_new_tokens must be a whole number from 1 to {self.context - 1}, below the {self.context} tokens that the model holds; got {max_new_tokens!r}")
        if not (temperature >= 0 and 0 < top_p <= 1):
            raise ValueError(f"temperature must not be negative, and top_p lie above 0 and up to 1; got {temperature} and {top_p}")
        return self.context - max_new_tokens

    @torch.inference_mode()
    def _decode(self, prompts, max_new_tokens, batch_size, temperature, top_p, seed, table=None):
        """Yield (number of the prompt, id, whether the answer is over: an end, or its max_new_tokens-th) for each new id."""
        room = self.room(max_new_tokens, temperature, top_p)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        for i, p in enumerate(prompts):
            if isinstance(p, str):
                raise ValueError(f"prompt {i} is a text, and ids are needed: student.prompt(text, system) gives them")
            if not 0 < len(p) <= room:
                raise ValueError(f"prompt {i} has {len(p)} tokens; with {max_new_tokens} new ones the model holds 1 to {room}")
        chance = [Random(f"{seed}/{i}") for i in range(len(prompts))]
        opening = [*[self.encoder.bos] * (self.encoder.bos is not None), *array("i", self.encoder.heads["system"])]
        heads = [p[: p.index(self.encoder.end)] if p[: len(opening)] == opening and self.encoder.end in p else [] for p in prompts]  # those with one system message come together
        queue = deque(sorted(range(len(prompts)), key=lambda i: (heads[i], -len(prompts[i]))))
        batch_size = self._rows(batch_size, max(map(len, prompts), default=0) + max_new_tokens)
        table = table or Table(self.model, max(1, min(batch_size, len(prompts))))
        live, left, ids = [], [max_new_tokens] * len(prompts), []  # row by row: whose it is, and its next id
        while queue or live:
            if queue and len(live) <= batch_size * 7 // 8:  # some at a time, because a forward pass costs much the same for one
                group = [queue.popleft() for _ in range(min(batch_size - len(live), len(queue)))]
                for _, part in groupby(group, lambda i: heads[i]):
                    part = list(part)
                    table.admit([prompts[i] for i in part], len(live))
                    live, ids = live + part, ids + [prompts[i][-1] for i in part]
            ids = _pick(table.step(ids), temperature, top_p, [chance[i] for i in live])
            over = []
            for i, token in zip(live, ids):
                left[i] -= 1
                over.append(token in self.ends or not left[i])
                yield i, token, over[-1]
            for r in reversed(range(len(live))):
                if over[r]:
                    table.leave(r, len(live) - 1)
                    live[r], ids[r] = live[-1], ids[-1]
                    del live[-1], ids[-1]

    def _rows(self, rows, columns):
        """Return how many rows of so many columns fit in half of the memory that is free, at most `rows`; half, because a table that grows is there twice."""
        c = self.model.config
        width = (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads) * (getattr(c, "num_key_value_heads", None) or c.num_attention_heads)
        one = 2 * c.num_hidden_layers * width * self.model.dtype.itemsize * columns * 3 // 2
        return int(max(1, min(rows, forecast.room(self.model.device.type) * forecast.GIB / 2 // one)))


def _pick(logits, temperature, top_p, chance):
    """Return the next id of each row of logits (rows, vocabulary): the likeliest, or one drawn from the likeliest that make up top_p."""
    if not temperature:
        return logits.argmax(-1).tolist()
    logits = logits.float() - logits.max(-1, keepdim=True).values  # so that no temperature makes an infinity
    share, ids = (logits / max(temperature, 1e-6)).softmax(-1).sort(dim=-1, descending=True, stable=True)
    share = share.masked_fill(share.cumsum(-1) - share >= top_p, 0).double().cumsum(-1)
    drawn = torch.tensor([[c.random()] for c in chance], dtype=torch.float64, device=logits.device) * share[:, -1:]
    return ids.gather(-1, torch.searchsorted(share, drawn, right=True).clamp(max=ids.shape[1] - 1))[:, 0].tolist()


class Chat:
    """A conversation with a student. What was read and said before is not read again; the ids that go in are always those of the whole conversation, encoded.

    Args:    system: a strategy's or message's name, or a text; None is no system turn.
             overflow: when question, history and new tokens exceed the context: "error", or "drop_oldest" leaves out the oldest questions with their answers.
    Attributes: messages: what was said so far.  last: the latest Answer.  ids: what went in for it.
             reused: how many of these had been read before.  dropped: how many old messages were left out for it.
    Source: the model card of Orca-2, two turns; there, new ids are glued to generated ones.
    """

    def __init__(self, student, system="cautious", max_new_tokens=512, temperature=0.0, top_p=1.0, seed=0, overflow="error"):
        choose(overflow, ("error", "drop_oldest"), "overflow")
        self.student, self.overflow, self.seed, self.how = student, overflow, seed, {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self.messages, self.ids, self.last, self.reused, self.dropped, self.turns, self.table = [], [], None, 0, 0, 0, Table(student.model)
        student.room(max_new_tokens, temperature, top_p)  # what is out of range is said before anything is asked
        self.system = system

    @property
    def system(self):
        """The system message, None where there is none; set by name or text, it takes effect with the next question."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    @system.setter
    def system(self, system):
        rest = self.messages[self.system is not None:]
        self.messages = [*([] if system is None else [{"role": "system", "content": system_of(system)}]), *rest]

    def say(self, words):
        """Say something and return the Answer."""
        for _ in self.stream(words):
            pass
        return self.last

    def stream(self, words):
        """Say something; yield the answer's text in pieces as it is made. Whoever stops listening keeps what was said up to there.

        Raises:  ValueError: the conversation no longer fits the context; says what would help.
        """
        asked, said = [*self.messages, {"role": "user", "content": words}], []
        ids, dropped = self._fit(asked)
        self.turns += 1
        new, answer = [], None
        pieces = self.student.stream(ids, **self.how, seed=f"{self.seed}/{self.turns}", table=self.table, new=new)
        try:
            while True:
                said.append(next(pieces))
                yield said[-1]
        except StopIteration as e:
            answer = e.value
        except (GeneratorExit, KeyboardInterrupt):
            answer = Answer("".join(said), len(new), "stopped", tuple(new))
            raise
        finally:
            if answer:
                self.messages, self.last = [*asked, {"role": "assistant", "content": answer.text}], answer
                self.ids, self.reused, self.dropped = ids, self.table.kept, dropped

    def new(self):
        """Begin a new conversation under the same system message."""
        self.messages, self.ids, self.last = self.messages[: self.system is not None], [], None

    def retry(self):
        """Take the last question and its answer back and return the question's words; a drawn answer comes out otherwise the next time."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise ValueError("nothing was said yet that could be taken back")
        *self.messages, question, _ = self.messages
        return question["content"]

    def _fit(self, asked):
        """Return the ids of a conversation, and how many of its oldest messages were left out."""
        head, room = asked[: self.system is not None], self.student.room(self.how["max_new_tokens"])
        for dropped in range(0, len(asked) - len(head), 2):
            ids = self.student.ids_of([*head, *asked[len(head) + dropped:]])
            if len(ids) <= room:
                return ids, dropped
            if self.overflow == "error":
                break
        raise ValueError(f"the conversation has {len(ids)} tokens; with {self.how['max_new_tokens']} new ones the model holds {room}: begin a new one, "
                         + ("or let overflow be 'drop_oldest'" if self.overflow == "error" else "or ask something shorter"))
