"""How much of a server's own throughput remains when the teacher asks it, with ledger, checks and progress.

    python benchmarks/teach.py [questions [rounds [model]]]

`transformers serve` with continuous batching answers 16 tokens a question on loopback: of tiny-random by default, a server as fast as it can be, before which our own work counts most, or of smollm2-135m. In turns, 32 bare threads post the same
requests with http.client and keep nothing (the peer), and `teacher.collect` asks them at concurrency 32 into a ledger that ends whole and summed up.
"""

import http.client
import json
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from serving import Server  # noqa: E402

from orcalab import endpoint, model, teacher  # noqa: E402
from orcalab.config import Config  # noqa: E402
from orcalab.ledger import Ledger  # noqa: E402
from orcalab.rows import Row  # noqa: E402

AT_ONCE, TOKENS = 32, 16


def bare(port, bodies):
    """Post every body, 32 at a time; return the seconds it took."""
    todo = queue.SimpleQueue()
    for body in bodies:
        todo.put(body)

    def work():
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while True:
            try:
                body = todo.get_nowait()
            except queue.Empty:
                return line.close()
            line.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = line.getresponse()
            assert answer.status == 200 and json.loads(answer.read())["usage"]["completion_tokens"]

    begun, threads = time.time(), [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return time.time() - begun


def main(questions=192, rounds=4, name="tiny-random"):
    questions, rounds = int(questions), int(rounds)
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(Path(scratch, "tiny")) if name == "tiny-random" else model.resolve(name)
        if name == "tiny-random":
            model.save(folder, *model.load(name)[:2])
        server = Server(folder, Path(scratch, "server.log"), "--continuous-batching")
        who = endpoint.Teacher("local", model=str(folder), url=f"http://127.0.0.1:{server.port}/v1", temperature=0.0, top_p=-1.0, max_tokens=TOKENS, concurrency=AT_ONCE)
        rows = [Row(id=str(n), task="gsm8k", messages=[{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": ""}]) for n in range(questions)]
        asked = list(teacher.queries(rows, Config(system="strategy")))
        bodies = [json.dumps({"model": who.model, "messages": q.messages, **who.sampling}) for q in asked]
        try:
            bare(server.port, bodies[:AT_ONCE])  # the first request loads the model
            took = {"bare": [], "teacher": []}
            for n in range(rounds):
                for side in ("bare", "teacher") if n % 2 == 0 else ("teacher", "bare"):
                    if side == "bare":
                        took["bare"].append(bare(server.port, bodies))
                        continue
                    begun = time.time()
                    with Ledger(Path(scratch, f"{n}.jsonl"), write=True) as book:
                        found = teacher.collect(asked, who, book, questions)
                    took["teacher"].append(time.time() - begun)
                    with Ledger(Path(scratch, f"{n}.jsonl")) as book:
                        assert len(book) == questions and found["new calls"] == questions and book.torn == 0
                print(f"round {n + 1}: bare {questions / took['bare'][-1]:.2f} requests/s, teacher {questions / took['teacher'][-1]:.2f}", flush=True)
        finally:
            server.kill()
    best, total = {k: min(v) for k, v in took.items()}, {k: sum(v) for k, v in took.items()}
    print(json.dumps({"peer": "32 bare threads with http.client, nothing kept", "ratio": round(total["bare"] / total["teacher"], 3), "ratio_of_best": round(best["bare"] / best["teacher"], 3),
                      "work": f"{rounds} times {questions} questions of {TOKENS} new tokens of {name}, transformers serve with continuous batching, concurrency {AT_ONCE}",
                      "requests_per_s": round(rounds * questions / total["teacher"], 2)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
