"""The ``engine:`` block of a teacher: who reads its tokens in place of transformers, and what that excludes."""

from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cache_tools.configuration import Config
from cache_tools.mappings import JsonObject

DECIDED_BY_CAPTURES = (
    "model",
    "tokenizer",
    "runner",
    "convert",
    "dtype",
    "revision",
    "trust_remote_code",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "enable_prefix_caching",
    "pooler_config",
    "skip_tokenizer_init",
)
"""Arguments of an engine that a capture decides itself."""

SERVED_ROWS = ("temperatures", "scalars", "vocabulary", "p", "draws")
"""Keys of a target for which whole distributions are needed."""


class VllmConfig(Config):
    """vLLM reads the tokens, in a process and a Python of its own; the head and all that follows stay here.

    Attributes:
        kind: The engine: ``vllm``.
        python: The Python of the environment in which the engine is installed, such as ``/opt/vllm/bin/python``; this
            program need not be installed there.
        options: Arguments of the engine by its own names, such as ``tensor_parallel_size`` or ``quantization``. All
            but those that only place memory belong to the teacher's identity.
        compare_log_probs: Whether the first rows of a capture are compared with the engine's own log-probabilities, for
            which it is loaded once more, before the first shard.
    """

    kind: Literal["vllm"]
    python: str
    options: JsonObject = Field(default_factory=dict)
    compare_log_probs: bool = True

    @model_validator(mode="after")
    def _not_ours(self) -> "VllmConfig":
        ours = sorted(set(self.options) & set(DECIDED_BY_CAPTURES))
        if ours:
            raise ValueError(f"options cannot set {', '.join(ours)}, which the capture decides")
        return self

    def refused(self, settings: Mapping[str, object]) -> dict[str, str]:
        """Return which given keys of the teacher's block exclude this engine, each with the reason."""
        reasons = {
            "gguf_file": "vllm reads safetensors here",
            "device_map": "vllm places the model by its own options",
            "tensor_parallel": "set engine.options.tensor_parallel_size",
            "attention": "set the engine's own option",
            "packing": "vllm reads no padding anyway",
            "compile": "vllm compiles by its own options",
            "hidden.layers": "vllm gives the last state only, so only 'last' can be kept",
        }
        given = {**settings, "hidden.layers": [layer for layer in _layers(settings) if layer != "last"]}
        return {key: reason for key, reason in reasons.items() if given.get(key)}


class ServerConfig(Config):
    """A server that already runs reads the tokens, over HTTP. It gives the likeliest tokens and the gold token only.

    Attributes:
        kind: The engine: ``server``.
        url: Address of the server, such as ``http://127.0.0.1:8000/v1``.
        request: How rows are asked for: ``prompt_logprobs`` at vLLM's ``/v1/completions``; ``echo`` with ``logprobs``
            at the ``/v1/completions`` of other servers, if they can return token ids in place of texts; ``sglang`` at
            SGLang's ``/generate``.
        served_model: Name of the model at the server; default: ``model`` as the capture file has it.
        requests_in_flight: Requests at a time, each with one sequence.
        timeout_seconds: How long the server may take for one sequence.
        key_variable: Environment variable that holds the server's API key, if it needs one.
    """

    kind: Literal["server"]
    url: str
    request: Literal["prompt_logprobs", "echo", "sglang"] = "prompt_logprobs"
    served_model: str | None = None
    requests_in_flight: PositiveInt = Field(default=8, le=256)
    timeout_seconds: PositiveFloat = 600
    key_variable: str | None = None

    @model_validator(mode="after")
    def _an_address(self) -> "ServerConfig":
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"url: {self.url} is no address of a server, such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ValueError("url: put the key into an environment variable and name that in key_variable")
        return self

    def refused(self, settings: Mapping[str, object]) -> dict[str, str]:
        """Return which given keys of the teacher's block exclude this engine, each with the reason."""
        elsewhere = "the server decides where and how it computes"
        reasons = dict.fromkeys(
            ("gguf_file", "device", "device_map", "tensor_parallel", "gpus", "attention", "packing", "compile"),
            elsewhere,
        )
        reasons |= {"batch_tokens": "the server forms the batches", "nan_rows": "such rows are refused"}
        reasons |= {"hidden.layers": "a server gives no hidden states"}
        reasons |= {f"target.{key}": "a server gives the likeliest tokens only" for key in SERVED_ROWS}
        given = {**settings, "hidden.layers": _layers(settings)}
        return {key: reason for key, reason in reasons.items() if given.get(key)}


def _layers(settings: Mapping[str, object]) -> tuple[int | str, ...]:
    layers = settings.get("hidden.layers") or ()
    assert isinstance(layers, tuple)
    return layers
