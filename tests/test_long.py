"""long.py and RoPE scaling: a stretched folder is read alike by plain transformers, is never stretched twice, and what long texts are measured by is exact."""

import subprocess
import sys
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, script, wild

from orcalab import adapter, chatml, config, long, model as models, scores, train
from orcalab.config import Config, read_json
from orcalab.rows import Row

KINDS = [f"{kind}:2" for kind in config.ROPES]
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
ids, out = torch.load(sys.argv[1]), {}
for folder in sys.argv[3:]:
    with torch.no_grad():
        out[folder] = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids, use_cache=False).logits[0, -300:].clone()
assert "orcalab" not in sys.modules
torch.save(out, sys.argv[2])
"""


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits[0, -300:]


def hidden(model, ids, place):
    """The decoder's states at these positions, a token at a time behind what it keeps, so that no position is taken for another text's beginning."""
    cache, out = None, []
    for n in range(ids.shape[1]):
        made = model.get_decoder()(input_ids=ids[:, n : n + 1], position_ids=place[:, n : n + 1], past_key_values=cache, use_cache=True)
        cache, out = made.past_key_values, [*out, made.last_hidden_state]
    return torch.cat(out, 1)


def small_base(folder, positions=128):
    """A base model of few positions, in a folder."""
    model, tokenizer = models.tiny_random()
    model.config.max_position_embeddings = positions
    models.save(folder, wild(model, 4), tokenizer)
    return str(folder)


def rows(n=None):
    """Rows with a system message, each of another length."""
    for i in count() if n is None else range(n):
        yield Row(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {i} and {i}?" + " Say it." * (i % 3)}, {"role": "assistant", "content": f"{2 * i}"}])


# ---------------------------------------------------------------------------------------------- RoPE

def test_plain_transformers_reads_a_stretched_folder_alike_at_every_position(tmp_path):
    ids = torch.randint(0, 256, (1, 600), generator=torch.Generator().manual_seed(0))
    torch.save(ids, tmp_path / "ids.pt")
    base, ours = small_base(tmp_path / "base", 256), {}  # most of the 600 are beyond its positions, the last beyond twice as many, too
    for rope in ["", *KINDS]:
        model, tokenizer, _ = models.load(base, rope=rope)
        models.save(folder := tmp_path / (rope.replace(":", "-") or "bare"), model, tokenizer)
        ours[str(folder)] = logits(model, ids)
    job = subprocess.run([sys.executable, "-c", PLAIN, tmp_path / "ids.pt", tmp_path / "out.pt", *ours], capture_output=True, text=True, cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    theirs = torch.load(tmp_path / "out.pt")
    assert all(torch.equal(ours[f], theirs[f]) for f in ours)
    flat = list(ours.values())
    assert all((a - b).abs().max() > 1e-3 for n, a in enumerate(flat) for b in flat[:n])  # each is another model: none was saved without its scaling
    for rope in KINDS:
        made = read_json(tmp_path / rope.replace(":", "-") / "config.json")
        assert (made["rope_parameters"]["rope_type"], made["rope_parameters"]["factor"]) == (rope[:-2], 2.0)
        assert made["max_position_embeddings"] == (256 if rope == "dynamic:2" else 512)
        assert made["rope_parameters"].get("original_max_position_embeddings") == (256 if rope in ("yarn:2", "llama3:2") else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_every_position_over_the_factor(tmp_path, dtype):
    base = small_base(tmp_path / "base")
    for name in (base, "tiny-random"):
        plain, made = (models.load(name, dtype, rope=rope)[0] for rope in ("", "linear:4"))
        was, now = (m.get_decoder().rotary_emb.inv_freq for m in (plain, made))
        assert now.dtype == torch.float32 and torch.equal(now, was / 4) and made.config.max_position_embeddings == 4 * plain.config.max_position_embeddings
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), made.parameters()))
        ids, place = torch.randint(0, 256, (1, 40)), torch.arange(40)[None]
        with torch.no_grad():
            want, same, near = hidden(plain, ids, place), hidden(made, ids, place * 4), hidden(made, ids, place)
        assert torch.equal(want, same) and not torch.allclose(want, near, atol=1e-3)  # tokens four times as far apart look as near as they did
    shape = models.skeleton(base, rope="linear:4")
    assert shape.config.max_position_embeddings == 512 and shape.device.type == "meta" and models.skeleton("tiny-random", rope="yarn:2").config.max_position_embeddings == 8192


def test_what_is_stretched_is_not_stretched_again(tmp_path):
    base = small_base(tmp_path / "base")
    models.save(tmp_path / "long", *models.load(base, rope="linear:2")[:2])
    for rope in ("", "linear:2", "linear:2.0"):
        model = models.load(tmp_path / "long", rope=rope)[0]
        assert model.config.max_position_embeddings == 256 and model.config.rope_parameters["factor"] == 2
    with pytest.raises(ValueError, match=r"rope is 'linear:4', and this model's positions are stretched already \(linear:2\): leave rope empty, or start from a base"):
        models.load(tmp_path / "long", rope="linear:4")
    with pytest.raises(ValueError, match="rope is 'yarn:2', and this model's positions are stretched already"):
        models.skeleton(str(tmp_path / "long"), rope="yarn:2")
    from transformers import GPT2Config
    with pytest.raises(ValueError, match="rope is 'linear:2', and models of type gpt2 have no one set of rotary positions"):
        models.stretch(GPT2Config(), "linear:2")


@pytest.mark.parametrize("rope, message", [
    ("linaer:2", "no kind of rope named 'linaer'; did you mean 'linear'"), ("longrope:2", "no kind of rope named 'longrope'; known: linear"), ("linear", "rope is 'linear', and should be a type and a factor above 1, as linear:2"),
    ("linear:1", "factor above 1"), ("yarn:-2", "factor above 1"), ("yarn:nan", "factor above 1"), ("yarn:2:3", "as yarn:2"), ("llama3:", "as llama3:2"),
])
def test_a_wrong_rope_is_refused_before_anything_else(rope, message):
    with pytest.raises(ValueError, match=message):
        Config(rope=rope)


@pytest.mark.parametrize("rope", ["linear:2", "yarn:1.5", ""])
def test_a_stage_trains_stretched_and_the_next_one_goes_on(stage, tmp_path, rope):
    base = small_base(tmp_path / "base", 512)
    cfg, prepared = stage(base=base, seq_len=700, steps=2, rope="linear:2")
    train.train(cfg, prepared)
    made = read_json(cfg.folder / "model" / "config.json")
    assert made["max_position_embeddings"] == 1024 and made["rope_parameters"]["rope_type"] == "linear" and read_json(cfg.folder / "config.json")["rope"] == "linear:2"
    after, again = stage("stage3_gpt4", start="stage2_chatgpt", base=base, seq_len=700, steps=1, rope=rope)
    if rope == "yarn:1.5":
        with pytest.raises(ValueError, match="stretched already"):
            train.train(after, again, cfg.folder / "model")
    else:
        train.train(after, again, cfg.folder / "model")
        assert read_json(after.folder / "model" / "config.json")["rope_parameters"] == made["rope_parameters"]


def test_examples_beyond_the_positions_are_refused_with_what_to_do(stage, tmp_path):
    cfg, prepared = stage(base=small_base(tmp_path / "base", 100), seq_len=700)
    longest = max(len(ids) for ids, _ in prepared.examples)
    assert 200 < longest <= 700
    with pytest.raises(ValueError, match=rf"an example has {longest} tokens, and the model was trained with 100 positions: stretch them with rope, as linear:{-(-longest // 100)}, or choose seq_len 100"):
        train.train(cfg, prepared)
    assert not (cfg.folder / "metrics.jsonl").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what peft uses of transformers
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_and_its_merged_model_keep_the_scaling(tmp_path, method):
    pytest.importorskip("peft")
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    adapter.guests()
    base, folder = small_base(tmp_path / "base"), tmp_path / "stage"
    cfg = SimpleNamespace(**{**vars(Config(name="stage", method=method, lora_rank=4)), "rope": "linear:2"})
    model, tokenizer, _ = adapter.load(cfg, base, torch.float32, "cpu")
    with torch.no_grad():
        for p in adapter.weights_of(model).values():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    ids = torch.randint(0, 256, (1, 300))
    want = logits(model, ids)
    adapter.finish(folder, model, tokenizer, cfg)
    merged, alone = models.load(folder / "model")[0], adapter.load_to_answer(folder / "adapter", torch.float32, "cpu")[0]
    for m in (merged, alone):
        assert m.config.max_position_embeddings == 256 and m.config.rope_parameters["rope_type"] == "linear"
    assert torch.allclose(logits(alone, ids), want, atol=1e-4) and torch.allclose(logits(merged, ids), want, atol=0.05)
    flat = adapter.put(folder / "adapter", {**read_json(folder / "adapter" / "orcalab.json"), "rope": ""}, base, SimpleNamespace(**{**vars(cfg), "rope": ""}), torch.float32, "cpu")[0]
    assert (logits(flat, ids) - want).abs().max() > 0.1  # without it, the same adapter says something else
    for rope in ("", "linear:2"):
        on = adapter.load(SimpleNamespace(**{**vars(cfg), "rope": rope}), str(folder / "model"), torch.float32, "cpu")[0]
        assert on.config.max_position_embeddings == 256 and on.note["rope"] == "linear:2"
    with pytest.raises(ValueError, match="rope is 'yarn:2', and .*adapter was trained with 'linear:2': leave rope empty"):
        adapter.load(SimpleNamespace(**{**vars(cfg), "rope": "yarn:2"}), str(folder / "model"), torch.float32, "cpu")


# ---------------------------------------------------------------------------------------------- long texts

def test_a_talk_has_the_tokens_asked_for_and_tells_each_passkey_once(tokenizer):
    talk = long.talk(rows(), tokenizer, 3000, long.NAMES[:5], seed=3)
    ids = chatml.encode(talk.messages, tokenizer)[0]
    assert 2800 < len(ids) <= 3000 and len(talk.told) == 5 and len(set(talk.told.values())) == 5
    assert [m["role"] for m in talk.messages] == ["system"] + ["user", "assistant"] * (len(talk.messages) // 2) and talk.messages[0]["content"] == "Be brief."
    for name, number in talk.told.items():
        assert [m["content"] for m in talk.messages if number in m["content"]] == [f"The passkey of {name} is {number}. Remember it.", f"The passkey of {name} is {number}"]
    at = [i for i, m in enumerate(talk.messages) if m["content"].endswith("Remember it.")]
    assert len(np.unique(np.round(np.diff(at) / len(talk.messages), 1))) == 1 and at[0] == 1  # at even distances, from the first turn on
    early = long.talk(rows(), tokenizer, 3000, long.NAMES[:5], seed=3, share=0.5)
    assert max(i for i, m in enumerate(early.messages) if m["content"].endswith("Remember it.")) < 0.55 * len(early.messages) and early.told == talk.told
    asked = long.talk(rows(), tokenizer, 3000, long.NAMES[:5], seed=3, asked=True)
    assert len(chatml.encode(asked.messages, tokenizer)[0]) <= 3000 and [m["content"] for m in asked.messages[-10::2]] != [f"What is the passkey of {n}?" for n in asked.told]
    assert {m["content"] for m in asked.messages[-9::2]} == {f"The passkey of {n} is {k}" for n, k in asked.told.items()}
    assert not set(long.NAMES) & set(long.TAUGHT) and long.talk(rows(3), tokenizer, 10).told == {}


def test_reading_is_the_models_own_forward_pass_and_a_gap_moves_what_is_behind_it(tiny, tokenizer):
    model = wild(tiny[0]).eval()
    ids = torch.randint(0, 256, (1, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none").numpy()
    losses, cache = long.read(model, ids[0].tolist(), np.arange(50))
    assert np.allclose(losses, want, atol=1e-4) and cache.get_seq_length() == 50
    assert long.gap(50, 20, 900).tolist() == [*range(20), *range(870, 900)]
    apart, _ = long.read(model, ids[0].tolist(), long.gap(50, 20, 900))
    with torch.no_grad():
        place = torch.tensor(long.gap(50, 20, 900))[None]
        moved = model.get_output_embeddings()(hidden(model, ids, place))
        want = torch.nn.functional.cross_entropy(moved[0, :-1], ids[0, 1:], reduction="none").numpy()
    assert np.allclose(apart, want, atol=1e-4) and np.allclose(apart[:19], losses[:19], atol=1e-4) and abs(apart[20:] - losses[20:]).max() > 0.01


def test_a_question_is_right_if_the_number_is_what_greedy_answering_says(tiny, tokenizer):
    model = wild(tiny[0]).eval()
    talk = long.talk(rows(), tokenizer, 600, long.NAMES[:3])
    ids = chatml.encode(talk.messages, tokenizer)[0]
    _, cache = long.read(model, ids, np.arange(len(ids)))
    found = long.ask(model, tokenizer, talk, cache, len(ids) - 1, text=2)
    assert [r["right"] for r in found] == [False] * 3 and {r["group"] for r in found} == {"text 2"} and len({r["number"] for r in found}) == 3
    assert cache.get_seq_length() == len(ids) and long.ask(model, tokenizer, talk, cache, len(ids) - 1, text=2) == found
    # by hand, what it says instead of Boris's number: told that this is the number, it is right
    asked = [*talk.messages, {"role": "user", "content": "What is the passkey of Boris?"}]
    head = chatml.encode(asked, tokenizer, reply=True)[0] + chatml.plain("The passkey of Boris is ", tokenizer)
    said = []
    with torch.no_grad():
        for _ in range(5):
            said.append(int(model(input_ids=torch.tensor([head + said])).logits[0, -1].argmax()))
    space = int(model(input_ids=torch.tensor([head[:-1]])).logits[0, -1].argmax()) == head[-1]  # the space before it is the number's, too
    text = bytes(chatml.encoder(tokenizer).tokens.bytes_of(said)).decode(errors="replace")
    other = talk._replace(told={**talk.told, "Boris": text})
    again = long.ask(model, tokenizer, other, cache, len(ids) - 1)
    assert again[1]["right"] == (space and chatml.plain(text, tokenizer) == said) and not again[0]["right"]


def test_the_loss_by_position_is_a_mean_over_texts():
    position = long.gap(9, 5, 30)  # 0..4, 26..29
    texts = [np.array([1, 1, 1, 1, 5, 5, 5, 5.0]), np.array([3, 3, 3, 3, 5, 5, 5, 7.0])]
    first, last = long.by_position(texts, position, 10)
    assert (first["from"], first["macro"], last["from"], last["macro"]) == (0, 2.0, 20, 5.25) and first["low"] <= 2 <= first["high"] and last["low"] < last["high"]


def test_gapped_packs_differ_in_positions_alone(stage):
    cfg, prepared = stage()
    plain, far = prepared.packs(), long.gapped(prepared, 5000, seed=1).packs()
    assert all(np.array_equal(getattr(plain, k), getattr(far, k)) for k in ("ids", "labels", "segment")) and not np.array_equal(plain.position, far.position)
    for row, segment in zip(far.position, far.segment):
        for s in range(segment.max() + 1):
            mine = row[segment == s]
            jumps = np.flatnonzero(np.diff(mine) != 1)
            assert mine[0] == 0 and len(jumps) <= 1 and mine[-1] < 5000 and (np.diff(mine) > 0).all()
    assert far.position.max() > 1000
    again = long.gapped(prepared, 5000, seed=1)
    assert np.array_equal(again.packs(1, 3).position, far.position[1:3]) and not np.array_equal(long.gapped(prepared, 5000, seed=2).packs().position, far.position)
    assert again.folder.name == prepared.folder.name + "-gap-5000-1"


def test_training_sees_the_gaps(stage):
    cfg, prepared = stage(steps=1)
    far = long.gapped(prepared, 4000)
    losses = [train.train(config.change(cfg, name=n), p)["first_loss"] for n, p in (("plain", prepared), ("far", far))]
    model = models.load("tiny-random")[0].eval()
    from orcalab import attention, loss
    packed = far.packs(0, cfg.packs_per_step)
    with torch.no_grad():
        ids, position, labels, apart = attention.batch_of(packed, list(range(cfg.packs_per_step)), "cpu")
        want = loss.loss_sum(attention.isolate(model), ids, position, apart, labels)[0].item() / packed.num_targets
    assert losses[1] == pytest.approx(want, rel=1e-5) and losses[0] != pytest.approx(want, rel=1e-6)
    assert read_json(cfg.folder.with_name("far") / "config.json")["seal"]["data"].endswith("-gap-4000-0")


# ---------------------------------------------------------------------------------------------- what was measured

def test_the_record_says_that_passkeys_are_found_at_twice_the_trained_length():
    made = read_json(ROOT / "benchmarks" / "long.json")
    twice = str(2 * made["trained"])
    assert made["trained"] == 8192 and set(made["short"]) == set(made["whole"]) == set(made["loss"]) == {"base", "linear", "adapted"}
    short = {who: spans[twice] for who, spans in made["short"].items()}
    for one, other, texts in ((made["whole"]["adapted"], made["whole"]["base"], 4), (short["adapted"], short["base"], 10), (short["adapted"], short["linear"], 10)):
        gain = scores.compare(one, other)
        assert gain["macro"] > 0.4 and gain["low"] > 0.1 and len(one) == 40 and len({r["group"] for r in one}) == texts
    assert {who: [len(text) for text in texts] for who, texts in made["loss"].items()} == {"base": [16] * 4, "linear": [16], "adapted": [16] * 4}
    near_the_end = {who: np.mean([text[-2:] for text in texts]) for who, texts in made["loss"].items()}
    inside = {who: np.mean([text[2:8] for text in texts]) for who, texts in made["loss"].items()}
    assert near_the_end["base"] > inside["base"] + 2 and near_the_end["adapted"] < inside["adapted"] + 0.2


def test_the_experiment_itself_runs_and_its_tables_are_printed(tmp_path, monkeypatch, capsys):
    made = script("benchmarks/long.py")
    made.main()
    assert "adapted minus base" in capsys.readouterr().out
    rec, cfg = made.stage(tmp_path)
    model, tokenizer, _ = models.load("tiny-random")
    made.taught(tmp_path / "talks.jsonl", tokenizer, 4)
    monkeypatch.setattr(made, "TRAINED", 1000)
    monkeypatch.setattr(made, "SPANS", (0, 3000))
    monkeypatch.setattr(made, "stage", lambda folder: (rec, config.change(cfg, base="tiny-random", steps=1, too_long="drop", out=str(tmp_path))))
    found = made.short(model.eval(), tokenizer, 1)
    assert {s: len(r) for s, r in found.items()} == {0: 4, 3000: 4} and [r["question"] for r in found[0]] == [r["question"] for r in found[3000]]
    records, losses = made.whole(model, tokenizer, 1)
    assert len(records) == 10 and len(losses[0]) == 2 and all(4 < x < 7 for x in losses[0])  # a random model of 259 tokens: near ln 259
    (folder := tmp_path / "talks.jsonl").unlink()
    assert (made.adapt(tmp_path, tokenizer) / "config.json").exists() and folder.exists()
