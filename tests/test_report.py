"""``logitcask report``: one page that shows what the cache holds, and of which no element comes from the corpus."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from test_imports import MODELS, imported_by_each

import store_fixtures
import tiny as tiny_models
from cache_tools.errors import ConfigError, StorageError
from cache_tools.format import layout
from cache_tools.format.sequences import Sequence
from cache_tools.report.command import report_command
from cache_tools.report.data import report_data
from cache_tools.report.html import NAME_CHARACTERS, TOKEN_CHARACTERS, render
from cache_tools.store.reader import Cache
from cache_tools.store.writer import commit_shard, declare_teacher
from store_fixtures import POSITIONS_PER_SHARD, edit_json, make_cache, random_predictions, teacher_manifest

EVERYTHING = 10**6
HOSTILE = [
    "<script>alert(1)</script>",
    "</p></article></main><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; <!-- ]]> </style><style>*{display:none}</style>",
    "\x00\x1b[2J\x07\x7f\x9b31m\u2028",
    "\u202eevil\u202c \u2068 \u2069",
    "שלום עולם",
    "👩‍👩‍👧 🎉 é",
    "x" * 100_000,
]
VOID = {"meta", "link", "br", "img", "input", "hr", "base"}
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "article", "figure", "figcaption",
    "p", "h1", "h2", "h3", "h4", "dl", "dt", "dd", "div", "span", "i", "b", "br", "bdi", "code", "table", "thead",
    "tbody", "tr", "th", "td", "progress", "svg", "g", "defs", "path", "use", "text", "clippath", "rect",
}  # fmt: skip


def hostile_sequences(rng, shard, vocabulary):
    """Return sequences whose tokens are spelt like attacks; 15 of them, as many positions as the usual ones have."""
    sequences, row = [], shard * POSITIONS_PER_SHARD
    for number, tokens in enumerate(store_fixtures.SEQUENCE_TOKENS):
        pieces = [HOSTILE[(shard * 5 + number * 3 + i) % len(HOSTILE)] for i in range(tokens)]
        sequence = Sequence(
            sequence_id=shard * len(store_fixtures.SEQUENCE_TOKENS) + number,
            document_id=f"{pieces[0]}/{pieces[1]}",
            group_id=pieces[2],
            first_position=row,
            input_ids=rng.integers(0, vocabulary, tokens, dtype=np.uint32),
            position_mask=np.arange(tokens) < tokens - 1,
            original_ids=None,
            text="".join(pieces),
            byte_lengths=np.array([len(piece.encode()) for piece in pieces], dtype=np.uint32),
        )
        sequences.append(sequence)
        row += sequence.num_positions
    return sequences


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A cache of two teachers of which every string that a stranger can choose is an attack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_fixtures, "random_sequences", hostile_sequences)
        made = make_cache(tmp_path_factory.mktemp("hostile"), hidden={})
    edit_json(made.teacher / layout.MANIFEST, '"dice"', '"<img src=x onerror=alert(1)>"')
    for shard in range(3):
        made.edit_receipt(shard, provenance={"targets": {"software": "<script>", "device": "</dd>\x1b", "seconds": 1}})
    add_teacher(made, "other")
    return made.path


@pytest.fixture(scope="module")
def page(hostile):
    return render(data_of(hostile))


def add_teacher(made, name, shards=3):
    encoding = Cache(made.path).encoding()
    manifest = teacher_manifest({"corpus": "random"}, 1000, 4, hidden={})
    manifest = manifest.model_copy(update={"identity": manifest.identity | {"weights": name}})
    teacher, rng = declare_teacher(encoding, name, manifest), np.random.default_rng(8)
    for shard in range(shards):
        commit_shard(teacher, shard, random_predictions(rng, made.entries[shard].positions, 4, 1000, hidden={}), {})


def data_of(path, positions=EVERYTHING, seed=0):
    cache = Cache(path)
    encoding = cache.encoding()
    return report_data(cache, encoding, [encoding.teacher(name) for name in encoding.teachers], positions, seed)


class Parsed(HTMLParser):
    """The elements of a page, each with its attributes, and its text; the elements are checked to be well nested."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


def run(*arguments):
    return CliRunner(catch_exceptions=False).invoke(report_command, [str(argument) for argument in arguments])


def test_a_hostile_corpus_adds_no_element_and_no_attribute(hostile, page):
    """The same page with every token and name replaced by a letter has the very same elements."""
    data = data_of(hostile)
    passages = [
        replace(
            passage,
            view=replace(
                passage.view,
                document_id="a",
                tokens=tuple(replace(token, text="a", seen="a") for token in passage.view.tokens),
            ),
        )
        for passage in data.sample.passages
    ]
    measured = [
        replace(teacher, groups=tuple(replace(group, group="a") for group in teacher.groups))
        for teacher in data.sample.teachers
    ]
    teachers = [
        replace(
            teacher,
            model=teacher.model | {"architecture": "a"},
            made_by=tuple(
                replace(maker, made_with=maker.made_with | {"software": "a", "device": "a"})
                for maker in teacher.made_by
            ),
        )
        for teacher in data.teachers
    ]
    sample = replace(data.sample, passages=tuple(passages), teachers=tuple(measured))
    harmless = Parsed(render(replace(data, sample=sample, teachers=tuple(teachers))))
    assert [(tag, sorted(a)) for tag, a in Parsed(page).elements] == [(t, sorted(a)) for t, a in harmless.elements]


def test_the_page_has_only_elements_and_attributes_of_the_template(page):
    elements = Parsed(page).elements
    assert {tag for tag, _ in elements} <= ELEMENTS
    attributes = {name for _, found in elements for name in found}
    assert not [name for name in attributes if name.startswith("on")]
    assert not attributes & {"src", "href", "action", "srcdoc", "srcset", "formaction"}
    assert all(found[name].startswith("#") for _, found in elements for name in found if name.endswith("href"))
    addresses = re.findall(r"(?:url\(|@import|https?:)[^\s)\"';]*", page)
    assert all(address.startswith("url(#") for address in addresses)


def test_the_page_forbids_scripts_and_everything_from_elsewhere(page):
    policies = [a["content"] for tag, a in Parsed(page).elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_hostile_text_is_shown_harmless_and_cut(page):
    texts = Parsed(page).texts
    assert "<script>alert(1)</script>" in texts
    assert "{{ 7 * 7 }}{% raw %}" in texts
    assert "שלום עולם" in texts
    assert "\\x00\\x1b[2J\\x07\\x7f\\x9b31m\\u2028" in texts
    assert any(re.fullmatch(f"x{{{TOKEN_CHARACTERS}}}…", text) for text in texts)
    assert page.replace("\n", "").isprintable()
    assert max(map(len, texts)) <= max(NAME_CHARACTERS, TOKEN_CHARACTERS) * len("\\u202e") + 1
    assert len(page) < 250_000


def test_text_of_the_corpus_takes_its_own_direction(page):
    elements = Parsed(page).elements
    passages = [a for tag, a in elements if a.get("class") == "tokens"]
    assert passages
    assert all(found["dir"] == "auto" for found in passages)
    assert sum(tag == "bdi" for tag, _ in elements) >= 3


def test_the_page_shows_the_numbers_of_its_data(hostile, page):
    data, text = data_of(hostile), " ".join("".join(Parsed(page).texts).split())
    assert f"all {data.sample.size.positions} positions" in text
    for teacher in data.sample.teachers:
        accuracy = teacher.calibration.accuracy
        assert f"{teacher.name}: right {100 * accuracy:.1f} % at a mean confidence" in text
    for row in data.sample.agreement:
        assert all(f"{100 * share:.1f} %" in text for share in row)
    for teacher in data.teachers:
        assert f"{teacher.stored_bytes:,} bytes in all" in text
        assert teacher.fingerprint[:12] in text


def test_a_passage_is_a_piece_of_its_sequence_coloured_by_the_stored_loss(hostile):
    encoding = Cache(hostile).encoding()
    for passage in data_of(hostile).sample.passages:
        sequence = encoding.sequence(passage.view.sequence_id)
        assert [token.id for token in passage.view.tokens] == sequence.input_ids.tolist()
        means = []
        for teacher in passage.view.teachers:
            nats = -encoding.teacher(teacher.name).scalar("gold_logprob", *sequence.rows).astype(np.float64)
            assert teacher.surprise_nats == [None, *map(pytest.approx, nats.tolist())]
            means.append(nats)
        nonempty = [
            encoding.teacher(name).targets(*sequence.rows).log_probs.max(axis=1) > -np.inf for name in encoding.teachers
        ]
        assert passage.sum_nats == pytest.approx(np.mean(means, axis=0)[np.all(nonempty, axis=0)].sum(), abs=1e-4)


def test_the_page_of_a_cache_is_always_the_same(hostile, page):
    assert render(data_of(hostile)) == page


def test_a_sample_is_called_a_sample_and_another_seed_draws_another(hostile):
    few = [data_of(hostile, positions=4, seed=seed).sample for seed in range(4)]
    assert len({str(sample.teachers[0].entropy) for sample in few}) > 1
    text = " ".join("".join(Parsed(render(data_of(hostile, positions=4))).texts).split())
    assert f"a sample of {few[0].size.positions} of {few[0].size.of_positions} positions, seed 0" in text


def test_the_report_of_a_capture_that_has_just_begun_says_so(tmp_path):
    text = "".join(Parsed(render(data_of(make_cache(tmp_path, committed=0).path))).texts)
    assert "0 of 3 shards" in text
    assert "No shard is finished yet" in text


def test_an_unfinished_teacher_is_compared_where_it_has_shards(tmp_path):
    made = make_cache(tmp_path, hidden={})
    add_teacher(made, "slow", shards=1)
    add_teacher(made, "waiting", shards=0)
    data = data_of(made.path)
    assert [teacher.name for teacher in data.sample.teachers] == ["slow", "toy"]
    assert data.sample.size.of_positions == made.entries[0].positions
    assert "1 of 3 shards" in "".join(Parsed(render(data)).texts)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_real_capture_is_reported(tmp_path, kind):
    teacher = tiny_models.save_teacher(tmp_path / "teacher", masked=kind == "masked")
    cache = tiny_models.capture(tmp_path, teacher, objective=kind)
    output = tmp_path / "new" / "report.html"
    result = run(cache.path, "-o", output)
    assert (result.exit_code, result.stdout) == (0, f"wrote {output} ({output.stat().st_size:,} bytes)\n")
    text = "".join(Parsed(output.read_text()).texts)
    assert "[MASK]→" in text if kind == "masked" else "[MASK]" not in text


def test_without_an_output_the_report_is_in_the_current_folder_and_its_whole_path_is_printed(
    hostile, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(hostile).stdout.startswith(f"wrote {tmp_path / 'report.html'} (")
    assert (tmp_path / "report.html").exists()


def test_a_report_is_replaced_and_nothing_is_left_beside_it(hostile, tmp_path):
    (tmp_path / "report.html").write_text("old")
    run(hostile, "-o", tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_a_place_that_cannot_be_written_is_an_error_in_words(hostile, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        run(hostile, "-o", tmp_path / "file" / "report.html")


def test_a_missing_library_is_named_with_its_cure(hostile, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "cache_tools.report.html")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r"not installed: jinja2.*pip install 'logitcask\[plots\]'"):
        run(hostile, "-o", tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_report_imports_no_model_library(hostile, tmp_path):
    command = ["report", hostile, "-o", tmp_path / "report.html"]
    assert "matplotlib" in imported_by_each([command], MODELS - {"tokenizers"})
