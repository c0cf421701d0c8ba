"""The ``engine:`` block of a teacher: who reads its tokens in place of transformers, and what that excludes."""

from collections.abc import Mapping
from typing import Literal, Self
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


ELSEWHERE = "the server decides where and how it computes"


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


class ServerAddress(Config):
    """A server that already runs, and how it is asked.

    Attributes:
        kind: The engine: ``server``.
        url: Address of the server, such as ``http://127.0.0.1:8000/v1``.
        served_model: Name of the model at the server; default: ``model`` as the file has it.
        requests_in_flight: Requests at a time, each with one sequence.
        timeout_seconds: How long the server may take for one sequence.
        key_variable: Environment variable that holds the server's API key, if it needs one.
    """

    kind: Literal["server"]
    url: str
    served_model: str | None = None
    requests_in_flight: PositiveInt = Field(default=8, le=256)
    timeout_seconds: PositiveFloat = 600
    key_variable: str | None = None

    @model_validator(mode="after")
    def _an_address(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"url: {self.url} is no address of a server, such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ValueError("url: put the key into an environment variable and name that in key_variable")
        return self


class ServerConfig(ServerAddress):
    """A server that already runs reads the tokens, over HTTP. It gives the likeliest tokens and the gold token only.

    Attributes:
        request: How rows are asked for: ``prompt_logprobs`` at vLLM's ``/v1/completions``; ``echo`` with ``logprobs``
            at the ``/v1/completions`` of other servers, if they can return token ids in place of texts; ``sglang`` at
            SGLang's ``/generate``.
    """

    request: Literal["prompt_logprobs", "echo", "sglang"] = "prompt_logprobs"

    def refused(self, settings: Mapping[str, object]) -> dict[str, str]:
        """Return which given keys of the teacher's block exclude this engine, each with the reason."""
        reasons = dict.fromkeys(
            ("gguf_file", "device", "device_map", "tensor_parallel", "gpus", "attention", "packing", "compile"),
            ELSEWHERE,
        )
        reasons |= {"batch_tokens": "the server forms the batches", "nan_rows": "such rows are refused"}
        reasons |= {"hidden.layers": "a server gives no hidden states"}
        reasons |= {f"target.{key}": "a server gives the likeliest tokens only" for key in SERVED_ROWS}
        given = {**settings, "hidden.layers": _layers(settings)}
        return {key: reason for key, reason in reasons.items() if given.get(key)}


class WritingServerConfig(ServerAddress):
    """A server that already runs writes the completions, over HTTP, and returns the tokens that it drew.

    Attributes:
        request: How completions are asked for: ``completions`` at vLLM's ``/v1/completions``, with its
            ``return_token_ids``; ``sglang`` at SGLang's ``/generate``.
        same_weights: Set it to true if ``policy.model`` is the very folder or hub id that the server has loaded. Its
            weights are then hashed here, and the hash is recorded as the writer's; no answer of a server can show that
            this is so. Default: the writer's weights are recorded as unknown, and only tokenizer and configuration are
            read from ``policy.model``.
    """

    request: Literal["completions", "sglang"] = "completions"
    same_weights: bool = False


def _layers(settings: Mapping[str, object]) -> tuple[int | str, ...]:
    layers = settings.get("hidden.layers") or ()
    assert isinstance(layers, tuple)
    return layers
