"""What each command of the store prints with ``--json`` has exactly the keys and types of its dataclass."""

import json
import shutil

import pytest
from test_cli import run

from cache_tools.comparison.pair import Comparison
from cache_tools.comparison.reference import ReferenceComparison
from cache_tools.format import layout
from cache_tools.inspection.search import SearchResult
from cache_tools.inspection.summary import CacheSummary
from cache_tools.inspection.views import PositionView, SequenceView
from cache_tools.maintenance.repair import RepairResult
from cache_tools.maintenance.verify import VerifyResult
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.manifest import VocabularyManifest, read_manifest
from json_schema import mismatches
from view_fixtures import hostile_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return hostile_cache(tmp_path_factory.mktemp("json")).path


@pytest.mark.parametrize(
    ("arguments", "schema"),
    [
        (["inspect"], CacheSummary),
        (["inspect", "--sample", 0], CacheSummary),
        (["inspect", "--groups", "folder"], CacheSummary),
        (["show"], SequenceView),
        (["show", 3, "--position", 2], PositionView),
        (["show", "--text", "of"], SearchResult),
        (["show", "--highest-loss", "--teacher", "toy"], SearchResult),
        (["diff"], Comparison),
        (["diff", "--reference", "toy"], ReferenceComparison),
    ],
)
def test_the_output_has_the_schema_of_its_dataclass(cache, arguments, schema):
    command, *options = arguments
    result = run(command, cache, *options, "--json")
    assert result.exit_code == 0
    assert mismatches(json.loads(result.stdout), schema) == []


@pytest.mark.parametrize(("command", "schema"), [("verify", VerifyResult), ("repair", RepairResult)])
def test_problems_have_the_schema_of_their_dataclass(cache, tmp_path, command, schema):
    shutil.copytree(cache, tmp_path / "cache")
    teacher = Cache(tmp_path / "cache").encoding().teacher("toy")
    next((teacher.path / "ids" / "c").glob("0/0")).unlink()
    (teacher.path / layout.HEAD).unlink(missing_ok=True)
    result = run(command, tmp_path / "cache", "--json")
    stated = json.loads(result.stdout)
    assert mismatches(stated, schema) == []
    assert stated["problems" if command == "verify" else "mended"]


def test_the_vocabulary_has_the_schema_of_its_manifest(cache, tmp_path):
    result = run("vocabulary", cache, "-o", tmp_path / "vocabulary", "--json")
    stated = json.loads(result.stdout)
    assert set(stated) == set(VocabularyManifest.model_fields)
    assert VocabularyManifest.model_validate(stated) == read_manifest(tmp_path / "vocabulary")
