"""A conversation in a terminal: lines go in, answers come out as they are made. What is piped in is read the same way, without prompts and colours."""

import json
import re
import signal
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from orcalab import chatml
from orcalab.config import CHOICES, choose
from orcalab.safety import ContentSafety, Moderated
from orcalab.strategies import STRATEGIES, message, name_of, system_of

COMMANDS = {
    "/system": "TEXT or name: the system message from now on, none for no system turn; alone, shows it",
    "/strategy": "NAME: the strategy to answer under from now on; alone, lists them",
    "/retry": "take the last question and answer back, and ask again",
    "/save": "FILE: put the conversation, under its latest system message, at the end of a JSONL file, as a row for a stage",
    "/ids": "show the tokens that went in last (plain) and came out (green)",
    "/new": "begin a new conversation under the same system message",
    "/help": "show this",
    "/quit": "end, as Ctrl-D does",
}
MORE = 'A line that ends with \\ goes on in the next. What stands between two lines of """ is one question, even if it begins with /.\nCtrl-C breaks off an answer and keeps what was said.'
WHY = {"stop": "ended by itself", "length": "cut at max_new_tokens", "stopped": "broken off"}


@dataclass(frozen=True)
class Talk:
    """How a conversation is held, and with whom."""

    model: str = ""  # a model's name, hub id or folder, empty is a stage's student
    system: str = "cautious"  # the name of a strategy or message, a text of your own, or none for no system turn
    max_new_tokens: int = 512  # longest answer, in tokens
    temperature: float = 0.0  # 0 takes the likeliest token, above it one is drawn
    top_p: float = 1.0  # drawn from the likeliest tokens that make up this share
    overflow: str = "error"  # what a conversation longer than the context is, error or drop_oldest (its oldest questions and answers are left out)
    moderate: str = "nobody"  # who moderates questions and answers, azure (with CONTENT_SAFETY_ENDPOINT and CONTENT_SAFETY_KEY) or nobody
    four_bit: str = "no"  # whether weights are held in 4 bits, yes or no
    seed: int = 0  # of what is drawn, and of the recipe's run
    dtype: str = "auto"  # compute type, auto / bf16 / fp16 / fp32
    device: str = "auto"  # where to compute, auto / cpu / cuda

    def __post_init__(self):
        for name, options in {"moderate": ("nobody", "azure"), "four_bit": ("no", "yes"), "overflow": ("error", "drop_oldest"), "dtype": CHOICES["dtype"], "device": CHOICES["device"]}.items():
            choose(getattr(self, name), options, name)
        system_of(self.system)


def ask(prompt):
    """Read a line; only a terminal gets a prompt."""
    return input(prompt if sys.stdin.isatty() else "")


def put(text):
    """Print a text at once; only a terminal gets its colours."""
    print(text if sys.stdout.isatty() else re.sub(r"\x1b\[\d*m", "", text), end="", flush=True)


def listen(read):
    """Return (what was typed, whether it is a command): a line, lines that backslashes join, or those between two lines of three double quotes."""
    line, lines = read("> "), []
    if line.strip() == '"""':
        while (line := read("... ")).strip() != '"""':
            lines.append(line)
        return "\n".join(lines), False
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{read('... ')}"
    return line, line.startswith("/")


def obey(line, chat, show):
    """Do what a command says; return the words to ask, "" for none.

    Raises:  ValueError: no such command or strategy, nothing to retry or to save.  OSError: a file that cannot be written.  EOFError: /quit.
    """
    name, rest = (re.split(r"\s+", line.strip(), maxsplit=1) + [""])[:2]
    choose(name, COMMANDS, "command")
    if name == "/quit":
        raise EOFError
    if name == "/retry":
        return chat.retry()
    if name == "/help":
        show("\n".join(f"{c:<10}{text}" for c, text in COMMANDS.items()) + f"\n{MORE}")
    elif name == "/new":
        chat.new()
        show("a new conversation")
    elif name == "/strategy" and not rest:
        show("\n".join(f"{'*' if chat.system == message(n) else ' '} {n}" for n in [*STRATEGIES, "cautious"]))
    elif name in ("/system", "/strategy"):
        if rest:
            chat.system = None if (name, rest) == ("/system", "none") else rest if name == "/system" else choose(rest, [*STRATEGIES, "cautious"], "strategy")
        show("no system message" if chat.system is None else f"system message ({name_of(chat.system)}): {chat.system}")
    elif name == "/ids":
        new = list(chat.last.ids) if chat.last else []
        show(chatml.paint(chat.ids + new, [0] * len(chat.ids) + [1] * len(new), chat.student.tokenizer) + f"\n{len(chat.ids)} ids went in: {chat.ids}\n{len(new)} came out: {new}")
    elif name == "/save":
        if not rest.endswith(".jsonl"):
            raise ValueError(f"say where to, as in /save talks.jsonl{rest and f', and not {rest!r}'}")
        if not any(m["role"] == "assistant" for m in chat.messages):
            raise ValueError("nothing was said yet that could be saved")
        with open(Path(rest).expanduser(), "a", encoding="utf-8", newline="\n") as f:
            f.write(json.dumps({"messages": chat.messages}, ensure_ascii=False) + "\n")
        show(f"{rest} has it, as its last row ({len(chat.messages)} messages)")
    return ""


def answer(chat, words, write):
    """Ask, write the answer as it is made, and below it how long it is, how fast it came and why it ended. Ctrl-C breaks it off."""
    before, begun = chat.last, time.monotonic()
    try:
        with suppress(KeyboardInterrupt), closing(chat.stream(words)) as pieces:
            for piece in pieces:
                write(piece)
    finally:
        write("\n")
    last, seconds = chat.last, time.monotonic() - begun
    note = WHY["stopped"] if last is before else f"{last.tokens} tokens, {last.tokens / seconds:.1f} tokens/s, {WHY.get(last.reason, last.reason)}"
    write(f"\x1b[2m{note}\x1b[0m\n")


def talk(chat, read=ask, write=put):
    """Talk with a student until /quit or the end of what is read. What goes wrong is written, and the conversation goes on.

    Args:    chat: a generate.Chat, or safety.Moderated.  read: from a prompt to a line, raising EOFError at the end.  write: prints a text as it is.
    """
    open_ = ""  # a question that was not answered
    while True:
        kept = list(chat.messages)
        try:
            words, command = listen(read)
            if command and words.strip() == "/retry" and open_:
                words = open_  # there is nothing to take back
            elif command:
                open_ = "" if words.strip() == "/new" else open_
                words = obey(words, chat, lambda text: write(f"{text}\n"))
            if words.strip():
                open_ = words
                answer(chat, words, write)
                open_ = "" if {"role": "user", "content": words} in chat.messages[-2:] else words
        except EOFError:
            return
        except KeyboardInterrupt:
            write("\nCtrl-D or /quit ends\n")
        except (ValueError, OSError) as e:
            chat.messages[:] = kept  # what was to be asked again was not
            write(f"{e}\n")


def begin(how, source):
    """Load a student and talk with it.

    Args:    how: a Talk.  source: as for generate.Student.
    Raises:  ValueError: what the moderator needs is missing (said before anything is loaded), or as from Student and Chat.
    """
    moderator = ContentSafety() if how.moderate == "azure" else None
    if sys.stdin.isatty():
        print(f"loading {source} ...", flush=True)
    from orcalab.generate import Chat, Student
    student = Student(source, how.device, how.dtype, four_bit=how.four_bit == "yes")
    chat = Chat(student, None if how.system == "none" else how.system, how.max_new_tokens, how.temperature, how.top_p, how.seed, how.overflow)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # for the other verbs it is a Ctrl-C, and that ends no conversation
    with suppress(ImportError):
        import readline  # gives input() its history and editing keys; Windows has its own
    if sys.stdin.isatty():
        print(f"{source} listens; /help says what else can be typed")
    talk(Moderated(chat, moderator) if moderator else chat)
