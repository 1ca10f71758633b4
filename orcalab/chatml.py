"""Messages to (ids, mask) in one pass, with the structure placed by id and never by text.

A template says what opens each role's turn, what ends a turn, and what is learned. `chatml` is ChatML as the Orca 2 model card has it: the prompt ends in
`<|im_start|>assistant`, without a newline. The newline belongs to the answer, so it is learned, and the chat prompt is a prefix of the training ids.
`openassistant` is the template of OpenAssistant's models. Learned are the assistant's turns, or what else `encode` is told. Whatever stands in `content`, it is
encoded with special tokens switched off: a user who writes `<|im_end|>` gets harmless plain tokens and not the end of a turn. And whatever is encoded is decoded
again, by a table of bytes: a word that the tokenizer cannot give back is an error, not a loss.

>>> from orcalab import model
>>> tokenizer = model.load_tokenizer("tiny-random")
>>> ids, mask = encode([{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}], tokenizer)
>>> learned(ids, mask) == plain("\\n4", tokenizer) + [marks(tokenizer)[-1]]
True
"""

import json
import re
from array import array
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

from orcalab.config import CHOICES, choose, digest
from orcalab.tokens import Tokens, Unsayable  # noqa: F401  the error is this room's, too

START, END, PAD = "<|im_start|>", "<|im_end|>", "[PAD]"
ROLES = ("system", "user", "assistant")
HALF = re.compile("[\ud800-\udfff]")  # half a character: a surrogate without its other half, which has no UTF-8
int32 = lambda number: array("i", [number]).tobytes()
_encoders = WeakKeyDictionary()


@dataclass(frozen=True)
class Template:
    """How messages become tokens: what opens each role's turn, what ends every turn, and what stands between two."""

    opens: dict  # role -> (structural token, text behind it)
    end: str  # token that ends every turn; "" is the tokenizer's own end of text
    new: tuple  # tokens that a tokenizer gets if it lacks them, in this order; the first is its padding
    lead: str = ""  # text before the words; in the assistant's turn it is learned
    joint: str = ""  # text between two turns
    empty_system: str = "turn"  # what becomes of an empty system message: a turn without words, or none

    @cached_property
    def jinja(self):
        """The same template for other programs; {% generation %} marks what is learned."""
        opens = "{" + ", ".join(f"{role!r}: {token + text!r}" for role, (token, text) in self.opens.items()) + "}"
        end = repr(self.end) if self.end else "eos_token"
        turns = "messages" if self.empty_system == "turn" else "messages if m['role'] != 'system' or m['content']"
        said = f"{{{{ {self.lead!r} + m['content'] + {end} }}}}"
        return (f"{{%- set opens = {opens} -%}}{{{{ bos_token if bos_token and bos_token not in opens.user else '' }}}}"
                f"{{%- for m in {turns} -%}}{{%- if m['role'] not in opens -%}}{{{{ raise_exception('unknown role ' + m['role']) }}}}{{%- endif -%}}"
                f"{{{{ ('' if loop.first else {self.joint!r}) + opens[m['role']] }}}}{{%- if m['role'] == 'assistant' -%}}"
                f"{{% generation %}}{said}{{% endgeneration %}}{{%- else -%}}{said}{{%- endif -%}}{{%- endfor -%}}"
                f"{{%- if add_generation_prompt -%}}{{{{ {self.joint!r} + opens.assistant }}}}{{%- endif -%}}")


TEMPLATES = {
    # Orca 2's model card and its added_tokens.json: [PAD] 32000, <|im_start|> 32001, <|im_end|> 32002
    "chatml": Template({r: (START, r) for r in ROLES}, END, (PAD, START, END), lead="\n", joint="\n"),
    # Open-Assistant's formatting.py; the order of its tokens is that of the released llama2-13b-orca-8k-3319 (32000 to 32005)
    "openassistant": Template({"system": ("<|system|>", ""), "user": ("<|prompter|>", ""), "assistant": ("<|assistant|>", "")}, "",
                              ("<pad>", "<|assistant|>", "<|prefix_end|>", "<|system|>", "<|prefix_begin|>", "<|prompter|>"), empty_system="none"),
}
PROBES = ("Hello world", " 1234 + 5", "a\nb\n\nc", "naïve café ☕ 你好", "<|im_start|>user<|im_end|>", "\tx  y", "</s><s>[PAD]<unk>", "e\u0301\u200f")
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 12 + 30?\n\nSay  it."},
        {"role": "assistant", "content": "42\n"}, {"role": "user", "content": "naïve ☕?"}, {"role": "assistant", "content": " Yes."}]


def template_of(tokenizer):
    """Return the name of the template that a tokenizer carries as its chat_template; chatml if it is none of ours."""
    return next((name for name, t in TEMPLATES.items() if t.jinja == tokenizer.chat_template), "chatml")


def check(messages, answered=False):
    """Raise a ValueError that says what is wrong with a conversation: role, order or content.

    Args:    answered: the last turn must be the assistant's, as in a row to learn from.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages must be a list of at least one turn, got {messages!r:.60}")
    before = None
    for i, m in enumerate(messages):
        if not isinstance(m, dict) or "role" not in m or "content" not in m:
            raise ValueError(f"messages[{i}] must hold 'role' and 'content', got {m!r:.60}")
        role, content = m["role"], m["content"]
        choose(role, ROLES, f"role (messages[{i}])")
        if not isinstance(content, str):
            raise ValueError(f"messages[{i}]['content'] must be text, got {type(content).__name__}")
        if not content.isascii() and HALF.search(content):
            raise ValueError(f"messages[{i}]['content'] holds half a character (a lone surrogate), which has no UTF-8")
        if role == "system" and i:
            raise ValueError(f"messages[{i}]: a system turn may only come first, and once")
        if role == before:
            raise ValueError(f"messages[{i}]: two {role} turns in a row")
        before = role
    if answered and before != "assistant":
        raise ValueError(f"messages ends with a {before} turn: there is no answer to learn")


class Encoder:
    """A template on a tokenizer: structural tokens by id, content through tokens.Tokens. Can be sent to another process.

    Raises:  ValueError: the tokenizer has no single token for a structural mark.
    """

    def __init__(self, tokenizer, template=None):
        self.name = choose(template or template_of(tokenizer), TEMPLATES, "template")
        self.template = TEMPLATES[self.name]
        self.ids = {role: self._mark(token, tokenizer) for role, (token, _) in self.template.opens.items()}
        self.end = self._mark(self.template.end or tokenizer.eos_token, tokenizer)
        self.marks = [*dict.fromkeys(self.ids.values()), self.end]
        bos = tokenizer.bos_token_id
        self.bos = bos if bos not in (None, *self.ids.values()) else None  # some chat models open turns with their bos
        self.tokens, self.systems = Tokens(tokenizer), {}
        self.heads = {role: int32(self.ids[role]) + self.tokens.content(text) for role, (_, text) in self.template.opens.items()}  # of int32
        self.special = self.tokens.special | {*self.marks, bos}  # ids that content never has

    def _mark(self, token, tokenizer):
        number = tokenizer.convert_tokens_to_ids(token) if token else None
        if number is None or number == tokenizer.unk_token_id and token != tokenizer.unk_token:
            raise ValueError(f"the tokenizer has no single token for {token or 'the end of a turn'}: model.fit_tokenizer adds what a template needs")
        return number

    def body(self, role, content):
        """Return the ids, as int32 bytes, of a turn's words and end: to the tokenizer they are one piece with the text that opens the turn."""
        text, said, head = self.template.opens[role][1], self.template.lead + content, len(self.heads[role]) - 4
        both = self.tokens.content(text + said)
        if both[:head] != self.heads[role][4:]:
            raise ValueError(f"this tokenizer joins {text!r} and {said[:20]!r}, so that a prompt would be no prefix of what is learned")
        return both[head:] + int32(self.end)

    def kept(self, messages, empty_system=None):
        """Return the messages that get a turn: all, or all but an empty system message."""
        drop = (empty_system or self.template.empty_system) == "none"
        return [m for m in messages if m["role"] != "system" or m["content"]] if drop else messages

    def parts(self, messages, reply=False, learn="all", empty_system=None):
        """Return [(ids as int32 bytes, 1 if learned)] of checked messages, in one pass; `encode` says what the arguments mean."""
        messages = self.kept(messages, empty_system)
        out, joint = [(b"" if self.bos is None else int32(self.bos), 0)], b""
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None) if learn == "last" else None
        for i, m in enumerate(messages):
            role, content = m["role"], m["content"]
            if role != "system":
                body = self.body(role, content)
            elif (body := self.systems.get(content)) is None:  # they repeat: each is encoded once
                body = self.body(role, content)
                if len(self.systems) < 2000 and len(content) < 4000:
                    self.systems[content] = body
            theirs = learn == "openassistant" and role != "assistant"  # messages are numbered from -1 there, and each odd one learns what follows its tokens
            out += (joint + self.heads[role], int(theirs)), (body, int(theirs and role == "system" or role == "assistant" and (learn != "last" or i == last)))
            joint = joint or self.tokens.content(self.template.joint)
        return [*out, (joint + self.heads["assistant"], 0)] if reply else out

    def text(self, words):
        """Return the parts of plain text: behind the BOS, with the space that the first word of a text has, without an end. All but the first token is learned."""
        ids = (b"" if self.bos is None else int32(self.bos)) + self.tokens.content(self.tokens.first + words)
        return [(ids[:4], 0), (ids[4:], 1)]


def encoder(tokenizer, template=None):
    """Return the Encoder of a tokenizer, made once for what the tokenizer is now; an Encoder is returned as it is."""
    if isinstance(tokenizer, Encoder):
        if template not in (None, tokenizer.name):
            raise ValueError(f"this encoder is for the template {tokenizer.name!r}, not {template!r}")
        return tokenizer
    now = (template or template_of(tokenizer), len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, id(getattr(tokenizer, "backend_tokenizer", None)))
    if _encoders.get(tokenizer, (None,))[0] != now:
        _encoders[tokenizer] = now, Encoder(tokenizer, now[0])
    return _encoders[tokenizer][1]


def plain(text, tokenizer):
    """Return the ids of `text` behind a structural token, with every special token in it read as ordinary characters."""
    return array("i", encoder(tokenizer).tokens.content(text)).tolist()


def marks(tokenizer):
    """Return the ids of the template's structural tokens, the end of a turn last: for ChatML [start, end]."""
    return encoder(tokenizer).marks


def encode(messages, tokenizer, reply=False, learn="all", template=None, empty_system=None):
    """Turn messages into (ids, mask) in one pass; mask 1 marks what is learned.

    Args:    messages: list of {role, content}, at most one system turn, which comes first; any number of other turns.
             tokenizer: any fast transformers tokenizer that has the template's tokens, or its Encoder.
             reply: open the assistant's turn after the last message, as for chatting.
             learn: "all" assistant turns, the "last" one, or what "openassistant" learns: all of them, the system turn, and what opens each of the user's (their code's mask).
             template: "chatml" or "openassistant"; None is the one that the tokenizer carries.
             empty_system: what an empty system message becomes, a "turn" without words or "none"; None is the template's way.
    Returns: Two lists of equal length, in tokens. Learned are the words of the assistant's turns (in ChatML with the newline
             before them) and the token that ends each: a model that never sees an end never stops.
    Raises:  ValueError: an unknown role or template, a system turn that is not first, content that is not text, a character that the tokenizer cannot give
                 back, a tokenizer without the template's tokens.
    Paper: Orca 2, "Training", on tokenization and loss.
    """
    check(messages)
    choose(learn, CHOICES["learn"], "turns to learn")
    if empty_system is not None:
        choose(empty_system, ("turn", "none"), "empty_system")
    parts = encoder(tokenizer, template).parts(messages, reply, learn, empty_system)
    return array("i", b"".join([ids for ids, _ in parts])).tolist(), list(b"".join([bytes([learn]) * (len(ids) // 4) for ids, learn in parts]))


def learned(ids, mask):
    """Return the ids that are targets, in order."""
    return [i for i, m in zip(ids, mask) if m]


def prove(ids, mask, messages, tokenizer, learn="all", template=None, empty_system=None):
    """Raise unless the special ids are the messages' own structure, and the targets decode to the assistant's words and ends (and to what else `learn` takes).

    Args:    messages: a conversation, or a plain text.  tokenizer: a tokenizer, or its Encoder; the other arguments are those of `encode`.
    Raises:  ValueError: shows both sides of the first difference.
    """
    e = encoder(tokenizer, template)
    if isinstance(messages, str):  # plain text: all of it, and nothing before it but the BOS
        said = e.tokens.bytes_of(i for i in ids if i != e.bos)
        if said != e.tokens.prefix + e.tokens.as_read(e.tokens.first + messages).encode() or list(mask) != [0] + [1] * (len(ids) - 1):
            raise ValueError(f"the ids decode to {said.decode(errors='replace')!r:.200}, the text is {messages!r:.200}")
        return
    turns, structure = e.kept(messages, empty_system), [i for i in ids if i in e.special]
    own = ([] if e.bos is None else [e.bos]) + [i for m in turns for i in (e.ids[m["role"]], e.end)]
    if structure != own:
        raise ValueError(f"the special tokens are {structure!s:.200}, the messages need {own!s:.200}")
    theirs, opens, lead, end = learn == "openassistant", e.template.opens, e.template.lead.encode(), e.tokens.bytes[e.end]
    behind = lambda said: said and e.tokens.prefix + said  # what stands behind a mark
    opened = lambda i, role: behind(e.template.joint.encode() if i else b"") + e.tokens.bytes[e.ids[role]] + behind(opens[role][1].encode())
    body = lambda role, said: (said if opens[role][1] else behind(said)) + end
    taught = [i for i, m in enumerate(turns) if m["role"] == "assistant" or theirs and m["role"] == "system"]
    taught = taught[-1:] if learn == "last" else taught
    want = b"".join((opened(i, m["role"]) if theirs and m["role"] != "assistant" else b"")
                    + (body(m["role"], lead + e.tokens.as_read(m["content"]).encode()) if i in taught else b"") for i, m in enumerate(turns))
    targets = learned(ids, mask)
    if e.tokens.bytes_of(targets) != want:
        raise ValueError(f"the targets decode to {e.tokens.bytes_of(targets).decode(errors='replace')!r:.200}, "
                         f"{'the turns say' if theirs else 'the assistant said'} {want.decode(errors='replace')!r:.200}")


def self_test(tokenizer, template=None):
    """Try a tokenizer on probes and return what it does, as ids; raise where it would break a conversation.

    Checked are ids, never flags: a mark is one id and its name in a text is not; padding is no end; a conversation has its marks and
    one BOS and no other special id; the tokenizer's own chat_template gives the same ids and mask. Of a SentencePiece BPE of 32,000
    pieces, Llama's size, also: digits are split, every byte falls back, and spaces are where Llama's slow tokenizer had them.

    Returns: dict: size, marks, pad, bos, digits_split, lost (ASCII characters that it cannot say), probes, talk, mask, vocabulary (a digest).
    Raises:  ValueError: which of these failed, with the ids.
    """
    e = encoder(tokenizer, template)

    def said(text):
        with suppress(Unsayable):
            return plain(text, e)

    for i in e.marks:
        name = e.tokens.bytes[i].decode()
        if (own := tokenizer(name, add_special_tokens=False).input_ids) != [i]:
            raise ValueError(f"the tokenizer splits the mark {name}: {own} instead of [{i}]; add it as AddedToken(special=True, normalized=False)")
        if i in (said(name) or ()):
            raise ValueError(f"{name} typed by a user becomes the mark itself (id {i}): content could end its own turn")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, *e.marks):
        raise ValueError(f"padding ({tokenizer.pad_token!r}, id {tokenizer.pad_token_id}) must be a token of its own, not an end")
    ids, mask = encode(TALK, tokenizer, template=template)
    prove(ids, mask, TALK, e)
    theirs = tokenizer.apply_chat_template(TALK, chat_template=e.template.jinja, return_dict=True, return_assistant_tokens_mask=True)
    if (theirs["input_ids"], theirs["assistant_masks"]) != (ids, mask):
        raise ValueError(f"the tokenizer's chat_template gives other ids or another mask than the builder: {theirs['input_ids']} and {ids}")
    spec = json.loads(e.tokens.spec)["model"]
    llama = spec.get("byte_fallback") and len(spec["vocab"]) == 32_000
    if llama and e.tokens.prefix:
        raise ValueError("Llama 2's slow tokenizer put no space behind a special token, this one does behind every mark (transformers #27132): load it with "
                         "legacy=False; if a tokenizer.json of an old version lies beside tokenizer.model, delete it")
    digits, lost = len(said("0123456789") or "") == 10, [c for c in map(chr, range(128)) if said(c) is None]
    spaces = tokenizer.convert_ids_to_tokens(said("a  b") or [])
    if llama and (not digits or lost or spaces != ["a", "▁", "▁b"]):
        raise ValueError(f"Llama 2's tokenizer does not do here what its slow one did: digits split {digits}, characters lost {lost}, 'a  b' is {spaces}. "
                         "Load it from its tokenizer.model, without a tokenizer.json beside it")
    return {"size": len(tokenizer), "marks": e.marks, "pad": tokenizer.pad_token_id, "bos": e.bos, "digits_split": digits, "lost": lost,
            "probes": [said(p) for p in PROBES], "talk": ids, "mask": mask, "vocabulary": digest([spec["vocab"], spec["merges"]])}


def fingerprint(tokenizer, template=None):
    """Digest what the self-test of a tokenizer shows: two that agree here give the same ids."""
    return digest(self_test(tokenizer, template))


def paint(ids, mask, tokenizer):
    """Return the tokens as text for a terminal: targets green."""
    raw = [encoder(tokenizer).tokens.bytes[i] for i in ids]  # some are a part of a character, printed as \\xe2
    pieces = [r.decode(errors="backslashreplace").replace("\n", "⏎\n") for r in raw]
    return "".join(f"\x1b[{32 if m else 39}m{p}\x1b[0m" for p, m in zip(pieces, mask))
