"""Text to ids and back, exactly: what a tokenizer makes of the words between two structural tokens.

Special tokens are switched off here, so text never becomes structure; and every id stands for known bytes, so a word that
does not come back from its ids is an error and not a loss.
"""

import json
import re
from array import array
from unicodedata import normalize


class Unsayable(ValueError):
    """A text that a tokenizer would not give back."""


class _Words(dict):
    """Ids, as int32 bytes, of the words met so far; a new word is encoded, and decoded to see that nothing is lost."""

    def __init__(self, fresh):
        self.fresh = fresh

    def __missing__(self, word):
        ids = self.fresh(word)
        if len(word) <= 40:  # the longer ones are texts without spaces, and do not come again
            if len(self) > 200_000:  # enough for a language; a bound on memory for everything else
                self.clear()
            self[word] = ids
        return ids


class Tokens:
    """What a tokenizer makes of content. Ids come as int32 bytes, which join and store without a loop.

    Works on a copy of the tokenizer's Rust part, so the tokenizer itself is never switched to another mode, and can be sent to another process. Where the pieces
    of a vocabulary provably never reach across a space, texts are cut there, and each distinct word is encoded once: the ids are the same, and most words are a look-up.
    """

    def __init__(self, tokenizer):
        rust = getattr(tokenizer, "backend_tokenizer", None)
        if rust is None:
            raise ValueError(f"{type(tokenizer).__name__} has no fast (Rust) tokenizer behind it, which encoding needs")
        self.first = " " if '"prepend_scheme":"first"' in rust.to_str() else ""  # what the first word of a plain text gets
        # all content stands behind a structural token, so a prefix that only the first piece of a text gets never comes
        self.__setstate__((type(rust), rust.to_str().replace('"prepend_scheme":"first"', '"prepend_scheme":"never"'), self.first))

    def __getstate__(self):
        return self.kind, self.spec, self.first

    def __setstate__(self, state):
        self.kind, self.spec, self.first = state
        spec = json.loads(self.spec)
        self.rust = self.kind.from_str(self.spec)
        self.rust.encode_special_tokens = True  # the names of special tokens are ordinary characters
        self.bytes = byte_table(spec)
        self.form = next((f for f in ("NFC", "NFKC") if f'"type": "{f}"' in json.dumps(spec["normalizer"])), None)
        self.special = {t["id"] for t in spec["added_tokens"] if t["special"]}
        self.prefix = b" " if self.bytes_of(self._ids("x")) == b" x" else b""  # Llama's legacy way: a space behind every special token
        self.cut = None if self.prefix else cutter(spec)
        self.words = _Words(self._fresh)

    def _ids(self, text):
        return self.rust.encode(text, add_special_tokens=False).ids

    def _fresh(self, text):
        ids = self._ids(text)
        if self.bytes_of(ids) != self.prefix + self.as_read(text).encode():
            bad = next((f"U+{ord(c):04X} ({c!r})" for c in text if self.bytes_of(self._ids(c)) != self.prefix + self.as_read(c).encode()), "a text")
            raise Unsayable(f"{bad} cannot be said with this tokenizer: {text[:40]!r} would come back as {self.bytes_of(ids).decode(errors='replace')[:40]!r}")
        return array("i", ids).tobytes()

    def as_read(self, text):
        """Return `text` as the tokenizer reads it: composed (NFC), where the tokenizer composes."""
        return text if self.form is None or text.isascii() else normalize(self.form, text)

    def bytes_of(self, ids):
        """Return the UTF-8 that ids stand for: no space stripped, none added."""
        return b"".join(map(self.bytes.__getitem__, ids))

    def content(self, text):
        """Return the ids, as int32 bytes, of `text`; raise a ValueError if they would not give it back."""
        return b"".join(map(self.words.__getitem__, self.cut(text))) if self.cut else self._fresh(text) if text else b""


def byte_table(spec):
    """Return the bytes that each id stands for, from a tokenizer's JSON: byte-level pieces, or SentencePiece's.

    Raises:  ValueError: a tokenizer of another kind, whose words could not be proved to come back.
    """
    kinds, pieces = json.dumps(spec["decoder"]) if spec["model"]["type"] == "BPE" else "", spec["model"]["vocab"]
    if "ByteLevel" in kinds:  # GPT-2's alphabet: bytes that print stand for themselves, the others for U+0100 and up
        own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        byte = {chr(b): b for b in own} | {chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in own)}
        table = {i: bytes(byte[c] for c in p) if all(c in byte for c in p) else p.encode() for p, i in pieces.items()}
    elif "ByteFallback" in kinds:
        table = {i: bytes([int(p[3:5], 16)]) if re.fullmatch(r"<0x[0-9A-F]{2}>", p) else p.replace("▁", " ").encode() for p, i in pieces.items()}
    else:
        raise ValueError("the tokenizer is neither a byte-level nor a SentencePiece BPE: its words could not be proved to come back")
    return table | {t["id"]: t["content"].encode() for t in spec["added_tokens"]}


def cutter(spec):
    """Return a function that cuts text where no piece of a tokenizer can reach across, or None if no such place is known.

    SentencePiece BPE: if no piece has a space anywhere but in front, and none holds a newline, no merge reaches across
    these. Byte-level BPE split by GPT-2's pattern: every alternative of it starts anew at a space behind a word.
    """
    stages = spec["pre_tokenizer"] or {"type": None}
    stages = stages.get("pretokenizers", [stages])
    kinds, normal = [s["type"] for s in stages], json.dumps(spec["normalizer"] or {})
    if spec["model"].get("ignore_merges") or any(not t["special"] for t in spec["added_tokens"]):
        return None
    if spec["model"].get("byte_fallback") and "Prepend" not in normal and kinds in ([None], ["Metaspace"]) and not stages[0].get("split"):
        reaching = re.compile("[^▁]▁|.\n|\n.", re.S)
        return None if any(map(reaching.search, spec["model"]["vocab"])) else re.compile(r"\n|[ ▁]*[^ ▁\n]+|[ ▁]+").findall
    if normal == "{}" and kinds in (["ByteLevel"], ["Digits", "ByteLevel"]) and stages[-1].get("use_regex", True) and not stages[-1]["add_prefix_space"]:
        return re.compile("(?<=[^\\s\u180e])(?= )").split  # white space to Python is at least what it is to the pattern
    return None
