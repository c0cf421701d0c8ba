"""What an engine's process runs: token ids in on standard input, vLLM's hidden states out on standard output.

It runs in the Python of an environment with vLLM and imports nothing but the standard library, numpy and vLLM. A
message is a line of JSON and the bytes that it announces; ``pipeline/engines/process.py`` is the other side. The first
message holds the settings; each later one the ids of a batch, and which positions are kept. If the settings name a
number of ``log_probs``, the engine is one that has its head, and each later message is a text whose own
log-probabilities it gives.

A batch gives the same bytes again because there is no prefix caching, so no row is reused or missing, and because all
sequences of a message fit into one step, so the engine does not choose what is computed together.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeAlias

import numpy as np

PROTOCOL = 1

DEFAULTS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process instead of two, so that nothing is left when it ends
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # on a CPU: as many threads as OMP_NUM_THREADS says, on any core
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment variables that are set unless the caller has set them."""

Message: TypeAlias = Any
"""A JSON object."""

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ids = np.ndarray[Any, np.dtype[np.int32]]


def load(settings: Message) -> tuple[Any, Message]:
    """Return the engine, and its name, version and settings."""
    import vllm  # type: ignore[import-not-found]

    engine = vllm.LLM(
        model=settings["model"],
        dtype=settings["dtype"],
        trust_remote_code=settings["trust_remote_code"],
        max_model_len=settings["max_length_tokens"],
        max_num_batched_tokens=settings["batch_tokens"],
        max_num_seqs=settings["sequences"],
        enable_prefix_caching=False,
        **runner(settings),
        **settings["options"],
    )
    configuration = engine.llm_engine.vllm_config
    facts = {
        "protocol": PROTOCOL,
        "name": "vllm",
        "version": vllm.__version__,
        "attention": attention(configuration),
        "device": device(),
        "dtype": str(configuration.model_config.dtype).replace("torch.", ""),
        "width": configuration.model_config.get_hidden_size(),
    }
    return engine, facts


def runner(settings: Message) -> Message:
    """Return the arguments of an engine that gives states, or of one that gives log-probabilities."""
    if "log_probs" in settings:
        return {"runner": "generate", "max_logprobs": settings["log_probs"]}
    return {"runner": "pooling", "pooler_config": {"task": "token_embed", "use_activation": False}}


def attention(configuration: Any) -> str:
    """Return the attention backends of the model's layers; where they are in another process, the one asked for."""
    layers = configuration.compilation_config.static_forward_context.values()
    backends = {layer.get_attn_backend().get_name() for layer in layers if hasattr(layer, "get_attn_backend")}
    configured = getattr(getattr(configuration, "attention_config", None), "backend", None)
    return ", ".join(sorted(backends)) or str(getattr(configured, "name", configured or "auto"))


def device() -> str:
    """Return the name of what the engine computes on."""
    from vllm.platforms import current_platform  # type: ignore[import-not-found]

    if current_platform.is_cpu():
        return "cpu"
    return f"{current_platform.device_type} ({current_platform.get_device_name()})"


def states_of(engine: Any, ids: Ids, lengths: list[int]) -> Iterator[Floats]:
    """Yield the states of each sequence, (length, width), given the ids of all one after another."""
    from vllm import PoolingParams
    from vllm.inputs import TokensPrompt  # type: ignore[import-not-found]

    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    prompts = [ids[start : start + length].tolist() for start, length in zip(starts, lengths, strict=True)]
    outputs = engine.encode(
        [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
        pooling_params=PoolingParams(task="token_embed", use_activation=False),
        pooling_task="token_embed",
        use_tqdm=False,
    )
    for prompt, output in zip(prompts, outputs, strict=True):
        states = output.outputs.data
        if list(output.prompt_token_ids) != prompt:
            raise RuntimeError("vLLM read other token ids than it was given")
        if states.shape[0] != len(prompt):
            raise RuntimeError(f"vLLM returned {states.shape[0]} states for {len(prompt)} tokens")
        yield states.float().cpu().numpy()


def own_rows(engine: Any, ids: list[int], most: int) -> tuple[Message, bytes]:
    """Return what the engine itself predicts behind each token but the last: ids and log-probabilities, (L - 1, k)."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    (output,) = engine.generate(
        [TokensPrompt(prompt_token_ids=ids)],
        SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=most, detokenize=False),
        use_tqdm=False,
    )
    if list(output.prompt_token_ids) != ids:
        raise RuntimeError("vLLM read other token ids than it was given")
    rows = [{token: entry.logprob for token, entry in row.items()} for row in output.prompt_logprobs if row]
    kept = max(map(len, rows))  # the token that follows is there beside the likeliest
    tokens = np.array([[*row, *[-1] * (kept - len(row))] for row in rows], "<i4")
    log_probs = np.array([[*row.values(), *[-np.inf] * (kept - len(row))] for row in rows], "<f4")
    return {
        "shape": [len(rows), kept],
        "bytes": tokens.nbytes + log_probs.nbytes,
    }, tokens.tobytes() + log_probs.tobytes()


def answer(engine: Any, dtype: str, header: Message, stream: BinaryIO) -> tuple[Message, bytes]:
    """Return the header and the bytes of the answer to one batch."""
    lengths, kept = header["lengths"], header["kept"]
    ids = read_ids(stream, lengths)
    places = np.frombuffer(exactly(stream, 4 * sum(kept)), "<i4")
    parts, start = [], 0
    for states, number in zip(states_of(engine, ids, lengths), kept, strict=True):
        parts.append(states[places[start : start + number]])
        start += number
    rows = np.concatenate(parts)
    name, content = shortest(rows, dtype)
    return {"dtype": name, "shape": list(rows.shape), "bytes": len(content)}, content


def read_ids(stream: BinaryIO, lengths: list[int]) -> Ids:
    """Read the token ids of sequences, one after another."""
    return np.frombuffer(exactly(stream, 4 * sum(lengths)), "<i4")


def shortest(rows: Floats, dtype: str) -> tuple[str, bytes]:
    """Return values in the engine's own type, where that loses nothing, or else in float32: the type and the bytes."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(rows).view(np.uint32)
        if not (bits & 0xFFFF).any():
            return dtype, (bits >> 16).astype("<u2").tobytes()
    if dtype == "float16":
        with np.errstate(over="ignore"):
            halves = rows.astype("<f2")
        if np.array_equal(halves.astype(np.float32), rows, equal_nan=True):
            return dtype, halves.tobytes()
    return "float32", rows.astype("<f4").tobytes()


def exactly(stream: BinaryIO, size: int) -> bytes:
    """Read so many bytes."""
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("the message ends early")
    return content


def serve(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answer messages until there are no more."""

    def send(header: Message, content: bytes = b"") -> None:
        stdout.write(json.dumps(header).encode() + b"\n" + content)
        stdout.flush()

    try:
        settings = stdin.readline()
        if not settings:
            return
        asked = json.loads(settings)
        engine, facts = load(asked)
        send(facts)
        for line in iter(stdin.readline, b""):
            header = json.loads(line)
            if "log_probs" in asked:
                send(*own_rows(engine, read_ids(stdin, header["lengths"]).tolist(), asked["log_probs"]))
            else:
                send(*answer(engine, facts["dtype"], header, stdin))
    except BrokenPipeError:  # nobody reads any more
        os._exit(1)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        send({"error": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error


def main() -> None:
    """Serve; whatever the engine prints goes to standard error, so that it cannot mix with the answers."""
    stdin, stdout = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    serve(stdin, stdout)


if __name__ == "__main__":
    main()
