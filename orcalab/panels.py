"""Tokens, answers and conversations as HTML, each with a printed twin, and views to type into. What they show comes from plain data and from functions that a notebook hands over."""

import html
import threading
import time
from functools import partial

from orcalab import chatml

FILTERED = "[Content Filtered]"  # what a moderator leaves of a text, as on Orca 2's model card
TURNS = {"system": ("0 10%", "center", "transparent;font-style:italic;opacity:.7;text-align:center", 39), "user": ("0 0 0 18%", "end", "#0072B266", 36),  # margin, side, ground, colour
         "assistant": ("0 18% 0 0", "start", "#8A8A8A40", 32), FILTERED: ("0 18% 0 0", "start", "#D55E0059;font-style:italic", 31)}                     # in a terminal
KINDS = {"special": ("#CC79A7", 35), "byte": ("#E69F00", 33), "digit": ("#56B4E9", 36), "character": ("#0072B2", 34), "piece": ("#8A8A8A", 39)}  # of tokens: colour, and that of a terminal
LEARNED = {True: ("#009E73", 32), False: ("#8A8A8A", 39)}
NATS = ((0.1, "#8A8A8A", 39), (0.5, "#F0E442", 36), (1.5, "#E69F00", 33), (3.0, "#D55E00", 31), (float("inf"), "#CC79A7", 35))  # below so much: colours
WRAP = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4"  # of what a model wrote


def wrong(e, who=""):
    """Return an exception, and in whose work it came up, as HTML."""
    return f'<div style="color:#D55E00;{WRAP}">{html.escape(f"{who}{type(e).__name__}: {e}")}</div>'


def chips(cells, ansi=False):
    """Return tokens side by side as HTML, with more on hover, or their printed twin; of few tokens, ids stand below.

    Args:    cells: for each token (its text, (colour, terminal's colour), its id, what is told on hovering).
    """
    if ansi:
        return " ".join(f"\x1b[{shade}m{text.replace(' ', '▁').replace(chr(10), '⏎')}\x1b[0m" for text, (_, shade), *_ in cells)
    chip = ('<span style="display:inline-block;background:{}59;border-radius:3px;margin:1px;padding:0 2px;text-align:center;line-height:1.5" title="{}">{}{}</span>{}')
    below = lambda i: f'<span style="display:block;font-size:9px;line-height:1.1;opacity:.6">{i}</span>' if i != "" and len(cells) <= 120 else ""
    words = lambda text: html.escape(text).replace("\n", "⏎").replace(" ", "&nbsp;") or "&nbsp;"
    return '<div style="font-family:monospace;line-height:1.9;overflow-wrap:anywhere">' + "".join(
        chip.format(colour, html.escape(told), words(text), below(i), "<br>" if "\n" in text else "<wbr>") for text, (colour, _), i, told in cells) + "</div>"


def tokens(ids, mask, tokenizer, losses=(), ansi=False):
    """Return the tokens of an example: targets green, context grey; or each in the colour of its loss.

    Args:    losses: nats of each token but the first, as it was predicted from those before it.
    """
    table, cells = chatml.encoder(tokenizer).tokens.bytes, []
    for at, (i, m) in enumerate(zip(map(int, ids), mask)):
        raw, kind = table[i], "special" if i in tokenizer.added_tokens_decoder else f"bytes {table[i].hex(' ')}"
        text = raw.decode(errors="replace")
        text = text if text.encode() == raw else "".join(f"<{b:02X}>" for b in raw)
        lost = losses[at - 1] if len(losses) and at else None
        colour = LEARNED[bool(m)] if lost is None or not m else next(shades for limit, *shades in NATS if lost < limit)
        cells.append((text, colour, "" if len(losses) else i, f"id {i}, {kind}, {'target' if m else 'context'}" + (f", {lost:.2f} nats" if lost is not None else "")))
    return chips(cells, ansi)


def loss_map(ids, mask, tokenizer, losses, ansi=False):
    """Return one answer as several models see it: each token in the colour of its loss, a block a model, or the printed twin.

    Args:    losses: {name of the model: nats of each token but the first}.
    """
    first, out = list(mask).index(1), []
    at = max((n for n in range(first) if int(ids[n]) in tokenizer.added_tokens_decoder), default=max(0, first - 1))  # where the answer is opened
    for name, nats in losses.items():
        own = [n for n, m in zip(nats, mask[1:]) if m]
        said, view = f"{sum(own) / len(own):.2f} nats a target, {sum(own):.1f} in all", tokens(ids[at:], mask[at:], tokenizer, nats[at:], ansi)
        out.append(f"{name}: {said}\n{view}" if ansi else f'<p style="margin:.8em 0 .1em"><b>{html.escape(name)}</b> {said}</p>{view}')
    key = chips([(f"<{limit:g}" if limit < 9 else "more", shades, "", "nats of a target") for limit, *shades in NATS], ansi)
    return "\n".join([*out, f"nats of a target: {key}"])


def play(paint, **controls):
    """Return a view whose HTML follows its controls. Its printed twin is what `paint` returns where it prints.

    Args:    paint: a function from the controls' values, by name, to HTML.
             controls: a text (typed), a (value, low, high) or (value, low, high, step) (a slider), or a list (a choice, the first of them chosen).
    """
    import ipywidgets as widgets

    def control(name, given):
        how = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
        if isinstance(given, str):
            return widgets.Textarea(value=given, layout={"flex": "1 1 100%", "height": "80px" if given else "36px"}, **how)
        if isinstance(given, list):
            return widgets.Dropdown(options=given, layout={"flex": "1 1 200px", "width": "auto"}, **how)
        kind = widgets.IntSlider if all(isinstance(x, int) for x in given) else widgets.FloatSlider
        return kind(**dict(zip(("value", "min", "max", "step"), given)), readout_format="d" if kind is widgets.IntSlider else ".4f", layout={"flex": "1 1 300px", "width": "auto"}, **how)

    boxes, out = {name: control(name, given) for name, given in controls.items()}, widgets.HTML()

    def draw(_=None):
        try:
            out.value = paint(**{name: box.value for name, box in boxes.items()})
        except Exception as e:  # what is half typed may be wrong, and nobody sees a callback's traceback
            out.value = wrong(e)
    for box in boxes.values():
        box.observe(draw, "value")
    draw()
    return widgets.VBox([widgets.HBox(list(boxes.values()), layout={"display": "flex", "flex_flow": "row wrap"}), out])


def explore(records, student="all", message="all", task="all", verdict="all", words="", page=1, ansi=False, most=8):
    """Return the answers that pass, question by question, as HTML or printed.

    Args:    records: of evaluate.ask or read_answers, all in one list.  verdict: all, right, wrong, not read, or differ (not all of a question's answers are right, or wrong).
             words: to be found in a question or an answer.  page: of `most` questions.
    """
    asked, passes = {}, {"all": lambda a: True, "right": lambda a: any(r["right"] for r in a), "wrong": lambda a: any(not r["right"] for r in a),
                         "not read": lambda a: any(not r["format_ok"] for r in a), "differ": lambda a: len({bool(r["right"]) for r in a}) > 1}
    for r in records:
        if student in ("all", r["student"]) and message in ("all", r["system"]) and task in ("all", r["task"]):
            asked.setdefault((r["task"], r["number"]), []).append(r)
    found = [a for a in asked.values() if passes[verdict](a) and words.lower() in "\n".join([a[0]["question"], *(r["text"] for r in a)]).lower()]
    right, pages, text = [r["right"] for a in found for r in a], max(1, -(-len(found) // most)), str if ansi else html.escape
    out = [f"{len(found)} of {len(asked)} questions; {sum(right)} of their {len(right)} answers are right; page {min(page, pages)} of {pages}"]
    for a in found[most * (min(page, pages) - 1):][:most]:
        of = f"{a[0]['task']} {a[0]['number']}"
        told = [(f"{'✓' if r['right'] else '✗'} {r['student']}, {r['system']}, {r['tokens']} tokens", text(r["text"].strip() or "(nothing)"), r["right"]) for r in a]
        question, gold = text(a[0]["question"].strip()), text(f"gold: {a[0]['gold']}")
        if ansi:
            out += [f"\n{of}: {question}\n{gold}", *(f"  \x1b[{LEARNED[ok][1] if ok else 31}m{who}\x1b[0m  {said}" for who, said, ok in told)]
        else:
            said = "".join(f'<div style="flex:1 1 260px;min-width:0;border-left:3px solid {LEARNED[True][0] if ok else "#D55E00"};padding-left:.7em"><small>{html.escape(who)}</small><div style="{WRAP}">{said}</div></div>' for who, said, ok in told)
            out.append(f'<div style="border-top:1px solid #8886;margin:.5em 0;padding:.3em 0"><b>{html.escape(of)}</b><div style="{WRAP}">{question}\n<i>{gold}</i></div><div style="display:flex;flex-wrap:wrap;gap:.5em 1em;margin-top:.3em">{said}</div></div>')
    return ("\n" if ansi else "").join(out)


def explorer(records):
    """Return a view of all answers: filtered by student, message, task, verdict and words. Its printed twin is `explore` with ansi."""
    names = lambda key: ["all", *dict.fromkeys(r[key] for r in records)]
    return play(partial(explore, records), verdict=["all", "differ", "right", "wrong", "not read"], task=names("task"), student=names("student"), message=names("system"),
                page=(1, 1, max(1, -(-len({(r["task"], r["number"]) for r in records}) // 8))), words="")


def board(texts, ansi=False):
    """Return what several students say under several messages, side by side: a row a message, a column a student; or the printed twin.

    Args:    texts: {(student, message): text}.
    """
    students, messages = (list(dict.fromkeys(key[n] for key in texts)) for n in (0, 1))
    if ansi:
        return "\n\n".join(f"\x1b[36m{m}\x1b[0m\n" + "\n".join(f"  \x1b[32m{s}:\x1b[0m {texts.get((s, m), '')}" for s in students) for m in messages)
    cell = lambda text, tag="td": f'<{tag} style="vertical-align:top;text-align:left;{WRAP};padding:.4em .6em;border:1px solid #8884">{html.escape(text)}</{tag}>'
    rows = ([cell(m, "th"), *(cell(texts.get((s, m), "")) for s in students)] for m in messages)
    return f'<table style="display:table;width:100%;table-layout:fixed;border-collapse:collapse">{"".join(f"<tr>{chr(10).join(r)}</tr>" for r in ([cell(x, "th") for x in ("", *students)], *rows))}</table>'


def switchboard(ask, students, messages, question):
    """Return a view that puts one question to all students under all messages; the answers come side by side. Its printed twin is `board` with ansi.

    Args:    ask: a function from a student's name, a question and the messages' names; yields (message, piece of the answer) as they come.
             students, messages: names.  question: what stands in the box at first.
    """
    import ipywidgets as widgets
    box = widgets.Textarea(value=question, layout={"width": "auto", "height": "90px"})
    go, stop = widgets.Button(description="Ask", icon="paper-plane", button_style="primary"), widgets.Button(description="Stop", icon="stop", disabled=True)
    out, halt, texts = widgets.HTML(), threading.Event(), {}

    def work(question):
        drawn, trouble, live = 0.0, "", dict.fromkeys(students)
        while live and not halt.is_set():
            for s in list(live):
                try:
                    live[s] = live[s] or ask(s, question, messages)
                    if said := None if halt.is_set() else next(live[s], None):
                        texts[s, said[0]] += said[1]
                except Exception as e:  # one student's trouble is not the others'
                    said, trouble = None, trouble + wrong(e, f"{s}: ")
                if said is None:
                    del live[s]
            if time.monotonic() > drawn + 0.1:
                out.value, drawn = trouble + board(texts), time.monotonic()
        out.value, go.disabled, stop.disabled = trouble + board(texts), False, True

    def begin(_):
        if not go.disabled:
            go.disabled, stop.disabled = True, False
            halt.clear()
            texts.update({(s, m): "" for m in messages for s in students})
            threading.Thread(target=work, args=(box.value,), daemon=True).start()

    go.on_click(begin)
    stop.on_click(lambda _: halt.set())
    return widgets.VBox([box, widgets.HBox([go, stop]), out])


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
