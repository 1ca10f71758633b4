"""panels.py: what a browser sends, clicks and typing, reaches a real student, and what it says comes back into the view."""

import html
import re
import time

import pytest
from conftest import talk

from orcalab import chatml, generate, panels, safety, show

SYSTEMS = ["cautious", "empty", "step-by-step"]


def arrive(widget, **data):
    """Hand a widget what a browser sends to it."""
    widget.comm.handle_msg({"content": {"data": data}, "buffers": []})


class View:
    """A panel as somebody sees it: what can be clicked, by the words on it; what is shown, by place; and everything that the conversation showed."""

    def __init__(self, student, max_new_tokens=24, moderate=lambda chat: chat):
        self.chats, self.shown = [], []

        def open_chat(name, system):
            if name == "broken":
                raise ValueError("no model in broken")
            self.chats.append(moderate(generate.Chat(student, system, max_new_tokens=max_new_tokens)))
            return self.chats[-1]

        self.top = panels.chat(open_chat, ["tiny", "broken"], SYSTEMS, lambda ids: panels.tokens(ids, [0] * len(ids), student.tokenizer))
        chosen, said, self.box, buttons, self.fold = self.top.children
        (self.student, self.system), (self.now, self.said) = chosen.children, said.children
        self.buttons = {b.description: b for b in buttons.children}
        self.now.observe(lambda change: self.shown.append(change["new"]), "value")

    def choose(self, widget, n):
        arrive(widget, method="update", state={"index": n})

    def click(self, name):
        arrive(self.buttons[name], method="custom", content={"event": "click"})

    def ask(self, words):
        arrive(self.box, method="update", state={"value": words})
        self.click("Send")

    def wait(self, done=lambda view: view.buttons["Stop"].disabled):
        begun = time.time()
        while not done(self):
            assert time.time() - begun < 20
            time.sleep(0.01)

    @property
    def awake(self):
        return [name for name, b in self.buttons.items() if not b.disabled]


def test_a_view_follows_its_controls_and_says_what_is_wrong():
    def paint(text, size, share, kind):
        if text == "half":
            raise ValueError("<half>")
        return f"{text} {size} {share:g} {kind}"

    view = panels.play(paint, text="one", size=(2, 0, 5), share=(0.5, 0.0, 1.0, 0.25), kind=["a", "b"])
    (text, size, share, kind), out = view.children[0].children, view.children[1]
    assert out.value == "one 2 0.5 a" and (size.min, size.max, share.step) == (0, 5, 0.25)
    for widget, state in ((text, {"value": "two"}), (size, {"value": 3}), (share, {"value": 0.75}), (kind, {"index": 1})):
        arrive(widget, method="update", state=state)
    assert out.value == "two 3 0.75 b"
    arrive(text, method="update", state={"value": "half"})
    assert "ValueError: &lt;half&gt;" in out.value and "D55E00" in out.value
    arrive(text, method="update", state={"value": "whole"})
    assert out.value == "whole 3 0.75 b"


def test_tokens_tell_their_bytes_and_their_losses(tokenizer):
    ids, mask = chatml.encode([{"role": "user", "content": "☕"}, {"role": "assistant", "content": "4"}], tokenizer)
    nats = [0.05 * n for n in range(len(ids) - 1)]
    page = panels.tokens(ids, mask, tokenizer, nats)
    told = [html.unescape(x) for x in re.findall(r'title="([^"]*)"', page)]
    assert len(told) == len(ids) and [f"id {i}" for i in ids] == [x.split(",")[0] for x in told]
    raw = [x.split("bytes ")[1].split(",")[0] for x in told if "bytes" in x]
    assert sum(", special, " in x for x in told) == 4
    assert [bytes.fromhex("".join(raw))] == ["".join(("user", "\n", "☕", "\n", "assistant", "\n", "4")).encode()] and "&lt;E2&gt;" in page  # a part of a character, by its byte
    assert [x.split(", ")[-1] for x in told[1:]] == [f"{n:.2f} nats" for n in nats] and sum("target" in x for x in told) == sum(mask)
    printed = panels.tokens(ids, mask, tokenizer, nats, ansi=True)
    assert re.sub(r"\x1b\[\d+m", "", printed).split(" ")[-2] == "4"


def test_a_loss_map_shows_each_target_in_the_colour_of_its_loss(tokenizer):
    ids, mask = chatml.encode([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], tokenizer)
    n = sum(mask)
    before, after = [9.0] * (len(ids) - 1), [0.01] * (len(ids) - n) + [0.01, 0.2, 1.0, 2.0, 9.0][:n - 1]
    page = panels.loss_map(ids, mask, tokenizer, {"be<fore": before, "after": after})
    assert "<b>be&lt;fore</b> 9.00 nats a target, 27.0 in all" in page and f"{sum(after[-n:]):.1f} in all" in page
    first, second, key = page.split("<p ")[1], page.split("<p ")[2], page.split("nats of a target: ")[1]
    assert first.count("#CC79A7") == n and first.count("title=") == n + 10 and "&lt;|im_start|&gt;</span>" in first  # the targets, behind `assistant` in its mark
    assert [c for c in re.findall(r"background:(#\w{6})", second.split("nats of a target: ")[0])][10:] == ["#8A8A8A", "#8A8A8A", "#F0E442"] and re.findall("&lt;[0-9.]+", key) == ["&lt;0.1", "&lt;0.5", "&lt;1.5", "&lt;3"]
    assert "after: " in panels.loss_map(ids, mask, tokenizer, {"after": after}, ansi=True)


ANSWERS = [{"student": s, "system": "cautious", "task": t, "number": n, "question": f"{t} {n} <q>", "gold": "4", "text": f"{s} says {n}", "right": s == "good" or n == 0, "format_ok": n < 2, "tokens": 3}
           for s in ("good", "bad") for t in ("sums", "legs") for n in range(3)]


def test_answers_are_found_by_task_student_verdict_and_words():
    shown = lambda **how: panels.explore(ANSWERS, ansi=True, **how)
    head = lambda **how: shown(**how).split("; page")[0]
    assert head() == "6 of 6 questions; 8 of their 12 answers are right"
    assert head(verdict="differ") == "4 of 6 questions; 4 of their 8 answers are right" and head(verdict="not read") == "2 of 6 questions; 2 of their 4 answers are right"
    assert head(student="bad", verdict="wrong", task="legs") == "2 of 3 questions; 0 of their 2 answers are right" and head(words="SUMS 1") == "1 of 6 questions; 1 of their 2 answers are right"
    assert head(message="empty") == "0 of 0 questions; 0 of their 0 answers are right"
    assert "✓ good, cautious, 3 tokens" in shown(task="sums", words="sums 1") and "✗ bad" in shown(task="sums", words="sums 1") and "gold: 4" in shown()
    assert "page 2 of 3" in shown(most=2, page=2) and "page 3 of 3" in shown(most=2, page=9) and shown(most=2, page=3).count("gold") == 2
    page = panels.explore(ANSWERS)
    assert "<q>" not in page and page.count("&lt;q&gt;") == 6 and page.count("#009E73") == 8
    pages = [panels.explorer([{**ANSWERS[0], "number": k} for k in range(n)]).children[0].children[-2].max for n in (1, 8, 9, 16)]
    assert pages == [1, 1, 2, 2]
    view = panels.explorer(ANSWERS)
    verdict, task, *_ = view.children[0].children
    arrive(verdict, method="update", state={"index": 1})
    arrive(task, method="update", state={"index": 2})
    assert view.children[1].value == panels.explore(ANSWERS, verdict="differ", task="legs")


def test_the_switchboard_asks_all_students_under_all_messages_side_by_side(student):
    order, boards, systems = [], [], ["cautious", "empty"]

    def ask(name, question, messages):
        if name == "broken":
            raise ValueError("no model <in> broken")
        boards[-1].children[0].value = "somebody types on"
        for i, said in student.streams([student.prompt(question, m) for m in messages], 12):
            order.append((name, i))
            yield messages[i], said if isinstance(said, str) else f" [{said.reason}]"

    def run(names, stop_at=None):
        boards.append(panels.switchboard(ask, names, systems, "2+2?"))
        _, (go, stop), out = boards[-1].children[0], boards[-1].children[1].children, boards[-1].children[2]
        arrive(go, method="custom", content={"event": "click"})
        arrive(go, method="custom", content={"event": "click"})  # one at a time
        begun = time.time()
        while not stop.disabled:
            assert time.time() - begun < 20
            if stop_at and len(order) >= stop_at:
                arrive(stop, method="custom", content={"event": "click"})
            time.sleep(0.005)
        assert not go.disabled
        return out.value

    page = run(["one", "two"])
    alone = [student.answer([student.prompt("2+2?", m)], 12)[0] for m in systems]
    assert [html.unescape(x) for x in re.findall(r"<td[^>]*>([^<]*)</td>", page)] == [f"{a.text} [{a.reason}]" for a in alone for _ in "12"]
    half = len(order) // 2
    assert {name for name, _ in order[:half]} == {"one", "two"} and {i for _, i in order[:half]} == {0, 1}  # side by side, not one behind the other
    order.clear()
    texts = {("one", "cautious"): "4", ("two", "cautious"): "5"}
    assert re.sub(r"\x1b\[\d+m", "", panels.board(texts, ansi=True)) == "cautious\n  one: 4\n  two: 5"
    order.clear()
    both = run(["one", "broken"])
    assert "broken: ValueError: no model &lt;in&gt; broken" in both and {name for name, _ in order} == {"one"}  # and the other goes on
    assert [html.unescape(x) for x in re.findall(r"<td[^>]*>([^<]*)</td>", both)] == [x for a in alone for x in (f"{a.text} [{a.reason}]", "")]
    order.clear()
    whole = run(["one"]), len(order)
    assert whole[0].count("[length]") + whole[0].count("[stop]") == 2
    order.clear()
    stopped = run(["one"], stop_at=3)
    assert stopped.count("[length]") + stopped.count("[stop]") < 2 and len(order) < whole[1]
    with pytest.raises(ValueError, match="1 is not in list"):
        panels.loss_map([1, 2], [0, 0], student.tokenizer, {})


def test_bubbles_hold_text_and_never_markup():
    page = panels.bubbles(talk(("user", "<b>a\nb"), ("assistant", panels.FILTERED), system=""))
    assert set(re.findall(r"</?\w+", page)) == {"<div", "</div"} and re.findall(r'title="(\w+)"', page) == ["system", "user", "assistant"]
    assert re.findall(r">([^<>]+)<", page) == ["(nothing)", "&lt;b&gt;a\nb", panels.FILTERED] and "D55E00" in page
    assert panels.bubbles(talk(("user", "a\nb"), ("assistant", "c")), ansi=True) == "\x1b[36muser: a\nb\x1b[0m\n\x1b[32massistant: c\x1b[0m"


def test_two_turns_through_the_panel_are_those_of_a_chat(student):
    view, alone = View(student), generate.Chat(student, "cautious", max_new_tokens=24)
    assert view.awake == ["Send", "New"]
    for words in ("2+2?\nOne line.", "<b>And 3?"):
        view.ask(words)
        view.wait()
        said = alone.say(words)
        assert view.said.value == panels.bubbles(alone.messages) and view.box.value == ""
        assert f"{said.tokens} tokens, ended by &#x27;{said.reason}&#x27;" in view.now.value
        assert view.fold.titles == (f"What went in: {len(alone.ids)} ids",) and view.fold.children[0].value.count("<span") == len(alone.ids)
    assert alone.ids == chatml.encode(alone.messages[:-1], student.tokenizer, reply=True)[0] and len(view.chats) == 1
    assert panels.bubbles(talk(("user", words), ("assistant", " ▌"))) in view.shown  # the question stands there before a word of the answer
    assert view.awake == ["Send", "Retry", "New"]


def test_an_answer_is_shown_as_it_comes_and_stop_keeps_what_was_said(student, monkeypatch):
    monkeypatch.setattr(student, "ends", [])  # it would go on for 1,500 tokens
    view = View(student, max_new_tokens=1500)
    view.ask("2+2?")
    asleep = view.awake
    view.ask("a second one, while the first is under way")
    view.wait(lambda view: len(view.shown) >= 4)
    view.click("Stop")
    view.wait()
    (chat,) = view.chats
    assert asleep == ["Stop"] and [m["role"] for m in chat.messages] == ["system", "user", "assistant"] and chat.last.reason == "stopped" and 0 < chat.last.tokens < 1500
    parts = [re.findall(r">([^<>]*) ▌<", x)[0] for x in view.shown if "▌" in x]
    assert len(parts) >= 3 and all(b.startswith(a) and a != b for a, b in zip(parts, parts[1:])) and view.box.value.startswith("a second one")
    assert view.said.value == panels.bubbles(chat.messages)
    monkeypatch.undo()
    view.click("New")
    view.ask("2+2?")
    view.wait()
    assert view.chats[1].last.reason == "stop"  # one Stop stops one answer


def test_retry_asks_again_under_another_message_and_new_forgets(student):
    view = View(student)
    for words in ("2+2?", "And 3?"):
        view.ask(words)
        view.wait()
    view.choose(view.system, 1)
    view.click("Retry")
    view.wait()
    (chat,) = view.chats
    alone = student.answer([student.ids_of([{"role": "system", "content": ""}, *chat.messages[1:-1]])], 24)[0]
    assert [m["content"] for m in chat.messages[:-1]] == ["", "2+2?", chat.messages[2]["content"], "And 3?"] and chat.last.ids == alone.ids
    view.click("New")
    assert (view.said.value, view.now.value, view.fold.titles, view.awake) == ("", "", ("What goes in",), ["Send", "New"])
    view.ask("2+2?")
    view.wait()
    assert len(view.chats) == 2 and len(view.chats[1].messages) == 3 and view.chats[1].system == ""


def test_what_goes_wrong_is_shown_and_the_question_is_not_lost(student):
    view = View(student)
    view.ask(" \n")
    assert view.awake == ["Send", "New"] and view.shown == []
    view.choose(view.student, 1)
    view.ask("2+2?")
    view.wait()
    assert "ValueError: no model in broken" in view.now.value and view.box.value == "2+2?" and view.said.value == "" and view.awake == ["Send", "New"]
    view.choose(view.student, 0)
    view.click("Send")
    view.wait()
    before = view.said.value
    view.ask("x" * 5000)
    view.wait()
    assert "ValueError: the conversation has" in view.now.value and len(view.box.value) == 5000 and view.said.value == before
    view.choose(view.student, 1)
    view.click("Retry")
    view.wait()
    assert "no model in broken" in view.now.value and view.awake == ["Send", "Retry", "New"] and view.said.value == before  # nothing was taken back


def test_a_moderated_conversation_says_what_was_held_back(student):
    said = generate.Chat(student, "cautious", max_new_tokens=24).say("2+2?").text
    view = View(student, moderate=lambda chat: safety.Moderated(chat, lambda text: "violence 6" if "bomb" in text else "hate 4" if said in text else ""))
    view.ask("A bomb?")
    view.wait()
    assert "The question went nowhere (filtered: violence 6)." in view.now.value and view.box.value == "A bomb?" and view.fold.titles == ("What goes in",)
    view.ask("2+2?")
    view.wait()
    assert [m["content"] for m in view.chats[0].messages[1:]] == ["2+2?", panels.FILTERED] and "ended by &#x27;filtered: hate 4&#x27;" in view.now.value
    assert view.said.value == panels.bubbles(view.chats[0].messages) and all(html.escape(said) not in x for x in view.shown) and panels.FILTERED == safety.FILTERED
