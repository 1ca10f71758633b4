"""generate.py: streamed, side by side, in a conversation or alone, an answer is transformers' own greedy search; and the model card's example, with each difference."""

import json
from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from conftest import SHARED, wild
from hypothesis import given, settings, strategies as some
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from orcalab import chatml, generate, model as models, strategies
from orcalab.generate import Answer, Chat, Student

QUESTIONS = ["2+2", "How many legs have 3 dogs and a spider?", "", "naïve ☕ " * 20, "Who scorns geese?", "2+3"]


@pytest.fixture
def ends(student):
    """Let some common first tokens end an answer too, so that rows become free at different steps."""
    was, plain = student.ends, [student.ask(q, max_new_tokens=12).ids for q in QUESTIONS]
    student.ends = sorted({*was, plain[0][3], plain[1][0], plain[3][5]})
    yield student
    student.ends = was


def greedy(student, prompts, max_new_tokens):
    """transformers' own greedy search, side by side with padding on the left; ids up to the first end."""
    pad, width = student.tokenizer.pad_token_id, max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = student.model.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=student.ends, pad_token_id=pad)[:, width:].tolist()
    return [tuple(new[: next((n for n, t in enumerate(new, 1) if t in student.ends), len(new))]) for new in out]


def naive(student, prompt, max_new_tokens):
    """Greedy search without a cache: the whole text through the model for every token."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            ids.append(int(student.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in student.ends:
            break
    return tuple(ids[len(prompt):])


def streamed(student, prompt, max_new_tokens, **how):
    """Return (pieces, Answer) of a stream."""
    stream, pieces = student.stream(prompt, max_new_tokens, **how), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as e:
            return pieces, e.value


def ids_of(answers):
    return [a.ids for a in answers]


# ------------------------------------------------------------------------------------ one answer, all ways

def test_every_way_is_greedy_search(ends):
    prompts = [ends.prompt(q, system) for q in QUESTIONS for system in ("", None, "Be brief.", "cautious")]
    want = [naive(ends, p, 12) for p in prompts]
    assert len({len(ids) for ids in want}) >= 3  # some end early, at different steps
    assert want == greedy(ends, prompts, 12)
    for batch_size in (1, 2, 5, 24, 100):
        assert ids_of(ends.answer(prompts, 12, batch_size)) == want
    assert [streamed(ends, p, 12)[1].ids for p in prompts] == want


def real_prompts(student, count):
    """Questions of real benchmarks, each under another message than the one before."""
    questions = [e["input"] for p in sorted((SHARED / "bbh").glob("*.json")) for e in islice(json.loads(p.read_text())["examples"], 15)]
    questions += [json.loads(line)["question"] for p in sorted((SHARED / "agieval").glob("*.jsonl")) for line in p.read_text().splitlines()[:25]]
    names = ["empty", "cautious", *strategies.STRATEGIES]
    assert len(questions) >= count
    return [student.prompt(q, names[i % len(names)]) for i, q in enumerate(questions[:: len(questions) // count][:count])]


@pytest.mark.skipif(not (SHARED / "bbh").exists(), reason="the shared BBH and AGIEval files are not here")
def test_two_hundred_real_prompts_whatever_the_way(ends):
    prompts = real_prompts(ends, 200)
    for at in range(0, 100, 2):  # as the two turns of a conversation: the second with what was read and said kept
        chat = Chat(ends, "empty", 6)
        for p in prompts[at : at + 2]:
            assert chat.say(ends.tokenizer.decode(p)[-800:]).ids == ends.answer([chat.ids], 6)[0].ids
    together = ids_of(ends.answer(prompts, 6))
    assert together == [ends.answer([p], 6)[0].ids for p in prompts]
    assert together == [streamed(ends, p, 6)[1].ids for p in prompts]
    assert together == [ids for at in range(0, 200, 25) for ids in greedy(ends, prompts[at : at + 25], 6)]


def test_answers_come_as_they_end_and_are_put_in_order(ends):
    prompts = [ends.prompt(q) for q in QUESTIONS]
    came = list(ends.answers(prompts, 12, 2))
    assert sorted(i for i, _ in came) == list(range(len(prompts))) != [i for i, _ in came]
    assert ends.answer(prompts, 12) == [dict(came)[i] for i in range(len(prompts))] == [ends.ask(q, max_new_tokens=12) for q in QUESTIONS]
    assert ends.answer([]) == []


def test_why_an_answer_ended_and_what_is_its_text(ends):
    for question in QUESTIONS:
        ids = naive(ends, ends.prompt(question), 12)
        stopped = ids[-1] in ends.ends
        text = ends.tokenizer.decode(ids[:-1] if stopped else ids)
        want = Answer(text[1:] if text[:1] == "\n" else text, len(ids), "stop" if stopped else "length", ids)
        pieces, said = streamed(ends, ends.prompt(question), 12)
        assert ends.ask(question, max_new_tokens=12) == want == said and "".join(pieces) == want.text
    assert {ends.ask(q, max_new_tokens=12).reason for q in QUESTIONS} == {"stop", "length"}
    assert ends.ask("2+2", max_new_tokens=2).tokens == 2


@given(some.text(max_size=12), some.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_pieces_never_cut_a_character(student, text, cut):
    """Whatever ids come, whole characters leave, and together they are the answer's text; bytes that make no character are shown as such."""
    new = [*student.tokenizer("\n" + text, add_special_tokens=False).input_ids]
    new = new[: len(new) - cut] or new
    said = Student.__new__(Student)
    said.__dict__.update(student.__dict__)
    said._decode = lambda *_: ((0, t, n == len(new)) for n, t in enumerate(new, 1))
    pieces, answer = streamed(said, [1], len(new))
    assert "".join(pieces) == answer.text == student._answer(new).text
    assert cut or answer.text == text
    assert all("\ufffd" not in p for p in pieces[:-1]) or "\ufffd" in text


def test_a_system_message_is_read_once(student):
    read = []
    prompts = [student.prompt(f"{n} + {n}", "cautious") for n in range(20)]
    with watched(student, read):
        student.answer(prompts, 1, 4)
    message = len(chatml.plain(strategies.CAUTIOUS, student.tokenizer))
    assert message < sum(read) < message + 20 * 60 < 2 * 4 * message  # the message is 235 ids: once, and not once a prompt or a batch


def test_places_are_taken_as_they_become_free(ends, monkeypatch):
    """Four at a time: no more steps than the busiest row has, if whichever is free first takes the next prompt; fewer than fixed batches take."""
    prompts, steps, step = [ends.prompt(q, s) for q in QUESTIONS for s in ("", "Be brief.", "cautious")], [], generate.Table.step
    monkeypatch.setattr(generate.Table, "step", lambda table, ids: steps.append(len(ids)) or step(table, ids))
    came = dict(ends.answers(prompts, 12, 4))
    tokens = [came[i].tokens for i in range(len(prompts))]
    fixed = sum(max(tokens[at : at + 4]) for at in range(0, len(tokens), 4))
    assert sum(steps) == sum(tokens) and len(steps) < fixed and len(steps) <= sum(tokens) / 4 + 12 and max(steps) == 4


def test_prompts_are_read_side_by_side(ends):
    prompts, read = [ends.prompt(q, "cautious") for q in QUESTIONS], []
    with watched(ends, read):
        ends.answer(prompts, 1, 24)
    assert len(read) == 3  # what all begin with, the rest of each, and one step


def test_without_a_system_message_prompts_are_read_side_by_side(student):
    prompts, read = [student.prompt(f"{n} + 1", None) for n in range(8)], []
    with watched(student, read):
        student.answer(prompts, 1, 8)
    assert len(read) <= 3


def test_what_was_read_is_taken_from_whichever_row_has_it(student):
    one, two = student.prompt("x" * 30, "cautious"), student.prompt("y" * 30, "direct-answer")
    table = generate.Table(student.model, 4)
    table.admit([one], 0)
    table.admit([two], 1)
    table.admit([student.prompt("z", "direct-answer")], 2)
    assert table.kept > len(chatml.plain(strategies.STRATEGIES["direct-answer"], student.tokenizer))
    table.admit([student.prompt("z", "cautious")], 3)
    assert table.kept > len(chatml.plain(strategies.CAUTIOUS, student.tokenizer))


def test_reading_in_parts_changes_nothing(ends, monkeypatch):
    prompts = [ends.prompt(q, s) for q in QUESTIONS for s in ("", "cautious")]
    want = ids_of(ends.answer(prompts, 12))
    monkeypatch.setattr(generate, "AT_ONCE", 50)
    assert ids_of(ends.answer(prompts, 12)) == want


# --------------------------------------------------------------------------------------------- drawing

def test_drawing_depends_on_the_seed_and_on_nothing_beside(student):
    prompts = [student.prompt(q) for q in QUESTIONS]
    how = {"temperature": 1.5, "top_p": 0.9, "seed": 3}
    drawn = ids_of(student.answer(prompts, 12, **how))
    assert drawn == ids_of(student.answer(prompts, 12, 2, **how)) != ids_of(student.answer(prompts, 12))
    assert streamed(student, prompts[0], 12, **how)[1].ids == drawn[0]
    assert drawn != ids_of(student.answer(prompts, 12, **{**how, "seed": 4}))
    assert ids_of(student.answer(prompts, 12, temperature=1e-7)) == ids_of(student.answer(prompts, 12, temperature=1e-300)) == ids_of(student.answer(prompts, 12))


@pytest.mark.parametrize("temperature, top_p", [(0.7, 0.95), (1.0, 1.0), (2.0, 0.3)])
def test_what_is_drawn_is_what_transformers_would_draw(temperature, top_p):
    """Walk the interval of chance evenly: how often each id comes is its share after transformers' own temperature and top_p."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 2
    warp = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    share, steps = warp(None, logits.clone()).softmax(-1)[0], 20_000

    class Even:
        def __init__(self, at):
            self.at = at

        def random(self):
            return (self.at + 0.5) / steps
    drawn = generate._pick(logits.expand(steps, -1), temperature, top_p, [Even(n) for n in range(steps)])
    assert (torch.bincount(torch.tensor(drawn), minlength=50) / steps - share).abs().max() < 2 / steps


# ------------------------------------------------------------------------------------------ conversations

def test_a_conversation_is_the_whole_of_it_encoded(ends):
    for turns in (["2+2", "And why?", "naïve ☕"], ["", "a", ""]):
        chat = Chat(ends, "step-by-step", 12)
        for words in turns:
            before = list(chat.messages)
            pieces = list(chat.stream(words))
            assert chat.messages == [*before, {"role": "user", "content": words}, {"role": "assistant", "content": "".join(pieces)}]
            assert chat.ids == chatml.encode(chat.messages[:-1], ends.tokenizer, reply=True)[0]
            assert chat.last == ends.answer([chat.ids], 12)[0]  # kept keys and values, or all read anew
        assert chat.system == strategies.STRATEGIES["step-by-step"]


def test_a_second_turn_reads_its_new_ids_only(student):
    """Whatever the student says, it is made to begin as answers do here, with the newline; then its text comes back as its ids."""
    chat, read, pick = Chat(student, "cautious", 12), [], generate._pick
    newline, said = chatml.plain("\n", student.tokenizer)[0], chatml.plain("Who knows", student.tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        words = iter([newline, *said, student.encoder.end])
        patch.setattr(generate, "_pick", lambda *_: [next(words)])
        chat.say("A long question, " * 20)
    first = len(chat.ids) + chat.last.tokens
    assert chat.reused == 0 and chat.last.text == "Who knows" and chat.last.reason == "stop" and generate._pick is pick
    with watched(student, read):
        chat.say("Why?")
    assert chat.reused == first - 1 and chat.ids[: first] == [*chat.ids[: first]] and sum(read) == len(chat.ids) - chat.reused + chat.last.tokens - 1


@contextmanager
def watched(student, read):
    """Note how many ids each forward pass reads."""
    hook = student.model.get_decoder().register_forward_pre_hook(lambda _, __, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    yield
    hook.remove()


def test_a_message_changed_or_a_turn_taken_back(student):
    chat = Chat(student, "cautious", 8)
    chat.say("one")
    first = chat.last
    chat.say("two")
    assert chat.retry() == "two" and len(chat.messages) == 3
    assert chat.retry() == "one" and chat.say("one") == first  # the likeliest answer is the same again
    chat.system = "direct-answer"
    assert chat.system == strategies.STRATEGIES["direct-answer"] and len(chat.messages) == 3
    chat.say("three")
    assert chat.ids == student.ids_of(chat.messages[:-1]) and chat.last == student.answer([chat.ids], 8)[0]
    chat.system = None
    assert chat.system is None and chat.messages[0]["role"] == "user"
    drawn = Chat(student, None, 8, temperature=2.0, seed=1)
    one = drawn.say("one")
    assert drawn.say(drawn.retry()) != one  # a drawn one is not
    assert Chat(student, None, 8, temperature=2.0, seed=1).say("one") == one
    with pytest.raises(ValueError, match="nothing was said yet that could be taken back"):
        Chat(student).retry()


def test_whoever_stops_listening_keeps_what_was_said(student):
    chat = Chat(student, "", 12)
    stream = chat.stream("naïve question")
    heard = [next(stream), next(stream)]
    stream.close()
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(heard)} and chat.last.reason == "stopped" and chat.last.text == "".join(heard)
    assert chat.last.ids == student.answer([chat.ids], 12)[0].ids[: chat.last.tokens] and student.bytes_of(chat.last.ids).decode().removeprefix("\n") == chat.last.text
    chat.say("go on")
    assert chat.last == student.answer([student.ids_of(chat.messages[:-1])], 12)[0]
    fresh = Chat(student, "", 12)
    with pytest.raises(ValueError, match=r"U\+|surrogate"):
        fresh.say("\ud800")
    assert fresh.messages == [{"role": "system", "content": ""}] and fresh.last is None


def test_a_conversation_too_long(student):
    chat = Chat(student, "Be brief.", 8)
    student_context, student.context = student.context, 200
    try:
        chat.say("x" * 60)
        chat.say("y" * 60)
        before = list(chat.messages)
        with pytest.raises(ValueError, match=r"the conversation has \d+ tokens; with 8 new ones the model holds 192: begin a new one, or let overflow be 'drop_oldest'"):
            chat.say("z" * 60)
        assert chat.messages == before
        chat.overflow = "drop_oldest"
        chat.say("z" * 60)
        assert chat.dropped == 2 and len(chat.messages) == 7 and chat.ids == student.ids_of([before[0], *before[3:], {"role": "user", "content": "z" * 60}])
        with pytest.raises(ValueError, match="begin a new one, or ask something shorter"):
            chat.say("z" * 300)
    finally:
        student.context = student_context
    with pytest.raises(ValueError, match="no overflow named 'drop'; did you mean 'drop_oldest'"):
        Chat(student, overflow="drop")


# ------------------------------------------------------------------------------------- the card's example

@pytest.fixture(scope="module", params=["llama2", "llama-standin"])
def card(request, tmp_path_factory):
    """A small Llama with Llama's tokenizer, saved as the card's model is: eos is </s> alone."""
    if request.param == "llama2" and not (SHARED / "llama2" / "tokenizer.model").exists():
        pytest.skip("Llama 2's tokenizer is not here")
    source = str(SHARED / "llama2") if request.param == "llama2" else "llama-standin"
    tokenizer = models.load_tokenizer(source)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512,
                                         eos_token_id=2, bos_token_id=1))
    folder = tmp_path_factory.mktemp("card") / "model"
    models.save(folder, wild(model), tokenizer)
    return Student(folder, "cpu", "fp32"), folder


SYSTEM = "You are Orca, an AI language model created by Microsoft. You are a cautious assistant. You carefully follow instructions. You are helpful and harmless and you follow ethical guidelines and promote positive behavior."
FIRST = "How can you determine if a restaurant is popular among locals or mainly attracts tourists, and why might this information be useful?"
SECOND = "Give me a list of the key points of your first answer."


def test_the_cards_two_turns_in_six_lines(card):
    student, folder = card
    # ours
    chat = Chat(student, "cautious", max_new_tokens=20)
    answer = chat.say(FIRST)
    first = list(chat.ids)
    again = chat.say(SECOND)
    # the card's: text with the marks in it, new ids glued to generated ones
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=False)
    assert type(tokenizer) is type(AutoTokenizer.from_pretrained(folder))  # the slow class is gone: the flag changes nothing
    prompt = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{FIRST}<|im_end|>\n<|im_start|>assistant"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == first  # one BOS, no newline behind "assistant": right, so ours are the same
    out = student.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, eos_token_id=student.ends, pad_token_id=student.tokenizer.pad_token_id)
    assert tuple(out[0, ids.shape[1]:].tolist()) == answer.ids
    # difference 1: encoded alone, the second turn begins with a space piece that the whole conversation does not have
    markup = tokenizer(f"\n<|im_start|>user\n{SECOND}<|im_end|>\n<|im_start|>assistant", add_special_tokens=False)["input_ids"]
    whole = chatml.encode([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": SECOND}], student.tokenizer, reply=True)[0]
    space = tokenizer.convert_tokens_to_ids("▁")
    assert markup[0] == space and whole[-len(markup) + 1:] == markup[1:] and whole[-len(markup)] == student.encoder.end
    assert chat.ids[-len(markup) + 1:] == markup[1:] and again.tokens > 0
    # difference 2: an answer cut at its length has no end, and gluing would join two turns; encoded, each turn ends
    assert answer.reason == "length" and chat.ids.count(student.encoder.end) == 4


def test_the_cards_eos_alone_does_not_end_a_turn(card):
    student, _ = card
    prompt = student.prompt(FIRST, "cautious")
    third = student.answer([prompt], 20)[0].ids[2]
    was, student.ends = student.ends, sorted({*student.ends, third})
    try:  # the third new id stands for <|im_end|>: the card's config stops on </s> alone, so it goes on talking for the other side
        assert {2, student.encoder.end} <= set(student.ends) and student.answer([prompt], 20)[0].tokens == 3
        ids = torch.tensor([prompt])
        theirs = student.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, eos_token_id=2, pad_token_id=0)
        assert theirs.shape[1] - ids.shape[1] == 20
    finally:
        student.ends = was


def test_the_cards_keyword_raises_today(card):
    with pytest.raises(AttributeError, match="add_special_tokens"):
        AutoTokenizer.from_pretrained(card[1], model_max_length=4096, padding_side="right", use_fast=False, add_special_tokens=False)


# ------------------------------------------------------------------------------------------------- models

def test_a_model_may_have_several_ends(tmp_path, tiny):
    model, tokenizer = tiny
    model.config.eos_token_id, model.generation_config.eos_token_id = 5, [7, tokenizer.eos_token_id]
    models.save(tmp_path / "m", model, tokenizer)
    student = generate.Student(tmp_path / "m", "cpu", "fp32")
    assert student.ends == sorted({5, 7, tokenizer.eos_token_id})


def test_the_prompt_is_that_of_training(student):
    want = chatml.encode([{"role": "system", "content": "s s"}, {"role": "user", "content": "q"}], student.tokenizer, reply=True)[0]
    assert student.prompt("q", "s s") == want
    assert student.prompt("q", None) == chatml.encode([{"role": "user", "content": "q"}], student.tokenizer, reply=True)[0]
    assert student.prompt("q") == student.prompt("q", "") == student.prompt("q", "empty") != student.prompt("q", None)
    assert student.prompt("q", "cautious") == student.prompt("q", strategies.CAUTIOUS) and student.prompt("q", "orca1-7") == student.prompt("q", strategies.ORCA1[7])
    with pytest.raises(ValueError, match="no strategy named 'step_by_step'; did you mean 'step-by-step'"):
        student.prompt("q", "step_by_step")
    assert chatml.marks(student.tokenizer)[1] in student.ends and not student.model.training


def test_what_cannot_be_answered(student):
    holds = student.context
    with pytest.raises(ValueError, match=f"prompt 1 has {holds - 9} tokens; with 10 new ones the model holds 1 to {holds - 10}"):
        student.answer([[1], [1] * (holds - 9)], 10)
    with pytest.raises(ValueError, match=r"prompt 0 is a text, and ids are needed: student.prompt\(text, system\) gives them"):
        student.answer(["2+2"])
    with pytest.raises(ValueError, match="there is no folder runs/nowhere/stage3_gpt4/model: a stage's student is there once the stage is trained"):
        Student("runs/nowhere/stage3_gpt4/model")
    with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
        student.answer([[]], 10)
    for wrong in (0, holds, 1.5, True):
        with pytest.raises(ValueError, match=f"max_new_tokens must be a whole number from 1 to {holds - 1}, below the {holds} tokens that the model holds; got {wrong}"):
            student.answer([[1]], wrong)
    for how in ({"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}):
        for refused in (lambda: student.answer([[1]], 10, **how), lambda: Chat(student, **how)):
            with pytest.raises(ValueError, match="temperature must not be negative, and top_p lie above 0 and up to 1; got"):
                refused()
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        student.answer([[1]], 10, 0)


def test_layers_of_other_kinds(tmp_path, tiny):
    _, tokenizer = tiny
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    models.save(tmp_path / "window", MistralForCausalLM(MistralConfig(**shape, head_dim=8, sliding_window=100)), tokenizer)
    student = Student(tmp_path / "window", "cpu", "fp32")
    prompts = [student.prompt(q) for q in ("2+2", "a b c")]
    assert student.context == 100 and ids_of(student.answer(prompts, 12)) == greedy(student, prompts, 12)  # up to its window, such a layer attends to everything
    models.save(tmp_path / "eager", Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=8, sliding_window=4096, max_position_embeddings=4096)), tokenizer)
    student = Student(tmp_path / "eager", "cpu", "fp32")
    student.model.config._attn_implementation = "eager"
    assert ids_of(student.answer(prompts, 12)) == greedy(student, prompts, 12)  # such layers add their mask
    models.save(tmp_path / "old", GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=1, n_head=2)), tokenizer)
    student = Student(tmp_path / "old", "cpu", "fp32")
    assert student.context == 256 and ids_of(student.answer(prompts, 12)) == greedy(student, prompts, 12)
    models.save(tmp_path / "mixed", Lfm2ForCausalLM(Lfm2Config(**shape, layer_types=["conv", "full_attention"])), tokenizer)
    with pytest.raises(ValueError, match="mixed has layers of the kind 'conv', which keep no keys and values; a student's layers all attend"):
        Student(tmp_path / "mixed", "cpu", "fp32")
