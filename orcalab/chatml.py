"""Messages to (ids, mask) in one pass, with the structure placed by id and never by text.

The template is ChatML as the Orca 2 model card has it: the prompt ends in `<|im_start|>assistant`, without
a newline. The newline belongs to the answer, so it is learned, and the chat prompt is a prefix of the
training ids. Whatever stands in `content`, it is encoded with special tokens switched off: a user who writes
`<|im_end|>` gets harmless plain tokens and not the end of a turn.

>>> from orcalab import model
>>> tokenizer = model.load_tokenizer("tiny-random")
>>> ids, mask = encode([{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}], tokenizer)
>>> learned(ids, mask) == plain("\\n4", tokenizer) + [marks(tokenizer)[1]]
True
"""

from orcalab.config import choose

START, END, PAD = "<|im_start|>", "<|im_end|>", "[PAD]"
ROLES = ("system", "user", "assistant")

# The same text as a Jinja template, for other programs; {% generation %} marks what is learned.
JINJA = (
    "{{ bos_token if bos_token and bos_token != '<|im_start|>' else '' }}{% for m in messages %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}{{ '<|im_start|>' + m['role'] }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ '\n' + m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ '\n' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant' }}{% endif %}"
)


def check(messages):
    """Raise a ValueError that says what is wrong with a conversation: role, order or content."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages must be a list of at least one turn, got {messages!r:.60}")
    for i, m in enumerate(messages):
        if not isinstance(m, dict) or not {"role", "content"} <= set(m):
            raise ValueError(f"messages[{i}] must hold 'role' and 'content', got {m!r:.60}")
        choose(m["role"], ROLES, f"role (messages[{i}])")
        if not isinstance(m["content"], str):
            raise ValueError(f"messages[{i}]['content'] must be text, got {type(m['content']).__name__}")
        if any("\ud800" <= c <= "\udfff" for c in m["content"]):
            raise ValueError(f"messages[{i}]['content'] holds half a character (a lone surrogate), which has no UTF-8")
        if m["role"] == "system" and i:
            raise ValueError(f"messages[{i}]: a system turn may only come first")
        if i and m["role"] == messages[i - 1]["role"]:
            raise ValueError(f"messages[{i}]: two {m['role']} turns in a row")


def plain(text, tokenizer):
    """Return the ids of `text`, with every special token in it read as ordinary characters."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def marks(tokenizer):
    """Return the ids of (start, end); raise if a marker is not one token."""
    ids = [tokenizer.convert_tokens_to_ids(t) for t in (START, END)]
    for text, i in zip((START, END), ids):
        if i is None or i == tokenizer.unk_token_id and text != tokenizer.unk_token:
            raise ValueError(f"the tokenizer has no single token for {text}: add it before encoding")
    return ids


def encode(messages, tokenizer, reply=False, learn="all"):
    """Turn messages into (ids, mask) in one pass; mask 1 marks what is learned.

    Args:
        messages: list of {role, content}, at most one system turn, which comes first.
        tokenizer: any transformers tokenizer that has the two ChatML tokens.
        reply: open the assistant's turn after the last message, as for chatting.
        learn: "all" assistant turns, or the "last" one.

    Returns:
        Two lists of equal length, in tokens. Learned are the newline after `assistant`, the words and
        the end token of the assistant's turns: a model that never sees an end never stops.

    Raises:
        ValueError: an unknown role, a system turn that is not first, content that is not text.

    Paper: Orca 2, "Training", on tokenization and loss.
    """
    check(messages)
    choose(learn, ("all", "last"), "turns to learn")
    start, end = marks(tokenizer)
    bos = tokenizer.bos_token_id
    ids = [] if bos in (None, start) else [bos]  # some chat models use the start marker as their bos
    mask = [0] * len(ids)
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    for i, m in enumerate(messages):
        head = (plain("\n", tokenizer) if i else []) + [start] + plain(m["role"], tokenizer)
        body = plain("\n" + m["content"], tokenizer) + [end]
        taught = m["role"] == "assistant" and (learn == "all" or i == last)
        ids += head + body
        mask += [0] * len(head) + [int(taught)] * len(body)
    if reply:
        head = plain("\n", tokenizer) + [start] + plain("assistant", tokenizer)
        ids, mask = ids + head, mask + [0] * len(head)
    return ids, mask


def learned(ids, mask):
    """Return the ids that are targets, in order."""
    return [i for i, m in zip(ids, mask) if m]


def prove(ids, mask, messages, tokenizer):
    """Raise unless the targets decode to exactly the assistant's words, each turn with its end token."""
    want = "".join("\n" + m["content"] + END for m in messages if m["role"] == "assistant")
    got = tokenizer.decode(learned(ids, mask), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if got != want:
        raise ValueError(f"the targets decode to {got!r:.200}, the assistant said {want!r:.200}")


def paint(ids, mask, tokenizer):
    """Return the tokens as text for a terminal: targets green, context grey."""
    pieces = [tokenizer.decode([i]).replace("\n", "⏎\n") for i in ids]
    return "".join(f"\x1b[{32 if m else 90}m{p}\x1b[0m" for p, m in zip(pieces, mask))
