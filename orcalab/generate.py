"""Answers: greedy decoding of many conversations side by side; finished ones leave the batch."""

from dataclasses import dataclass
from os.path import commonprefix

import torch

from orcalab import chatml, model as models
from orcalab.progress import Progress


@dataclass(frozen=True)
class Answer:
    """Generated text and why it ended: "stop" (an end token) or "length" (max_new_tokens)."""

    text: str
    tokens: int
    reason: str
    ids: tuple  # what was generated, the end token included


class Student:
    """A model that answers, on one device, in the type it computes in."""

    def __init__(self, source, device="auto", dtype="auto", template=None):
        device, dtype = models.pick(device, dtype)
        self.model, self.tokenizer, self.origin = models.load(str(source), dtype, device, template)
        self.encoder = chatml.encoder(self.tokenizer)
        self.model.eval()
        own = self.model.config.eos_token_id  # one id, several, or none
        ends = [self.tokenizer.eos_token_id, self.encoder.end, *(own if isinstance(own, (list, tuple)) else [own])]
        self.ends = sorted({e for e in ends if e is not None})

    def prompt(self, question, system=""):
        """Return the ids of a question under a system message (None: no system turn), reply opened."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        return chatml.encode([*messages, {"role": "user", "content": question}], self.encoder, reply=True)[0]

    def ask(self, question, system="", max_new_tokens=120):
        """Answer one question."""
        return self.answer([self.prompt(question, system)], max_new_tokens)[0]

    def answer(self, prompts, max_new_tokens=120, batch_size=50, what=""):
        """Answer many prompts greedily, longest first, and return Answers in the order asked.

        Args:
            prompts: lists of ids.
            batch_size: prompts decoded side by side.
            what: a name for the progress bar; none is shown without one.

        Raises:
            ValueError: a prompt that leaves no room for max_new_tokens in the model's context.
        """
        room = self.model.config.max_position_embeddings - max_new_tokens
        for i, p in enumerate(prompts):
            if len(p) > room:
                raise ValueError(f"prompt {i} has {len(p)} tokens; with {max_new_tokens} new ones the model holds {room}")
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        out = [None] * len(prompts)
        with Progress(len(prompts), what) as bar:
            for at in range(0, len(order), batch_size):
                members = order[at : at + batch_size]
                for i, new in zip(members, self._decode([prompts[i] for i in members], max_new_tokens)):
                    ended = new[-1] in self.ends
                    known = [t for t in new[: len(new) - ended] if t in self.encoder.tokens.bytes]  # some models have more rows than tokens
                    text = self.encoder.tokens.bytes_of(known).decode(errors="replace")
                    out[i] = Answer(text.removeprefix(self.encoder.template.lead), len(new), "stop" if ended else "length", tuple(new))
                bar.advance(len(members))
        return out

    @torch.inference_mode()
    def _decode(self, prompts, max_new_tokens):
        """Greedy ids of each prompt, end token included; what all begin with (their system message) is read once, and rows that ended leave the cache."""
        device, shared, cache = self.model.device, len(commonprefix(prompts)), None
        shared = min(shared, min(map(len, prompts)) - 1) if len(prompts) > 1 else 0
        if shared:
            cache = self.model(input_ids=torch.tensor([prompts[0][:shared]], device=device), use_cache=True, logits_to_keep=1).past_key_values
            cache.batch_repeat_interleave(len(prompts))
        width = max(map(len, prompts)) - shared
        ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id, device=device)
        mask = torch.zeros_like(ids)
        for r, p in enumerate(prompts):
            ids[r, width + shared - len(p):], mask[r, width + shared - len(p):] = torch.tensor(p[shared:], device=device), 1
        position = (mask.cumsum(1) - 1).clamp(min=0) + shared
        mask = torch.cat([mask.new_ones(len(prompts), shared), mask], 1)
        new, alive = [[] for _ in prompts], torch.arange(len(prompts), device=device)
        ends = torch.tensor(self.ends, device=device)
        for _ in range(max_new_tokens):
            out = self.model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache,
                             use_cache=True, logits_to_keep=1)
            token, cache = out.logits[:, -1].argmax(-1), out.past_key_values
            for r, t in zip(alive.tolist(), token.tolist()):
                new[r].append(t)
            keep = ~torch.isin(token, ends)
            if not keep.any():
                break
            if not keep.all():
                alive, token, mask, position = alive[keep], token[keep], mask[keep], position[keep]
                cache.batch_select_indices(keep.nonzero()[:, 0])
            ids, position = token[:, None], position[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
        return new
