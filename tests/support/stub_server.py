"""A server that scores prompts, in a thread, with a language model of two matrices; it misbehaves on demand.

The next token depends on the two before it, by matrices that a seed draws. That suffices: what is tested is whether the
rows of the right tokens arrive in the right places, and rows of such a model differ from token to token. It answers in
the forms of vLLM, of other completions servers and of SGLang; how it continues a prompt stands in
``stub_generation.py``. ``fault`` makes it do one thing wrong that real servers have been seen to do; the tests say what
each is called.
"""

import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from stub_generation import asked, completion, continued, likeliest_of, native, rounded, rows_of, spoilt

VOCABULARY = 300
MODEL = "stub-1b"
FEW = 3
"""Ids before a token that is drawn, and itself."""

BEGINNING = 7
"""Id that a fault puts before every prompt."""


def log_softmax(logits):
    """Return log-probabilities of logits (n, V) in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@cache
def two_matrices(seed=0):
    """Return a language model: ids to the log-probabilities before each token, (n, V); the first row means nothing.

    Its answers for few ids are kept, since every server continues the same prompts with the same seeds.
    """
    generator = np.random.default_rng(seed)
    last, before = generator.normal(0, 2, (VOCABULARY, VOCABULARY)), generator.normal(0, 1, (VOCABULARY, VOCABULARY))

    def log_probs(ids):
        ids = np.asarray(ids)
        logits = last[np.roll(ids, 1)] + before[np.roll(ids, 2)]
        logits[1] -= before[np.roll(ids, 2)[1]]  # nothing stands before the first token
        return log_softmax(logits)

    @cache
    def of_few(*ids):
        rows = log_probs(ids)
        rows.flags.writeable = False
        return rows

    return lambda ids: of_few(*ids) if len(ids) <= FEW else log_probs(ids)


class StubServer:
    """The server, as a context manager.

    Args:
        fault: What it does wrong; nothing if empty.
        log_probs: The language model.
        seconds: How long each answer takes.
        key: The key that requests need, if any.
        after: Prompts that it answers without the fault.

    Attributes:
        most: The most requests that were in flight at a time.
        requests: Number of prompts so far.
        questions: What it was asked, and the tokens that it returned, of prompts that it continued.
    """

    def __init__(self, fault="", log_probs=None, seconds=0.0, key=None, after=0):
        self._fault, self.after, self.seconds, self.key = fault, after, seconds, key
        self.log_probs = log_probs or two_matrices()
        self.most, self.requests, self._running, self._lock = 0, 0, 0, threading.Lock()
        self.questions = []
        self.generator, self.earlier = np.random.default_rng(0), None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def fault(self):
        """What it does wrong now."""
        return self._fault if self.requests > self.after else ""

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __call__(self, path, question):
        """Return the state and the answer of a request."""
        with self._lock:
            self.requests += 1
            self._running += 1
            self.most, number = max(self.most, self._running), self.requests
        try:
            if self.fault == "slow" or self.seconds:
                time.sleep(self.seconds or 5)
            return self._answer(path, question, number)
        finally:
            with self._lock:
                self._running -= 1

    def _answer(self, path, question, number):
        if self.fault == "busy" or (self.fault == "busy at first" and number <= 2):
            return 503, {"error": {"message": "the engine is restarting"}}
        if self.fault == "limit":
            return 400, {"error": {"message": "prompt logprobs of 16 is greater than max allowed: 5"}}
        if self.fault == "no json":
            return 200, "<html>welcome</html>"
        if self.fault == "endless":
            return 200, {"text": "x" * 4_000_000}
        sampling = question.get("sampling_params", question)
        kind = "sglang" if path.endswith("/generate") else "echo" if question.get("echo") else "vllm"
        ids = self._ids(question["input_ids"] if kind == "sglang" else question["prompt"])
        if ("return_token_ids" in question and "prompt_logprobs" not in question) or "sampling_seed" in sampling:
            return 200, self._continued(ids, question, kind)
        k = question.get({"sglang": "top_logprobs_num", "echo": "logprobs", "vllm": "prompt_logprobs"}[kind])
        rows = self._rows(ids, k, sampling["temperature"], sampling["top_p"])
        return 200, getattr(self, f"_{kind}")(ids, rows)

    def _continued(self, prompt, question, kind):
        """Return a completion."""
        with self._lock:
            settings = asked(question)
            tokens, reason = continued(self.log_probs, prompt, settings, self.fault, self.generator)
            if self.fault == "rounding" and any(asked(earlier).seed == settings.seed for earlier, _ in self.questions):
                tokens = rounded(tokens, settings.seed)
            self.questions.append((question, tokens))
        rows = None if self.fault == "no rows" else rows_of(self.log_probs, prompt, tokens, likeliest_of(question))
        ids, reason, stated = spoilt(tokens, reason, self.fault, VOCABULARY)
        if kind == "sglang":
            return native(prompt, ids, reason, stated, self.fault, rows)
        model = "another" if self.fault == "other model" else MODEL
        return completion(model, prompt, ids, reason, stated, self.fault, rows)

    def _ids(self, ids):
        """Return the ids that are read in place of those that were sent."""
        changed = {
            "beginning": [BEGINNING, *ids],
            "ending": [*ids, BEGINNING],
            "cut": ids[: len(ids) // 2],
            "other ids": [*ids[:2], (ids[2] + 1) % VOCABULARY, *ids[3:]],
        }
        return changed.get(self.fault, ids)

    def _rows(self, ids, k, temperature, top_p):
        """Return for each token the (id, log-probability) of the k likeliest, then of the token itself."""
        logs = self._logs(ids, temperature, top_p)
        rows = [None]
        for token, row in zip(ids[1:], logs[1:], strict=True):
            top = np.argsort(-row, kind="stable")[: k - 2 if self.fault == "fewer" else k].tolist()
            rows.append([(t, float(row[t])) for t in top] + [(token, float(row[token]))] * (token not in top))
        return self._spoilt(rows, ids)

    def _logs(self, ids, temperature, top_p):
        logs = self.log_probs(ids)
        if self.fault == "temperature":
            logs = log_softmax(logs / temperature)
        if self.fault == "nucleus" and top_p < 1:
            logs = np.where(logs >= np.sort(logs, axis=1)[:, -3:-2], logs, -9999.0)
        if self.fault == "noise":
            logs = log_softmax(logs + self.generator.normal(0, 1, logs.shape))
        if self.fault == "rounding":
            logs = log_softmax(logs + self.generator.normal(0, 1e-3, logs.shape))
        if self.fault == "later tokens":
            logs = log_softmax(logs + self.log_probs([ids[-1]] * len(ids)))
        if self.fault == "earlier request":
            self.earlier, earlier = logs, self.earlier
            if earlier is not None:
                length = min(len(earlier), len(logs)) // 2
                logs = np.concatenate([np.roll(earlier, 1, axis=0)[:length], logs[length:]])
        return logs

    def _spoilt(self, rows, ids):
        """Return the rows with what is wrong in them."""
        fault = self.fault
        if fault == "left out":
            rows[1:6] = [None] * 5
        if fault == "short":
            rows = rows[: len(ids) // 2]
        if fault == "one missing":
            rows[len(rows) // 2] = None
        if fault == "generated only":
            rows = []
        if fault == "no gold":
            rows = [row and [entry for entry in row if entry[0] != token] for row, token in zip(rows, ids, strict=True)]
        change = {
            "memory": lambda token, value: (token, 4.6e11),
            "zeros": lambda token, value: (token, 0.0),
            "halved": lambda token, value: (token, value / 2),
            "probabilities": lambda token, value: (token, float(np.exp(value))),
            "nan": lambda token, value: (token, float("nan")),
            "null": lambda token, value: (token, None),
            "beyond": lambda token, value: (token if token in ids else VOCABULARY + token, value),
            "twice": lambda token, value: (token if token in ids else ids[0], value),
        }.get(fault)
        if change and len(rows) > 3:
            rows[3] = [change(*entry) for entry in rows[3]]
        return rows

    def _vllm(self, ids, rows):
        form = [
            row and {str(t): {"logprob": value, "rank": 1, "decoded_token": "x"} for t, value in row} for row in rows
        ]
        choice = {"text": "x", "prompt_logprobs": form or None, "prompt_token_ids": ids}
        return self._completion(choice, ids)

    def _echo(self, ids, rows):
        def name(token):
            return "the" if self.fault == "texts" else f"token_id:{token}"

        own = [row and dict(row).get(token) for row, token in zip(rows, ids, strict=False)]
        top = [row and {name(t): value for t, value in row[: len(row) - (len(row) % 2)]} for row in rows]
        logprobs = {
            "tokens": [name(t) for t in [*ids, 5]],  # and what was generated
            "token_logprobs": [*own, -1.0],
            "top_logprobs": [*top, {name(5): -1.0}],
        }
        if self.fault == "llama.cpp":  # which scores what it generates, in the form of chats, whatever it is asked
            logprobs = {"content": [{"id": 5, "token": "x", "logprob": -1.0, "top_logprobs": []}]}
        return self._completion({"text": "x", "logprobs": logprobs}, ids)

    def _sglang(self, ids, rows):
        own = [[row and dict(row).get(token), token, None] for row, token in zip(rows, ids, strict=False)]
        top = [row and [[value, t, None] for t, value in row[: len(row) - (len(row) % 2)]] for row in rows]
        facts = {"prompt_tokens": len(ids), "input_token_logprobs": own, "input_top_logprobs": top}
        return {"text": "x", "meta_info": facts}

    def _completion(self, choice, ids):
        model = "another" if self.fault == "other model" else MODEL
        return {"model": model, "choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def facts(self, path):
        """Return what the server states of itself."""
        if path.endswith("/models"):
            return {"data": [{"id": MODEL, "max_model_len": 49}]}
        return {"version": "0.0.stub"} if path in ("/version", "/server_info") else None


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # or the body would wait until the head is acknowledged
    stub: StubServer

    def do_GET(self):
        content = self.stub.facts(self.path)
        self._send(404 if content is None else 200, content)

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.stub.key and self.headers["Authorization"] != f"Bearer {self.stub.key}":
            self._send(401, {"error": "Unauthorized"})
            return
        if self.stub.fault == "hangs up":
            self.close_connection = True
            return
        self._send(*self.stub(self.path, question))

    def _send(self, status, content):
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # nobody waits any more
            pass

    def log_message(self, *_):
        pass
