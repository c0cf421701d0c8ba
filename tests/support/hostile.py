"""Caches made by somebody who means harm: any value anywhere, with every seal and hash recomputed so that it holds.

Run as a program it damages caches for some time and runs commands on each, in a process whose memory is limited::

    PYTHONPATH=.:tests/support python tests/support/hostile.py --seconds 1200 --seed 0

The seed of each case is printed before it, so the seed of a case that ends the process is known; ``--only 123`` runs
that case again.
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
from click.testing import CliRunner

import cache_tools.report.html
from benchmarks.damage import read_all
from benchmarks.peak import resident_bytes
from cache_tools.errors import LogitcaskError
from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import DECODING_KEYS
from cache_tools.format.sealed import sealed_bytes
from cache_tools.format.zarr_arrays import BLOSC_HEADER
from cache_tools.json_output import json_text
from cache_tools.storage import sha256
from cache_tools.store import chunk_reader
from cache_tools.store.predictions import group_layouts
from cache_tools.store.reader import Cache
from cache_tools.store.writer import commit_shard, declare_teacher
from cache_tools.viewer.pages import OpenCache, alternatives, heat
from cache_tools.viewer.search import look_for_highest, look_for_text
from kinds import MADE
from logitcask import cli

assert cache_tools.report.html  # imported before memory is limited

MEMORY_BYTES = 10**9
COMMAND_SECONDS = 30


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    16,
    255,
    256,
    65536,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**63,
    2**70,
    -(2**63),
    10**400,
    0.5,
    -0.5,
    1e-320,
    1e308,
    -1e308,
    "NaN",
    "Infinity",
    "-Infinity",
    "",
    "x",
    "0" * 64,
    "f" * 64,
    "../../../../secret",
    "/etc/passwd",
    "a/../b",
    "\x1b[2J\x07",
    "\u202e\u0000",
    "é" * 50,
    "x" * 100_000,
    [],
    {},
    [[]],
    [1, 2, 3],
    [-1],
    {"a": 1},
    {"name": "x"},
    {"": {}},
    nested(20),
    nested(70),
    nested(900),
    ["x"] * 1000,
    "bfloat16",
    "transform",
    "dense",
    "sampled",
    "delta-power",
    "delta-count",
    "delta-float32",
    "dense-float32",
    "masked",
    "causal",
    "evil",
    "train",
    "zarr.json",
    "targets",
    "hidden/last",
    "int64",
    "uint8",
    "float32",
    "float64",
    "object",
    "gzip",
    "zstd",
    "blosc",
    "bytes",
    "transpose",
    2**22,
    2**20,
    2**24,
    4,
    12,
    15,
    1000,
    1001,
    999,
]

KEYS = [
    "x",
    "",
    "../x",
    "a/b",
    "\x1b[0m",
    "zarr.json",
    "hidden",
    "ids",
    "receipts",
    "seconds",
    "group",
    "shards",
    "last",
    "1",
]


def places(value, inside=()):
    """Yield the path of every value in a JSON document."""
    yield inside
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*inside, key))


def change_json(document, rng):
    """Change one random value of a document, or add or take a key."""
    path = rng.choice([place for place in places(document) if place])
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    kind = rng.random()
    if kind < 0.7:
        holder[path[-1]] = rng.choice(VALUES)
    elif kind < 0.8:
        del holder[path[-1]]
    elif isinstance(holder, dict):
        holder[rng.choice(KEYS)] = rng.choice([holder[path[-1]], *VALUES])
    else:
        holder.insert(0, rng.choice(VALUES))


def write_sealed(path, document):
    """Seal a document if it still has a place for a seal."""
    inside = document
    if isinstance(document, dict) and isinstance(document.get("attributes"), dict):
        inside = document["attributes"].get("logitcask")
    if isinstance(inside, dict):
        inside["seal"] = "0" * 64
    try:
        path.write_bytes(sealed_bytes(document))
    except (ValueError, RecursionError, TypeError):
        path.write_text(json.dumps(document))


def vouch(tiny):
    """Let identity, receipts and hashes hold for the manifests as they are now."""
    try:
        encoding, teacher = (
            json.loads((folder / "zarr.json").read_bytes()) for folder in (tiny.encoding, tiny.teacher)
        )
        own, its = encoding["attributes"]["logitcask"], teacher["attributes"]["logitcask"]
        its["identity"] |= {key: its[key] for key in DECODING_KEYS if key in its}
        its["identity"]["encoding"] = fingerprint(own["identity"])
        write_sealed(tiny.teacher / "zarr.json", teacher)
        for path in (tiny.teacher / "receipts").iterdir():
            receipt = json.loads(path.read_bytes())
            receipt["teacher_fingerprint"] = fingerprint(its["identity"])
            write_sealed(path, receipt)
    except (ValueError, KeyError, TypeError, OSError, RecursionError, AttributeError):
        return


def harm_json(tiny, rng):
    files = [path for path in tiny.path.rglob("*.json") if path.name == "zarr.json" or path.parent.name == "receipts"]
    manifests = [tiny.path / "zarr.json", tiny.encoding / "zarr.json", tiny.teacher / "zarr.json"]
    path = rng.choice([*files, *manifests * 8])
    document = json.loads(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        change_json(document, rng)
        if not isinstance(document, dict):
            break
    write_sealed(path, document)
    if rng.random() < 0.8:
        vouch(tiny)
    if rng.random() < 0.5:  # arrays that follow the manifest, as far as it can be followed
        rewrite_arrays(tiny)


def rewrite_arrays(tiny):
    try:
        teacher = Cache(tiny.path).encoding().teacher("toy")
        rows = teacher.encoding.manifest.positions_per_shard
        for group in group_layouts(teacher.manifest, rows).values():
            for name, cut in group.items():
                path = layout.array_metadata_file(teacher.path, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(cut.metadata(rows * len(teacher.encoding.shards)))
    except (LogitcaskError, OSError, ValueError):
        return


def ipc(table, compression):
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=2)
    return stream.getvalue()


def odd_column(column, name, rng):
    """Return a column of the same length with other values or of another type."""
    values = column.to_pylist()
    kind = rng.randrange(8)
    if kind == 0:
        return pa.array([None] * len(values), column.type)
    if kind == 1:
        return pa.array([str(value) for value in values]).dictionary_encode()
    if kind == 2:
        return pa.array([rng.choice([-1, 2**62, 7, 10**15])] * len(values), pa.int64())
    if kind == 3:
        return pa.array(["a" * rng.choice([0, 5, 10**6, 3 * 10**7])] * len(values))
    if kind == 4:
        return pa.nulls(len(values))
    if pa.types.is_list(column.type):
        how = rng.choice(
            [
                lambda v: v + v[:1] * 50,
                lambda v: v[:-1],
                lambda v: [],
                lambda v: [v[0]] * 10**6,
                lambda v: v[::-1],
                lambda v: [None, *v[1:]],
            ]
        )
        return pa.array([None if v is None else how(v) for v in values], column.type)
    if pa.types.is_string(column.type):
        text = rng.choice(["", "\x1b[2J", "\u202e", "é", "e" * 64, "evil", "held_out"])
        return pa.array([text] * len(values), column.type)
    return pa.array([rng.choice([0, -5, 1, v, v + 1, 10**15, 2**62]) for v in values], column.type)


def harm_arrow(tiny, rng):
    part = tiny.encoding / "parts/00000"
    path = rng.choice(
        [tiny.encoding / "sequences/00000.arrow"] * 3 + [part / "shards.arrow"] * 2 + [part / "files.arrow"]
    )
    table = pa.ipc.open_file(str(path)).read_all()
    name = rng.choice(table.column_names)
    kind = rng.random()
    if kind < 0.6:
        number = table.column_names.index(name)
        table = table.set_column(number, name, odd_column(table.column(name), name, rng))
    elif kind < 0.7:
        table = table.drop_columns([name])
    elif kind < 0.8:
        table = table.append_column(name, table.column(name))
    elif kind < 0.9:
        table = pa.concat_tables([table] * rng.choice([0, 2, 50])) if rng.random() < 0.8 else table.slice(0, 0)
    content = ipc(table, rng.choice(["zstd", "zstd", "lz4", None]))
    if kind >= 0.9:  # any byte of the file, its metadata above all
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(len(changed))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        content = bytes(changed)
    path.write_bytes(content)
    rehash(tiny)


def rehash(tiny):
    """Write the hashes of the encoding's files where they are expected."""
    part, first = tiny.encoding / "parts/00000", tiny.encoding / "sequences/00000.arrow"
    digest = sha256(first.read_bytes())
    try:
        table = pa.ipc.open_file(str(part / "shards.arrow")).read_all()
        columns = table.to_pydict()
        columns["sha256"][0], columns["bytes"][0] = digest, first.stat().st_size
        (part / "shards.arrow").write_bytes(ipc(pa.table(columns, schema=table.schema), "zstd"))
    except pa.ArrowException:
        return
    manifest = json.loads((tiny.encoding / "zarr.json").read_bytes())
    stated = manifest["attributes"]["logitcask"]["parts"][0]
    stated["shards_sha256"] = sha256((part / "shards.arrow").read_bytes())
    stated["files_sha256"] = sha256((part / "files.arrow").read_bytes())
    write_sealed(tiny.encoding / "zarr.json", manifest)
    receipt = json.loads(tiny.receipt_file(0).read_bytes())
    receipt["sequences_sha256"] = digest
    write_sealed(tiny.receipt_file(0), receipt)


def with_crc(content):
    return content + int(google_crc32c.value(content)).to_bytes(4, "little")


def harm_object(tiny, rng):
    """Change the header or body of a chunk, or the index, of one object; checksums and hashes hold."""
    receipt = json.loads(tiny.receipt_file(0).read_bytes())
    key = rng.choice(sorted(receipt["objects"]))
    content = (tiny.teacher / key).read_bytes()
    chunks = 4
    end = len(content) - 16 * chunks - 4
    index = np.frombuffer(content[end:-4], "<u8").reshape(-1, 2).copy()
    stored = [row for row in range(chunks) if index[row, 0] != 2**64 - 1]
    parts = {row: content[int(index[row, 0]) : int(index[row, 0] + index[row, 1]) - 4] for row in stored}
    row = rng.choice(stored)
    fields = list(BLOSC_HEADER.unpack_from(parts[row]))
    kind = rng.random()
    if kind < 0.4:
        number = rng.randrange(7)
        odd = [0, 1, 2, 255] if number < 4 else [0, 1, fields[number] + 1, fields[number] - 1, 2**31 - 1, 2**32 - 1]
        fields[number] = rng.choice(odd)
        parts[row] = BLOSC_HEADER.pack(*fields) + parts[row][16:]
    elif kind < 0.6:
        body = bytearray(parts[row])
        body[rng.randrange(16, len(body)) if len(body) > 16 else 0] = rng.randrange(256)
        parts[row] = bytes(body)
    elif kind < 0.7:
        parts[row] = rng.randbytes(rng.choice([0, 3, 16, 40]))
    elif kind < 0.8:
        parts[row] = parts[row] * 2
    whole = b""
    for row in stored:
        index[row] = len(whole), len(parts[row]) + 4
        whole += with_crc(parts[row])
    if kind >= 0.8:
        index[rng.randrange(chunks), rng.randrange(2)] = rng.choice(
            [0, 1, 4, 5, 2**31, 2**63, 2**64 - 1, 2**64 - 2, len(whole)]
        )
    content = whole + with_crc(index.tobytes())
    (tiny.teacher / key).write_bytes(content)
    receipt["objects"][key] = {"bytes": len(content), "sha256": sha256(content)}
    write_sealed(tiny.receipt_file(0), receipt)


def harm_kind(tiny, rng):
    """Put a FIFO, a link, a device's link, a folder or an endless file where a file or a folder is."""
    everything = sorted(path for path in tiny.path.rglob("*"))
    path = rng.choice([*everything, tiny.path / "zarr.json", tiny.teacher / "zarr.json", tiny.receipt_file(0)])
    outside = tiny.path.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "precious").write_text("keep me")
    kind = rng.randrange(8)
    moved = outside / "moved"
    shutil.rmtree(moved) if moved.is_dir() else moved.unlink(missing_ok=True)
    path.rename(moved)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.symlink_to(moved)
    elif kind == 3:
        path.symlink_to(outside)
    elif kind == 4:
        path.mkdir()
    elif kind == 5:
        path.symlink_to(path.name)
    elif kind == 6:
        with path.open("wb") as file:
            file.truncate(2**40)
    else:
        path.write_bytes(b"")


def harm_bytes(tiny, rng):
    """Put another file's bytes, deep JSON or much of anything in the place of a file; records follow where they can."""
    files = sorted(path for path in tiny.path.rglob("*") if path.is_file())
    path = rng.choice(files)
    deep, many = b"[" * 100_000 + b"]" * 100_000, b"[" + b"[]," * 6_000_000 + b"0]"
    content = rng.choice([deep, many, b"{" + b'"a":{' * 50_000, b"\xff" * 100, rng.choice(files).read_bytes()])
    path.write_bytes(content)
    for manifest in (tiny.encoding / "zarr.json", tiny.teacher / "zarr.json"):
        try:
            document = json.loads(manifest.read_bytes())
            files = document["attributes"]["logitcask"]["files"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        for key in files:
            if (manifest.parent / key).is_file():
                content = (manifest.parent / key).read_bytes()
                files[key] = {"bytes": len(content), "sha256": sha256(content)}
        write_sealed(manifest, document)
    if path.parent.name == "sequences" or path.parent.parent.name == "parts":
        rehash(tiny)


def harm_values(tiny, rng):
    """Write lawful chunks of any bits."""
    receipt = json.loads(tiny.receipt_file(0).read_bytes())
    teacher = Cache(tiny.path).encoding().teacher("toy")
    name = rng.choice(sorted(teacher._layouts))
    cut = teacher._layouts[name]
    size = cut.shard_rows * int(np.prod(cut.type.row, dtype=int)) * cut.type.dtype.itemsize
    nan = np.full(size // 4 + 1, np.nan, np.float32).tobytes()[:size]
    odd = rng.choice([rng.randbytes(size), b"\xff" * size, b"\x80" * size, nan])
    rows = np.frombuffer(odd, cut.type.dtype).reshape(cut.shard_rows, *cut.type.row)
    content = cut.encode(rows)
    key = layout.shard_key(name, 0, rows.ndim)
    (tiny.teacher / key).parent.mkdir(parents=True, exist_ok=True)
    (tiny.teacher / key).write_bytes(content)
    receipt["objects"][key] = {"bytes": len(content), "sha256": sha256(content)}
    write_sealed(tiny.receipt_file(0), receipt)


HARMS = (
    [harm_json] * 6 + [harm_arrow] * 4 + [harm_object] * 3 + [harm_kind] * 3 + [harm_bytes, harm_values, harm_values]
)


def viewed(path):
    """Ask for everything that the viewer's pages ask for."""
    opened = OpenCache(path)
    answers = [opened.summary()]
    for name in opened._cache.encodings:
        encoding = opened.encoding(name)
        answers.append(look_for_text(encoding, None, "é", 0))
        teachers = [opened.teacher(encoding, teacher) for teacher in encoding.teachers]
        answers += [look_for_highest(encoding, teachers[:1], "loss", 0)]
        answers += [look_for_highest(encoding, teachers[:2], by, 0) for by in ("kl", "top1")]
        answers += [heat(opened, encoding, 0), alternatives(opened, encoding, 0, 0, 5)]
    for answer in answers:
        json_text(answer)


def read(path):
    """Read everything; return the first error that is none of ours."""
    for error in read_all(path)[1]:
        if not isinstance(error, LogitcaskError):
            raise error
    for encoding in map(Cache(path).encoding, Cache(path).encodings):
        for teacher in map(encoding.teacher, encoding.teachers):
            teacher.require_complete("train")
            assert encoding.manifest.labelled in (True, False)


def commands(folder, rng):
    """Return some commands to try on a cache; those that change it come last."""
    cache, sound = str(folder / "cache"), str(folder / "sound" / "cache")
    readers = [
        ["inspect", cache],
        ["inspect", "--json", cache, "--groups", "folder"],
        ["show", cache, "0"],
        ["show", cache, "4", "--json"],
        ["show", cache, "0", "--position", "1"],
        ["show", cache, "--highest-loss", "--teacher", "toy"],
        ["show", cache, "--highest-disagreement", "kl"],
        ["show", cache, "--text", "é"],
        ["verify", cache],
        ["verify", "--deep", cache],
        ["verify", "--deep", "--json", cache],
        ["report", cache, "-o", f"{folder}/report.html"],
        ["diff", cache, "--teacher-a", "toy"],
        ["diff", sound, cache, "--teacher-a", "toy", "--teacher-b", "toy"],
        ["copy", cache, f"{folder}/copy"],
        ["subset", cache, f"{folder}/subset", "--k", "2"],
        ["subset", cache, f"{folder}/one", "--document", "document-0"],
        ["vocabulary", cache, "-o", f"{folder}/vocabulary"],
        ["copy", sound, cache],
    ]
    writers = [
        ["repair", cache],
        ["repair", "--quick", cache],
        ["drop", cache, "toy", "--yes"],
        ["drop", cache, "toy", "--hidden", "last", "--yes"],
        ["copy", sound, cache],
    ]
    return [*rng.sample(readers, 4), *rng.sample(writers, 1)]


class TooLongError(BaseException):
    """A command took too long."""


def too_long(*_):
    raise TooLongError


def run_case(bases, seed):
    """Damage a cache and run commands on it; return what went wrong."""
    rng = random.Random(seed)
    kind = rng.choice(sorted(bases))
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(bases[kind].path, folder / "cache")
        shutil.copytree(bases["topk"].path, folder / "sound" / "cache")
        path = folder / "cache"
        tiny = type(bases[kind])(
            path, path / "encodings/tiny", path / "encodings/tiny/teachers/toy", bases[kind].manifest, [], [], []
        )
        harms = [rng.choice(HARMS) for _ in range(rng.choice([1, 1, 1, 2]))]
        for harm in harms:
            with suppress(Exception):  # what an earlier harm left cannot always be harmed again
                harm(tiny, rng)
        todo = [(command[0], lambda command=command: run_command(command)) for command in commands(folder, rng)]
        todo.insert(0, ("read", lambda: read(path)))
        todo.insert(1, ("view", lambda: viewed(path)))
        for what, work in todo:
            problem = outcome(work)
            if problem:
                wrong.append(f"seed {seed}, {kind}, {', '.join(h.__name__ for h in harms)}, {what}: {problem}")
        outside = folder / "outside" / "precious"
        if outside.parent.exists() and not outside.exists():
            wrong.append(f"seed {seed}: a file outside is gone")
    return wrong


def run_command(command):
    error = CliRunner().invoke(cli, command).exception
    if isinstance(error, BaseException) and not isinstance(error, SystemExit):
        raise error


def outcome(work):
    """Return what is wrong with how some work ended; None if it worked or ended with one of our sentences."""
    chunk_reader._indexes.clear()
    signal.setitimer(signal.ITIMER_REAL, COMMAND_SECONDS)
    try:
        work()
    except LogitcaskError as error:
        text = str(error)
        return (
            None
            if text.replace("\n", " ").isprintable() and len(text) < 20_000
            else f"an unfit message: {text[:200]!r}"
        )
    except TooLongError:
        return f"more than {COMMAND_SECONDS} s"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        own = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in where if "cache_tools" in frame.filename]
        return f"{type(error).__name__}: {str(error)[:200]} at {' '.join(own[-4:])}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def make_bases(folder):
    """Write a sound cache of each kind, with a second teacher in each."""
    bases = {}
    for kind in MADE:
        tiny = MADE[kind](folder / kind)
        files = {key: (tiny.teacher / key).read_bytes() for key in tiny.manifest.files}
        second = declare_teacher(Cache(tiny.path).encoding(), "second", tiny.manifest, files)
        for shard in range(3):
            commit_shard(second, shard, tiny.predictions[shard], {"device": "none", "seconds": 1.0})
        bases[kind] = tiny
    return bases


def main():
    """Run cases until the time is over; exit 1 if one went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    warnings.simplefilter("error", RuntimeWarning)
    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as name:
        bases = make_bases(Path(name))
        run_case(bases, 0)  # imports everything
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)
        end, seed, wrong = time.monotonic() + arguments.seconds, arguments.seed, []
        while time.monotonic() < end or arguments.only is not None:
            seed = seed if arguments.only is None else arguments.only
            print(f"seed {seed}", flush=True)
            problems = run_case(bases, seed)
            print(*problems, sep="\n", end="\n" if problems else "", flush=True)
            wrong += problems
            seed += 1
            if arguments.only is not None:
                break
    peak = resident_bytes("VmHWM")
    print(f"{seed - arguments.seed} cases, {len(wrong)} problems, peak {peak:,} bytes", flush=True)
    sys.exit(bool(wrong) or peak > MEMORY_BYTES)


if __name__ == "__main__":
    main()
