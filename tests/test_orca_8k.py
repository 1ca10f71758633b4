"""The recipe orca_8k: the card of llama2-13b-orca-8k-3319 key by key, its counts and steps, and OpenAssistant's form of a row, id for id and target for target."""

import json
import re
from itertools import islice
from random import Random

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SHARED, talk
from talks import PARTS, SPECIAL, Reference
from test_attention import kernels  # noqa: F401  a fixture
from test_mixture import jsonl, scan_of

from orcalab import attention, chatml, corpus, data, forecast, loss, mixture, model as models, optim, packing, procedural, recipes, strategies, train
from orcalab.config import change, read_json

# The card's block, as it is printed there; with its comments left out. Where the card itself is on this machine, it is compared with it.
BLOCK = """
llama2_13b_orca_8k:
  rng_seed: 0xe1291f1a
  use_custom_sampler: true
  sort_by_length: false
  dtype: fp16
  log_dir: "llama2_log_13b_orca_8k"
  learning_rate: 1e-5
  model_name: /mnt/data/llama2/Llama-2-13b-hf/
  output_dir: llama2_13b_orca_8k
  deepspeed_config: configs/zero_config_pretrain.json
  weight_decay: 0.0
  max_length: 8192
  warmup_steps: 100
  use_flash_attention: true
  gradient_checkpointing: true
  gradient_accumulation_steps: 8
  per_device_train_batch_size: 2
  per_device_eval_batch_size: 1
  residual_dropout: 0.0
  eval_steps: 200
  save_steps: 1000
  num_train_epochs: 1
  save_total_limit: 4
  superhot: true
  superhot_config:
    type: linear
    scale: 2
  datasets:
    - orca-chat:
        max_val_set: 5000
    - fanfics:
        max_chunk_size: 65535
        max_val_set: 1000
    - red_pajama:
        fraction: 0.25
        max_val_set: 1000
        max_chunk_size: 65535
  peft_model: false
"""
DEFAULTS = {"val_split": 0.2, "max_grad_norm": 2.0, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-12, "samples_mixing": False, "label_masking": True,
            "random_offset_probability": 0.8, "vocab_size": 32016}  # of Open-Assistant's configs/config.yaml and code, and of the released config.json
SIZES = (236_053, 59_700, 941_310)  # conversations, and pieces of texts: counted back from the card
README = (ROOT / "README.md").read_text(encoding="utf-8")


def flat(block):
    """The keys of a configuration, dotted, and their values."""
    if isinstance(block, list):
        block = {k: v for part in block for k, v in part.items()}
    return {f"{k}{'.' * bool(rest)}{rest}": v for k, of in block.items() for rest, v in (flat(of) if isinstance(of, (dict, list)) else {"": of}).items()}


CARD = flat(yaml.safe_load(BLOCK)["llama2_13b_orca_8k"])
EIGHT = recipes.get("orca_8k")
STAGE = EIGHT.stage("sft_8k")


# ---------------------------------------------------------------------------------------------- the table

def rows_of(text):
    """The table's rows: {key: (value, what stands here, what differs)}."""
    (table,) = re.findall(r"<!-- orca_8k -->(.*?)<!-- end of orca_8k -->", text, re.S)
    return {k: rest for k, *rest in re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| (`[^`]+`|—) \| (.*?) ?\|$", table, re.M)}


def here(name):
    """The value of what the table names: a setting of the stage, of a part of its mixture, of the recipe, or a constant of the optimizer."""
    *of, field = name.split(".")
    parts = {p.name: p for p in recipes.ORCA_8K.parts}
    return getattr(parts.get(of[0]) or {"optim": optim}[of[0]] if of else STAGE, field)


def alike(theirs, ours):
    """Whether two values say the same: numbers by value (to YAML `1e-5` is a text), yes as 1."""
    try:
        return float(theirs) == float(ours)
    except ValueError:
        return str(theirs) == str(ours)


def complaints(text, wanted):
    """What is wrong with the table: a key that is missing or too many, a value that is not the card's or not ours, a difference without a reason."""
    rows, out = rows_of(text), []
    if list(rows) != list(wanted):
        out.append(f"keys: {set(rows) ^ set(wanted) or 'in another order'}")
    for key, (value, ours, why) in rows.items():
        if key in wanted and not alike(wanted[key], yaml.safe_load(value)):
            out.append(f"{key}: the card has {wanted[key]}, the table {value}")
        if ours == "—":
            out += [f"{key}: no counterpart and no reason"] * (len(why.split()) < 5)
            continue
        name, shown = ours.strip("`").split(" ")
        if str(here(name)) != shown:
            out.append(f"{key}: {name} is {here(name)}, the table says {shown}")
        if not alike(yaml.safe_load(value), here(name)) and len(why.split()) < 3:
            out.append(f"{key}: {value} and {shown}, without a reason")
    return out


def test_every_key_of_the_card_has_its_counterpart_or_a_reason():
    assert complaints(README, CARD | DEFAULTS) == []


@pytest.mark.parametrize("old, new, said", [
    ("| `lr 1e-05` |", "| `lr 2e-05` |", "learning_rate: lr is 1e-05, the table says 2e-05"), ("`warmup_steps` | `100`", "`warmup_steps` | `200`", "warmup_steps: the card has 100"),
    ("| `eval_steps` |", "| `eval_step` |", "keys: .*eval_step"), ("| `save_every 1000` |", "| `keep 4` |", "save_steps: 1000 and 4, without a reason"),
    ("| — | held-out examples are packed, and looked at a pack at a time |", "| — | |", "per_device_eval_batch_size: no counterpart and no reason")])
def test_a_table_that_is_wrong_is_noticed(old, new, said):
    assert README.count(old) == 1
    found, *_ = complaints(README.replace(old, new), CARD | DEFAULTS)
    assert re.match(said, found)


def test_the_block_is_the_cards():
    cards = [p for p in (SHARED.parent / "seeds").glob("*.txt") if "llama2_13b_orca_8k:" in p.read_text(encoding="utf-8")]
    if not cards:
        pytest.skip("the model card is not on this machine: the copy of its block was not compared")
    (printed,) = re.findall(r"^```\n(llama2_13b_orca_8k:\n.*?)```", cards[0].read_text(encoding="utf-8"), re.S | re.M)
    assert flat(yaml.safe_load(printed)["llama2_13b_orca_8k"]) == CARD and len(CARD) == 32
    shares = [int(n) for n in re.findall(r"#   [\w-]+: [\d.]+% \((\d+)\)", printed)]
    assert shares == [188_842, 47_760, 188_262] and "(total steps: 3319)" in printed


def test_what_is_computed_from_several_keys():
    gpus = 128 // (CARD["per_device_train_batch_size"] * CARD["gradient_accumulation_steps"])
    assert STAGE.packs_per_step == 128 and gpus == 8 and STAGE.accum == gpus * CARD["gradient_accumulation_steps"]
    assert STAGE.rope == f"{CARD['superhot_config.type']}:{CARD['superhot_config.scale']}" and CARD["superhot"]
    assert optim.learning_rate(STAGE, 100) == optim.learning_rate(STAGE, 3318) == float(CARD["learning_rate"]) == 100 * optim.learning_rate(STAGE, 0)  # up in a line, then constant
    assert {p.validation for p in recipes.ORCA_8K.parts} == {DEFAULTS["val_split"]} and STAGE.held_out == sum(v for k, v in CARD.items() if k.endswith("max_val_set"))
    own = 32_000 + len(chatml.TEMPLATES["openassistant"].new)
    assert own == 32_006 and -(-own // 16) * 16 == DEFAULTS["vocab_size"]


# ---------------------------------------------------------------------------------------------- counts and steps

def planned(rows, sizes=SIZES):
    """(mixture, plan) of the recipe, by the real sampler, mixture and planner, of rows that are numbers alone."""
    cfg = recipes.get("orca_8k", rows=rows).stage("sft_8k")
    mix = next(m for m in EIGHT.mixes if m.name == rows)
    mixed = mixture.Mixture(mix, cfg)
    mixed._arrange([mixture.select(p, scan_of(n), cfg)[0] for p, n in zip(mix.parts, sizes)])
    lengths = np.random.default_rng(0).integers(2, 8193, len(mixed.part))
    return mixed, packing.plan(lengths, cfg.seq_len, None, cfg.packing, cfg.seed, cfg.epochs, cfg.packs_per_step, [np.arange(mixed.held, len(mixed.part))])


@pytest.mark.parametrize("stories", (59_700, 59_701))
def test_the_cards_counts_and_steps_come_out_of_sampler_and_plan(stories):
    mixed, plan = planned("orca_8k_card", (236_053, stories, 941_310))
    drawn = np.bincount(mixed.part[mixed.held :])
    assert drawn.tolist() == [188_842, 47_760, 188_262] and drawn.sum() == 424_864 == recipes.EXPECTED["orca_8k_card"]
    assert np.bincount([p for p, *_ in mixed.aside]).tolist() == [5000, 1000, 1000] == np.bincount(mixed.part[: mixed.held]).tolist()  # looked at, and not trained on
    assert len(plan) == 3319 * 128 and len(plan) // STAGE.packs_per_step == 3319 and np.diff(plan.ends, prepend=0).max() == 1
    assert len(np.unique(plan.members)) == len(plan) == 424_864 - 32 and plan.members.min() >= mixed.held  # 32 rows fill no step
    left = np.setdiff1d(np.arange(mixed.held, len(mixed.part)), plan.members)
    assert len(np.unique(mixed.part[left])) > 1 and (np.diff(plan.members[:1000]) < 0).any()  # which, and in what order, is chance


def test_rows_that_they_lost_are_trained_on_here():
    mixed, plan = planned("orca_8k")
    assert np.bincount(mixed.part[mixed.held :]).tolist() == [231_053, 58_700, 235_077] and mixed.held == 7000 and len(mixed.part) - 7000 == recipes.EXPECTED["orca_8k"]
    assert len(plan) == 4100 * 128


def test_the_forecast_of_rows_that_are_not_here_has_the_same_steps():
    for rows, steps in (("orca_8k_card", 3319), ("orca_8k", 4100)):
        cfg = change(STAGE, rows=rows)
        work = forecast.work(cfg, rows=recipes.EXPECTED[rows])
        assert work["steps"] == steps and work["tokens"] == steps * 128 * 758 and work["batch"][0] == 2 * 8192
        packed = forecast.work(change(cfg, packing="best_fit"), rows=recipes.EXPECTED[rows])
        assert packed["steps"] == round(recipes.EXPECTED[rows] * 758 / (128 * 8192)) < steps / 10


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A small corpus laid out as theirs: conversations of two exchanges, stories, web pages."""
    root = tmp_path_factory.mktemp("shelf")
    return shelve(root, [{"conversation": [{"input": f"a{i}", "output": "b"}, {"input": "c", "output": f"d{i}"}], "instruction": "Be brief." * (i % 2)} for i in range(150)],
                  [f"Once upon a time {i}. " * 3 for i in range(60)], [f"A page about {i}. " * 4 for i in range(240)])


def shelve(root, talks, stories, pages):
    jsonl(root / "orca_chat" / "orca-chat-gpt4.json", talks)
    jsonl(root / "fanfics" / "fan.jsonl", [{"TEXT": s} for s in stories])
    jsonl(root / "redpajama" / "c4_sample.jsonl", [{"text": p} for p in pages])
    return root


def small(shelf, tmp_path, **changes):
    recipe = recipes.get("orca_8k", **{"base": "tiny-random", "rows": "orca_8k_card", "data": str(shelf), "out": str(tmp_path), "device": "cpu", "dtype": "fp32", "held_out": 20, "accum": 8,
                                       "eval_every": 8, "processes": 1, **changes})
    cfg = recipe.stage("sft_8k")
    return cfg, corpus.prepare(recipe, cfg, models.load_tokenizer("tiny-random", cfg.template))


def test_a_real_corpus_is_prepared_and_trained_as_the_card_says(shelf, tmp_path):
    cfg, prepared = small(shelf, tmp_path, learn="openassistant", lr=1e-3, warmup=2, rope=STAGE.rope)
    rows = [prepared.rows[int(i)] for i in prepared.held_out]
    assert prepared.card["chosen"]["orca_chat"]["aside"] == 30 and len(rows) == 20 and len({r.source for r in rows}) == 3
    aside = {json.loads(x)["id"] for x in (prepared.folder / "validation.jsonl").read_text().splitlines()}
    assert len(aside) == 30 + 12 + 48 and {r.id for r in rows} < aside and not {prepared.rows[i].id for i in prepared.plan.members} & aside  # what is looked at was set aside
    assert [len(p) for p in prepared.plan] == [1] * len(prepared.plan) and len(prepared.plan) == (120 + 48 + 48) // 16 * 16 and prepared.steps == 13
    again = small(shelf, tmp_path)[1]
    assert again.folder != prepared.folder and np.array_equal(again.held_out, prepared.held_out)
    assert data.audit(prepared, models.load_tokenizer("tiny-random", "openassistant"))["erased"] == 0
    done = train.train(cfg, prepared)
    assert done["steps"] == 13 and done["last_loss"] < done["first_loss"] and done["held_out_step"] == 13
    report, lines = read_json(cfg.folder / "preflight.json"), [json.loads(x) for x in (cfg.folder / "metrics.jsonl").read_text().splitlines()]
    assert report["answers"] == report["answers_that_end"] > 0 and [x["step"] for x in lines if "held_out" in x] == [8, 13]
    assert sum(x["targets"] for x in lines) == done["targets"] == forecast.work(cfg, prepared)["targets"]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_whole_road_at_the_cards_size(tmp_path):
    """1.2 million short rows through sources, sampler, encoder and plan: minutes."""
    talks, stories, pages = SIZES
    root = shelve(tmp_path / "shelf", ({"conversation": [{"input": f"{i}?", "output": "b"}], "instruction": "Be brief."} for i in range(talks)), ("A tale." for _ in range(stories)), ("A page." for _ in range(pages)))
    cfg, prepared = small(root, tmp_path, held_out=STAGE.held_out, accum=STAGE.accum, processes=0)
    assert prepared.steps == 3319 and [prepared.card["chosen"][p]["taken"] for p in ("orca_chat", "fanfics", "redpajama")] == [188_842, 47_760, 188_262]
    assert len(prepared.held_out) == 7000 and len((prepared.folder / "validation.jsonl").read_text().splitlines()) == 7000
    assert forecast.work(cfg, prepared)["steps"] == 3319 and prepared.card["by"]["part"]["orca_chat"] > 188_800


# ---------------------------------------------------------------------------------------------- a row a pack

def test_a_pack_holds_one_example_and_a_step_that_rows_do_not_fill_is_left_out():
    lengths = np.random.default_rng(1).integers(1, 65, 1000)
    plan = packing.plan(lengths, 64, method="none", seed=3, multiple=48)
    assert len(plan) == 960 and [len(p) for p in plan] == [1] * 960 and np.bincount(plan.members).max() == 1
    twice = packing.plan(lengths, 64, method="none", seed=3, epochs=2, multiple=48).members
    assert len(twice) == 1968 and sorted(twice[:1000]) == list(range(1000)) and (twice[:968] != twice[1000:]).any()  # each epoch in an order of its own
    few = packing.plan(lengths[:10], 64, method="none", multiple=48)  # there is always one step
    assert len(few) == 48 and set(np.bincount(few.members)) == {4, 5}
    drawn = [np.arange(0, 300), np.arange(300, 700)]
    fresh = packing.plan(lengths, 64, method="none", epochs=2, multiple=64, draws=drawn)
    assert len(fresh) == 640 and set(fresh.members[:300]) == set(range(300)) and set(fresh.members[300:]) < set(range(300, 700))
    assert len(packing.plan(lengths, 64, 77, "none")) == 77


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler looks for one everywhere
@pytest.mark.parametrize("kind", ("varlen", "flex"))
def test_padding_of_a_row_a_pack_is_not_computed_and_changes_nothing(kernels, tiny, kind):  # noqa: F811
    examples = [(list(range(n)), [0] + [1] * (n - 1)) for n in (40, 9, 30)]
    packed = packing.pack(examples, [[0], [1], [2]], 256)
    by = {k: attention.batch_of(packed, [0, 1, 2], "cpu", k) for k in ("documents", kind)}
    assert len(by["documents"][0]) == 79 and len(by[kind][0]) == 80 and int((by[kind][2] >= 0).sum()) == packed.num_targets == 76  # in sixteenths of a pack, here 16 tokens
    sums = [loss.loss_sum(attention.isolate(tiny[0], k), *b[:2], b[3], b[2])[1] for k, b in by.items()]
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-6)
    assert len(attention.batch_of(packing.pack(examples, [[0, 1], [2]], 250), [0, 1], "cpu", kind)[0]) == 500  # packs keep their one shape


# ---------------------------------------------------------------------------------------------- a row's form

BOS, END, PAD, ASSISTANT, PREFIX_END, SYSTEM, PREFIX_BEGIN, PROMPTER = 1, 2, *range(32_000, 32_006)


def written(messages):
    """A conversation as OpenAssistant writes it: one text, in which the names of its tokens stand for them."""
    return "".join({"system": "<|system|>", "user": "<|prompter|>", "assistant": "<|assistant|>"}[m["role"]] + m["content"] + "</s>" for m in messages if m["role"] != "system" or m["content"])


def theirs(messages, pieces):
    """(ids, whether what each position predicts is learned), as OpenAssistant's collator has them; `pieces` makes ids of one content."""
    ids = [BOS]
    for m in messages:
        if m["role"] != "system" or m["content"]:
            ids += [{"system": SYSTEM, "user": PROMPTER, "assistant": ASSISTANT}[m["role"]], *pieces(m["content"]), END]
    number, counts = -1, []
    for i in ids:
        number += i in (PROMPTER, ASSISTANT)
        counts.append(number % 2 == 1)
    return ids, counts[:-1] + [False]


def labels_of(messages, tokenizer, learn):
    """(ids, labels) as they come to the loss."""
    ids, mask = chatml.encode(messages, tokenizer, learn=learn)
    chatml.prove(ids, mask, messages, tokenizer, learn)
    return ids, packing.pack([(ids, mask)], [[0]], len(ids)).labels[0].tolist()


def same_form(talks, tokenizer, pieces):
    """Hold every conversation against `theirs`; return how many targets there are, [in theirs, by default], and in how many a special token's name was typed."""
    targets, typed = [0, 0], 0
    for messages in talks:
        ids, counts = theirs(messages, pieces)
        own, labels = labels_of(messages, tokenizer, "openassistant")
        assert own == ids
        assert [y != packing.IGNORE for y in labels] == counts and all(y in (packing.IGNORE, after) for y, after in zip(labels, ids[1:] + [None]))
        forged = bool({i for m in messages for i in tokenizer(m["content"], add_special_tokens=False).input_ids} & {0, BOS, END, *range(PAD, PROMPTER + 1)})
        assert (tokenizer(written(messages)).input_ids == ids) != forged  # their code reads the whole text at once: what somebody typed becomes structure
        default = [y != packing.IGNORE for y in labels_of(messages, tokenizer, "all")[1]]
        first = ids.index(PROMPTER)  # before it nothing but the BOS and the system turn
        extra = {at for at in range(len(ids) - 1) if ids[at + 1] == PROMPTER or at + 1 < first}
        assert {at for at, (a, b) in enumerate(zip(counts, default)) if a != b} == extra and not any(default[at] for at in extra)
        targets, typed = [targets[0] + sum(counts), targets[1] + sum(default)], typed + forged
    return targets, typed


def talks_of(rows, count):
    """Conversations of one to four exchanges, half of them under one of Orca 1's messages; into a quarter somebody typed names of special tokens."""
    rng = Random(8192)
    for _ in range(count):
        odd = (lambda text: text[: len(text) // 2] + rng.choice(SPECIAL) + text[len(text) // 2 :] if rng.random() < 0.5 else text) if rng.random() < 0.25 else lambda text: text
        pairs = [(role, odd(said)) for row in (rng.choice(rows) for _ in range(rng.randint(1, 4)))
                 for role, said in (("user", row.messages[0]["content"]), ("assistant", f"{row.explanation}\nFinal answer: {row.answer}"))]
        yield talk(*pairs, system=odd(rng.choice(list(strategies.ORCA1.values()))) if rng.random() < 0.5 else None)


@pytest.fixture(scope="module")
def llama():
    """(Llama 2's own tokenizer with their tokens, sentencepiece's pieces of a content)."""
    if not (SHARED / "llama2" / "tokenizer.model").exists():
        pytest.skip("Llama 2's tokenizer is not on this machine: its real ids were not tested")
    return models.load_tokenizer(str(SHARED / "llama2"), "openassistant"), Reference(SHARED / "llama2" / "tokenizer.model").piece


@pytest.fixture(scope="module")
def standin():
    return models.load_tokenizer("llama-standin", "openassistant"), Reference(models.llama_standin() / "tokenizer.model").piece


def test_a_thousand_real_conversations_have_their_form(llama, flan):
    talks = list(talks_of(data.read(flan, 0, check=False), 1000))
    (counted, default), typed = same_form(talks, *llama)
    assert {len([m for m in t if m["role"] == "user"]) for t in talks} == {1, 2, 3, 4} and 400 < sum(t[0]["role"] == "system" for t in talks) < 600 and typed > 100
    assert counted - default == sum(len(theirs(t[:1], llama[1])[0]) - 1 for t in talks if t[0]["role"] == "system" and t[0]["content"]) + sum(m["role"] == "user" for t in talks for m in t)


def test_generated_conversations_have_their_form(standin):
    rows = list(islice(procedural.rows(recipes.get("laptop").tasks, 0, 1), 300))
    (counted, default), typed = same_form(talks_of(rows, 120), *standin)
    assert counted > default and typed > 10
    odd = [talk(*[(r, "".join(Random(seed * 9 + n).choices(PARTS, k=6))) for n, r in enumerate(("user", "assistant") * 2)], system="".join(Random(seed).choices(PARTS, k=seed % 3))) for seed in range(80)]
    for messages in odd:
        assert labels_of(messages, standin[0], "openassistant")[0] == theirs(messages, standin[1])[0]
        assert [y != packing.IGNORE for y in labels_of(messages, standin[0], "openassistant")[1]] == theirs(messages, standin[1])[1]


def test_one_conversation_target_by_target(standin):
    tokenizer, pieces = standin
    messages = talk(("user", "2+2"), ("assistant", "4"), ("user", "3?"), ("assistant", "7"), system="Add.")
    add, two, four, three, seven = (pieces(s) for s in ("Add.", "2+2", "4", "3?", "7"))
    ids, mask = chatml.encode(messages, tokenizer, learn="openassistant")
    assert ids == [BOS, SYSTEM, *add, END, PROMPTER, *two, END, ASSISTANT, *four, END, PROMPTER, *three, END, ASSISTANT, *seven, END]
    assert chatml.learned(ids, mask) == [SYSTEM, *add, END, PROMPTER, *four, END, PROMPTER, *seven, END]
    assert chatml.learned(*chatml.encode(messages, tokenizer)) == [*four, END, *seven, END]
    assert chatml.encode(messages[1:], tokenizer, learn="openassistant") == chatml.encode(talk(*[(m["role"], m["content"]) for m in messages[1:]], system=""), tokenizer, learn="openassistant")
    bare = chatml.encode(messages[1:], tokenizer, learn="openassistant")
    assert chatml.learned(*bare)[0] == PROMPTER and bare[1][1] == 1  # behind the BOS: also without a system message


def test_the_proof_holds_for_their_mask_and_for_no_other(standin, tokenizer):
    messages = talk(("user", "2+2"), ("assistant", "4"), ("user", "3?"), ("assistant", "7"), system="Add.")
    for t in (standin[0], tokenizer):  # their mask on ChatML, too
        ids, mask = chatml.encode(messages, t, learn="openassistant")
        chatml.prove(ids, mask, messages, t, "openassistant")
        plain = chatml.encode(messages, t)[1]
        assert sum(mask) > sum(plain) and all(m >= p for m, p in zip(mask, plain))
        for wrong, learn in ((plain, "openassistant"), (mask, "all"), (mask[1:] + [0], "openassistant"), ([0, 0] + mask[2:], "openassistant")):
            with pytest.raises(ValueError, match="the targets decode to .*, the (assistant said|turns say) "):
                chatml.prove(ids, wrong, messages, t, learn)
    assert STAGE.learn == "all" and recipes.get("orca_8k", learn="openassistant").stage("sft_8k").learn == "openassistant"


def test_plain_text_is_learned_whole_under_either(standin):
    e, text = chatml.encoder(standin[0]), "Once upon a time.\nThe end."
    ids = standin[0](text).input_ids
    for row in (data.Row(messages=[], text=text),):
        for learn in ("all", "openassistant"):
            parts = data.parts_of(row, change(STAGE, learn=learn), e)
            assert np.frombuffer(b"".join(p for p, _ in parts), np.int32).tolist() == ids and [n for p, n in parts for _ in range(len(p) // 4)] == [0] + [1] * (len(ids) - 1)


def test_the_five_tokens_and_their_padding_have_the_released_models_ids(llama):
    names = ["<pad>", "<|assistant|>", "<|prefix_end|>", "<|system|>", "<|prefix_begin|>", "<|prompter|>"]
    assert llama[0].convert_tokens_to_ids(names) == [PAD, ASSISTANT, PREFIX_END, SYSTEM, PREFIX_BEGIN, PROMPTER] == list(range(32_000, 32_006))
    assert len(llama[0]) == 32_006 and (llama[0].pad_token, llama[0].eos_token, llama[0].bos_token) == ("<pad>", "</s>", "<s>")
    assert chatml.self_test(llama[0])["marks"] == [SYSTEM, PROMPTER, ASSISTANT, END]
    assert [llama[0].decode([i]) for i in range(32_000, 32_006)] == names


def test_a_prepared_folder_is_not_taken_for_another_mask_or_packing(shelf, tmp_path):
    names = {small(shelf, tmp_path, **c)[1].folder.name for c in ({}, {"learn": "openassistant"}, {"packing": "best_fit"}, {"rows": "orca_8k"})}
    assert len(names) == 4 and all(n.startswith("sft_8k-") for n in names)
