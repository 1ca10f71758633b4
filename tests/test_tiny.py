"""The whole journey on a CPU in seconds: rows, four stages, answers, scores, a comparison, a report."""

from pathlib import Path

from orcalab import __main__ as cli, config, evaluate, recipes, scores

STAGES = ["stage1_flan", "stage2_chatgpt", "stage3_gpt4", "answer_only"]


def test_the_whole_journey(tmp_path, capsys):
    given = ["--recipe", "smoke", "--out", str(tmp_path)]
    assert cli.main(["prepare", *given]) == 0
    folders = sorted(p.name for p in (tmp_path / "prepared").iterdir())
    assert [f.rsplit("-", 1)[0] for f in folders] == sorted(STAGES)

    assert cli.main(["train", *given]) == 0
    for name in STAGES:
        run = tmp_path / name
        assert (run / "model" / "model.safetensors").exists() and not (run / "checkpoints").exists()
        assert config.read_json(run / "results.json")["steps"] == 3
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    starts = [config.read_json(tmp_path / name / "config.json")["origin"]["from"] for name in STAGES]
    assert [Path(s).parent.name if s != "tiny-random" else s for s in starts] == \
        ["tiny-random", "stage1_flan", "stage2_chatgpt", "stage2_chatgpt"]  # the control has the same start as stage 3

    assert cli.main(["evaluate", *given]) == 0
    rec = recipes.get("smoke", out=str(tmp_path))
    answers = evaluate.read_answers(tmp_path / "answers")
    assert set(answers) == {(name, "cautious") for name in ["base", *STAGES]}
    assert all(len(r) == len(rec.tasks) * rec.questions == 12 for r in answers.values())
    both = answers["stage3_gpt4", "cautious"], answers["answer_only", "cautious"]
    apart = scores.score(both[0])["macro"] - scores.score(both[1])["macro"]
    assert scores.compare(*both)["macro"] == apart
    said = capsys.readouterr().out
    assert "explained and erased minus answers only, same questions" in said and "McNemar p" in said

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for title in ("Loss on the teacher's tokens", "Accuracy on held-out questions", "Where explaining helps",
                  "Rows trained on", "Answers to read", "Settings and fingerprints"):
        assert title in page.replace("\\u0027", "'")
    assert page.count('class="plotly-graph-div"') == 4  # accuracy, by task, loss, rows

    # a second call does no work again
    files = [p for p in tmp_path.rglob("*") if p.suffix in (".safetensors", ".jsonl", ".npz")]
    before = {p: p.stat().st_mtime_ns for p in files}
    assert cli.main(["train", *given]) == 0 and cli.main(["evaluate", *given]) == 0
    assert {p: p.stat().st_mtime_ns for p in files} == before
    assert "train stage1_flan" not in capsys.readouterr().out
