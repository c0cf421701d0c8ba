"""The recipe end to end on sentences of our own: teachers, caches, vocabulary, three students, a table."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from bilingual import write_texts
from cache_tools.configuration import load_config
from cache_tools.reader import Cache
from cache_tools.union_vocabulary import NO_ID
from cache_tools.vocabulary_folder import read_manifest, read_vocabulary
from pipeline.config import CaptureConfig
from pipeline.split import is_held_out
from trainer.config import StudentConfig

RECIPE = Path(__file__).parents[1] / "configs" / "mergedistill"
SHAPE = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=2", "num_attention_heads=2"]
SMALL = [f"student.config.{key}" for key in SHAPE] + [
    "training.learning_rate=0.01",
    "training.warmup_steps=10",
    "training.per_device_train_batch_size=16",
]
CHANGES = {
    "--set-capture": ["encoding.positions_per_shard=4096", "encoding.chunk_positions=1024"],
    "--set-teacher": [*SMALL, "training.use_cpu=true", "training.max_steps=120"],
    "--set-student": [*SMALL, "training.use_cpu=true", "training.max_steps=80"],
}


def load(name):
    """Import a script of the recipe."""
    spec = importlib.util.spec_from_file_location(name, RECIPE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipe():
    return load("run")


@pytest.fixture(scope="module")
def work(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mergedistill")
    texts = write_texts(folder / "texts")
    run(recipe, texts, folder / "work")
    return folder / "work"


def run(recipe, texts, work):
    options = [word for option, changes in CHANGES.items() for change in changes for word in (option, change)]
    result = CliRunner().invoke(
        recipe.run, [str(texts), str(work), "--tokens", "140", *options], catch_exceptions=False
    )
    assert result.exit_code == 0
    return result.stdout


def results(work):
    return json.loads((work / "results-0.json").read_text())


def test_all_models_are_measured_at_the_same_held_out_positions(recipe, work):
    for language, found in results(work).items():
        assert list(found) == ["teacher", *recipe.ARMS, "union"]
        held_out = Cache(work / language / "cache").encoding().manifest.splits["held_out"].positions
        assert {found[name]["positions"] for name in ("teacher", *recipe.ARMS)} == {held_out}


def test_what_the_teachers_said_helps_and_what_they_said_elsewhere_does_not(recipe, work):
    for found in results(work).values():
        nats = {name: found[name]["cross_entropy_nats"] for name in ("teacher", *recipe.ARMS)}
        assert nats["teacher"] < nats["distilled"] < nats["text only"] < nats["control"]


@pytest.mark.parametrize(
    ("name", "model"), [("capture", CaptureConfig), ("teacher", StudentConfig), ("student", StudentConfig)]
)
def test_the_committed_files_are_whole(name, model):
    load_config(RECIPE / f"{name}.yaml", model)


def test_the_gap_closed_is_the_part_of_the_way_to_the_teacher(recipe):
    found = {"teacher": {"top1": 0.5}, "text only": {"top1": 0.3}, "distilled": {"top1": 0.35}}
    assert recipe.gap_closed(found, "top1") == pytest.approx(0.25)


def test_words_that_the_union_splits_otherwise_are_counted_as_a_person_would(recipe, work, tmp_path):
    tokenizers = [AutoTokenizer.from_pretrained(work / place) for place in ("de/untrained", "vocabulary/tokenizer")]
    words = ["The", "baker", "in", "der", "Küche", "in", "bakes"]
    (tmp_path / "some.jsonl").write_text(json.dumps({"text": " ".join(words)}) + "\n")
    different = [word for word in words if tokenizers[0].tokenize(word) != tokenizers[1].tokenize(word)]
    assert 0 < len(different) < len(words)
    found = recipe.split_otherwise(work, "de", tmp_path / "some.jsonl")
    assert found == pytest.approx(len(different) / len(words))


def test_no_held_out_scene_is_in_any_training_split(work):
    """Translations have one group, so what is held out in one language was read in none, by teachers either."""
    groups = {"train": set(), "held_out": set()}
    for cache in work.glob("*/*/zarr.json"):
        encoding = Cache(cache.parent).encoding()
        for split, found in groups.items():
            found |= {s.group_id for shard in encoding.split_shards(split) for s in encoding.sequences(shard)}
    assert len(groups["held_out"]) > 10
    assert groups["train"] & groups["held_out"] == set()


def test_a_word_of_both_languages_is_one_token_of_the_student(work):
    union, manifest = read_vocabulary(work / "vocabulary"), read_manifest(work / "vocabulary")
    tokenizers = [
        AutoTokenizer.from_pretrained(work / name / "cache/encodings/main/tokenizer") for name in ("de", "en")
    ]
    shared = set(tokenizers[0].get_vocab()) & set(tokenizers[1].get_vocab())
    assert {"[MASK]", "in", "."} <= shared
    assert [part.shared for part in manifest.tokenizers] == [len(shared)] * 2
    assert manifest.size == sum(map(len, tokenizers)) - len(shared)
    for tokenizer, ids in zip(tokenizers, union.maps.values(), strict=True):
        assert (ids != NO_ID).all()
        assert np.array(union.names)[ids].tolist() == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def test_the_same_command_again_trains_nothing_and_prints_the_same_table(recipe, work):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    first = results(work)
    assert "gap closed" in run(recipe, work.parent / "texts", work)
    assert results(work) == first
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == before


INDEX = {
    "pool_Packages": [
        "Package: libtoy-dev\nSource: toy (1.0)\nSection: libdevel\n",
        "Package: toy\nSection: games\n",
    ],
    "pool_Translation-de": [
        "Package: libtoy-dev\nDescription-md5: 1\nDescription-de: Zum Bauen\n Was man dazu\n braucht.\n .\n Mehr.\n",
        "Package: toy\nDescription-md5: 2\nDescription-de: Spielzeug\n Ein Ball: rund.\n",
        "Package: toy-again\nDescription-md5: 3\nDescription-de: Spielzeug\n Ein Ball: rund.\n",
        "Package: libtoy-dev\nDescription-md5: 4\nDescription-de: Zum Bauen\n Was man dazu\n braucht.\n .\n Mehr.\n",
    ],
}


@pytest.mark.skipif(not Path("/usr/lib/apt/apt-helper").exists(), reason="only where there is APT")
def test_descriptions_become_running_text_under_the_name_of_their_source(tmp_path):
    (tmp_path / "lists").mkdir()
    for name, stanzas in INDEX.items():
        (tmp_path / "lists" / name).write_text("\n".join(stanzas))
    fetch = load("fetch")
    result = CliRunner().invoke(fetch.fetch, [str(tmp_path), "de"], catch_exceptions=False)
    assert result.output == "de: 2 of 2 descriptions\n"
    lines = [json.loads(line) for line in (tmp_path / "de.jsonl").read_text().splitlines()]
    assert sorted((each["id"], each["group"], each["text"]) for each in lines) == [
        ("libtoy-dev", "toy", "Zum Bauen. Was man dazu braucht. Mehr."),
        ("toy", "toy", "Spielzeug. Ein Ball: rund."),
    ]


def test_the_documents_that_are_chosen_are_not_those_that_are_held_out():
    """Both go by a hash of the source package; by the same one, all training text would be missing."""
    names = [f"package{i}" for i in range(2000)]
    chosen = sorted(names, key=load("fetch").by_hash)[:400]
    assert 0.05 < sum(is_held_out(name, 0.1) for name in chosen) / len(chosen) < 0.15
