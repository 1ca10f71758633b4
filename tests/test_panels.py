"""panels.py: what a browser sends, clicks and typing, reaches a real student, and what it says comes back into the view."""

import html
import re
import time

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

        self.top = panels.chat(open_chat, ["tiny", "broken"], SYSTEMS, lambda ids: show.tokens(ids, [0] * len(ids), student.tokenizer))
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


def test_the_painter_repaints_what_is_typed():
    box, out = panels.painter(lambda text: f"<i>{text}</i>", "one").children
    assert out.value == "<i>one</i>"
    box.value = "two"
    assert out.value == "<i>two</i>"


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
