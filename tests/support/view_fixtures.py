"""A cache that is hard to show: two teachers, and documents that would like to be more than text."""

import json
import shutil
import threading
import time
from contextlib import contextmanager

import uvicorn
from test_decoding import HOSTILE

import tiny
from cache_tools.store.reader import Cache
from cache_tools.viewer.app import make_app

BAD_ID = "doc\x1b[2J\u202e<img src=x onerror=window.ran=1>"
ATTACKS = [
    "<script>window.ran = 1</script> and more",
    "<img src=x onerror='window.ran = 1'><svg onload=window.ran=1>",
    "{{ 7 * 7 }} ${7*7} </script></title><iframe srcdoc='<script>parent.ran=1</script>'>",
]


def hostile_cache(folder, bad_id=BAD_ID, attacks=ATTACKS):
    """Capture ordinary and hostile documents by two teachers."""
    values = tiny.capture_values(folder, held_out_fraction=0)
    texts = [*tiny.TEXTS[:12], *HOSTILE, *attacks]
    documents = [{"id": f"doc{i}", "text": text} for i, text in enumerate(texts)]
    documents.append({"id": bad_id, "text": "an id that would like to act"})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    values["encoding"] |= {"positions_per_shard": 256, "chunk_positions": 64}
    other = {"name": "other", "model": str(tiny.save_teacher(folder / "other", tiny.model(seed=1)))}
    values["teachers"].append({**values["teachers"][0], **other})
    tiny.run(values)
    return Cache(values["cache"])


def copy_of(cache, folder):
    """Copy a cache, to be damaged."""
    shutil.copytree(cache.path, folder / "copy")
    return Cache(folder / "copy")


@contextmanager
def serve(path, **arguments):
    """Serve a cache from a thread while the block runs; yields the address."""
    server = uvicorn.Server(uvicorn.Config(make_app(path, **arguments), port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
