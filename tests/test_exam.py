"""exam.py: benchmarks asked of students from the command line, in shares, killed at any moment, and scored from a stream.

As a program (`python test_exam.py SECONDS WORDS...`) this file is the killer: it imports everything once, and forks each command that is to be killed.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from conftest import ROOT, SHARED

import orcalab
from orcalab import __main__ as cli, config, endpoint, evaluate, exam, parser, recipes, report, scores


@pytest.fixture
def folder(tmp_path):
    """A folder of benchmarks in the layout of their repositories, the questions our own: 7 + 5 of BBH, 6 of AGIEval, of two passages."""
    options = "\nOptions:\n(A) red\n(B) blue\n(C) green"
    files = {"bbh/navigate.json": {"examples": [{"input": f"Take {n} steps and turn around {n} times. Are you back?\nOptions:\n- Yes\n- No", "target": "No" if n else "Yes"} for n in range(7)]},
             "bbh/date_understanding.json": {"examples": [{"input": f"Box {n} holds a blue ball of {n} grams. Which colour has the ball?{options}", "target": "(B)"} for n in range(5)]}}
    for name, made in files.items():
        path = tmp_path / "benchmarks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made))
    lines = [{"passage": f"Story {n // 3}: a cat sat.", "question": f"What sat, in line {n}?", "options": ["(A)a dog", "(B)a cat"], "label": "B", "answer": None} for n in range(6)]
    (tmp_path / "benchmarks" / "agieval").mkdir()
    (tmp_path / "benchmarks" / "agieval" / "lsat-ar.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path / "benchmarks"


def words(folder, out, *more):
    return ["evaluate", "--recipe", "smoke", "--tasks", "bbh,agieval", "--data", str(folder), "--out", str(out), "--device", "cpu", "--dtype", "fp32", "--eval_batch", "1", *more]


def in_file(path):
    return evaluate.read_lines(path)[1:]


def written(out):
    """Return all that an evaluation leaves and no other may leave otherwise."""
    root = Path(out) / "benchmarks"
    return (root / "results.json").read_bytes(), (root / "disagreements.jsonl").read_bytes(), {p.relative_to(root): p.read_bytes() for p in root.rglob("*.jsonl") if not re.search(r"\.\d+of\d+$", p.stem)}


def test_one_command_asks_scores_compares_and_shows(folder, tmp_path, capsys):
    assert cli.main(words(folder, tmp_path / "out")) == 0
    said, root = capsys.readouterr().out, tmp_path / "out" / "benchmarks"
    assert "18 questions of 3 tasks, 2 system messages, 1 students: base" in said and "[4/4] agieval: base, cautious" in said
    made = config.read_json(root / "results.json")
    assert [(s["benchmark"], s["student"], s["system"], s["questions"]) for s in made["scores"]] == [
        ("bbh", "base", "empty", 12), ("bbh", "base", "cautious", 12), ("agieval", "base", "empty", 6), ("agieval", "base", "cautious", 6)]
    for s in made["scores"]:
        records = evaluate.read_answers(root / s["benchmark"])["base", s["system"]]
        assert {k: s[k] for k in ("macro", "low", "high", "format_ok", "tokens")} == {k: v for k, v in scores.score(records).items() if k in ("macro", "low", "high", "format_ok", "tokens")}
        lettered = [r for r in records if r["labels"]]
        assert s["official"] == (sum(parser.first_capital(r["text"], r["labels"]) == r["gold"] for r in lettered) / len(lettered) if lettered else None)
    assert len({r["group"] for r in evaluate.read_answers(root / "agieval")["base", "empty"]}) == 2
    odd = [(r["system"], r["task"], r["number"], r["answer"], r["official"]) for r in evaluate.read_lines(root / "disagreements.jsonl")]
    assert odd == [(m, r["task"], r["number"], r["answer"], first) for b in ("bbh", "agieval") for m in ("empty", "cautious") for r in in_file(root / b / f"base.{m}.jsonl")
                   if r["labels"] and (first := parser.first_capital(r["text"], r["labels"])) != r["answer"]]
    (pair,) = made["versus"]["bbh"]
    assert (pair["a"], pair["b"]) == (["base", "empty"], ["base", "cautious"]) and pair["holm"] == pair["p"]
    table = said.split("report.html\n")[1]
    assert re.search(r"Orca-2-13B \(paper\) +50.18 S +49.93 S", table) and "bbh (2 of 27 tasks)" in table and "base, cautious" in table and "first minus second" in table
    page = (root / "report.html").read_text(encoding="utf-8")
    for words_ in ("Beside the paper", "bbh, task by task", "What answers cost", "Who is better", "answers that could be read"):
        assert words_ in page
    before = written(tmp_path / "out")
    assert cli.main(words(folder, tmp_path / "out")) == 0 and written(tmp_path / "out") == before  # nothing is asked again
    assert "[1/4]" not in capsys.readouterr().out


def test_shares_of_four_processes_make_the_same_results(folder, tmp_path, capsys):
    assert cli.main(words(folder, tmp_path / "whole")) == 0
    for n in (3, 1, 4, 2):
        assert cli.main(words(folder, tmp_path / "shares", "--shard", f"{n}/4")) == 0
        assert f"share {n}/4 is answered; once all are, the same command without --shard scores them" in capsys.readouterr().out
    assert not (tmp_path / "shares" / "benchmarks" / "results.json").exists()
    assert cli.main(words(folder, tmp_path / "shares")) == 0
    assert "[1/4]" not in capsys.readouterr().out
    assert written(tmp_path / "shares")[:2] == written(tmp_path / "whole")[:2]
    both = [evaluate.read_answers(tmp_path / out / "benchmarks" / "bbh") for out in ("shares", "whole")]
    assert both[0] == both[1]


def killed(folder, out, kills, seed):
    """Run the command, killed so many times at random moments, to its end; return how often it was really killed."""
    job = subprocess.run([sys.executable, __file__, str(kills), str(seed), *words(folder, out)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
                         capture_output=True, text=True, timeout=500)
    assert job.returncode == 0, job.stdout + job.stderr
    return int(job.stdout.rsplit("killed ", 1)[1].split()[0])


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_ends_with_the_same_results(folder, tmp_path, kills):
    assert cli.main(words(folder, tmp_path / "whole")) == 0
    assert killed(folder, tmp_path / "killed", kills, seed=kills) == kills
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


def test_other_commands_in_one_folder_mix_nothing(folder, tmp_path, capsys):
    out, root = tmp_path / "out", tmp_path / "out" / "benchmarks"
    counts = lambda: {(s["benchmark"], s["system"]): s["questions"] for s in config.read_json(root / "results.json")["scores"]}
    assert cli.main(words(folder, out)) == 0
    assert cli.main(words(folder, out, "--questions", "3", "--messages", "cautious,step-by-step")) == 0
    assert counts() == {("bbh", "cautious"): 6, ("bbh", "step-by-step"): 6, ("agieval", "cautious"): 3, ("agieval", "step-by-step"): 3}  # the others lie there, of other questions
    assert cli.main(words(folder, out, "--tasks", "bbh/navigate", "--max_new_tokens", "3")) == 0 and counts() == {("bbh", "empty"): 7, ("bbh", "cautious"): 7}
    capsys.readouterr()
    assert cli.main(words(folder, out)) == 0 and "6/6" not in capsys.readouterr().out  # back to the first: nothing is asked again
    assert counts() == {(b, m): n for b, n in (("bbh", 12), ("agieval", 6)) for m in ("empty", "cautious")}
    made = config.read_json(root / "results.json")
    assert {s["settings"]["max_new_tokens"] for s in made["scores"]} == {recipes.get("smoke").max_new_tokens} and made["version"] == orcalab.__version__


def test_what_is_wrong_is_said_before_anything_is_asked(folder, tmp_path, capsys):
    out = tmp_path / "out"
    for more, said in [(["--tasks", "agival"], "no benchmark, group or task named 'agival'; did you mean 'agieval'?"), (["--messages", "emty"], "no strategy named 'emty'; did you mean 'empty'?"),
                       (["--students", "stage3_gtp4"], "no student named 'stage3_gtp4'; did you mean 'stage3_gpt4'?"), (["--students", "stage3_gpt4"], "stage3_gpt4 is not trained yet: no "),
                       (["--shard", "5/4"], "shard is the number of a share and how many there are, such as 2/4; got '5/4'"), (["--shard", "half"], "such as 2/4; got 'half'"),
                       (["--data", str(tmp_path / "none")], "the benchmark 'bbh' is not in"), (["--model", "a/b,c/b"], "a/b,c/b: two of these have one name"),
                       (["--hamess", "x"], "no parameter named 'hamess'; did you mean 'harness'?"), (["--tasks", "", "--hint", "x"], "hint goes with benchmarks: name them with --tasks, such as --tasks bbh"),
                       (["--model", "/none/such"], "there is no folder /none/such: --model takes the folder of a model"), (["--model", "a", "--students", "base"], "either --model or --students: who is asked, a or base?"),
                       (["--judge", "m"], "--judge is for answers that no parser can mark (mt_bench, aci_bench, ms_marco, qmsum); bbh,agieval has none"),
                       (["--tasks", "bbh,drop,race"], "has no folder drop, race: ask those that are there, --tasks bbh, or put the others' files there"),
                       (["--harness", "x"], "either --tasks (benchmarks, asked by us) or --harness")]:
        assert cli.main(words(folder, out, *more)) == 2 and said in capsys.readouterr().err, more
    assert not out.exists()


def test_any_model_under_any_message_with_a_hint(folder, tmp_path, student):
    source = student.origin["from"]
    out = tmp_path / "out"
    assert cli.main([*words(folder, out, "--model", source, "--messages", "step-by-step", "--hint", "End with the answer.", "--questions", "2")]) == 0
    (name,) = {s["student"] for s in config.read_json(out / "benchmarks" / "results.json")["scores"]}
    records = evaluate.read_answers(out / "benchmarks" / "bbh")[name, "step-by-step"]
    assert len(records) == 4 and all(r["question"].endswith("\nEnd with the answer.") for r in records) and name == Path(source).parent.name
    assert records[0]["text"] == student.ask(records[0]["question"], "step-by-step", recipes.get("smoke").max_new_tokens).text


# ------------------------------------------------------------------------------------------------- strategies, overlap, judges

def stored(folder, student, system, texts, task="bbh/navigate"):
    """Write answers as `ask` does."""
    entry = {"kind": "choice", "options": ["Yes", "No"], "labels": [], "answer": "Yes"}
    records = [{"student": student, "system": system, "task": task, "number": n, "question": f"{task} {n}?", "gold": "Yes", "text": text, "tokens": len(text), "reason": "stop", "kind": "choice",
                "options": ["Yes", "No"], "labels": [], "answer": (got := parser.read(text, {**entry, "question": "?"}).answer), "format_ok": got is not None, "right": got == "Yes"} for n, text in enumerate(texts)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{student}.{system}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [{"questions": len(records)}, *records]))
    return records


def test_forms_regret_and_comparisons_of_a_student_told_several_ways(tmp_path):
    said = {"direct-answer": ["Yes"] * 6 + ["No"] * 4, "step-by-step": ["1 + 1 = 2.\nFinal answer: Yes"] * 9 + ["Final answer: No"], "cautious": ["Yes"] * 5 + ["2 = 2.\nFinal answer: No"] * 5}
    records = {m: stored(tmp_path, "s", m, texts) for m, texts in said.items()}
    stored(tmp_path, "other", "cautious", ["Yes"] * 10)
    made = exam.summary(tmp_path)
    by = {(s["student"], s["system"]): s for s in made["scores"]}
    assert by["s", "cautious"]["forms"] == {"bbh/navigate": {"direct-answer": 5, "step-by-step": 5}} and by["s", "cautious"]["macro"] == 0.5 and by["s", "cautious"]["official"] is None
    assert made["regret"] == {"s": scores.regret({m: records[m] for m in ("direct-answer", "step-by-step")}, records["cautious"])}
    assert made["regret"]["s"]["by_task"]["bbh/navigate"]["best"] == "step-by-step" and made["regret"]["s"]["naive"] == pytest.approx(0.4)
    pairs = {(tuple(c["a"]), tuple(c["b"])): c for c in made["versus"]}
    assert len(pairs) == 4 and all(a[0] == b[0] or a[1] == b[1] for a, b in pairs)  # not: the other under the cautious message against s under another
    assert {k: c["holm"] for k, c in pairs.items()} == scores.holm({k: c["p"] for k, c in pairs.items()})
    assert report.regret_rows(made["regret"])[0][0][:3] == ["s", "bbh/navigate", "step-by-step"]
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "bbh").mkdir()
    for p in tmp_path.glob("*.jsonl"):
        p.rename(tmp_path / "root" / "bbh" / p.name)
    page = report.write_exam(recipes.get("smoke", out=str(tmp_path)), tmp_path / "root", {"bbh": [("s", m) for m in said]})[0].read_text(encoding="utf-8")
    assert "which strategy wins where, and which was taken" in page and re.search(r"<td[^>]*>s</td><td[^>]*>cautious</td><td[^>]*>bbh/navigate</td><td[^>]*>(?:60|50|0)%</td><td[^>]*>50%</td>", page)


def test_questions_are_held_against_all_that_a_student_was_trained_on(recipe, tmp_path):
    lines = [{"messages": [{"role": "user", "content": f"In row {n} a ship sails from the old harbour of {name} to the far island"}, {"role": "assistant", "content": "It sails."}]}
             for n, name in enumerate(["Bergen", "Lisbon", "Cork", "Genoa"] * 3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = ["--recipe", "smoke", "--out", recipe.out, "--rows", str(tmp_path / "rows.jsonl"), "--device", "cpu"]
    for stage in ("stage1_flan", "stage2_chatgpt"):
        assert cli.main(["train", *given, "--stage", stage]) == 0
    rec = recipes.get("smoke", out=recipe.out, rows=str(tmp_path / "rows.jsonl"))
    folders = exam.trained_on(rec, "stage2_chatgpt")
    assert [f.name.split("-")[0] for f in folders] == ["stage2_chatgpt", "stage1_flan"] and exam.trained_on(rec, "base") == []
    asked = {"bbh/a": ["Is it true? In row 1 a ship sails from the old harbour of Lisbon to the far island.", "Is it true that nobody has ever seen a ship sail from there to any island at all?"]}
    found = exam.overlap(asked, folders)
    assert found["bbh/a"]["questions"] == 2 and found["bbh/a"]["overlap"] == 1


def test_open_answers_are_judged_and_never_counted_wrong(tmp_path):
    from serving import Proxy
    from test_teacher import said
    records = [{"student": s, "system": "empty", "task": "mt_bench", "number": n, "question": f"Tell me {n}.", "gold": "", "text": f"{s} {n}", "texts": [f"{s}", f"{s} {n}"], "turns": ["More."], "tokens": 3,
                "reason": "stop", "answer": s, "format_ok": True, "right": False, "kind": "open"} for s in ("a", "bbb") for n in range(3)]
    for s in ("a", "bbb"):
        (tmp_path / "mt_bench").mkdir(exist_ok=True)
        (tmp_path / "mt_bench" / f"{s}.empty.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [{"questions": 3}, *(r for r in records if r["student"] == s)]))
    proxy = Proxy(0, reply=lambda headers, body: said("[[7]]" if "[[rating]]" in body["messages"][0]["content"] else "[[A]]"))
    sets = {"mt_bench": [(s, "empty") for s in ("a", "bbb")]}
    made = exam.results(tmp_path, sets, None, endpoint.get("judge", model="program", url=proxy.url, temperature=0.0))
    proxy.close()
    assert made["judged"]["mt_bench"]["a, empty"]["marks"]["value"] == 7 and made["judged"]["mt_bench"]["a, empty"]["marks"]["score"]["macro"] == 7
    assert made["judged"]["mt_bench"]["a, empty against bbb, empty"]["pairs"]["first"] == 1.0  # whoever stands first wins: nothing is decided
    assert all(s["macro"] is None for s in made["scores"]) and made["versus"]["mt_bench"] == []
    again = exam.results(tmp_path, sets, None, endpoint.get("judge", model="program", url=proxy.url, temperature=0.0))  # from the ledger: nobody listens any more
    assert again == made


# ------------------------------------------------------------------------------------------------- a million answers

def million(root, count):
    """Write so many answers of one student under two messages, in the form and length of real ones."""
    rng, why = random.Random(0), "Let me think about it step by step. " * 8
    (root / "bbh").mkdir(parents=True)
    for system in ("empty", "cautious"):
        with open(root / "bbh" / f"s.{system}.jsonl", "w") as f:
            f.write(json.dumps({"questions": count // 2}) + "\n")
            for n in range(count // 2):
                answer = rng.choice("ABCD")
                f.write(json.dumps({"student": "s", "system": system, "task": f"bbh/{n % 20}", "number": n // 20, "question": f"Question {n}", "gold": "A", "text": f"{why}\nFinal answer: ({answer})", "tokens": 80,
                                    "reason": "stop", "answer": answer, "format_ok": True, "right": answer == "A", "kind": "choice", "options": ["w", "x", "y", "z"], "labels": list("ABCD")}) + "\n")
    return {"bbh": [("s", "empty"), ("s", "cautious")]}


def test_memory_hardly_grows_with_the_number_of_answers(tmp_path):
    peaks = []
    for count in (4_000, 16_000):
        sets = million(tmp_path / str(count), count)
        exam.results(tmp_path / str(count), sets)  # what is loaded once, and lists of questions, are not what is measured
        tracemalloc.start()
        made = exam.results(tmp_path / str(count), sets)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert [s["questions"] for s in made["scores"]] == [count // 2] * 2
    assert (peaks[1] - peaks[0]) / 12_000 < 150, peaks  # bytes an answer, where its line has 600


@pytest.mark.long
def test_a_million_stored_answers_are_scored_in_a_minute(tmp_path):
    import resource
    sets, before = million(tmp_path, 1_000_000), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    made = exam.results(tmp_path, sets)
    took, grown = time.monotonic() - begun, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"a million answers in {took:.1f} s, {grown:.0f} MiB more")
    assert took < 60 and grown < 300 and all(0.2 < s["low"] < s["macro"] < s["high"] < 0.3 and s["questions"] == 500_000 for s in made["scores"])


@pytest.mark.skipif(not (SHARED / "bbh").is_dir(), reason="the real BBH files are not on this machine")
def test_real_files_are_asked_with_the_papers_two_messages(tmp_path, capsys):
    assert cli.main(["evaluate", "--recipe", "smoke", "--tasks", "bbh,agieval/sat-math", "--data", str(SHARED), "--questions", "2", "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert "22 questions of 11 tasks" in capsys.readouterr().out


if __name__ == "__main__":
    import torch

    import orcalab.generate
    torch.set_num_threads(1)
    kills, rng, done = int(sys.argv[1]), random.Random(int(sys.argv[2])), 0
    cache = os.environ["ORCALAB_CACHE"]
    longest = 1.0
    while True:
        begun, child = time.monotonic(), os.fork()
        if not child:
            os._exit(cli.main(sys.argv[3:]))
        if done < kills:
            time.sleep(rng.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        done += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status) and done < kills:
            longest = max(0.05, (time.monotonic() - begun) * 0.8)  # it was faster than the killer
            continue
        if not os.WIFSIGNALED(status):
            print(f"killed {done} times")
            sys.exit(os.waitstatus_to_exitcode(status))
