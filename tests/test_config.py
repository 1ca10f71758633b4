"""config.py and recipes.py: values are coerced and checked, names are spelt right or refused."""

from dataclasses import fields

import pytest

from orcalab import config, recipes
from orcalab.config import Config, Recipe


def test_strings_from_a_command_line_become_plain_types():
    cfg = Config(lr="3e-4", steps="12", batch_size=2.0, few_shot="1", name="x")
    assert (cfg.lr, cfg.steps, cfg.batch_size, cfg.few_shot) == (3e-4, 12, 2, 1.0)
    assert [type(v) for v in (cfg.lr, cfg.steps, cfg.batch_size, cfg.few_shot)] == [float, int, int, float]
    assert type(Config(lr=1).lr) is float and Recipe(questions="7").questions == 7


@pytest.mark.parametrize("given, message", [
    ({"lr": "fast"}, "lr must be float, got 'fast'"),
    ({"steps": "1.5"}, "steps must be int, got 1.5"),
    ({"steps": True}, "steps must be int, got True"),
    ({"name": 3}, "name must be str, got 3"),
    ({"lr": float("nan")}, "lr must be a number of at least 0, got nan"),
    ({"lr": "inf"}, "lr must be a number of at least 0, got inf"),
    ({"lr": -1e-4}, "lr must be a number of at least 0, got -0.0001"),
    ({"steps": "nan"}, "steps must be"),
    ({"steps": "inf"}, "steps must be"),
    ({"steps": 0}, "steps and epochs are both 0: one of them says how long a stage is"),
    ({"steps": -1}, "steps must be a number of at least 0, got -1"),
    ({"scale": 0}, "scale must be above 0 and at most 1, got 0.0"),
    ({"drop": "duplicates, nere"}, "no kind of row to drop named 'nere'; did you mean 'near'"),
    ({"seq_len": 7}, "seq_len must be a number of at least 8, got 7"),
    ({"few_shot": 1.01}, "few_shot is a share between 0 and 1, got 1.01"),
    ({"few_shot": float("nan")}, "few_shot must be a number"),
    ({"packing": "bestfit"}, "no packing named 'bestfit'; did you mean 'best_fit'"),
    ({"too_long": "cut"}, "no too_long named 'cut'"),
    ({"system": "cautios"}, "no system named 'cautios'; did you mean 'cautious'"),
    ({"template": "xyz"}, "no template named 'xyz'; known: chatml"),
])
def test_a_bad_value_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Config(**given)


def test_the_recipe_is_checked_too():
    with pytest.raises(ValueError, match="questions must be a number of at least 1, got 0"):
        Recipe(questions=0)


def test_change_keeps_none_and_refuses_unknown_names():
    cfg = Config(lr=1e-3)
    assert config.change(cfg, lr=None, steps=None) == cfg
    assert config.change(cfg, lr="2e-3").lr == 2e-3 and cfg.lr == 1e-3
    with pytest.raises(ValueError, match="no parameter named 'sequence_len'; did you mean 'seq_len'"):
        config.change(cfg, sequence_len=4)
    with pytest.raises(AttributeError):
        cfg.lr = 1.0


def test_nearest_lists_what_is_known_when_nothing_is_near():
    assert config.nearest("zzz", ["lr", "steps"]) == "; known: lr, steps"
    assert config.nearest("step", ["lr", "steps"]) == "; did you mean 'steps'?"


@pytest.mark.parametrize("cls", [Config, Recipe, config.Task])
def test_every_field_has_help_on_its_own_line(cls):
    assert list(config.help_of(cls)) == [f.name for f in fields(cls)]
    assert all(len(text) > 8 and "=" not in text and "#" not in text for text in config.help_of(cls).values())


def test_derived_counts():
    cfg = Config(batch_size=2, accum=3, seq_len=16, out="runs", name="a")
    assert (cfg.packs_per_step, cfg.tokens_per_step, cfg.folder.as_posix()) == (6, 96, "runs/a")


def test_digest_sees_values_and_not_their_order():
    assert config.digest({"a": 1, "b": [2]}) == config.digest({"b": [2], "a": 1}) != config.digest({"a": 1, "b": [3]})
    assert config.digest("naïve ☕ \ud800") == config.digest("naïve ☕ \ud800") and len(config.digest(0)) == 12


def test_parameters_refuse_a_name_that_papermill_injected():
    names = {"recipe": "smoke", "lr": None, "In": ["", "recipe = 'laptop'", "# Parameters\nrecipe = 'smoke'\nlr = 1\n"]}
    assert config.parameters(names, ["recipe", "lr"]) == {"recipe": "smoke", "lr": None}
    names["In"].append("# Parameters\nlearning_rate = 1e-3\nrecip = 'smoke'\n")
    with pytest.raises(ValueError, match="no parameter of this notebook named 'learning_rate'"):
        config.parameters(names, ["recipe", "lr"])
    names["In"][-1] = "# Parameters\nrecip = 'smoke'\n"
    with pytest.raises(ValueError, match="named 'recip'; did you mean 'recipe'"):
        config.parameters(names, ["recipe", "lr"])


def test_json_is_written_whole_or_not_at_all(tmp_path):
    config.write_json(tmp_path / "a" / "x.json", {"é": 1})
    before = (tmp_path / "a" / "x.json").stat().st_ino
    config.write_json(tmp_path / "a" / "x.json", {"é": 1})
    assert (tmp_path / "a" / "x.json").stat().st_ino != before  # renamed into place, not written over
    with pytest.raises(TypeError):
        config.write_json(tmp_path / "a" / "x.json", {"a": object()})
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.json"]
    assert config.read_json(tmp_path / "a" / "x.json") == {"é": 1}
    assert config.to_json(Config(lr=0.5))["lr"] == 0.5


# -------------------------------------------------------------------------------------------- recipes

def test_a_change_reaches_the_recipe_or_every_stage_or_both():
    rec = recipes.get("smoke", lr="1e-4", questions="3", seed="5", out="here")
    assert (rec.questions, rec.seed, rec.out, rec.base) == (3, 5, "here", "tiny-random")
    assert {(s.lr, s.seed, s.out, s.base) for s in rec.stages} == {(1e-4, 5, "here", "tiny-random")}
    assert recipes.get("smoke", lr=None) == recipes.get("smoke")
    assert recipes.get("smoke", seed=3).out.endswith("runs/smoke-3")


def test_the_control_differs_from_stage_three_in_the_answers_alone():
    for name in ("laptop", "smoke"):
        rec = recipes.get(name)
        three, control = config.to_json(rec.stage("stage3_gpt4")), config.to_json(rec.stage("answer_only"))
        assert {k for k in three if three[k] != control[k]} == {"name", "answers"}
        assert [rec.stage(s).start for s in ("stage1_flan", "stage2_chatgpt", "stage3_gpt4")] == ["base", "stage1_flan", "stage2_chatgpt"]
        assert len({s.stream for s in rec.stages[:3]}) == 3  # the stages share no question
        assert len(rec.tasks) >= 6 and len({t.strategy for t in rec.tasks}) >= 4
        assert sum(t.direct for t in rec.tasks) >= 2 and sum(not t.direct for t in rec.tasks) >= 4
        assert all(part in rec.doc for part in ("Paper:", "Departs:", "Cost:", "Result:"))


def differs(a, b):
    """Which settings of the stages differ between two recipes, and how: {field: (values of b)}."""
    out = {}
    for x, y in zip(recipes.get(a).stages, recipes.get(b).stages, strict=True):
        for k, v in config.to_json(y).items():
            if config.to_json(x)[k] != v and k != "out":
                out.setdefault(k, set()).add(v)
    return out


def test_the_gpu_recipes_are_their_difference_from_the_papers_own():
    paper = recipes.get("orca2_7b")
    assert [s.epochs for s in paper.stages] == [1, 3, 4] and {s.seq_len for s in paper.stages} == {4096} and {s.steps for s in paper.stages} == {0}
    assert differs("orca2_7b", "a100") == {"optimizer": {"adamw_bf16_sr"}, "recompute": {1}, "batch_size": {2}, "accum": {32}, "held_out": {256}, "eval_every": {200}, "final": {"best"}}
    assert differs("a100", "a100_13b") == {"base": {"meta-llama/Llama-2-13b-hf"}, "optimizer": {"adamw_8bit"}, "update": {"backward"}, "clip": {0.0}, "batch_size": {4}, "accum": {1}, "lr": {5e-6}}
    assert differs("a100", "small_gpu") == {"method": {"qlora"}, "optimizer": {"adamw"}, "lr": {2e-4}, "seq_len": {2048}, "batch_size": {1}, "accum": {16}, "scale": {0.01, 0.005}}
    for name in ("a100", "a100_13b", "small_gpu"):
        rec = recipes.get(name)
        assert rec.base == rec.stages[0].base and all(part in rec.doc for part in ("Paper:", "Departs:", "Cost:", "Result:")) and {s.packs_per_step for s in rec.stages} <= {64, 16, 4}


@pytest.mark.parametrize("call, message", [
    (lambda: Config(update="backward"), "update is 'backward', where no gradient outlives its use: it needs accum 1 and clip 0, got accum 1 and clip 1.0"),
    (lambda: Config(update="backward", clip=0.0, accum=2), "got accum 2 and clip 0.0"),
    (lambda: Config(eval_every=5), "held-out loss needs held_out and eval_every, got 0 and 5"),
    (lambda: Config(final="best"), "held-out loss needs held_out and eval_every, got 0 and 0"),
    (lambda: Config(optimizer="adamw8bit"), "no optimizer named 'adamw8bit'; did you mean 'adamw_8bit'"),
    (lambda: Config(lora_dropout=1.5), "lora_dropout is a share between 0 and 1, got 1.5"),
    (lambda: recipes.get("smoek"), "no recipe named 'smoek'; did you mean 'smoke'"),
    (lambda: recipes.get("smoke", leraning_rate=1), "no parameter named 'leraning_rate'"),
    (lambda: recipes.get("smoke", stages=()), "no parameter named 'stages'"),
    (lambda: recipes.get("smoke").stage("stage3"), "no stage named 'stage3'; did you mean 'stage3_gpt4'"),
    (lambda: recipes.get("smoke").task("leg_count"), "no task named 'leg_count'; did you mean 'leg_counting'"),
    (lambda: recipes.get("smoke").stage("stage1_flan", lrr=1), "no parameter named 'lrr'; did you mean 'lr'"),
])
def test_a_misspelt_name_is_answered_with_the_nearest(call, message):
    with pytest.raises(ValueError, match=message):
        call()
