"""An OpenAI-compatible endpoint: who is asked there, at which pace, and a single call."""

import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from orcalab.config import change, check, choose


@dataclass(frozen=True)
class Teacher:
    """Whom to ask, and how: a model behind an OpenAI-compatible endpoint. Nothing in here is secret; the key stays in the environment."""

    name: str = "teacher"  # what rows say in their column teacher
    model: str = ""  # model to ask for (on Azure the deployment)
    url: str = ""  # endpoint up to /v1, empty is OpenAI's
    azure: str = ""  # API version, if the endpoint is Azure OpenAI's
    key: str = ""  # environment variable that holds the key, empty is OPENAI_API_KEY (on Azure AZURE_OPENAI_API_KEY), and none at all for an url of your own
    temperature: float = 0.7  # below 0 is not sent
    top_p: float = 0.95  # below 0 is not sent
    max_tokens: int = 1024  # longest answer, in tokens
    length: str = "max_completion_tokens"  # under which name that is sent, older endpoints know max_tokens alone
    concurrency: int = 16  # calls in flight
    requests_a_minute: int = 0  # most requests in a minute, 0 for any number
    tokens_a_minute: int = 0  # most tokens in a minute, 0 for any number
    timeout: float = 120.0  # seconds to wait for an answer
    retries: int = 8  # further tries after a time-out, a cut connection, 408, 409, 429 or 5xx, with growing pauses
    price_in: float = 0.0  # price of a million tokens that are read
    price_out: float = 0.0  # price of a million tokens that are written
    currency: str = "USD"  # of the prices
    budget: float = 0.0  # no call is started once the ledger's answers cost this much, 0 for no cap
    token_budget: int = 0  # no call is started once the ledger's answers took this many tokens, 0 for no cap
    first: int = 0  # questions to ask, from the beginning, 0 for all
    calls: str = ""  # several calls a question, draft-check-rewrite or another, or family for what each family of tasks names; empty is one
    licence: str = ""  # terms under which the answers may be used, noted with each

    def __post_init__(self):
        check(self)
        if self.key and not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.key):  # says nothing of the value: it may be a key
            raise ValueError("key names the environment variable that holds the key, such as OPENAI_API_KEY; the key itself is never given")
        if re.search(r"//[^/]*@|[?#]", self.url):  # all of it would stand in every line of the ledger
            raise ValueError("url holds a user's name or a query, where keys stand; give it up to /v1, and put the key into the environment")
        if self.url and not re.match("https?://", self.url):
            raise ValueError(f"url starts with http:// or https://, got {self.url!r}")
        choose(self.length, ("max_completion_tokens", "max_tokens"), "name of the longest answer's setting")
        if self.azure and not self.url:
            raise ValueError("azure needs the url of your resource, such as https://NAME.openai.azure.com")
        if self.budget and not self.price_in + self.price_out:
            raise ValueError("a budget needs prices: say --price_in and --price_out, for a million tokens (or cap tokens with --token_budget)")

    @property
    def variable(self):
        """The environment variable that holds the key; empty if none is sent."""
        return self.key or ("AZURE_OPENAI_API_KEY" if self.azure else "" if self.url else "OPENAI_API_KEY")

    @property
    def sampling(self):
        """What is sent with every prompt, as a dictionary."""
        return {k: v for k, v in (("temperature", self.temperature), ("top_p", self.top_p), (self.length, self.max_tokens)) if v >= 0}


# Orca 1's two teachers (paper, Table 4, for prices and requests a minute as they were then; footnote 9 for the sampling of its figures): the wide set and the
# random subset of it. Give --model and today's prices.
TEACHERS = {"chatgpt": Teacher("chatgpt", price_in=2.0, price_out=2.0, requests_a_minute=300), "gpt4": Teacher("gpt4", price_in=30.0, price_out=60.0, requests_a_minute=18)}


def get(name="teacher", **changes):
    """Return a Teacher by name, with changes: one of TEACHERS, or a plain one under the name given.

    >>> get("gpt4", model="gpt-4o").requests_a_minute
    18
    """
    return change(TEACHERS.get(name, Teacher(name)), **changes)


class Unanswered(Exception):
    """No answer, and why, without the key; `refused` if the endpoint says that it may not, or has no such model."""

    def __init__(self, why, refused=False):
        super().__init__(why)
        self.refused = refused


class Pace:
    """Space requests so that no minute has more of them, or of their tokens, than allowed. Tokens are guessed before an answer, and set right after."""

    def __init__(self, requests=0, tokens=0):
        self.requests, self.tokens, self.free, self.lock, self.mine, self.stop = requests, tokens, 0.0, threading.Lock(), threading.local(), threading.Event()

    def wait(self, guess):
        """Wait for this request's turn; return whether it is to be sent, which after a stop it is not."""
        self.mine.guess = guess
        with self.lock:
            start = max(time.monotonic(), self.free)
            self.free = start + max(60 / self.requests if self.requests else 0, 60 * guess / self.tokens if self.tokens else 0)
        return not self.stop.wait(max(0, start - time.monotonic()))

    def correct(self, tokens):
        """Take in how many tokens this thread's last request really took."""
        with self.lock:
            self.free += 60 * (tokens - self.mine.guess) / self.tokens if self.tokens else 0


def client_of(teacher, pace):
    """Return the openai client of a teacher. It tries again by itself, and each try waits for its turn.

    Raises:  ValueError: no model is named, or the environment has no key where one is needed, or none that can be one.
    """
    import openai
    if not teacher.model:
        raise ValueError("which model is the teacher? Say --model NAME (on Azure the deployment)")
    key = os.environ.get(teacher.variable, "").strip()
    if teacher.variable and not key:
        raise ValueError(f"the environment has no {teacher.variable}: put the endpoint's key there (it is never written down), or name another variable with --key")
    if not re.fullmatch("[!-~]*", key):
        raise ValueError(f"the value of {teacher.variable} is no key: it holds a space, a line break or a character that no header may have")

    def turn(request):
        if not pace.wait(len(request.content) // 4 + teacher.max_tokens // 2):
            raise openai.OpenAIError("stopped before it was sent")

    http = openai.DefaultHttpxClient(event_hooks={"request": [turn]}, follow_redirects=False)  # a key is sent to the host that was named, and no other
    how = {"api_key": key or "none", "max_retries": teacher.retries, "timeout": teacher.timeout, "http_client": http}
    if teacher.azure:
        return openai.AzureOpenAI(azure_endpoint=teacher.url, api_version=teacher.azure, **how)
    return openai.OpenAI(base_url=teacher.url or None, **how)


def knock(teacher):
    """Raise a ValueError if nothing listens at an url on this machine, rather than to try again and again."""
    at = urlsplit(teacher.url)
    if at.hostname in ("localhost", "127.0.0.1", "::1"):
        try:
            socket.create_connection((at.hostname, at.port or 80), 3).close()
        except OSError as e:
            raise ValueError(f"nothing answers at {teacher.url} ({e}): is the server running, and is that its port?") from None


def safe(text, client):
    """Return a text without the key, which some endpoints repeat."""
    return text.replace(client.api_key, "[the key]") if client.api_key != "none" else text


def call(client, teacher, messages):
    """Ask once (and again, as the client does); return the answer's fields of a ledger entry, or raise Unanswered."""
    import openai
    begun, used, tries, guessed = time.time(), (0, 0), 1, {}
    try:
        raw = client.chat.completions.with_raw_response.create(model=teacher.model, messages=messages, **teacher.sampling)
        done, tries = raw.parse(), raw.retries_taken + 1
        choice = done.choices[0]
        refusal = getattr(choice.message, "refusal", None)
        text = safe(choice.message.content or refusal or "", client)
        used = tuple(getattr(done.usage, k, None) for k in ("prompt_tokens", "completion_tokens"))
        if not all(isinstance(n, int) for n in used):
            used, guessed = (sum(len(m["content"]) for m in messages) // 4, len(text) // 4), {"guessed": True}
        entry = {"answer": text, "finish": "refusal" if refusal else choice.finish_reason or "unknown", "version": " ".join(filter(None, [done.model, done.system_fingerprint])), **guessed}
    except openai.OpenAIError as e:
        if isinstance(e, openai.BadRequestError) and "content_filter" in f"{e.code} {e.body}":  # so it will be judged again: this is its answer
            entry = {"answer": "", "finish": "content_filter", "version": teacher.model}
        else:
            cause = f" ({type(e.__cause__).__name__}: {e.__cause__})" if e.__cause__ else ""
            refused = isinstance(e, (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError))
            text = getattr(getattr(e, "response", None), "text", "") if "{" not in str(e) else ""  # what openai does not repeat
            hint = "; does the url end in /v1, and is that the model's name?" if isinstance(e, openai.NotFoundError) else ""
            raise Unanswered(safe(f"{type(e).__name__}: {e}{cause} {text}".strip(), client)[:500] + hint, refused) from None
    except (ValueError, AttributeError, IndexError, TypeError):  # a page of something else, or half of one
        raise Unanswered("the endpoint's answer is no chat completion") from None
    return {"url": str(client.base_url), **entry, "tokens_in": used[0], "tokens_out": used[1], "cost": (used[0] * teacher.price_in + used[1] * teacher.price_out) / 1e6,
            "seconds": round(time.time() - begun, 3), "tries": tries}
