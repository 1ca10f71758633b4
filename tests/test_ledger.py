"""ledger.py: whatever a kill leaves, whole answers stay whole, none is lost, and the totals are exact."""

import json
import subprocess
import sys
import tracemalloc

import pytest
from conftest import ROOT

from orcalab.endpoint import Teacher
from orcalab.ledger import Ledger, key_of

ASK = Teacher(name="t", model="m")


def entry(n, **more):
    messages = [{"role": "user", "content": f"question {n} – ¿qué?\u2028"}]
    return {"key": key_of(ASK, messages), "teacher": "t", "version": "m-1", "currency": "USD", "finish": "stop", "answer": f"answer {n} \ud800", "tokens_in": 10 + n, "tokens_out": n,
            "cost": 0.25 * n, "seconds": 0.5, "tries": 1 + n % 2, "messages": messages, **more}


@pytest.fixture
def five(tmp_path):
    """A ledger of five answers, and its path."""
    with Ledger(tmp_path / "ledger.jsonl", write=True) as book:
        for n in range(5):
            book.write(entry(n))
    return tmp_path / "ledger.jsonl"


def test_what_was_written_is_found_and_summed_up(five):
    with Ledger(five) as book:
        assert len(book) == 5 and [book.get(entry(n)["key"]) for n in range(5)] == [entry(n) for n in range(5)]
        assert book.get(entry(5)["key"]) is None
        assert (book.cost, book.tokens, book.torn) == ({"USD": 2.5}, sum(10 + 2 * n for n in range(5)), 0)
        rows, head = book.table()
        assert rows == [["t", "m-1", 5, 60, 10, "2.5000 USD", "0.5", 2, "stop 5"]] and len(head) == 9


def test_a_kill_at_any_byte_costs_at_most_the_answer_that_was_being_written(five):
    data = five.read_bytes()
    starts = [0]
    for line in data.splitlines(keepends=True) if b"\r" not in data else []:
        starts.append(starts[-1] + len(line))
    assert len(starts) == 6
    for cut in [*range(starts[3], starts[5] + 1)]:
        five.write_bytes(data[:cut])
        whole = sum(cut >= end - 1 for end in starts[1:])  # without its newline a line is whole, too
        with Ledger(five, write=True) as book:
            assert [book.get(entry(n)["key"]) for n in range(5)] == [entry(n) if n < whole else None for n in range(5)]
            assert book.torn == (cut not in starts and cut + 1 not in starts)
            for n in range(whole, 5):
                book.write(entry(n))
        with Ledger(five) as again:
            assert len(again) == 5 and again.tokens == sum(10 + 2 * n for n in range(5)) and all(again.get(entry(n)["key"]) == entry(n) for n in range(5))


def test_a_line_that_is_no_answer_is_passed_over(five):
    lines = five.read_bytes().split(b"\n")
    lines[2:2] = [b"\x00\x00\x00", b'{"key": "x"}', b"[1]", b"", b'{"key": "0000000000000001", "teacher": "t"}']
    five.write_bytes(b"\n".join(lines))
    with Ledger(five) as book:
        assert len(book) == 5 and book.torn == 4 and book.cost == {"USD": 2.5} and book.get(entry(4)["key"]) == entry(4)


def test_of_two_answers_to_one_prompt_the_newest_is_found(tmp_path):
    key = entry(0)["key"]
    with Ledger(tmp_path / "ledger.jsonl", write=True) as book:
        for n in range(3):
            book.write(entry(0, answer=f"version {n}"))
            assert book.get(key)["answer"] == f"version {n}"
            for i in range(1 << 15):  # until the index takes it in
                book.fresh[i] = 0
            book.write(entry(1))
            assert not book.fresh and book.get(key)["answer"] == f"version {n}"


def test_a_key_that_is_none_is_passed_over(five):
    with open(five, "ab") as f:
        for key in ("-1", "1" * 17, "x"):
            f.write(json.dumps(entry(9, key=key)).encode() + b"\n")
    with Ledger(five) as book:
        assert len(book) == 5 and book.torn == 3


def test_after_it_is_closed_nothing_is_written_anywhere(five):
    book = Ledger(five, write=True)
    book.close()
    before = five.read_bytes()
    with pytest.raises(OSError):
        book.write(entry(9))
    assert five.read_bytes() == before


def test_one_process_at_a_time_writes(five):
    code = "import sys\nfrom orcalab.ledger import Ledger\ntry:\n    Ledger(sys.argv[1], write=True)\nexcept ValueError as e:\n    print(e)"
    with Ledger(five, write=True):
        job = subprocess.run([sys.executable, "-c", code, five], capture_output=True, text=True, cwd=ROOT, check=True)
        assert job.stdout == f"another process is writing to {five}: wait until it ends, or give another out\n"
        Ledger(five).close()  # to read is allowed
    assert subprocess.run([sys.executable, "-c", code, five], capture_output=True, text=True, cwd=ROOT, check=True).stdout == ""


def test_no_ledger(tmp_path):
    with pytest.raises(ValueError, match="there is no ledger .*none.jsonl"):
        Ledger(tmp_path / "none.jsonl")


def test_a_full_disk_leaves_whole_lines(five, monkeypatch):
    import os
    write = os.write
    with Ledger(five, write=True) as book:
        before = five.read_bytes()

        def half(file, data):
            if data.startswith(b'{"key"'):
                return write(file, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match=r"no disk space left for .*ledger.jsonl, or the disk failed .*what it holds is whole"):
            book.write(entry(7))
        monkeypatch.undo()
        assert five.read_bytes() == before and len(book) == 5
        book.write(entry(7))
        assert book.get(entry(7)["key"]) == entry(7)


def test_another_prompt_another_teacher_or_other_sampling_is_another_key():
    from dataclasses import replace
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "2 + 2"}]
    keys = {key_of(t, m) for t in (ASK, replace(ASK, model="n"), replace(ASK, name="u"), replace(ASK, temperature=0.0), replace(ASK, max_tokens=5))
            for m in (messages, messages[1:], [messages[0], {"role": "user", "content": "2 + 2 "}])}
    assert len(keys) == 15
    same = replace(ASK, budget=5.0, concurrency=3, url="http://x/v1", timeout=3.0, price_in=2.0, key="OTHER_KEY", licence="x")  # nothing that an answer hangs on
    assert key_of(same, messages) == key_of(ASK, messages)


@pytest.mark.parametrize("many", [200_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_memory_grows_by_sixteen_bytes_an_answer(tmp_path, many):
    path = tmp_path / "ledger.jsonl"
    with open(path, "w") as f:
        for n in range(many):
            f.write(json.dumps({"key": f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}", "teacher": "t", "version": "m", "currency": "", "finish": "stop", "tokens_in": 1, "tokens_out": 2, "cost": 0,
                                "seconds": 1, "tries": 1, "answer": str(n)}) + "\n")
    tracemalloc.start()
    with Ledger(path) as book:
        held, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(book) == many and book.tokens == 3 * many
        assert held < 16 * many + 8e6 and most < 64 * many + 16e6
        for n in (0, 1, many // 3, many - 1):
            assert book.get(f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}")["answer"] == str(n)
        assert book.get("00000000000000ff") is None
