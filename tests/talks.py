"""Conversations that try to break the builder, and an independent reference to hold it against: sentencepiece itself."""

from random import Random

import sentencepiece

SPECIAL = ["<s>", "</s>", "<unk>", "[PAD]", "<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|system|>", "<|prompter|>", "<|assistant|>",
           "<|prefix_begin|>", "<|prefix_end|>"]
PIECES = ["<|", "|>", "<", ">", "|", "im", "_", "start", "im_end", "<|im_", "end|>", "<|im_end", "im_start|>", "/s>", "s>", "[PAD", "PAD]", "<0x0A>", "<0x00>", "0x41"]
ALIKE = ["＜|im_end|＞", "<|іm_end|>", "<|im\u200b_end|>", "<|IM_END|>", "< |im_end| >", "<|im_end|\u202e>", "&lt;|im_end|&gt;", "<\u2223im_end\u2223>", "‹/s›", "<|im_end|>\u0301"]
ODD = ["\0", "\x01", "\x1c", "\x7f", "\x85", "\u2028", "\u200f", "\u202e", "\u2066", "\ufeff", "\ufffd", "\r", "\r\n", "\n", "\n\n", "\t", "\v", "e\u0301", "é", "ﬁ", "☕", "👩\u200d🚀",
       "你好", "한국어", "नमस्ते", "שלום", "\U0010ffff", "\u180e", "\xa0"]
PLAIN = ["a", "The", "animal", "12", "3.14", "007", " ", "  ", "   ", " " * 7, " " * 33, "_", ".", ",", "?!", "'s", "n't", "user", "assistant", "system", "Final answer:", "x = 2"]
PARTS = SPECIAL + PIECES + ALIKE + ODD + PLAIN


def words(rng, most=12):
    return "".join(rng.choices(PARTS, k=rng.randint(0, most)))


def talk(seed):
    """A conversation of one to four exchanges, with an odd system turn or none; ends with the assistant."""
    rng = Random(seed)
    system = [{"role": "system", "content": words(rng)}] if rng.random() < 0.6 else []
    return system + [{"role": role, "content": words(rng)} for _ in range(rng.randint(1, 4)) for role in ("user", "assistant")]


class Reference:
    """What sentencepiece makes of each piece of content, with the structural ids set by hand; nothing of the package is called.

    A newline in front, whose two ids are then taken off, stands where a structural token would: sentencepiece puts the space that it
    adds to the beginning of a text before that newline, and no piece has a newline in it.
    """

    START, END, SYSTEM, PROMPTER, ASSISTANT = 32001, 32002, 32003, 32005, 32001

    def __init__(self, file):
        self.sp = sentencepiece.SentencePieceProcessor(model_file=str(file))

    def piece(self, text):
        return self.sp.encode("\n" + text)[2:]

    def chatml(self, messages):
        ids, mask = [1], [0]
        for n, m in enumerate(messages):
            head = (self.piece("\n") if n else []) + [self.START] + self.piece(m["role"])
            body = self.piece("\n" + m["content"]) + [self.END]
            ids, mask = ids + head + body, mask + [0] * len(head) + [int(m["role"] == "assistant")] * len(body)
        return ids, mask

    def openassistant(self, messages):
        ids, mask = [1], [0]
        for m in messages:
            if m["role"] != "system" or m["content"]:
                body = self.piece(m["content"]) + [2]
                ids = ids + [{"system": self.SYSTEM, "user": self.PROMPTER, "assistant": self.ASSISTANT}[m["role"]]] + body
                mask = mask + [0] + [int(m["role"] == "assistant")] * len(body)
        return ids, mask


def structure(messages, ids, mask, marks):
    """Assert that the structural ids are the turns' own and that no other special id is there.

    Args:
        marks: {role: id that opens its turn}, "end", "bos", "specials" (every special id), "keep_empty" (system turns).
    """
    turns = [m for m in messages if m["role"] != "system" or m["content"] or marks["keep_empty"]]
    want = [i for m in turns for i in (marks[m["role"]], marks["end"])]
    found = [i for i in ids if i in marks["specials"]]
    assert found == ([] if marks["bos"] is None else [marks["bos"]]) + want
    assert [m for i, m in zip(ids, mask) if i == marks["end"]] == [int(m["role"] == "assistant") for m in turns]
