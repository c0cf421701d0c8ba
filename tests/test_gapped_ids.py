"""Ids with gaps: a tokenizer of 300 tokens whose highest id is 336 works everywhere; its holes are nobody's tokens."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import tiny
from cache_tools.errors import CorpusError, IdentityError
from cache_tools.format.vocabulary import vocabulary_size
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.folder import read_vocabulary
from cache_tools.vocabularies.union import NO_ID
from logitcask import cli
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.sequences import ordinary_ids
from tokenizer_fixtures import GAP_STARTS, GAP_TOKENS, HIGHEST_ID, save_gapped, with_gap
from trainer.config.student_file import StudentConfig
from trainer.evaluation.evaluate import evaluate_folder
from trainer.run.train import run_training

HOLE = range(GAP_STARTS, GAP_STARTS + GAP_TOKENS)


@pytest.fixture(scope="module", params=["causal", "masked"])
def folder(request, tmp_path_factory):
    """A captured cache, with its teacher beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    teacher = save_gapped(folder / "teacher", "bert" if request.param == "masked" else "llama")
    tiny.capture(folder, teacher, objective=request.param)
    return folder


def opened(folder):
    return Cache(folder / "cache").encoding()


def test_the_size_is_the_highest_id_and_one_and_every_id_is_below_it(folder):
    encoding = opened(folder)
    assert encoding.manifest.vocabulary_size == vocabulary_size(with_gap().get_vocab()) == HIGHEST_ID + 1
    sequences = [s for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]
    for column in ("input_ids", "original_ids"):
        ids = [getattr(s, column) for s in sequences if getattr(s, column) is not None]
        if ids:
            together = np.concatenate(ids)
            assert together.max() > GAP_STARTS
            assert not np.isin(together, HOLE).any()
    assert verify(folder / "cache", deep=True) == []


@pytest.mark.parametrize("command", [["inspect"], ["show", "0"], ["show", "--text", "the"], ["inspect", "--json"]])
def test_the_cache_is_shown(folder, command):
    result = CliRunner().invoke(cli, [command[0], str(folder / "cache"), *command[1:]])
    assert result.exit_code == 0, result.exception
    assert "337" in result.stdout or command[0] == "show"
    assert "<id " not in result.stdout


def test_random_replacements_are_tokens():
    ids = ordinary_ids(with_gap(masked=True))
    assert not np.isin(ids, HOLE).any()
    assert ids.max() == HIGHEST_ID
    assert len(ids) == 300 - 4


def test_a_teacher_with_fewer_logits_than_the_highest_id_is_refused(tmp_path):
    """300 logits would be enough for 300 tokens without gaps."""
    teacher = save_gapped(tmp_path / "teacher", vocabulary=HIGHEST_ID)
    with pytest.raises(
        IdentityError, match=r"fewer logits than the tokenizer has ids \(expected at least 337, found 336"
    ):
        tiny.run(tiny.capture_values(tmp_path, teacher))


@pytest.mark.parametrize(
    ("given", "accepted"), [(GAP_STARTS, False), (316, False), (317, True), (336, True), (337, False)]
)
def test_given_ids_must_be_tokens(tmp_path, given, accepted):
    (tmp_path / "ids.jsonl").write_text(json.dumps({"ids": [5, given, 6]}) + "\n")
    values = tiny.capture_values(tmp_path, tmp_path, paths=[str(tmp_path / "ids.jsonl")], held_out_fraction=0)
    values["corpus"]["ids_field"] = "ids"
    config = CaptureConfig.model_validate(values)
    if accepted:
        tiny.encode(config, with_gap())
        return
    with pytest.raises(CorpusError) as error:
        tiny.encode(config, with_gap())
    assert f"expected 0 to 336, 37 of which have no token, found {given}" in str(error.value)


def test_a_subset_and_a_copy_are_sound(folder, tmp_path):
    subset_cache(Cache(folder / "cache"), tmp_path / "subset", Choice(k=4))
    assert verify(tmp_path / "subset", deep=True) == []


def test_vocabularies_leave_the_holes_without_a_token(folder, tmp_path):
    for options in ([], ["--keep", "320", "--embeddings", str(folder / "teacher")]):
        place = tmp_path / f"vocabulary{len(options)}"
        result = CliRunner().invoke(cli, ["vocabulary", str(folder / "cache"), "-o", str(place), *options])
        assert result.exit_code == 0, result.exception
        union = read_vocabulary(place)
        (ids,) = union.maps.values()
        assert (ids[np.array(HOLE)] == NO_ID).all()
        assert len(union.names) in (300, 301)


@pytest.mark.parametrize("start", ["config", "pretrained", "union"])
def test_a_student_is_trained_and_evaluated(folder, tmp_path, start):
    masked = opened(folder).manifest.objective == "masked"
    student = {"config": {"model_type": "bert" if masked else "llama"} | tiny.SHAPE}
    if start == "pretrained":
        student = {"pretrained": str(folder / "teacher")}
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "per_device_train_batch_size": 2}
    values = {"cache": str(folder / "cache"), "student": student, "training": training | {"save_strategy": "no"}}
    union = None
    if start == "union":
        CliRunner().invoke(cli, ["vocabulary", str(folder / "cache"), "-o", str(tmp_path / "union")])
        values["vocabulary"] = str(tmp_path / "union")
        union = read_vocabulary(tmp_path / "union")
    final = run_training(StudentConfig.model_validate(values)).student
    config = json.loads((final / "config.json").read_text())
    assert config["vocab_size"] == (len(union.names) if union else HIGHEST_ID + 1)
    assert evaluate_folder(final, opened(folder).teacher(), "held_out", union=union).cross_entropy_nats > 0


def test_a_student_with_fewer_logits_is_refused(folder, tmp_path):
    masked = opened(folder).manifest.objective == "masked"
    shape = {"model_type": "bert" if masked else "llama", "vocab_size": 300} | tiny.SHAPE
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    values = {"cache": str(folder / "cache"), "student": {"config": shape}, "training": training}
    with pytest.raises(IdentityError, match="vocab_size of at least 337"):
        run_training(StudentConfig.model_validate(values))
