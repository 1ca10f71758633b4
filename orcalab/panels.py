"""Views to type into, for a notebook. What they show comes from functions that the notebook hands over."""

import html
import threading
import time

FILTERED = "[Content Filtered]"  # what a moderator leaves of a text, as on Orca 2's model card
TURNS = {"system": ("0 10%", "center", "transparent;font-style:italic;opacity:.7;text-align:center", 90), "user": ("0 0 0 18%", "end", "#0072B266", 36),  # margin, side, ground, colour
         "assistant": ("0 18% 0 0", "start", "#8A8A8A40", 32), FILTERED: ("0 18% 0 0", "start", "#D55E0059;font-style:italic", 31)}                     # in a terminal


def painter(encode, text):
    """Return a view: type a text, watch its tokens. Its printed twin is chatml.paint, or show.pieces with ansi.

    Args:    encode: a function from text to HTML, such as one that calls show.tokens or show.pieces.
    """
    import ipywidgets as widgets
    box = widgets.Textarea(value=text, description="user", layout={"width": "95%", "height": "80px"})
    out = widgets.HTML()
    widgets.dlink((box, "value"), (out, "value"), encode)
    return widgets.VBox([box, out])


def bubbles(messages, ansi=False):
    """Return a conversation as HTML, a bubble a message, or its printed twin.

    >>> bubbles([{"role": "user", "content": "2+2?"}], ansi=True)
    '\\x1b[36muser: 2+2?\\x1b[0m'
    """
    turns = [(m["role"], m["content"] or "(nothing)", TURNS[FILTERED if m["content"] == FILTERED else m["role"]]) for m in messages]
    if ansi:
        return "\n".join(f"\x1b[{colour}m{role}: {text}\x1b[0m" for role, text, (*_, colour) in turns)
    return "".join(f'<div style="display:flex;margin:{margin};justify-content:{side}"><div title="{role}" style="background:{ground};border-radius:14px;margin:4px 0;padding:.5em .9em;'
                   f'line-height:1.5;white-space:pre-wrap;overflow-wrap:anywhere;min-width:0">{html.escape(text)}</div></div>' for role, text, (margin, side, ground, _) in turns)


def chat(open_chat, students, systems, paint):
    """Return a view to talk with a student: the answer shows as it comes, and the ids that went in fold out. Its printed twin is `bubbles` with ansi.

    A thread does the work, one question at a time: a callback that works itself would let no click on Stop through. What goes wrong is shown in the view, with the
    question back in its box. A student chosen anew begins a new conversation with the next question; a system chosen anew goes on with this one, and Retry asks
    the last question again, of whoever is chosen now.

    Args:    open_chat: a function from a student's name and a system message's to a generate.Chat, or to one that is moderated.
             students, systems: the names to choose from, the first of them chosen.  paint: a function from ids to HTML, such as one that calls show.tokens.
    """
    import ipywidgets as widgets
    student, system = (widgets.Dropdown(options=list(names), description=what, layout={"flex": "1 1 260px", "width": "auto"})
                       for what, names in (("student", students), ("system", systems)))
    box = widgets.Textarea(placeholder="Ask something, in one line or several", layout={"width": "auto", "height": "80px"})
    send, stop, retry, new = (widgets.Button(description=d, icon=i, disabled=d in ("Stop", "Retry"), button_style="primary" if d == "Send" else "")
                              for d, i in (("Send", "paper-plane"), ("Stop", "stop"), ("Retry", "repeat"), ("New", "plus")))
    said, now, ids = widgets.HTML(), widgets.HTML(), widgets.HTML()
    fold, halt, talk, who = widgets.Accordion([ids], titles=["What goes in"]), threading.Event(), None, None

    def tell(text, back=None):  # back: what was asked in vain
        style = "opacity:.7" if back is None else "color:#D55E00"
        now.value = f'<div style="{style};line-height:1.5;padding:.2em .9em;font-size:.9em;white-space:pre-wrap;overflow-wrap:anywhere">{html.escape(text)}</div>'
        box.value = box.value or back or ""

    def sleep(busy):
        for w in (send, new, student, system):
            w.disabled = busy
        stop.disabled, retry.disabled = not busy, busy or not (talk and talk.messages and talk.messages[-1]["role"] == "assistant")

    def answer(words):
        nonlocal talk, who
        old, kept = talk, list(talk.messages) if talk else []
        try:
            words = talk.retry() if words is None else words
            turn = lambda text: [{"role": "user", "content": words}, {"role": "assistant", "content": text + " ▌"}]
            now.value = bubbles(turn(""))
            if who != student.value:
                said.value = ""
                talk, who = open_chat(student.value, system.value), student.value
            talk.system = system.value
            said.value = bubbles(talk.messages)
            before, text, drawn, pieces = list(talk.messages), "", 0.0, talk.stream(words)
            for piece in pieces:
                text += piece
                if halt.is_set():
                    break
                if time.monotonic() > drawn + 0.1:  # a message to the browser for every token would be too many
                    now.value, drawn = bubbles(turn(text)), time.monotonic()
            pieces.close()
            if talk.messages == before:
                tell(f"The question went nowhere ({talk.last.reason}).", words)
            else:
                ids.value, fold.titles = paint(talk.ids), [f"What went in: {len(talk.ids)} ids"]
                tell(f"{talk.last.tokens} tokens, ended by {talk.last.reason!r}")
        except Exception as e:
            if old:
                old.messages[:] = kept  # what was to be asked again was not
            tell(f"{type(e).__name__}: {e}", words or "")
        finally:
            said.value = bubbles(talk.messages) if talk else ""
            sleep(False)

    def ask(again):
        if stop.disabled and (talk if again else box.value.strip()):  # one at a time: a second click may be on its way before the button sleeps
            words, box.value = (None, box.value) if again else (box.value, "")
            halt.clear()
            sleep(True)
            threading.Thread(target=answer, args=(words,), daemon=True).start()

    def begin():
        nonlocal talk, who
        if stop.disabled:
            talk, who, said.value, now.value, ids.value, fold.titles = None, None, "", "", "", ["What goes in"]
            sleep(False)

    for button, does in ((send, lambda: ask(False)), (stop, halt.set), (retry, lambda: ask(True)), (new, begin)):
        button.on_click(lambda _, does=does: does())
    row = {"display": "flex", "flex_flow": "row wrap"}
    talked = widgets.Box([now, said], layout={"display": "flex", "flex_flow": "column-reverse", "max_height": "460px", "overflow": "auto"})  # reversed: it stays at its end
    return widgets.VBox([widgets.HBox([student, system], layout=row), talked, box, widgets.HBox([send, stop, retry, new], layout=row), fold], layout={"max_width": "900px"})
