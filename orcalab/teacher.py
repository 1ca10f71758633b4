"""The teacher: answers to questions under a strategy's instruction from any OpenAI-compatible endpoint, each kept in the ledger, judged, and made a row."""

import hashlib
import json
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from orcalab import corpus, endpoint, families, hygiene
from orcalab.chatml import HALF
from orcalab.config import choose, write_json
from orcalab.dress import dress
from orcalab.ledger import key_of
from orcalab.mixture import Mixture
from orcalab.progress import Progress
from orcalab.rows import Row
from orcalab.strategies import FINAL, set_system

WHOLE = ("stop", "end_turn", "eos")  # reasons to end that mean the answer is whole


class Query(NamedTuple):
    """A question as the teacher is asked it."""

    row: Row
    family: str
    strategy: str
    messages: list  # system and user turns, the last a user's
    follow: tuple = ()  # user turns that follow each answer; the last answer is the one that counts


def queries(rows, cfg, chosen=None, calls=""):
    """Yield a Query for each row: its question under the message that the stage asks for.

    Args:    rows: a Mixture, or any Rows; what they hold as answer is not shown to the teacher.
             cfg: the stage's Config. System "strategy" and "cautious" ask under the instruction of the task's family; "orca1", "empty", "none" and "keep"
                 under that message, drawn for each row alike however often it is asked.
             chosen: {family: strategy}, where a student's results chose another than the family's own.
             calls: a name of families.CALLS for all rows; "family" is what each family names; empty is one call a question.
    Raises:  ValueError: a row without a question.
    """
    several = isinstance(rows, Mixture)
    for n, item in enumerate(map(rows.item, range(len(rows))) if several else rows):
        row, system = (item[0][0], item[1].system or cfg.system) if several else (item, cfg.system)
        asked = row.messages[:-1] if row.messages and row.messages[-1]["role"] == "assistant" else row.messages
        if not asked or asked[-1]["role"] != "user":
            raise ValueError(f"{row.where or row.id}: holds no question for a teacher")
        family, follow = families.family_of(row.task, row.kind), ()
        strategy = ((chosen or {}).get(family.name) or row.strategy or family.strategy) if system in ("strategy", "cautious") else ""
        if system in ("strategy", "cautious"):
            asked = set_system({"messages": asked}, families.instruction(family, strategy))["messages"]
            way = family.calls if calls == "family" else calls
            follow = families.CALLS[choose(way, families.CALLS, "way of several calls")] if way else ()
        else:
            asked = dress(replace(row, messages=asked), replace(cfg, system=system, few_shot=0.0), Random(f"{cfg.seed} {row.id} {n}")).messages
        yield Query(row, family.name, strategy, asked, follow)


def of_stage(recipe, cfg, teacher, chosen=None):
    """Return (a function that gives the Queries of a stage's rows, how many they are): the first `teacher.first` of them if that is set.

    Raises:  ValueError: the rows never end, and nothing says how many are to be asked.
    """
    rows, _ = corpus.rows_of(recipe, cfg)
    if isinstance(rows, Mixture):
        rows.asks = True
        total = min(len(rows), teacher.first or len(rows))
    else:
        number = cfg.rows.partition(":")[2]
        total = teacher.first or (int(number) if number.isdigit() else 0)
    if not total:
        raise ValueError(f"{cfg.rows} rows never end: say how many questions to ask, as in --first 200")
    again = lambda: rows if isinstance(rows, Mixture) else corpus.rows_of(recipe, cfg)[0]  # a Mixture is read and chosen among once
    return lambda: islice(queries(again(), cfg, chosen, teacher.calls), total), total


def forecast(asked, total, teacher):
    """Return, in words, what asking will take, guessed from the first hundred questions: four characters a token, and answers as long as they may be."""
    first = list(islice(asked, 100))
    some = [(sum(len(m["content"]) for m in q.messages) / 4, 1 + len(q.follow)) for q in first] or [(0, 1)]
    read, calls = (sum(x) / len(some) for x in zip(*some))
    write = teacher.max_tokens * calls
    read = read * calls + write * (calls - 1) / 2  # a further call reads what was said
    cost = total * (read * teacher.price_in + write * teacher.price_out) / 1e6
    price = (f"about {cost:.2f} {teacher.currency}, less if answers are shorter" if cost else "no prices are given") + (f", stopped at {teacher.budget:g}" if teacher.budget else "")
    kinds = ", ".join(f"{name} {n}" for name, n in Counter(f"{q.family} ({q.strategy or 'no strategy'})" for q in first).most_common(6))
    return (f"{total:,} questions, about {round(total * calls):,} calls to {teacher.model}, some {round(total * read):,} tokens to read and up to {round(total * write):,} to write: {price}\n"
            f"kinds of questions among the first {len(first)}, by their column task: {kinds}")


def entry_of(query, teacher, number, messages, answer):
    """Return the ledger's entry of an answer: what was asked, of whom and for which row, beside what came back."""
    row = query.row
    return {"key": key_of(teacher, messages), "id": row.id, "source": row.source, "task": row.task, "family": query.family, "strategy": query.strategy, "call": number,
            "teacher": teacher.name, "model": teacher.model, **answer, "currency": teacher.currency, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "licence": teacher.licence, "sampling": teacher.sampling, "messages": messages,
            "prompt_sha256": hashlib.sha256(json.dumps(messages, ensure_ascii=False).encode("utf-8", "backslashreplace")).hexdigest()}


def walk(query, teacher, ledger):
    """Follow a question's calls through the ledger; return (messages, number, entry) of the first that is not answered, or of the last one."""
    messages = query.messages
    for number, turn in enumerate((*query.follow, None), 1):
        entry = ledger.get(key_of(teacher, messages))
        if turn is None or not entry or entry["finish"] not in WHOLE:
            return messages, number, entry
        messages = [*messages, {"role": "assistant", "content": entry["answer"]}, {"role": "user", "content": turn}]


def collect(asked, teacher, ledger, total=0):
    """Ask every question that the ledger has no answer for, many at a time; each answer is in the ledger before the next question is asked.

    Ctrl-C, a cap or an endpoint that is gone end it cleanly: what is in flight is waited for and kept (a second Ctrl-C leaves it). The same call goes on.
    Caps count the answers in the ledger; a try that timed out here, and was answered there, is not among them.

    Args:    asked: Queries, read as they are needed.  ledger: a Ledger opened to write.  total: how many Queries, for the time left.
    Returns: Counter: new calls answered, questions known from before, unanswered, "because: why" of the last of these, and "stopped: why".
    Raises:  ValueError: the endpoint refuses all: a wrong key, no such model. What it says stands in the message, never the key. A budget in another currency
                 than the ledger's.
    """
    if teacher.budget and set(ledger.cost) - {teacher.currency}:
        raise ValueError(f"the ledger counts in {', '.join(ledger.cost)}, and the budget in {teacher.currency}: give both in one currency, or another out")
    pace = endpoint.Pace(teacher.requests_a_minute, teacher.tokens_a_minute)
    client, source, said, stop = endpoint.client_of(teacher, pace), iter(asked), Counter(), pace.stop
    lock, going, fatal, failures, why = threading.RLock(), set(), [], 0, ""

    def halt(reason):
        if not stop.is_set():
            stop.set()
            said[f"stopped: {reason}"] += 1

    def spent():
        if teacher.budget and (cost := ledger.cost[teacher.currency]) >= teacher.budget:
            halt(f"the budget of {teacher.budget:g} {teacher.currency} is used up ({cost:.4f} in the ledger)")
        if teacher.token_budget and ledger.tokens >= teacher.token_budget:
            halt(f"the budget of {teacher.token_budget:,} tokens is used up ({ledger.tokens:,} in the ledger)")

    def work():
        try:
            while True:
                with lock:
                    query = None if stop.is_set() else next(source, None)
                if query is None:
                    return
                one(query)
        except Exception as e:  # of a row, of the disk: for the main thread to raise
            fatal.append(e)
            stop.set()

    def one(query):
        nonlocal failures
        fresh = False
        while True:
            with lock:
                messages, number, entry = walk(query, teacher, ledger)
                key = key_of(teacher, messages)
                if entry or key in going:  # answered; or the same words are being asked for another row
                    said["known from before"] += not fresh
                    bar.before += not fresh  # it took no time: what is left is judged by the others
                    bar.advance(1, note())
                    return
                spent()
                if stop.is_set():
                    return
                going.add(key)
            try:
                answer = endpoint.call(client, teacher, messages)
            except endpoint.Unanswered as e:
                with lock:
                    going.discard(key)
                    return failed(e)
            with lock:
                ledger.write(entry_of(query, teacher, number, messages, answer))
                going.discard(key)
                pace.correct(answer["tokens_in"] + answer["tokens_out"])
                failures, fresh = 0, True
                said["new calls"] += 1

    def failed(e):
        nonlocal failures, why
        if stop.is_set():
            return
        failures, why = failures + 1, str(e)
        said["unanswered"] += 1
        bar.advance(1, note())
        if e.refused and not len(ledger):
            fatal.append(ValueError(f"the endpoint {client.base_url} refuses: {e}"))
            stop.set()
        elif failures >= max(8, teacher.concurrency):
            halt(f"{failures} questions in a row had no answer")

    def note():
        cost = ", ".join(f"{v:.4f} {c}" for c, v in ledger.cost.items())
        return f"{said['new calls'] / max(time.time() - bar.begun, 1e-9):.1f} calls/s, {ledger.tokens:,} tokens, {cost or 'nothing'} spent"

    with client, Progress(total, f"ask {teacher.name}") as bar:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(teacher.concurrency)]
        try:
            for t in threads:
                t.start()
            while any(t.is_alive() for t in threads):
                time.sleep(0.02)  # no join: one that Ctrl-C breaks off makes Python 3.11 take a running thread for ended
        except KeyboardInterrupt:
            halt("you stopped it")
            print(f"\nstopping: waiting for {len(going)} calls in flight (Ctrl-C again leaves them)", flush=True)
            for t in threads:
                t.join()
    if fatal:
        raise fatal[0] from None
    if why:
        said[f"because: {why}"] += 1
    return said


def verdict(query, entry, drop=(), moderate=None):
    """Tell why an answer should not be learned, in a word or two; "" if it should.

    Args:    entry: of the ledger, None if there is none.  drop: "wrong" leaves out answers whose result contradicts the row's gold answer.
             moderate: a function that says of a text what is the matter with it, "" for nothing.
    """
    if not entry:
        return "unanswered"
    said = entry["answer"]
    if entry["finish"] not in WHOLE:
        return {"length": "cut off", "content_filter": "filtered"}.get(entry["finish"], entry["finish"])
    if not said.strip():
        return "empty"
    if HALF.search(said):
        return "half a character"
    if hygiene.refuses(said):
        return "refusal"
    if query.messages[0]["role"] == "system" and FINAL in query.messages[0]["content"] and FINAL not in said:
        return "format"
    if "wrong" in drop and query.row.answer and hygiene.agrees(said, query.row.answer) is False:
        return "wrong"
    return "moderated: " + why if moderate and (why := moderate(said)) else ""


def rows_from(asked, teacher, ledger, folder, drop=(), moderate=None):
    """Write the ledger's answers to `asked` as rows: `rows.jsonl`, ready for a stage's `rows`, and `dropped.jsonl` with the reason for each that is not.

    A row keeps the message that the teacher was asked under as its system turn, so that a stage can show, erase or replace it.

    Returns: Counter: rows kept, dropped by reason, and of the kept ones how many agree with the gold answer, contradict it, or cannot be compared.
    """
    folder, said = Path(folder), Counter()
    folder.mkdir(parents=True, exist_ok=True)
    sides = [folder / "rows.part", folder / "dropped.part"]
    with open(sides[0], "w", encoding="utf-8", newline="\n") as kept, open(sides[1], "w", encoding="utf-8", errors="backslashreplace", newline="\n") as dropped:
        for query in asked:
            entry = walk(query, teacher, ledger)[2]
            why, row = verdict(query, entry, drop, moderate), query.row
            if why == "unanswered":
                said[why] += 1
                continue
            item = {"id": row.id, "source": row.source, "task": row.task, "strategy": query.strategy, "teacher": teacher.name, "answer": row.answer, "kind": row.kind,
                    "messages": [*query.messages, {"role": "assistant", "content": entry["answer"]}]}
            said[f"dropped: {why}" if why else "kept"] += 1
            if not why and row.answer:
                said[{True: "right", False: "wrong", None: "not comparable"}[hygiene.agrees(entry["answer"], row.answer)]] += 1
            (dropped if why else kept).write(json.dumps({"why": why} | item if why else item, ensure_ascii=False) + "\n")
    for side in sides:
        side.replace(side.with_suffix(".jsonl"))
    write_json(folder / "teach.json", {"teacher": vars(teacher), "counts": said})
    return said
