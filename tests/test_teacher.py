"""teacher.py: against a real server on loopback, also when it, the client or the line between them fails: no answer is lost, none is paid for twice."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from serving import Proxy, Server

from orcalab import corpus, endpoint, families, recipes, strategies, teacher
from orcalab.config import Config
from orcalab.endpoint import Teacher
from orcalab.ledger import Ledger, key_of
from orcalab.rows import Row
from orcalab.strategies import FINAL

ROWS = 200


@pytest.fixture(scope="module", params=["tiny-random", pytest.param("smollm2-135m", marks=pytest.mark.long)])
def student(request, tmp_path_factory):
    """A folder with a model's weights and tokenizer: what the server serves."""
    from orcalab import model
    if request.param != "tiny-random":
        return model.resolve(request.param)
    folder = tmp_path_factory.mktemp("served")
    model.save(folder, *model.load("tiny-random", torch.float32, "cpu")[:2])
    return folder


def short(student):
    """Return the system that questions are asked under: a real model reads hundreds of tokens of instruction for seconds."""
    return "empty" if "smollm2" in str(student) else "strategy"


def serve(student, log):
    return Server(student, log, *(["--continuous-batching"] if "smollm2" in str(student) else []))


@pytest.fixture(scope="module")
def server(student, tmp_path_factory):
    made = serve(student, tmp_path_factory.mktemp("log") / "server.log")
    yield made
    made.kill()


@pytest.fixture
def line(server):
    """Make a Proxy before the server: line(share=0.3)."""
    made = []

    def make(**how):
        made.append(Proxy(server.port, **how))
        return made[-1]
    yield make
    for p in made:
        p.close()


def asked(n=ROWS, system="strategy", calls="", **row):
    rows = [Row(id=f"q-{i}", source="s", task="gsm8k", messages=[{"role": "user", "content": f"What is {i} + 1?"}, {"role": "assistant", "content": str(i + 1)}], answer=str(i + 1), **row)
            for i in range(n)]
    return list(teacher.queries(rows, Config(system=system), calls=calls))


def whom(proxy, folder, **more):
    return Teacher(**{"name": "local", "model": str(folder), "url": proxy.url, "max_tokens": 4, "temperature": 0.0, "retries": 8, "timeout": 5.0, "concurrency": 16,
                      "price_in": 2.0, "price_out": 6.0, **more})


def check_ledger(path, queries, who, proxy):
    """Hold a ledger to what was asked: a line a question, totals that are the sums of the lines, and of what the server counted in the answers that went out."""
    entries = [json.loads(x) for x in path.read_bytes().split(b"\n")[:-1]]
    assert sorted(e["key"] for e in entries) == sorted(key_of(who, q.messages) for q in queries)
    with Ledger(path) as book:
        assert book.torn == 0 and book.tokens == sum(e["tokens_in"] + e["tokens_out"] for e in entries) == sum(proxy.tokens[q] for q in proxy.given)
        assert book.cost == {"USD": pytest.approx(sum(2e-6 * e["tokens_in"] + 6e-6 * e["tokens_out"] for e in entries), abs=1e-12)}
    return entries


# ------------------------------------------------------------------------------------- a real server, on a bad line

def test_two_hundred_rows_from_a_real_server(server, student, line, tmp_path):
    proxy, queries = line(), asked(system=short(student))
    who = whom(proxy, student, licence="none: a random model", timeout=60.0)
    with Ledger(tmp_path / "ledger.jsonl", write=True) as book:
        assert teacher.collect(queries, who, book) == {"new calls": ROWS, "known from before": 0}
        assert proxy.most <= who.concurrency and sum(proxy.given.values()) == ROWS
        check_ledger(book.path, queries, who, proxy)
        assert teacher.collect(queries, who, book) == {"known from before": ROWS} and sum(proxy.seen.values()) == ROWS  # nothing is asked twice
        again = replace(who, max_tokens=5)
        assert teacher.collect(queries[:3], again, book)["new calls"] == 3  # other settings, another answer
    if "smollm2" in str(student):
        return  # its batches are computed in another order than one question alone
    entries = [e for e in map(json.loads, (tmp_path / "ledger.jsonl").read_text().splitlines()) if e["sampling"]["max_completion_tokens"] == 4]
    e, q = next((e, q) for e in entries for q in queries if e["id"] == q.row.id == "q-7")
    assert e["messages"] == q.messages == [{"role": "system", "content": families.instruction(families.family_of("gsm8k"))}, {"role": "user", "content": "What is 7 + 1?"}]
    assert (e["task"], e["family"], e["strategy"], e["teacher"], e["model"], e["finish"], e["tokens_out"]) == ("gsm8k", q.family, "step-by-step", "local", str(student), "length", 4)
    assert e["version"].startswith(str(student)) and e["licence"] == "none: a random model" and e["cost"] == pytest.approx((2 * e["tokens_in"] + 24) / 1e6)
    assert e["sampling"] == {"temperature": 0.0, "top_p": 0.95, "max_completion_tokens": 4} and len(e["prompt_sha256"]) == 64 and re.match(r"20\d\d-", e["time"])
    from orcalab import generate
    local = generate.Student(student, "cpu", "fp32")
    assert e["answer"] == local.ask("What is 7 + 1?", e["messages"][0]["content"], 4).text  # the model really said so


def test_with_a_third_of_the_answers_spoiled(server, student, line, tmp_path):
    queries, good = asked(system=short(student)), line()
    with Ledger(tmp_path / "first.jsonl", write=True) as book:
        teacher.collect(asked(1, "empty"), whom(good, student), book)  # the first one loads the model
        begun = time.monotonic()
        teacher.collect(asked(3, "empty"), whom(good, student, concurrency=1), book)
    patience = 1 + 10 * (time.monotonic() - begun)  # eight questions wait for each other in the server
    proxy = line(share=0.3, late=patience + 0.5)
    who = whom(proxy, student, timeout=patience, concurrency=8)
    with Ledger(tmp_path / "ledger.jsonl", write=True) as book:
        said = teacher.collect(queries, who, book)
    assert said == {"new calls": ROWS, "known from before": 0}
    assert min(proxy.fates[k] for k in ("429", "500", "cut", "late")) >= 5
    entries = check_ledger(tmp_path / "ledger.jsonl", queries, who, proxy)
    assert sum(e["tries"] for e in entries) >= sum(proxy.fates.values()) - proxy.fates["late"] and sum(proxy.fates.values()) > ROWS * 1.2
    # an answer that arrived is never asked for again; one that came after the time-out may be
    assert len(proxy.given) == ROWS and sum(proxy.given.values()) <= ROWS + 3


def test_with_the_server_killed_half_way(student, tmp_path):
    server, queries = serve(student, tmp_path / "server.log"), asked(system=short(student))
    proxy = Proxy(server.port)
    who, path = whom(proxy, student, retries=12), tmp_path / "ledger.jsonl"
    try:
        with Ledger(path, write=True) as book:
            said = []
            job = threading.Thread(target=lambda: said.append(teacher.collect(queries, who, book)))
            job.start()
            while len(book) < ROWS // 2:
                time.sleep(0.01)
            server.kill()
            gone = len(book)
            server.start()
            job.join()
        assert said == [{"new calls": ROWS, "known from before": 0}] and gone < ROWS
        check_ledger(path, queries, who, proxy)
        assert len(proxy.given) == sum(proxy.given.values()) == ROWS
    finally:
        proxy.close()
        server.kill()


def command(proxy, student, out, rows, *more, **env):
    words = [sys.executable, "-m", "orcalab", "teach", "--recipe", "smoke", "--system", short(student), "--rows", rows, "--teacher", "local", "--model", student, "--url", proxy.url, "--out", out,
             "--max_tokens", "4", "--temperature", "0", "--price_in", "2", "--price_out", "6", "--drop", "nothing", *more]
    more = [] if any(str(w).startswith("--key") for w in words) or "OPENAI_API_KEY" not in env else ["--key", "OPENAI_API_KEY"]
    words += more
    return subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **env})


@pytest.fixture
def questions(tmp_path):
    """A file of questions, without answers."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"id": f"q-{i}", "task": "gsm8k", "question": f"What is {i} + 1?", "response": ""}) + "\n" for i in range(ROWS)))
    return path


def test_with_the_client_killed_half_way(server, student, line, questions, tmp_path):
    proxy, book = line(share=0.3, late=0.5), tmp_path / "out" / "teacher" / "local" / "ledger.jsonl"
    answered, kept = set(), 0
    for _ in range(2):  # killed twice, then left alone
        job = command(proxy, student, tmp_path / "out", questions)
        while not book.exists() or book.read_bytes().count(b"\n") < kept + 60:
            assert job.poll() is None, job.communicate()
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
        job.communicate()
        time.sleep(1)  # what is on its way arrives at the proxy
        lines = [x for x in book.read_bytes().split(b"\n")[:-1]]
        answered, kept = {json.dumps(json.loads(x)["messages"]) for x in lines}, len(lines)
        assert len(answered) == kept
        proxy.seen.clear()
        job = command(proxy, student, tmp_path / "out", questions, "--first", "0") if _ else None
    out, err = job.communicate()
    assert job.returncode == 0, err
    assert not answered & set(proxy.seen)  # nothing that the ledger had was asked again
    entries = [json.loads(x) for x in book.read_bytes().split(b"\n")[:-1]]
    assert len(entries) == len({e["key"] for e in entries}) == len({e["id"] for e in entries}) == ROWS
    assert re.search(rf"known from before {kept}\b", out) and re.search(rf"new calls {ROWS - kept}\b", out)
    total = sum(e["tokens_in"] for e in entries), sum(e["tokens_out"] for e in entries)
    status = command(proxy, student, tmp_path / "out", questions, "--status").communicate()[0]
    assert f"{book}: {ROWS} answers\n" in status and re.search(rf"local .* {ROWS} +{total[0]} +{total[1]} +{(2 * total[0] + 6 * total[1]) / 1e6:.4f} USD", status)


# ------------------------------------------------------------------------------------------------ caps and pace

def said(text, finish="stop", usage=(100, 50)):
    """What an endpoint answers, for tests of what is done with it."""
    return 200, json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m-1", "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
                            **({"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}} if usage else {})}).encode()


@pytest.fixture
def answering(tmp_path):
    """An endpoint whose answers a test writes: answering(reply) gives a function that collects from it."""
    made = []

    def make(reply, **how):
        made.append(Proxy(0, reply=lambda headers, body: reply(body) if not isinstance(reply, tuple) else reply, **how))

        def collect(queries, **more):
            who = whom(made[-1], "m", **more)
            with Ledger(tmp_path / "ledger.jsonl", write=True) as book:
                return teacher.collect(queries, who, book), book, who, made[-1]
        return collect
    yield make
    for p in made:
        p.close()


@pytest.mark.parametrize("cap", [{"budget": 0.01}, {"token_budget": 3000}])
def test_a_cap_is_passed_by_no_more_than_the_calls_in_flight(answering, cap):
    each_cost, each_tokens = (100 * 2 + 50 * 6) / 1e6, 150
    collect = answering(said("Final answer: 1"))
    found, book, who, proxy = collect(asked(), **cap, concurrency=8)
    why = next(k for k in found if k.startswith("stopped"))
    assert re.match(r"stopped: the budget of (0.01 USD|3,000 tokens) is used up \(", why)
    enough = 20  # answers that reach either cap
    assert enough <= found["new calls"] <= enough + who.concurrency and len(book) == found["new calls"] == sum(proxy.given.values())
    assert book.cost["USD"] - 0.01 <= who.concurrency * each_cost + 1e-12 and book.tokens - 3000 <= who.concurrency * each_tokens
    assert collect(asked(), **cap)[0]["new calls"] == 0  # what was spent before counts
    more = {k: 2 * v for k, v in cap.items()}
    assert collect(asked(), **more, concurrency=8)[0]["new calls"] + found["new calls"] <= 2 * enough + who.concurrency


def test_a_cap_with_one_call_at_a_time_is_exact(answering):
    assert answering(said("1"))(asked(), budget=0.01, concurrency=1)[0]["new calls"] == 20


def test_requests_are_spaced(answering):
    found, _, _, proxy = answering(said("1", usage=(10, 10)), share=0.2)(asked(30), requests_a_minute=600, concurrency=16)
    gaps = [b - a for a, b in zip(proxy.times, proxy.times[1:])]
    assert found["new calls"] == 30 and len(proxy.times) > 30  # tries again wait for their turn, too
    assert proxy.times[-1] - proxy.times[0] >= 0.1 * (len(proxy.times) - 1) - 0.15 and sorted(gaps)[len(gaps) // 2] > 0.05


@pytest.mark.parametrize("letter", ["x", "ж"])
def test_tokens_are_spaced_by_what_they_really_were(answering, letter):
    (one,) = asked(1)
    queries = [one._replace(messages=[{"role": "user", "content": f"{n} " + 2000 * letter}]) for n in range(40)]
    found, _, _, proxy = answering(said("1", usage=(1000, 1000)))(queries, tokens_a_minute=600_000, concurrency=2)
    took = proxy.times[-1] - proxy.times[0]
    assert found["new calls"] == 40 and 0.2 * 36 <= took <= 0.2 * 44 + 2  # 2,000 tokens take 0.2 s, whatever was guessed


def test_after_a_stop_nothing_that_waits_for_its_turn_is_sent(answering):
    found, book, _, proxy = answering(said("1"))(asked(20), budget=0.0001, requests_a_minute=60, concurrency=8)
    assert found["new calls"] == sum(proxy.seen.values()) <= 2 and any("the budget of 0.0001" in k for k in found)


def test_a_budget_in_another_currency_than_the_ledgers(answering):
    collect = answering(said("1"))
    collect(asked(2))
    with pytest.raises(ValueError, match="the ledger counts in USD, and the budget in EUR: give both in one currency, or another out"):
        collect(asked(4), currency="EUR", budget=1.0)


def test_what_was_known_before_is_no_measure_of_the_time_left(answering, monkeypatch):
    collect, left = answering(said("1")), []
    collect(asked(150))
    advance = teacher.Progress.advance
    monkeypatch.setattr(teacher.Progress, "advance", lambda bar, *a, **k: (advance(bar, *a, **k), left.append((bar.done, bar.before))))
    assert collect(asked(180))[0]["new calls"] == 30
    assert left[-1] == (180, 150)


# --------------------------------------------------------------------------------------------- what goes wrong

def test_an_endpoint_that_is_gone_ends_it_cleanly(answering, tmp_path):
    collect = answering(said("1"))
    found = collect(asked(5))[0]
    assert found["new calls"] == 5
    who = Teacher(name="local", model="m", url="http://127.0.0.1:9/v1", max_tokens=4, retries=0, concurrency=4, temperature=0.0)
    with Ledger(tmp_path / "ledger.jsonl", write=True) as book:
        found = teacher.collect(asked(), who, book)
        assert found["unanswered"] == 8 and found["stopped: 8 questions in a row had no answer"] == 1 and found["known from before"] == 5 and len(book) == 5
    assert re.match(r"because: APIConnectionError: Connection error. \(ConnectError: ", next(k for k in found if k.startswith("because")))


@pytest.mark.parametrize("status, words", [(401, "AuthenticationError"), (403, "PermissionDeniedError"), (404, "NotFoundError")])
def test_an_endpoint_that_refuses_is_an_error_at_once(answering, status, words):
    collect = answering((status, b'{"error": {"message": "no such model, or key"}}'))
    with pytest.raises(ValueError, match=rf"the endpoint http://127.0.0.1:\d+/v1/ refuses: {words}: .*no such model, or key"):
        collect(asked(), concurrency=4)


def test_settings_that_the_endpoint_does_not_know_stop_it_soon(answering):
    found, book, _, proxy = answering((400, b'{"error": {"message": "unknown parameter top_p"}}'))(asked(), concurrency=4)
    assert found["stopped: 8 questions in a row had no answer"] == 1 and len(book) == 0 and sum(proxy.seen.values()) <= 8 + 4
    assert re.match("because: BadRequestError: .*unknown parameter top_p", next(k for k in found if k.startswith("because")))


def test_one_question_that_is_refused_stops_nothing(answering, tmp_path):
    def reply(body):
        asks = body["messages"][-1]["content"]
        if "What is 0 +" in asks:
            return 400, b'{"error": {"message": "too long"}}'
        if "What is 2 +" in asks:
            return 403, b'{"error": {"message": "not this one"}}'
        return (400, b'{"error": {"message": "filtered", "code": "content_filter"}}') if "What is 3 +" in asks else said("Final answer: 1")
    collect = answering(reply)
    found, book, who, proxy = collect(asked(30), concurrency=1)
    assert (found["new calls"], found["unanswered"]) == (28, 2) and "because: PermissionDeniedError: " in " ".join(found)
    again = collect(asked(30), concurrency=2)[0]
    assert (again["known from before"], again["unanswered"]) == (28, 2)  # what the filter refused is answered; the others may be, another time
    with Ledger(tmp_path / "ledger.jsonl") as book:
        kept = teacher.rows_from(asked(30), who, book, tmp_path)
    assert kept == {"unanswered": 2, "kept": 27, "dropped: filtered": 1, "wrong": 27}
    (line,) = (tmp_path / "dropped.jsonl").read_text().splitlines()
    assert json.loads(line)["why"] == "filtered" and json.loads(line)["id"] == "q-3"


@pytest.mark.parametrize("page", [b"<html>please log in</html>", b"{}", b'{"choices": []}', b'"text"', b""])
def test_a_page_that_is_no_answer_is_no_answer(answering, page):
    found, book, *_ = answering((200, page))(asked(3), concurrency=3, retries=0)
    assert found["unanswered"] == 3 and len(book) == 0 and found["because: the endpoint's answer is no chat completion"] == 1


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3}])
def test_an_answer_without_usage_is_guessed_and_says_so(answering, usage):
    status, data = said("x" * 40, usage=None)
    _, book, who, _ = answering((status, json.dumps({**json.loads(data), **({} if usage is None else {"usage": usage})}).encode()))(asked(1))
    (e,) = map(json.loads, book.path.read_text().splitlines())
    assert e["guessed"] is True and e["tokens_out"] == 10 and e["tokens_in"] == sum(len(m["content"]) for m in e["messages"]) // 4


def test_rows_of_the_same_words_are_asked_once(answering):
    queries = asked(300)
    twins = [q._replace(row=replace(q.row, id=q.row.id + "-twin")) for q in queries]
    found, book, who, proxy = answering(said("Final answer: 1"))([q for pair in zip(queries, twins, twins) for q in pair], concurrency=16)
    assert found["new calls"] == 300 and sum(proxy.seen.values()) == 300
    with Ledger(book.path) as again:
        assert teacher.rows_from(queries + twins, who, again, book.path.parent)["kept"] == 600


def test_ctrl_c_keeps_what_is_in_flight(server, student, line, questions, tmp_path):
    proxy, book = line(), tmp_path / "out" / "teacher" / "local" / "ledger.jsonl"
    job = command(proxy, student, tmp_path / "out", questions, "--concurrency", "4")
    while not book.exists() or book.read_bytes().count(b"\n") < 30:
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as a shell leaves it to what it starts with &
    job.send_signal(signal.SIGTERM if ignored else signal.SIGINT)  # a scheduler's stop is to do the same
    out, err = job.communicate(timeout=60)
    assert job.returncode == 130 and "calls in flight (Ctrl-C again leaves them)" in out and "stopped: you stopped it" in out and "; the same command goes on" in out, err
    assert book.read_bytes().count(b"\n") == sum(proxy.given.values()) < ROWS and (book.parent / "rows.jsonl").exists()


# ------------------------------------------------------------------------------------------------------ the key

def test_no_key_in_any_output(questions, tmp_path):
    key = "sk-planted-0123456789abcdef"
    echo = Proxy(0, reply=lambda headers, body: (401, json.dumps({"error": {"message": f"Incorrect API key provided: {headers['Authorization'].split()[1]}"}}).encode()))
    good = Proxy(0, share=0.2, late=0.1, reply=lambda headers, body: said(f"You sent {key}. Final answer: 1") if headers["Authorization"] == f"Bearer {key}" else (401, b"{}"))
    texts = []
    for proxy, flags in ((echo, []), (good, []), (good, ["--status"]), (good, ["--key", key]), (good, ["--url", f"http://me:{key}@127.0.0.1/v1"]), (good, ["--url", f"http://127.0.0.1/v1?token={key}"]), (good, [f"--key={key}"]),
                         (good, [f"--kay={key}"])):
        job = command(proxy, "m", tmp_path / "out", questions, *flags, OPENAI_API_KEY=key, OPENAI_LOG="debug", PYTHONFAULTHANDLER="1")
        told = job.communicate()
        texts += [(job.returncode, *told)]
    code = ("from orcalab import teacher\nfrom orcalab.endpoint import Teacher\nfrom orcalab.ledger import Ledger\nfrom orcalab.rows import Row\nfrom orcalab.config import Config\nimport sys\n"
            "q = list(teacher.queries([Row(messages=[{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}])], Config(system='empty')))\n"
            "teacher.collect(q, Teacher(model='m', url=sys.argv[1], key='OPENAI_API_KEY'), Ledger(sys.argv[2], write=True))")
    job = subprocess.run([sys.executable, "-c", code, echo.url, tmp_path / "other.jsonl"], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OPENAI_API_KEY": key})
    texts.append((job.returncode, job.stdout, job.stderr))
    for p in (echo, good):
        p.close()
    broken = subprocess.run([sys.executable, "-c", code, echo.url, tmp_path / "other.jsonl"], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OPENAI_API_KEY": f"{key}\nsecond"})
    assert "the value of OPENAI_API_KEY is no key: it holds a space, a line break" in broken.stderr
    assert "Traceback" in texts[8][2] and "Incorrect API key provided: [the key]" in texts[8][2] and "Incorrect API key provided: [the key]" in texts[0][2]
    assert all("the key itself is never given" in texts[n][2] for n in (3, 6)) and all("url holds a user's name or a query" in texts[n][2] for n in (4, 5))
    assert "no parameter named 'kay'; did you mean" in texts[7][2] and [t[0] for t in texts[:2]] == [2, 0]
    texts.append((0, broken.stdout, broken.stderr))
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert sum(len(w) for w in written) > 50_000 and b'"You sent [the key]. Final answer: 1"' in b"".join(written)  # it worked, with that key
    for w in [*written, *(t.encode() for _, *ts in texts for t in ts)]:
        assert key.encode() not in w and b"planted" not in w


def test_a_key_that_is_missing_is_said_before_the_work(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("AZURE_OPENAI_API_KEY", raising=False)
    for who in (Teacher(model="m"), Teacher(model="m", url="https://x.openai.azure.com", azure="2024-10-21"), Teacher(model="m", url="http://x/v1", key="MY_KEY")):
        with pytest.raises(ValueError, match=f"the environment has no {who.variable}: put the endpoint's key there"):
            endpoint.client_of(who, endpoint.Pace())
    monkeypatch.setenv("OPENAI_API_KEY", "k-1")
    with endpoint.client_of(Teacher(model="m", url="http://127.0.0.1:9/v1"), endpoint.Pace()) as client:
        assert client.api_key == "none"  # a key goes to an endpoint of one's own only if it is named
    assert [Teacher(**k).variable for k in ({}, {"url": "http://x/v1"}, {"url": "http://x/v1", "key": "MINE"}, {"url": "http://x", "azure": "1"})] == ["OPENAI_API_KEY", "", "MINE", "AZURE_OPENAI_API_KEY"]
    with pytest.raises(ValueError, match="which model is the teacher"):
        endpoint.client_of(Teacher(), endpoint.Pace())


def test_an_azure_endpoint(monkeypatch):
    seen = []
    proxy = Proxy(0, reply=lambda headers, body: (seen.append((headers["api-key"], headers["Authorization"], body["model"])), said("1"))[1])
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k-1")
    client = endpoint.client_of(Teacher(model="my-deployment", url=proxy.url.removesuffix("/v1"), azure="2024-10-21", key="AZURE_OPENAI_API_KEY"), endpoint.Pace())
    with client:
        assert client.chat.completions.create(model="my-deployment", messages=[{"role": "user", "content": "a"}]).choices[0].message.content == "1"
    proxy.close()
    assert seen == [("k-1", None, "my-deployment")] and proxy.paths == ["/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21"]
    for wrong, why in (({"azure": "1"}, "azure needs the url of your resource"), ({"budget": 1.0}, "a budget needs prices"), ({"length": "max_token"}, "did you mean 'max_tokens'")):
        with pytest.raises(ValueError, match=why):
            Teacher(**wrong)
    assert Teacher(length="max_tokens", max_tokens=7, temperature=-1.0, top_p=-1.0).sampling == {"max_tokens": 7}


# --------------------------------------------------------------------------------------------- what is asked

def test_each_stage_asks_its_own_way():
    row = Row(id="a", source="cot", task="gsm8k", strategy="", messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}], answer="2")
    ask = lambda system, **more: next(teacher.queries([row], Config(system=system), **more))
    user = {"role": "user", "content": "1+1"}
    family = families.family_of("gsm8k")
    assert ask("strategy") == ask("cautious") and ask("strategy").messages == [{"role": "system", "content": families.instruction(family)}, user]
    assert (ask("strategy").family, ask("strategy").strategy) == (family.name, family.strategy)
    other = ask("strategy", chosen={family.name: "direct-answer"})
    assert (other.strategy, other.messages[0]["content"]) == ("direct-answer", strategies.STRATEGIES["direct-answer"])
    assert ask("keep").messages == [{"role": "system", "content": "Be brief."}, user] and ask("empty").messages == [{"role": "system", "content": ""}, user] and ask("none").messages == [user]
    many = [replace(row, id=str(n)) for n in range(60)]
    drawn = [q.messages[0]["content"] for q in teacher.queries(many, Config(system="orca1"))]
    assert set(drawn) == {strategies.ORCA1[i] for i in (6, 11, 16)} and drawn == [q.messages[0]["content"] for q in teacher.queries(many, Config(system="orca1"))]
    assert all(q.strategy == "" for q in teacher.queries(many, Config(system="orca1")))


def test_questions_come_as_people_write_them(tmp_path):
    from orcalab.config import RowError
    lines = [{"question": "1+1"}, {"question": "2+2", "answer": "4", "task": "gsm8k"}, {"question": "3+3", "response": "", "id": "c"}, {"question": "4+4", "system_prompt": "Be brief.", "id": "d", "colour": "red", "answer": 8},
             {"messages": [{"role": "user", "content": "5+5"}, {"role": "assistant", "content": "10"}]}, {"question": "6+6", "answer": None, "id": "f"}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    rec = recipes.get("smoke", rows=str(path), out=str(tmp_path / "out"), drop="nothing")
    made, total = teacher.of_stage(rec, rec.stage("stage3_gpt4"), Teacher())
    found = {q.messages[-1]["content"]: q for q in made()}
    assert total == 6 and found["6+6"].row.answer == "" and set(found) == {"1+1", "2+2", "3+3", "4+4", "5+5", "6+6"} and all([m["role"] for m in q.messages] == ["system", "user"] for q in found.values())
    assert found["2+2"].row.answer == "4" and found["2+2"].family == families.family_of("gsm8k").name
    keep = {q.messages[-1]["content"]: [m["content"] for m in q.messages[:-1]] for q in teacher.of_stage(rec, rec.stage("stage3_gpt4", system="keep"), Teacher())[0]()}
    assert keep == {"1+1": [], "2+2": [], "3+3": [], "4+4": ["Be brief."], "5+5": [], "6+6": []}
    with pytest.raises(RowError, match=r"mine.jsonl:1: missing \['response'\]"):  # no row to learn from
        corpus.rows_of(rec, rec.stage("stage3_gpt4"))[0].choose()
    path.write_text(json.dumps({"question": "2+2", "answer": "4"}) + "\n")
    with pytest.raises(RowError, match=r"if they are questions of your own, add a column 'id' or 'task'; its columns are those of .*write gsm8k:PATH"):
        corpus.rows_of(rec, rec.stage("stage3_gpt4"))[0].choose()


def test_a_row_without_a_question():
    with pytest.raises(ValueError, match="t-1: holds no question for a teacher"):
        next(teacher.queries([Row(messages=[], text="once", id="t-1")], Config()))


def test_several_calls_are_one_conversation(answering, tmp_path):
    (name, turns) = next((k, v) for k, v in families.CALLS.items() if k == "draft-check-rewrite")
    collect = answering(lambda body: said(f"{len(body['messages'])} turns. {FINAL} 1"))
    queries = asked(3, calls=name)
    assert queries[0].follow == turns and len(turns) == 2
    found, book, who, proxy = collect(queries)
    assert found["new calls"] == 9
    entries = sorted((json.loads(x) for x in book.path.read_text().splitlines()), key=lambda e: (e["id"], e["call"]))
    assert [(e["id"], e["call"], len(e["messages"])) for e in entries] == [(f"q-{n}", c, 2 * c) for n in range(3) for c in (1, 2, 3)]
    assert entries[2]["messages"][2:] == [{"role": "assistant", "content": entries[0]["answer"]}, {"role": "user", "content": turns[0]},
                                          {"role": "assistant", "content": entries[1]["answer"]}, {"role": "user", "content": turns[1]}]
    with Ledger(book.path) as again:
        assert teacher.rows_from(queries, who, again, tmp_path)["kept"] == 3
    rows = [json.loads(x) for x in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [r["messages"] for r in rows] == [[*q.messages, {"role": "assistant", "content": f"6 turns. {FINAL} 1"}] for q in queries]  # the student sees one turn
    with pytest.raises(ValueError, match="no way of several calls named 'draft-check-rewritee'; did you mean 'draft-check-rewrite'"):
        asked(1, calls="draft-check-rewritee")


# --------------------------------------------------------------------------------------------------- what is kept

@pytest.mark.parametrize("answer, finish, drop, why", [
    ("1 + 1 = 2.\nFinal answer: 2", "stop", (), ""),
    ("1 + 1 = 3.\nFinal answer: 3", "stop", (), ""),
    ("1 + 1 = 3.\nFinal answer: 3", "stop", ("wrong",), "wrong"),
    ("1 + 1 = 2.\nFinal answer: 2", "stop", ("wrong",), ""),
    ("It is 2.", "stop", (), "format"),
    ("1 + 1 = 2.\nFinal answer: 2", "length", (), "cut off"),
    ("", "content_filter", (), "filtered"),
    ("I cannot help with that.", "refusal", (), "refusal"),
    ("I'm sorry, but I cannot answer that. Final answer: none", "stop", (), "refusal"),
    (" \n", "stop", (), "empty"),
    ("x", "tool_calls", (), "tool_calls"),
    ("half \ud800. Final answer: 2", "stop", (), "half a character"),
])
def test_verdict(answer, finish, drop, why):
    (query,) = asked(1)
    query = query._replace(row=replace(query.row, answer="2"))
    assert teacher.verdict(query, {"answer": answer, "finish": finish}, drop) == why
    assert teacher.verdict(query, None) == "unanswered"
    if not why:
        assert teacher.verdict(query, {"answer": answer, "finish": finish}, drop, lambda text: "rude" if "3" in text else "") == ("moderated: rude" if "3" in answer else "")


def test_under_a_message_that_asks_for_no_final_line_none_is_missed():
    (query,) = asked(1, system="empty")
    assert teacher.verdict(query, {"answer": "It is 1.", "finish": "stop"}) == ""


def test_rows_are_ready_for_a_stage_and_are_erased_there(answering, tmp_path, tokenizer):
    from orcalab import data
    collect = answering(lambda body: said(f"Let me see.\n{FINAL} " + str(int(re.search(r"What is (\d+)", body["messages"][-1]["content"])[1]) + 1)))
    queries = asked(40)
    _, book, who, _ = collect(queries)
    with Ledger(book.path) as again:
        assert teacher.rows_from(queries, who, again, tmp_path, ("wrong",)) == {"kept": 40, "right": 40}
    rec = recipes.get("smoke", rows=str(tmp_path / "rows.jsonl"), steps=0, epochs=1, out=str(tmp_path / "out"), seq_len=1024)
    asked_under = families.instruction(families.family_of("gsm8k"))
    kept, erased = (corpus.prepare(rec, rec.stage("stage3_gpt4", system=s), tokenizer) for s in ("strategy", "cautious"))
    for a, b in zip(kept.rows, erased.rows):
        assert a.messages[0]["content"] == b.original_system == asked_under and b.messages[0]["content"] == strategies.CAUTIOUS
        assert a.messages[1:] == b.messages[1:] and a.messages[-1]["content"].startswith("Let me see.") and a.teacher == "local" and a.strategy == "step-by-step"
    assert data.audit(erased, tokenizer) == {"erased": 40, "texts": 1, "leaks": 0}
    (bare,) = {r.messages[-1]["content"] == r.answer for r in corpus.prepare(rec, rec.stage("answer_only"), tokenizer).rows}
    assert bare  # the gold answer alone, for a control


def test_what_it_will_cost_is_said_before():
    queries = asked(3, calls="draft-check-rewrite")
    text, kinds = teacher.forecast(queries, 300, Teacher(model="m", price_in=10.0, price_out=30.0, max_tokens=100)).split("\n")
    read, write = (int(x.replace(",", "")) for x in re.search(r"some ([\d,]+) tokens to read and up to ([\d,]+) to write", text).groups())
    assert text.startswith("300 questions, about 900 calls to m, some ") and write == 90_000
    assert text.endswith(f": about {(10 * read + 30 * write) / 1e6:.2f} USD, less if answers are shorter") and kinds.endswith("by their column task: word-problems (step-by-step) 3")
    assert "no prices are given\n" in teacher.forecast(queries, 3, Teacher(model="m")) and ", stopped at 2\n" in teacher.forecast(queries, 3, Teacher(model="m", price_in=1.0, budget=2.0))


def test_the_command_says_what_is_missing(tmp_path, questions):
    def run(*words, code=2):
        job = subprocess.run([sys.executable, "-m", "orcalab", "teach", *map(str, words)], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": ""})
        assert job.returncode == code and "Traceback" not in job.stderr, job.stderr
        return job.stderr + job.stdout
    assert "procedural rows never end: say how many questions to ask, as in --first 200" in run("--model", "m", "--url", "http://192.0.2.1/v1")
    assert "which model is the teacher? Say --model NAME" in run("--rows", questions)
    assert "the environment has no OPENAI_API_KEY" in run("--rows", questions, "--model", "m")
    assert "no parameter named 'modell'; did you mean 'model'?" in run("--modell", "m")
    assert "there is no ledger runs/laptop-0/teacher/*/ledger.jsonl" in run("--status", "--out", "runs/laptop-0")
    assert "concurrency must be a number of at least 1, got 0" in run("--concurrency", "0", "--model", "m")
    assert "nothing answers at http://127.0.0.1:9/v1 ([Errno 111] Connection refused): is the server running" in run("--rows", questions, "--model", "m", "--url", "http://127.0.0.1:9/v1")
    assert "url starts with http:// or https://, got 'localhost:8000/v1'" in run("--rows", questions, "--model", "m", "--url", "localhost:8000/v1")
    assert "there is no runs/nope.json: `orcalab choose` writes it" in run("--rows", questions, "--model", "m", "--chosen", "runs/nope.json")
    assert "no file or folder" in run("--rows", "./none.jsonl", "--model", "m", "--url", "http://192.0.2.1/v1")


# ---------------------------------------------------------------------------------------------- a million rows

@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_million_rows_in_bounded_memory(tmp_path):
    """All of a million questions are in the ledger already: they are read, looked up and made rows, in memory that the index alone fills."""
    import psutil
    who, many = Teacher(name="t", model="m", url="http://127.0.0.1:9/v1"), 1_000_000
    queries = lambda: (teacher.Query(Row(id=str(n), messages=[]), "open-qa", "", [{"role": "user", "content": f"What is {n} + 1?"}]) for n in range(many))
    with open(tmp_path / "ledger.jsonl", "w") as f:
        for n, q in enumerate(queries()):
            f.write(json.dumps({"key": key_of(who, q.messages), "teacher": "t", "version": "m", "currency": "USD", "finish": "stop", "tokens_in": 1, "tokens_out": 2, "cost": 0, "seconds": 1,
                                "tries": 1, "answer": str(n + 1)}) + "\n")
    before = psutil.Process().memory_info().rss
    with Ledger(tmp_path / "ledger.jsonl", write=True) as book:
        assert teacher.collect(queries(), who, book, many) == {"known from before": many}
        assert teacher.rows_from(queries(), who, book, tmp_path)["kept"] == many
    grown = psutil.Process().memory_info().rss - before
    print(f"grown by {grown / 2**20:.0f} MiB for {many} rows")
    assert grown < 150 * 2**20
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == many


def test_memory_stays_flat(answering, tmp_path):
    """What collecting holds grows by the index alone, not by questions or answers."""
    import tracemalloc
    (one,) = asked(1)

    def many(n):
        for i in range(n):
            yield one._replace(row=replace(one.row, id=str(i)), messages=[one.messages[0], {"role": "user", "content": f"{i} " + "x" * 500}])
    collect = answering(said("y" * 500), remember=False)
    peaks = []
    for n in (100, 500):
        tracemalloc.start()
        found, *_ = collect(many(n), concurrency=4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found["new calls"] == (100 if n == 100 else 400)
    assert peaks[1] - peaks[0] < 400 * 600  # a question and its answer alone would be 1,000 bytes each
