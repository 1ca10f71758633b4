"""terminal.py: every command, on a real student; and the real thing, in a process with a pipe and in one with a terminal."""

import os
import re
import subprocess
import sys

import pytest
from conftest import wild

from orcalab import chatml, model as models, sources, terminal
from orcalab.generate import Chat, Student
from orcalab.safety import FILTERED, Moderated, Unmoderated
from orcalab.strategies import CAUTIOUS, STRATEGIES

VERB = ["-m", "orcalab", "chat", "--system", "Be brief.", "--device", "cpu", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, tokenizer, _ = models.load("tiny-random")
    folder = tmp_path_factory.mktemp("wild") / "model"
    models.save(folder, wild(model), tokenizer)
    return folder


@pytest.fixture(scope="module")
def student(folder):
    return Student(folder, "cpu", "fp32")


@pytest.fixture
def chat(student):
    return Chat(student, "Be brief.", max_new_tokens=12)


def typed(chat, *lines):
    """Type lines; return what was written for each, what was asked for them, and how it ended."""
    said, asked, lines = [[]], [], list(lines)

    def read(prompt):
        asked.append(prompt)
        said.append([])
        if not lines:
            raise EOFError
        line = lines.pop(0)
        if isinstance(line, str):
            return line
        raise line

    terminal.talk(chat, read, lambda text: said[-1].append(text))
    assert not lines
    return ["".join(s) for s in said[1:-1]], asked


def answers(chat):
    return [m["content"] for m in chat.messages if m["role"] == "assistant"]


def questions(chat):
    return [m["content"] for m in chat.messages if m["role"] == "user"]


def test_an_answer_comes_in_pieces_with_a_line_below(chat, student):
    want, pieces = Chat(student, "Be brief.", max_new_tokens=12), []
    first, second = want.say("2+2"), want.say("again")
    terminal.talk(chat, iter_of("2+2", "again"), pieces.append)
    assert chat.messages == want.messages and pieces[:len(list(Chat(student, "Be brief.", max_new_tokens=12).stream("2+2")))][0] != first.text
    text = "".join(pieces)
    line = r"\n\x1b\[2m12 tokens, [\d.]+ tokens/s, cut at max_new_tokens\x1b\[0m\n"
    assert re.fullmatch(re.escape(first.text) + line + re.escape(second.text) + line.replace("12", str(second.tokens)).replace("cut at max_new_tokens", terminal.WHY[second.reason]), text)


def iter_of(*lines):
    lines = iter(lines)

    def read(prompt):
        if (line := next(lines, None)) is None:
            raise EOFError
        return line
    return read


def test_the_ends_of_an_answer(student):
    chat = Chat(student, "Be brief.", max_new_tokens=200)
    assert "tokens/s, ended by itself" in typed(chat, "Who?")[0][0]
    filtered = Moderated(chat, lambda text: "rude 6" if "Who" in text else "")
    assert re.search(r"^\[Content Filtered\]\n.*0 tokens, 0.0 tokens/s, filtered: rude 6", typed(filtered, "Who else?")[0][0])
    assert questions(chat) == ["Who?"] and FILTERED not in answers(chat)


def test_words_of_several_lines(chat):
    (*_, said), asked = typed(chat, "one \\", "two\\", "three", '"""', "/etc", "", "\\", ' """ ', "", "  ")
    assert questions(chat) == ["one \ntwo\nthree", "/etc\n\n\\"] and said == ""
    assert asked == ["> ", "... ", "... ", "> ", "... ", "... ", "... ", "... ", "> ", "> ", "> "]


def test_system_and_strategy(chat):
    said, _ = typed(chat, "/system", "/strategy", "/strategy step-by-step", "/strategy", "/strategy step-by-stp", "/system cautious", "/system  Be kind. \\", "Be clear.", "hello", "/system cautius", "/strategy Be kind.")
    assert said[0] == "system message (its own): Be brief.\n"
    assert said[1] == "".join(f"  {n}\n" for n in [*STRATEGIES, "cautious"])
    assert said[2] == f"system message (step-by-step): {STRATEGIES['step-by-step']}\n"
    assert said[3] == "".join(f"{'*' if n == 'step-by-step' else ' '} {n}\n" for n in [*STRATEGIES, "cautious"])
    assert said[4] == "no strategy named 'step-by-stp'; did you mean 'step-by-step'?\n"
    assert said[5] == f"system message (cautious): {CAUTIOUS}\n" and said[7] == "system message (its own): Be kind. \nBe clear.\n"
    assert said[9].startswith("no strategy named 'cautius'; did you mean 'cautious'?") and said[10].startswith("no strategy named 'Be kind.'; known: direct-answer")
    assert chat.messages[0] == {"role": "system", "content": "Be kind. \nBe clear."} and chat.ids == chat.student.ids_of(chat.messages[:2])
    chat.system = None
    assert typed(chat, "/system")[0] == ["no system message\n"]


def test_retry_and_new(chat):
    said, _ = typed(chat, "/retry", "2+2", "3+3", "/retry", "/new", "4+4")
    assert said[0] == "nothing was said yet that could be taken back\n" and said[4] == "a new conversation\n"
    assert said[2].split("\n\x1b")[0] == said[3].split("\n\x1b")[0] != said[1].split("\n\x1b")[0]  # greedy: the same again
    assert [m["content"] for m in chat.messages[:2]] == ["Be brief.", "4+4"] and len(chat.messages) == 3
    chat.system = None
    typed(chat, "/new", "5+5")
    assert questions(chat) == ["5+5"] and len(chat.messages) == 2


def test_what_is_saved_is_a_row_to_train_on(chat, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    said, _ = typed(chat, "/save ~/talks.jsonl", "naïve ☕?", "3+3", "/save ~/talks.jsonl", "/new", "4+4", "/save ~/talks.jsonl", "/save", "/save talks.txt", f"/save {tmp_path}/no/x.jsonl")
    assert said[0] == "nothing was said yet that could be saved\n" and said[3] == "~/talks.jsonl has it, as its last row (5 messages)\n"
    assert said[7:9] == ["say where to, as in /save talks.jsonl\n", "say where to, as in /save talks.jsonl, and not 'talks.txt'\n"] and "No such file or directory" in said[9]
    two, one = sources.read(tmp_path / "talks.jsonl")
    assert [m["content"] for m in two.messages if m["role"] == "user"] == ["naïve ☕?", "3+3"] and one.messages == chat.messages
    ids, mask = chatml.encode(one.messages, chat.student.tokenizer)
    assert ids[:len(chat.ids)] == chat.ids
    chatml.prove(ids, mask, one.messages, chat.student.tokenizer)


def test_the_ids_that_went_in(chat):
    said, _ = typed(chat, "/ids", "2+2", "/ids")
    assert said[0] == "\n0 ids went in: []\n0 came out: []\n"
    painted = chatml.paint(chat.ids + list(chat.last.ids), [0] * len(chat.ids) + [1] * 12, chat.student.tokenizer)
    assert said[2] == f"{painted}\n{len(chat.ids)} ids went in: {chat.ids}\n12 came out: {list(chat.last.ids)}\n"


def test_help_quit_and_what_is_no_command(chat):
    said, asked = typed(chat, "/help", "/sytem x", "/", "/helpme", "/quit")
    assert all(re.search(rf"^{c} +\S", said[0], re.M) for c in terminal.COMMANDS) and 'two lines of """' in said[0]
    assert said[1] == "no command named '/sytem'; did you mean '/system'?\n" and said[3] == "no command named '/helpme'; did you mean '/help'?\n"
    assert said[2].startswith("no command named '/'; known: /system, /strategy") and len(asked) == 5 and chat.messages[1:] == []


def test_what_goes_wrong_is_said_and_the_chat_goes_on(chat):
    def moderator(text):
        if "away" in text:
            raise Unmoderated("the service is away")
        return ""

    talk = Moderated(chat, moderator)
    said, _ = typed(talk, "x" * 5000, "away?", KeyboardInterrupt(), "2+2")
    assert said[0].startswith("\nthe conversation has 5") and said[1] == "\nthe service is away\n" and said[2] == "\nCtrl-D or /quit ends\n"
    assert questions(talk) == ["2+2"] and said[3].endswith("\x1b[0m\n")
    said, _ = typed(talk, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "away?", "/retry", "/new", "/retry")
    assert "invalid start byte" in said[0] and said[1] == said[2] == "\nthe service is away\n"  # what was not answered is asked again, and nothing is taken back for it
    assert said[4] == "nothing was said yet that could be taken back\n" and questions(talk) == []


def test_a_line_that_cannot_be_read_loses_nothing(chat):
    typed(chat, "2+2", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
    assert questions(chat) == ["2+2"]


def test_ctrl_c_breaks_off_an_answer_and_keeps_the_chat(chat, student):
    heard, whole = [], Chat(student, "Be brief.", max_new_tokens=12).say("2+2").text

    def write(text):
        heard.append(text)
        if len(heard) == 3:
            raise KeyboardInterrupt

    terminal.talk(chat, iter_of("2+2"), write)
    assert answers(chat) == ["".join(heard[:3])] and whole.startswith(answers(chat)[0]) and chat.last.reason == "stopped"
    assert re.fullmatch(r"\x1b\[2m\d+ tokens, [\d.]+ tokens/s, broken off\x1b\[0m\n", heard[-1])

    def at_once(text):
        raise KeyboardInterrupt

    typed(Moderated(chat, lambda text: ""), "3+3")
    talk = Moderated(chat, lambda text: "")
    talk.moderator = at_once
    assert typed(talk, "4+4")[0] == ["\n\x1b[2mbroken off\x1b[0m\n"] and questions(talk) == ["2+2", "3+3"]


# ------------------------------------------------------------------------------------------- for real

def test_a_pipe_gets_neither_prompts_nor_colours(folder, student):
    lines = b'2+2\n\xff?\n/ids\n"""\nleft open'
    job = subprocess.run([sys.executable, *VERB, "--model", folder, "--max_new_tokens", "12"], input=lines, capture_output=True, timeout=120, env={**os.environ, "PYTHONIOENCODING": "utf-8:surrogateescape"})
    chat = Chat(student, "Be brief.", max_new_tokens=12)
    first = chat.say("2+2").text
    ids = re.sub(r"\x1b\[\d+m", "", typed(chat, "/ids")[0][0])
    said = re.sub(r"[\d.]+ tokens/s", "? tokens/s", job.stdout.decode())
    assert (job.returncode, job.stderr) == (0, b"") and "\x1b" not in ids
    assert said == f"{first}\n12 tokens, ? tokens/s, cut at max_new_tokens\n\nmessages[3]['content'] holds half a character (a lone surrogate), which has no UTF-8\n{ids}"


def test_in_a_terminal(folder):
    pexpect = pytest.importorskip("pexpect")  # not on Windows
    with pexpect.spawn(sys.executable, [*VERB, "--model", str(folder), "--max_new_tokens=3000"], env={**os.environ, "TERM": "dumb"}, encoding="utf-8", codec_errors="replace", timeout=60, dimensions=(24, 200)) as window:
        window.expect_exact(f"{folder} listens; /help says what else can be typed\r\n> ")
        for _ in range(5):  # on a busy machine the answer may be at its end before Ctrl-C arrives
            window.sendline("2+2")
            window.expect_exact("2+2\r\n")
            window.expect("[^\r\n]{20}")  # it streams
            window.sendintr()
            window.expect(r"\x1b\[2m(\d+) tokens, [\d.]+ tokens/s, (broken off|ended by itself)\x1b\[0m\r\n> ")
            if window.match[2] == "broken off":
                break
            window.sendline("/new")  # else the next one has no room
            window.expect_exact("> ")
        assert 0 < int(window.match[1]) < 3000 and window.match[2] == "broken off"
        window.sendline("/ids")
        window.expect(r"\x1b\[39m.*\x1b\[32m.*ids went in: \[[\d, ]+\]\r\n(\d+) came out: \[[\d, ]+\]\r\n> ")
        window.sendintr()
        window.expect_exact("Ctrl-D or /quit ends\r\n> ")
        window.sendline("/retry")
        window.expect("[^\r\n]{20}")
        window.sendintr()
        window.expect("broken off|ended by itself")
        window.expect_exact("> ")
        window.sendeof()
        window.expect(pexpect.EOF)
    assert window.exitstatus == 0


def test_settings_of_a_conversation_are_checked_before_anything_is_loaded(monkeypatch, capsys):
    from orcalab.__main__ import main
    for name in ("CONTENT_SAFETY_ENDPOINT", "CONTENT_SAFETY_KEY"):
        monkeypatch.delenv(name, raising=False)
    for words, said in ((["--moderate", "azur"], "no moderate named 'azur'; did you mean 'azure'?"), (["--four_bit", "ye"], "no four_bit named 'ye'; did you mean 'yes'?"),
                        (["--overflow", "drop"], "no overflow named 'drop'; did you mean 'drop_oldest'?"), (["--device", "gpu"], "no device named 'gpu'; did you mean 'cpu'?"),
                        (["--temperature", "hot"], "temperature must be float, got 'hot'"), (["--moderate", "azure"], "the environment has no CONTENT_SAFETY_ENDPOINT and no CONTENT_SAFETY_KEY")):
        assert main(["chat", "--model", "nowhere", *words]) == 2 and said in capsys.readouterr().err
