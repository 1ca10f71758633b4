"""generate.py: answers side by side are those of one by one, and of transformers' own greedy search."""

import pytest
import torch
from conftest import wild

from orcalab import chatml, generate, model as models
from orcalab.generate import Student

QUESTIONS = ["2+2", "How many legs have 3 dogs and a spider?", "", "naïve ☕ " * 20, "Who scorns geese?", "2+3"]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    model, tokenizer, _ = models.load("tiny-random")
    folder = tmp_path_factory.mktemp("wild") / "model"
    models.save(folder, wild(model), tokenizer)
    return Student(folder, "cpu", "fp32")


@pytest.fixture
def ends(student):
    """Let some common first tokens end an answer too, so that rows leave the batch at different steps."""
    was, prompts = student.ends, [student.prompt(q) for q in QUESTIONS]
    plain = [student._decode([p], 12)[0] for p in prompts]
    student.ends = sorted({*was, plain[0][3], plain[1][0], plain[3][5]})
    yield student
    student.ends = was


def greedy(student, prompt, max_new_tokens):
    """transformers' own greedy search, one prompt at a time, without padding."""
    with torch.inference_mode():
        out = student.model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                                     max_new_tokens=max_new_tokens, eos_token_id=student.ends, pad_token_id=student.tokenizer.pad_token_id)
    return out[0, len(prompt):].tolist()


def naive(student, prompt, max_new_tokens):
    """Greedy search without a cache: the whole text through the model for every token."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            ids.append(int(student.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in student.ends:
            break
    return ids[len(prompt):]


def test_batched_is_one_by_one_is_greedy_search(ends):
    prompts = [ends.prompt(q, system) for q in QUESTIONS for system in ("", None, "Be brief.")]
    together = ends._decode(prompts, 12)
    assert together == [ends._decode([p], 12)[0] for p in prompts]
    assert together == [greedy(ends, p, 12) for p in prompts]
    assert together == [naive(ends, p, 12) for p in prompts]
    assert len({len(ids) for ids in together}) >= 3  # some ended early, at different steps


def test_answers_come_in_the_order_asked_whatever_the_batch(ends):
    prompts = [ends.prompt(q) for q in QUESTIONS]
    answers = ends.answer(prompts, 12)
    assert answers == ends.answer(prompts, 12, batch_size=2) == [ends.ask(q, max_new_tokens=12) for q in QUESTIONS]
    assert ends.answer([]) == []


def test_why_an_answer_ended_and_what_is_its_text(ends):
    for question in QUESTIONS:
        ids = naive(ends, ends.prompt(question), 12)
        stopped = ids[-1] in ends.ends
        text = ends.tokenizer.decode(ids[:-1] if stopped else ids)
        want = generate.Answer(text[1:] if text[:1] == "\n" else text, len(ids), "stop" if stopped else "length", tuple(ids))
        assert ends.ask(question, max_new_tokens=12) == want
    assert {ends.ask(q, max_new_tokens=12).reason for q in QUESTIONS} == {"stop", "length"}
    assert ends.ask("2+2", max_new_tokens=2).tokens == 2


def test_a_model_may_have_several_ends(tmp_path, tiny):
    model, tokenizer = tiny
    model.config.eos_token_id = model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    models.save(tmp_path / "m", model, tokenizer)
    student = generate.Student(tmp_path / "m", "cpu", "fp32")
    assert student.ends == sorted({7, tokenizer.eos_token_id})


def test_the_prompt_is_that_of_training(student):
    want = chatml.encode([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], student.tokenizer, reply=True)[0]
    assert student.prompt("q", "s") == want
    assert student.prompt("q", None) == chatml.encode([{"role": "user", "content": "q"}], student.tokenizer, reply=True)[0]
    assert student.prompt("q") == student.prompt("q", "") != student.prompt("q", None)
    assert chatml.marks(student.tokenizer)[1] in student.ends and not student.model.training


def test_a_prompt_that_leaves_no_room(student):
    holds = student.model.config.max_position_embeddings
    with pytest.raises(ValueError, match=f"prompt 1 has {holds - 9} tokens; with 10 new ones the model holds {holds - 10}"):
        student.answer([[1], [1] * (holds - 9)], 10)
