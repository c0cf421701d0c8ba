"""A GGUF file read by llama.cpp beside the same file loaded here: CPU seconds, and how far the predictions differ.

llama.cpp's server gives the states behind the last norm of every token; the output matrix is that of the file,
dequantised, as for any GGUF teacher. Here the file is loaded in float32, whose predictions are the reference, and in
bfloat16. CPU seconds are those of the process that computes: the server's, and this one's.

Start the server first, with one thread: ``llama-server --model FILE --embeddings --pooling none --threads 1``.

Example: python -m benchmarks.llama_cpp --url http://127.0.0.1:8080 --server-pid PID --folder FOLDER --gguf-file FILE \
    --corpus corpus.jsonl
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.servers import tree_cpu_seconds
from pipeline.config.teacher import TeacherConfig
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.engines.server_client import ServerClient
from pipeline.teachers.batches import whole
from pipeline.teachers.loading import load_teacher, resolve_model
from pipeline.teachers.teacher import Teacher

LENGTH_TOKENS = 512
VALUE_BYTES = 40
"""Longest text of one number of a state."""


def prompts(teacher: TeacherConfig, folder: Path, corpus: Path, documents: int) -> Iterator[list[int]]:
    """Yield the documents of a corpus as token ids, cut into sequences."""
    tokenizer = load_tokenizer(folder)
    with corpus.open() as lines:
        for line in islice(lines, documents):
            ids = tokenizer(json.loads(line)["text"])["input_ids"]
            yield from (ids[start : start + LENGTH_TOKENS] for start in range(0, len(ids), LENGTH_TOKENS))


@torch.inference_mode()
def states_here(teacher: Teacher, ids: list[int]) -> Tensor:
    """Return the states of each token, (L, D)."""
    ids_1L = np.array([ids], np.int64)
    return teacher.body.states(whole(ids_1L, np.ones_like(ids_1L)))[0]


def states_of_server(client: ServerClient, width: int, ids: list[int]) -> Tensor:
    """Return the states of each token, (L, D), as llama.cpp computes them."""
    question = {"content": ids, "embd_normalize": -1}
    answer = client.post("/embedding", question, VALUE_BYTES * width * len(ids) + 2**20)
    return torch.tensor(answer["rows"][0]["embedding"], dtype=torch.float32)


@torch.inference_mode()
def log_probs(teacher: Teacher, states_LD: Tensor) -> Tensor:
    """Return log-probabilities (L, V) in float64."""
    return teacher.head.logits(states_LD.to(teacher.head.model.dtype)).logits.double().log_softmax(dim=1)


class ListClient(ServerClient):
    """A client of a server whose answers are lists."""

    def _object(self, path: str, status: int, content: bytes) -> dict[str, object]:
        return {"rows": json.loads(content)}


@click.command()
@click.option("--url", required=True, help="Address of llama.cpp's server.")
@click.option("--server-pid", required=True, type=int, help="Its process.")
@click.option("--folder", required=True, type=click.Path(exists=True, path_type=Path), help="Folder of the file.")
@click.option("--gguf-file", required=True, help="The file's name.")
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path), help="A .jsonl file.")
@click.option("--documents", default=3, show_default=True, help="Documents to read.")
def main(url: str, server_pid: int, folder: Path, gguf_file: str, corpus: Path, documents: int) -> None:
    """Read a corpus three times and compare; prints one JSON object a line."""
    disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    blocks = {
        dtype: TeacherConfig(name=dtype, model=str(folder), gguf_file=gguf_file, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    }
    path = resolve_model(blocks["float32"])
    teachers = {dtype: load_teacher(block, path, "causal") for dtype, block in blocks.items()}
    exact, client = teachers["float32"], ListClient(url)
    width, texts = exact.head.model.config.hidden_size, list(prompts(blocks["float32"], path, corpus, documents))
    readers: dict[str, Callable[[list[int]], Tensor]] = {
        dtype: partial(states_here, teacher) for dtype, teacher in teachers.items()
    }
    readers["llama.cpp"] = partial(states_of_server, client, width)
    tokens = sum(map(len, texts))
    reference = [states_here(exact, ids) for ids in texts]
    for name, read in readers.items():
        process = server_pid if name == "llama.cpp" else None
        began = tree_cpu_seconds(process) if process else time.process_time()
        states = [read(ids) for ids in texts]
        seconds = (tree_cpu_seconds(process) if process else time.process_time()) - began
        kl, same, off, norm = 0.0, 0, 0.0, 0.0
        for own, right in zip(states, reference, strict=True):
            p, q = log_probs(exact, right), log_probs(exact if process else teachers[name], own)
            kl += float((p.exp() * (p - q)).sum())
            same += int((p.argmax(dim=1) == q.argmax(dim=1)).sum())
            off, norm = off + float((own - right).square().sum()), norm + float(right.square().sum())
        result = {
            "reader": name,
            "tokens": tokens,
            "body_tokens_per_cpu_second": tokens / seconds,
            "kl_from_float32_nats": kl / tokens,
            "same_top1": same / tokens,
            "relative_rms_of_states": (off / norm) ** 0.5,
            "wire_bytes_per_position": client.received_bytes / tokens if process else 0.0,
        }
        click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
