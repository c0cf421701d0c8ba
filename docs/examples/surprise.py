"""Draw how surprised a teacher was, position by position: ``python docs/examples/surprise.py runs/demo/cache``.

With matplotlib the plot goes to a file (``surprise.png``, or the second argument); without it a histogram
is printed. Either needs nothing but the cache: no teacher, no GPU, no torch.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from cache_tools.inspection.dataframe import to_arrow
from cache_tools.inspection.sampling import committed_shards
from cache_tools.store.reader import Cache

SEQUENCES = 100
EDGES_NATS = np.arange(0, 13)


def surprise_table(cache: str) -> pa.Table:
    """Return some sequences of the first shard that a cache's first teacher has captured."""
    encoding = Cache(cache).encoding()
    teacher = encoding.teacher(encoding.teachers[0])
    shard = committed_shards([teacher])[0]
    return to_arrow(teacher, sequences=[sequence.sequence_id for sequence in encoding.sequences(shard)[:SEQUENCES]])


def print_histogram(surprise_nats: np.ndarray) -> None:
    """Print one bar for each nat; the last holds everything beyond."""
    counts = np.histogram(np.minimum(surprise_nats, EDGES_NATS[-1]), EDGES_NATS)[0]
    for low, count in zip(EDGES_NATS, counts, strict=False):
        print(f"{low:2} nats {count:7,} {'#' * round(50 * count / counts.max())}")


def draw(surprise_nats: np.ndarray, entropy_nats: np.ndarray, path: Path) -> None:
    """Plot surprise against entropy: a calibrated teacher lies, on average, on the diagonal."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    axes.scatter(entropy_nats, surprise_nats, s=2, alpha=0.3)
    axes.axline((0, 0), slope=1, color="black", linewidth=0.5)
    axes.set(xlabel="entropy, nats", ylabel="surprise at the gold token, nats")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Draw or print."""
    table = surprise_table(sys.argv[1])
    surprise, entropy = -table["gold_logprob"].to_numpy(), table["entropy"].to_numpy()
    print(f"{len(table):,} positions, mean surprise {surprise.mean():.3f} nats, mean entropy {entropy.mean():.3f} nats")
    try:
        path = Path(sys.argv[2] if len(sys.argv) > 2 else "surprise.png")
        draw(surprise, entropy, path)
        print(path)
    except ImportError:
        print_histogram(surprise)


if __name__ == "__main__":
    main()
