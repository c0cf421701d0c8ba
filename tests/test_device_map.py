"""A teacher spread over devices says the same. ``disk`` stands for a second device: such modules have no
weights of their own between two calls, and hooks bring them, as they do for a GPU that is too small."""

from pathlib import Path

import pytest
import torch

import tiny
from cache_tools.configuration import load_config
from cache_tools.errors import ConfigError
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.teachers.loading import load_teacher
from store_fixtures import snapshot

SPREAD = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
EVERYTHING = {"target": {"k": 16}, "hidden": {"layers": [1, "last"], "codec": "budget"}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("teacher"))


def captured(folder, teacher, **placement):
    """Return every file of a cache, but of receipts when and where they were written."""
    tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:6])
    values = tiny.capture_values(folder, teacher, **EVERYTHING)
    values["teachers"][0] |= placement
    tiny.run(values)
    return {key: content.split(b'"provenance"')[0] for key, content in snapshot(folder / "cache").items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher):
    return captured(tmp_path_factory.mktemp("whole"), teacher)


@pytest.mark.parametrize("device_map", ["auto", "sequential", {"": "cpu"}, SPREAD])
def test_a_placed_teacher_captures_the_same_bytes(tmp_path, teacher, whole, device_map):
    if device_map in ("auto", "sequential") and torch.cuda.is_available():
        pytest.skip("these place it on the GPU, which rounds differently")
    assert captured(tmp_path, teacher, device_map=device_map) == whole


def test_the_spread_teacher_is_spread(teacher):
    config = TeacherConfig(name="toy", model=str(teacher), device_map=SPREAD)
    loaded = load_teacher(config, teacher, "causal")
    assert loaded.head.model.get_output_embeddings().weight.is_meta
    assert loaded.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (["device=cpu", "device_map=auto"], "device and device_map exclude each other"),
        (["gpus=2"], "gpus: 2 needs device_map: auto"),
        (["device_map=evenly"], "device_map"),
    ],
)
def test_refuses_placements_that_contradict_each_other(placement, message):
    overrides = tuple(f"teachers.0.{assignment}" for assignment in placement)
    with pytest.raises(ConfigError, match=message):
        load_config(Path(__file__).parents[1] / "configs/demo/capture.yaml", CaptureConfig, overrides)
