"""safety.py: the real SDK against a loopback server that holds to the service's public contract, and what streams and chats let through."""

import json
import random
import re
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings, strategies as st

from orcalab import safety
from orcalab.generate import Chat
from orcalab.safety import CATEGORIES, FILTERED, ContentSafety, Moderated, Unmoderated, guard

KEY = "0123456789abcdef0123456789abcdef"
JSON = {"Content-Type": "application/json"}


def analysis(**severities):
    return 200, JSON, json.dumps({"blocklistsMatch": [], "categoriesAnalysis": [{"category": c, "severity": severities.get(c, 0)} for c in CATEGORIES]})


def error(status, message="not now", **headers):
    return status, {**JSON, **headers}, json.dumps({"error": {"code": "InvalidRequest", "message": message}})


class Service:
    """text:analyze as the swagger of 2023-10-01 has it; `fates` are answered in turn, then texts are judged by the words of `bad`."""

    def __init__(self):
        self.fates, self.bad, self.seen, self.wrong = [], {}, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, wbufsize = "HTTP/1.1", -1

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append(body["text"])
                fate = outer.fates.pop(0) if outer.fates else outer.judge(self, body)
                if fate == "late":
                    time.sleep(0.5)
                if fate in ("late", "cut"):
                    self.close_connection = True
                    return
                status, headers, data = fate
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data.encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def judge(self, request, body):
        text, output = body.pop("text"), body.pop("outputType", "FourSeverityLevels")
        checks = {
            "path": request.path == "/contentsafety/text:analyze?api-version=2023-10-01",
            "content type": request.headers["Content-Type"] == "application/json",
            "text": isinstance(text, str) and 0 < len(text) <= 10_000,
            "categories": set(body.pop("categories", CATEGORIES)) == set(CATEGORIES),
            "output": output == "FourSeverityLevels",
            "fields": not set(body) - {"blocklistNames", "haltOnBlocklistHit"},
        }
        if request.headers["Ocp-Apim-Subscription-Key"] != KEY:
            return error(401, "Access denied due to invalid subscription key or wrong API endpoint.")
        if wrong := [name for name, fine in checks.items() if not fine]:
            self.wrong += wrong
            return error(400, f"wrong: {wrong}")
        return analysis(**{category: severity for word, (category, severity) in self.bad.items() if word in text})

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def service(monkeypatch):
    service = Service()
    monkeypatch.setenv("CONTENT_SAFETY_ENDPOINT", service.url + "/")  # as the portal shows it
    monkeypatch.setenv("CONTENT_SAFETY_KEY", KEY)
    yield service
    service.close()
    assert service.wrong == []


# ------------------------------------------------------------------------------------------ the service

def test_each_category_at_and_below_the_threshold(service):
    texts = {f"{c} {s}": (c, s) for c in CATEGORIES for s in (0, 2, 4, 6)}
    service.bad = texts
    for threshold in (2, 4, 6):
        moderator = ContentSafety(threshold)
        for text, (category, severity) in texts.items():
            assert moderator(text) == (f"{category.lower()} {severity} (threshold {threshold})" if severity >= threshold else "")
    assert service.seen == list(texts) * 3
    assert ContentSafety()("Hate 2 and Sexual 4 and Violence 6") == "sexual 4, violence 6 (threshold 4)"


def test_a_text_of_no_words_is_not_sent(service):
    assert [ContentSafety()(text) for text in ("", " \n")] == ["", ""] and service.seen == []


FAILURES = {
    "429 for ever": ([error(429, "Too many requests")] * 2, 2, "429: .*Too many requests"),
    "429, wait an hour": ([error(429, **{"Retry-After": "3600"})], 1, "is busy: it answers 429 and asks to wait 3600 s, longer than the 10 s we do"),
    "500": ([error(500, "oops")] * 2, 2, "500: .*oops"),
    "502 without words": ([(502, {}, "")] * 2, 2, "502: Operation returned an invalid status 'Bad Gateway'"),
    "time-out": (["late"] * 2, 2, "ServiceResponseTimeoutError: .*[Tt]imed out"),
    "closed connection": (["cut"] * 2, 2, "ServiceResponseError: .*Remote end closed connection"),
    "401": ([error(401, "Access denied due to invalid subscription key")], 1, "401: .*Access denied due to invalid subscription key"),
    "404": ([error(404, "Resource not found")], 1, "404: .*Resource not found"),
    "no JSON": ([(200, JSON, '{"categoriesAnalysis": [')], 1, "200: JSON is invalid"),
    "a web page": ([(200, {"Content-Type": "text/html"}, "<html>")], 1, r"malformed \(JSONDecodeError"),
    "nothing": ([(200, JSON, "{}")], 1, r"malformed \(KeyError: 'categoriesAnalysis'\)"),
    "a list": ([(200, JSON, "[1]")], 1, r"malformed \(DeserializationError"),
    "a word for a number": ([analysis(Hate="low")], 1, r"malformed \(ValueError: .*'low'"),
    "no number": ([analysis(Hate=None)], 1, r"malformed \(ValueError: .*None"),
    "no such number": ([analysis(Hate=9)], 1, r"malformed \(ValueError: .*9"),
    "a category twice": ([(200, JSON, json.dumps({"categoriesAnalysis": [{"category": c, "severity": 0} for c in [*CATEGORIES, "Hate"]]}))], 1, "malformed"),
    **{f"no {c}": ([(200, JSON, json.dumps({"categoriesAnalysis": [{"category": x, "severity": 0} for x in CATEGORIES if x != c]}))], 1, "malformed") for c in CATEGORIES},
}


@pytest.mark.parametrize("fates, tries, said", FAILURES.values(), ids=FAILURES)
def test_whatever_fails_lets_nothing_through(service, fates, tries, said):
    service.fates = list(fates)
    moderator, begun = ContentSafety(timeout=0.2, retries=1), time.monotonic()
    with pytest.raises(Unmoderated, match=said) as e:
        moderator("hello")
    assert len(service.seen) == tries and time.monotonic() - begun < 2
    assert str(e.value).startswith("Content Safety did not say whether a text may pass, so it may not: ") or "is busy" in said
    assert "\n" not in str(e.value)
    time.sleep(0.4 if "late" in fates else 0)
    assert moderator("hello") == ""  # and it goes on


def test_a_service_that_is_busy_is_asked_again_when_it_says(service):
    service.fates = ["cut", error(429, **{"Retry-After": "1"}), error(429, **{"Retry-After": "0.1"})]
    begun = time.monotonic()
    assert ContentSafety()("hello") == "" and service.seen == ["hello"] * 4
    assert 1.1 <= time.monotonic() - begun < 4
    for fate in (error(429), error(503), "late"):
        service.fates, service.seen = [fate], []
        assert ContentSafety(timeout=0.2)("hello") == "" and service.seen == ["hello"] * 2


def test_nobody_listens():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(Unmoderated, match="ServiceRequestError: .*refused"):
            ContentSafety(endpoint=f"http://127.0.0.1:{s.getsockname()[1]}", key=KEY, retries=0)("hello")


def test_the_key_goes_nowhere_else(service):
    other = Service()
    service.fates = [(status, {"Location": f"{other.url.replace('127.0.0.1', 'localhost')}/contentsafety/text:analyze"}, "") for status in (307, 308)]
    moderator = ContentSafety()
    for status in (307, 308):
        with pytest.raises(Unmoderated, match=f"{status}: "):
            moderator("hello")
    service.fates = [error(401, f"the key {KEY} is wrong")]
    with pytest.raises(Unmoderated, match=r"the key \[the key\] is wrong") as e:
        moderator("hello")
    assert KEY not in "".join(traceback.format_exception(e.value)) + repr(moderator) and other.seen == []
    other.close()


def test_what_is_missing_is_said_at_once(monkeypatch):
    for name in ("CONTENT_SAFETY_ENDPOINT", "CONTENT_SAFETY_KEY"):
        monkeypatch.delenv(name, raising=False)
    for given_, said in (({}, "the environment has no CONTENT_SAFETY_ENDPOINT and no CONTENT_SAFETY_KEY: put"), ({"endpoint": "https://x"}, "has no CONTENT_SAFETY_KEY: put"),
                         ({"key": KEY}, "has no CONTENT_SAFETY_ENDPOINT: put"), ({"endpoint": "https://x", "key": f"{KEY}\n{KEY}"}, "is no key"),
                         ({"endpoint": "https://x", "key": KEY, "threshold": 5}, "no threshold named 5; known: 2, 4, 6")):
        with pytest.raises(ValueError, match=said) as e:
            ContentSafety(**given_)
        assert KEY not in str(e.value)
    for odd in (KEY, "http://example.com", "http://localhost@example.com", "http://localhost.example.com", "https://a:b@x", "https://x/?key=1", "x.cognitiveservices.azure.com"):
        with pytest.raises(ValueError, match="CONTENT_SAFETY_ENDPOINT must be like https://NAME.cognitiveservices.azure.com") as e:
            ContentSafety(endpoint=odd, key=KEY)
        assert odd not in str(e.value)
    for fine in ("https://x.cognitiveservices.azure.com", "https://gate.example.com:8443/content/", "http://localhost:1", "http://127.0.0.1"):
        ContentSafety(endpoint=fine, key=KEY)
    monkeypatch.setitem(sys.modules, "azure.ai.contentsafety", None)
    with pytest.raises(ValueError, match="pip install azure-ai-contentsafety"):
        ContentSafety()


# ------------------------------------------------------------------------------------------- long texts

def prose(seed, length):
    """Words of letters and emoji that hardly repeat, some longer than a line."""
    rng = random.Random(seed)
    words = ("".join(rng.choices("abcdefghijklmnopqrstuvwxyz☕", k=rng.choice([1, 4, 7, 12, 60, 400]))) + rng.choice(" \n\t") for _ in range(length))
    return "".join(words)[:length]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 45_000))
def test_whatever_is_short_stands_whole_in_one_portion(seed, length):
    text = prose(seed, length)
    parts = list(safety.portions(text))
    assert max(map(len, parts)) <= 10_000 and (len(parts) == 1) == (len(text) <= 10_000) and parts[-1] == text[-len(parts[-1]):]
    assert all(any(text[at:at + 1_000] in p for p in parts) for at in range(0, len(text), 97))
    begins = [text.index(p) for p in parts]
    for cut in [*begins[1:], *(b + len(p) for b, p in zip(begins, parts[:-1]))]:
        assert text[cut - 1] in " \n\t" or not re.search(r"[ \n\t]", text[cut - 100:cut])  # between two words, if there is a gap in reach


def test_nothing_hides_at_the_edge_of_a_request(service):
    service.bad = {"how to kill": ("Violence", 6)}
    plain, moderator = prose(0, 25_000), ContentSafety()
    assert moderator(plain) == "" and [len(t) for t in service.seen] == [len(p) for p in safety.portions(plain)] and len(service.seen) == 3
    for at in (0, 8_995, 9_995, 10_000, 17_990, 24_989):
        assert moderator(plain[:at] + "how to kill" + plain[at:]) == "violence 6 (threshold 4)"


# --------------------------------------------------------------------------------------------- streams

@st.composite
def streams(draw):
    """A text none of whose characters comes twice, but for spaces, and where it is cut into pieces."""
    text = "".join(" " if draw(st.integers(0, 5)) == 0 else chr(0x4E00 + i) for i in range(draw(st.integers(0, 150))))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=60)))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]


@settings(max_examples=300, deadline=None)
@given(streams(), st.integers(1, 60))
def test_all_that_passes_comes_out_and_nothing_before_it_was_moderated(stream, window):
    (text, pieces), moderated, out = stream, set(), ""
    for piece in guard((p for p in pieces), lambda t: moderated.update(t) or "", window):
        out += piece
        assert set(out) <= moderated
    assert out == text


@settings(max_examples=300, deadline=None)
@given(streams(), st.integers(6, 60), st.data())
def test_a_harmful_phrase_at_a_window_s_edge_is_not_let_out_in_part(stream, window, data):
    text, pieces = stream
    at = data.draw(st.integers(0, max(0, len(text) - 1)))
    harmful = text[at:at + data.draw(st.integers(1, window // 3))]
    if not harmful.strip():
        return
    out = list(guard((p for p in pieces), lambda t: "found" if harmful in t else "", window))
    assert out[-1] == FILTERED and text[:at].startswith("".join(out[:-1]))


def test_the_end_is_judged_with_what_came_before_it_and_the_stream_is_closed():
    asked, state = [], []

    def source(text):
        try:
            yield from text
            state.append("read to the end")
        finally:
            state.append("closed")

    text = "one two three four five six seven"
    assert "".join(guard(source(text), lambda t: asked.append(t) or "", 12)) == text
    assert asked == ["one two ", "one two three four ", "one two three four five six ", text] and state == ["read to the end", "closed"]
    state.clear()
    assert list(guard(source("ab" * 50), lambda t: "found" * (len(t) > 20), 12))[-1] == FILTERED and state == ["closed"]
    state.clear()
    stream = guard(source("ab" * 50), lambda t: "", 12)
    next(stream)
    stream.close()
    assert state == ["closed"]
    state.clear()
    with pytest.raises(Unmoderated):
        list(guard(source("ab" * 50), raises, 12))
    assert state == ["closed"] and list(guard(source(""), raises)) == []
    long = prose(1, 5_000)
    asked.clear()
    list(guard(source(long), lambda t: asked.append(t) or ""))
    assert 1_000 <= min(map(len, asked[5:])) and max(map(len, asked)) < 2_000


def raises(text):
    raise Unmoderated("the service is away")


# ---------------------------------------------------------------------------------------------- a chat

@pytest.fixture
def chat(student):
    return Chat(student, "Be brief.", max_new_tokens=200)


@pytest.fixture
def answer(student):
    """What the student says to 2+2, some 200 characters."""
    return Chat(student, "Be brief.", max_new_tokens=200).say("2+2")


def test_a_chat_that_passes_is_the_chat_itself(service, chat, student, answer):
    talk, plain = Moderated(chat, ContentSafety(), window=30), Chat(student, "Be brief.", max_new_tokens=200)
    pieces = list(talk.stream("2+2"))
    assert "".join(pieces) == answer.text and len(pieces) > 3 and talk.last == answer
    assert (talk.say("3+3"), talk.ids, talk.messages) == ([plain.say(q) for q in ("2+2", "3+3")][1], plain.ids, plain.messages)
    assert service.seen[:2] == ["Be brief.", "2+2"] and talk.retry() == "3+3" and talk.system == "Be brief."


def test_a_filtered_question_goes_nowhere(service, chat):
    service.bad = {"bomb": ("Violence", 6)}
    talk = Moderated(chat, ContentSafety())
    talk.say("2+2")
    before, turns = list(talk.messages), chat.turns
    assert list(talk.stream("a bomb?")) == [FILTERED] and talk.messages == before and chat.turns == turns
    assert talk.last.text == FILTERED and talk.last.reason == "filtered: violence 6 (threshold 4)" and talk.last.tokens == 0


def test_a_filtered_answer_stands_as_such_and_the_chat_goes_on(service, chat, student, answer):
    bad = answer.text[100:108]
    service.bad = {bad: ("Hate", 4)}
    talk = Moderated(chat, ContentSafety(), window=30)
    pieces = list(talk.stream("2+2"))
    assert pieces[-1] == FILTERED and 1 < len("".join(pieces[:-1])) <= 100 and answer.text.startswith("".join(pieces[:-1]))
    assert talk.messages[1:] == [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": FILTERED}]
    assert talk.last.reason == "filtered: hate 4 (threshold 4)" and talk.last.text == FILTERED and talk.last.ids == () and talk.last.tokens < 200
    service.bad = {}
    talk.say("3+3")
    assert talk.ids == student.ids_of([*talk.messages[:3], {"role": "user", "content": "3+3"}])  # read anew from what stands there


def test_what_could_not_be_judged_is_taken_back(service, chat):
    talk = Moderated(chat, ContentSafety(retries=0), window=30)
    first = talk.say("3+3")
    before = [dict(m) for m in talk.messages]
    for fates in ([error(500)], [analysis(), error(500)], [analysis(), analysis(), (200, JSON, "{}")]):  # the question, the beginning, the middle
        service.fates = list(fates)
        with pytest.raises(Unmoderated):
            talk.say("2+2")
        assert talk.messages == before and talk.last == first
    talk.moderator = lambda text: {}[text] if text != "2+2" else ""  # one that breaks
    with pytest.raises(KeyError):
        talk.say("2+2")
    assert talk.messages == before and talk.last == first
    with pytest.raises(Unmoderated):
        Moderated(chat, raises)
    talk.moderator = lambda text: ""
    with pytest.raises(ValueError, match="the conversation has"):
        talk.say("long " * 2000)
    assert talk.messages == before and talk.last == first


def test_broken_off_only_what_was_let_out_stays(chat, answer):
    talk = Moderated(chat, lambda text: "", window=30)
    stream = talk.stream("2+2")
    heard = next(stream) + next(stream)
    stream.close()
    assert talk.messages[-1]["content"] == talk.last.text == heard == answer.text[:len(heard)] and talk.last.reason == "stopped"

    asked = Counter()

    def pressed(text):  # Ctrl-C, while the third window is judged
        asked["times"] += 1
        if asked["times"] == 5:
            raise KeyboardInterrupt
        return ""

    del chat.messages[1:]
    talk, heard = Moderated(chat, pressed, window=30), ""
    with pytest.raises(KeyboardInterrupt):
        for piece in talk.stream("2+2"):
            heard += piece
    assert heard and talk.messages[-1]["content"] == heard == talk.last.text and talk.last.reason == "stopped"


def test_a_system_message_is_moderated_when_it_is_set(service, chat):
    service.bad = {"steal": ("Hate", 6)}
    talk = Moderated(chat, ContentSafety())
    with pytest.raises(ValueError, match=r"the system message is filtered: hate 6 \(threshold 4\)"):
        talk.system = "Tell how to steal."
    talk.system = "Be brief."  # what it is already is not asked again
    talk.system = "cautious"
    assert talk.system == chat.system == service.seen[-1] and chat.system.startswith("You are Orca") and len(service.seen) == 3
    talk.system = None
    assert chat.system is None and len(service.seen) == 3
    chat.system = "I steal."
    with pytest.raises(ValueError, match="the system message is filtered"):
        Moderated(chat, ContentSafety())
