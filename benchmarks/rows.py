"""Real top-k rows to measure on.

``load_rows`` reads an ``.npz`` of recorded rows: ``ids`` (n, m) by falling probability,
``logprobs`` (n, m), ``log_left_out`` (n,), ``vocabulary``. ``demo_rows`` makes rows on the
spot with the demo's teacher and this interpreter's documentation, so that the benchmarks
run anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache_tools.codecs.registry import Targets


@dataclass(frozen=True)
class Rows:
    """Rows to store.

    Attributes:
        name: For the table.
        vocabulary_size: Ids are below this.
        targets: k tokens by falling probability and the mass they leave out.
    """

    name: str
    vocabulary_size: int
    targets: Targets


def load_rows(path: Path, k: int) -> Rows:
    """Read recorded rows and keep the k most likely tokens of each."""
    recorded = np.load(path, allow_pickle=False)
    rest = np.logaddexp.reduce(
        np.concatenate([recorded["logprobs"][:, k:], recorded["log_left_out"][:, None]], axis=1).astype(np.float64),
        axis=1,
    )
    targets = Targets(recorded["ids"][:, :k], recorded["logprobs"][:, :k], rest.astype(np.float32))
    return Rows(path.stem, int(recorded["vocabulary"]), targets)


def sampled(rows: Rows, draws: int, seed: int = 0) -> Rows:
    """Return rows of draws with replacement: each drawn token with the weight count / draws, nothing left out.

    The tokens outside a row are not known, so the kept ones, renormalised, are drawn from.
    """
    rng, shape = np.random.default_rng(seed), (len(rows.targets.ids), draws)
    cumulative = np.cumsum(np.exp(rows.targets.log_probs, dtype=np.float64), axis=1)
    uniform = rng.random(shape) * cumulative[:, -1:]
    columns = (uniform[:, :, None] > cumulative[:, None, :]).sum(axis=2)
    drawn = np.sort(np.take_along_axis(rows.targets.ids, columns, axis=1), axis=1)
    first = np.concatenate([np.ones((len(drawn), 1), bool), drawn[:, 1:] != drawn[:, :-1]], axis=1)
    runs = np.cumsum(first, axis=1) - 1
    counts = np.zeros(shape)
    np.add.at(counts, (np.arange(len(drawn))[:, None], runs), 1)
    ids = np.zeros(shape, np.uint32)
    np.put_along_axis(ids, runs, drawn, axis=1)
    with np.errstate(divide="ignore"):
        log_probs = np.log(counts / draws).astype(np.float32)
    return Rows(
        f"{rows.name} drawn", rows.vocabulary_size, Targets(ids, log_probs, np.full(len(ids), -np.inf, np.float32))
    )


def demo_rows(k: int, num_positions: int = 12_288) -> Rows:
    """Run the demo's teacher over the start of this interpreter's documentation."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.capture.keep import Keep, sparse_targets
    from pipeline.demo.corpus import topic_documents
    from pipeline.demo.run import FILES

    model = AutoModelForCausalLM.from_pretrained(str(FILES / "teacher"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(FILES / "teacher"))
    text = "\n\n".join(document["text"] for document in topic_documents())
    ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0, :num_positions].reshape(-1, 256)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits.float().flatten(0, 1)
        made = sparse_targets(logits, torch.zeros(len(logits), dtype=torch.long), Keep(k=k))
    targets = Targets(made.ids.numpy().astype(np.uint32), made.log_probs.numpy(), made.log_left_out.numpy())
    return Rows("demo teacher", model.config.vocab_size, targets)


def rows_to_measure(files: Sequence[Path], k: int) -> list[Rows]:
    """Return the rows of each file, or the demo's where no file is given."""
    return [load_rows(path, k) for path in files] or [demo_rows(k)]
