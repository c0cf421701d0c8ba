"""A teacher asked about some tokens only, and a student that knows only these: against the restriction in float64."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForMaskedLM

import tiny
from cache_tools.codecs.registry import EMPTY_ID
from cache_tools.errors import IdentityError
from cache_tools.format.manifest import Kind
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.compressed_folder import write_compressed
from cache_tools.vocabularies.folder import read_vocabulary
from cache_tools.vocabularies.token_map import TOKEN_MAP
from logitcask import cli
from pipeline.audit.run import run_audit
from pipeline.capture.keep import Keep, sparse_targets
from pipeline.config.capture_file import CaptureConfig
from pipeline.teachers.restriction import read_restriction
from student_fixtures import BERT, train
from tolerances import loss_rounding
from trainer.config.student_file import LossConfig
from trainer.data.cached_sequences import CachedSequences, Reading, collate
from trainer.data.translation import student_ids, translated_targets
from trainer.evaluation.evaluate import evaluate_folder
from trainer.student.student import distilled
from vocabulary_fixtures import capture_language

KEEP, T = 60, 15.0
STUDENT = {"config": BERT}
TARGETS = {
    "asked": {"k": 8, "exact": True, "temperatures": [T], "scalars": ["tail_minimum", "tail_mean", "gold_rank"]},
    "whole": {"k": 200, "exact": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``all``, a cache of every token; ``half`` of its vocabulary; ``asked`` and ``whole``, caches about that half."""
    folder = tmp_path_factory.mktemp("asked")
    options = {"target": {"k": 200, "exact": True}, "hidden": {"layers": ["last"], "codec": "float32"}}
    encoding = capture_language(folder / "all", tiny.TEXTS, **options).encoding()
    write_compressed(folder / "half", [encoding], KEEP, [], folder / "all" / "teacher")
    for name in TARGETS:
        tiny.run(values_of(folder, name))
    return folder


def values_of(folder, name, **target):
    """Return the capture file of a cache about the kept tokens."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "corpus.jsonl").write_bytes((folder / "all" / "corpus.jsonl").read_bytes())
    kept = TARGETS[name] | {"vocabulary": str(folder / "half")} | target
    return tiny.capture_values(folder / name, folder / "all" / "teacher", objective="masked", target=kept)


def teacher_of(folder, name):
    return Cache(folder / name / "cache").encoding().teacher()


def live(folder, name):
    """Return the teacher's logits (n, KEEP) of the kept tokens in float64, and the column of each gold token."""
    restriction, teacher = read_restriction(folder / "half"), teacher_of(folder, name)
    model = AutoModelForMaskedLM.from_pretrained(folder / "all" / "teacher").double().eval()
    column = {token: i for i, token in enumerate(restriction.kept.tolist())}
    rows, gold = [], []
    for shard in range(len(teacher.encoding.shards)):
        for sequence in teacher.encoding.sequences(shard):
            ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None]
            with torch.no_grad():
                rows.append(model(input_ids=ids).logits[0, sequence.positions()][:, restriction.kept])
            gold += [column[int(restriction.read_as[i])] for i in sequence.gold_ids("masked").tolist()]
    return torch.cat(rows), torch.tensor(gold)


def stored(teacher):
    """Return ids (n, k), log-probabilities (n, k), left-out mass (n,) and scalars (n,) by name, in the same order."""
    shards = range(len(teacher.encoding.shards))
    rows = [sequence.rows for shard in shards for sequence in teacher.encoding.sequences(shard)]
    parts = [teacher.targets(*each) for each in rows]
    ids, log_probs, rest = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "log_probs", "log_left_out")
    )
    names = teacher.manifest.scalars
    return ids, log_probs, rest, {n: np.concatenate([teacher.scalar(n, *each) for each in rows]) for n in names}


def test_everything_that_is_kept_is_of_the_distribution_over_the_kept_tokens(folder):
    ids, log_probs, log_left_out, scalars = stored(teacher_of(folder, "asked"))
    logits, gold = live(folder, "asked")
    log_p, kept = logits.log_softmax(1), read_restriction(folder / "half").kept
    top, columns = log_p.topk(8, dim=1)
    order = kept[columns].argsort(dim=1)
    assert np.array_equal(ids, kept[columns].gather(1, order).numpy())
    rest = torch.log1p(-top.exp().sum(1))
    outside = logits.scatter(1, columns, torch.nan)
    expected = {
        "logsumexp": logits.logsumexp(1),
        "logsumexp_t15": (logits / T).logsumexp(1),
        "entropy": -(log_p.exp() * log_p).sum(1),
        "gold_logprob": log_p.gather(1, gold[:, None])[:, 0],
        "gold_rank": (logits > logits.gather(1, gold[:, None])).sum(1),
        "tail_minimum": logits.amin(1),
        "tail_mean": outside.nanmean(1),
    }
    assert set(expected) == set(scalars)
    config = AutoConfig.from_pretrained(folder / "all" / "teacher")
    tolerance = loss_rounding(config, tokens=config.max_position_embeddings, logits=logits)
    for name, values in expected.items():
        np.testing.assert_allclose(scalars[name], values, rtol=0, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(log_probs, top.gather(1, order), rtol=0, atol=tolerance)
    np.testing.assert_allclose(np.exp(log_left_out), rest.exp(), rtol=0, atol=tolerance)


def test_a_row_of_all_kept_tokens_leaves_nothing_out(folder):
    teacher = teacher_of(folder, "whole")
    targets = teacher.targets(0, 100)
    assert teacher.manifest.target.k == KEEP
    assert np.isneginf(targets.log_left_out).all()
    assert np.array_equal(targets.ids[0], np.sort(read_restriction(folder / "half").kept))


@pytest.mark.parametrize("rows", [1, 7, 20])
def test_rows_do_not_depend_on_the_room_that_a_caller_lends(folder, rows):
    restriction = read_restriction(folder / "half")
    logits = torch.randn(20, 200, generator=torch.Generator().manual_seed(1)) * 3
    gold = torch.arange(20) * 10
    keep = Keep(k=5, temperatures=(T,), scalars=("gold_rank", "tail_minimum"), restriction=restriction)
    alone, lent = (
        sparse_targets(logits.clone(), gold, keep, None, room).named() for room in (None, torch.empty(rows, 200))
    )
    sums = KEEP * torch.finfo(torch.float32).eps  # rows are added up in another order
    for name, values in alone.items():
        torch.testing.assert_close(lent[name], values, rtol=sums, atol=sums, msg=name)


@pytest.mark.parametrize(
    "kind", [{"kind": Kind.SAMPLED, "draws": 50}, {"kind": Kind.HYBRID, "draws": 9, "k": 4}, {"kind": Kind.DENSE}]
)
def test_no_kind_of_target_holds_a_token_that_was_dropped(folder, kind):
    restriction = read_restriction(folder / "half")
    logits = torch.randn(20, 200, generator=torch.Generator().manual_seed(0)) * 3
    keep = Keep(**kind, restriction=restriction)
    found = sparse_targets(logits, torch.zeros(20, dtype=torch.long), keep, torch.arange(20))
    used = found.ids[found.log_probs > -torch.inf]
    assert len(used)
    assert set(used.tolist()) <= set(restriction.kept.tolist())
    torch.testing.assert_close(found.log_probs.exp().sum(1) + found.log_left_out.exp(), torch.ones(20))


def test_the_vocabulary_is_part_of_what_the_teacher_is(folder):
    settings = teacher_of(folder, "asked").manifest.identity["target"]["settings"]
    assert settings["vocabulary"] == read_vocabulary(folder / "half").fingerprint
    assert settings["tokens"] == KEEP
    with pytest.raises(IdentityError, match="vocabulary"):
        tiny.run(values_of(folder, "asked", vocabulary=None))


def test_a_vocabulary_of_another_tokenizer_is_refused_before_the_teacher_is_loaded(folder, tmp_path):
    capture_language(tmp_path, [text.replace("the", "das") for text in tiny.TEXTS])
    values = tiny.capture_values(
        tmp_path, tmp_path / "teacher", objective="masked", target={"vocabulary": str(folder / "half")}
    )
    with pytest.raises(IdentityError, match="was made from another tokenizer"):
        tiny.run(values)


def test_an_audit_asks_about_the_same_tokens(folder):
    (report,) = run_audit(
        CaptureConfig.model_validate(values_of(folder, "asked")), None, tiny.SilentReporter()
    ).teachers
    assert report.passed
    assert report.measures.kl.mean < 1e-9
    with pytest.raises(IdentityError, match="was captured over other tokens"):
        run_audit(
            CaptureConfig.model_validate(values_of(folder, "asked", vocabulary=None)), None, tiny.SilentReporter()
        )


def naive(folder, student, batch, to, gold):
    """Return the mean over positions of T² KL at T and of -log q(gold), by the definition, in float64."""
    teacher = AutoModelForMaskedLM.from_pretrained(folder / "all" / "teacher").double().eval()
    kept = read_restriction(folder / "half").kept
    with torch.no_grad():
        own = torch.from_numpy(gold["input_ids"])
        p = (teacher(input_ids=own).logits[gold["kept"]][:, kept] / T).log_softmax(1)
        q = student.double()(input_ids=torch.from_numpy(to[gold["input_ids"]].astype(np.int64))).logits[gold["kept"]]
        student.float()
    return T**2 * (p.exp() * (p - (q / T).log_softmax(1))).sum(1).mean().item()


@pytest.mark.parametrize("name", ["whole", "all"])
def test_the_loss_is_the_divergence_between_teacher_and_student_over_the_kept_tokens(folder, name):
    """From rows of all kept tokens, and rebuilt from the last hidden state of a teacher that was asked about all."""
    teacher, union = teacher_of(folder, name), read_vocabulary(folder / "half")
    to = student_ids(union, teacher.encoding)
    source = {"source": "hidden"} if name == "all" else {}
    loss = LossConfig(temperature=T, **source)
    data = CachedSequences(teacher, "train", KEEP, reading=Reading.of(teacher.manifest, loss), to=to)
    student = tiny.model("bert", 3, vocab_size=KEEP)
    for index in range(4):
        sequence = data.sequence(index)
        gold = {"input_ids": sequence.input_ids.astype(np.int64)[None], "kept": sequence.position_mask[None]}
        expected = naive(folder, student, None, to.read, gold)
        found = distilled(student, loss, teacher, to=to)(**collate([data[index]]))["loss"].item()
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_text_is_read_through_the_map_and_gold_tokens_are_kept_ones(folder):
    teacher, union = teacher_of(folder, "asked"), read_vocabulary(folder / "half")
    to = student_ids(union, teacher.encoding)
    data = CachedSequences(teacher, "train", KEEP, to=to)
    for index in range(len(data)):
        example, sequence = data[index], data.sequence(index)
        assert np.array_equal(example.input_ids, to.read[sequence.input_ids])
        assert np.array_equal(example.gold_ids, to.read[sequence.gold_ids("masked")])
        assert example.gold_ids.max() < KEEP
        used = example.targets.ids[example.targets.ids != EMPTY_ID]
        assert len(used) == example.targets.ids.size  # the teacher was asked about no others


def test_what_was_said_about_dropped_tokens_is_left_out_and_never_added_to_another(folder):
    teacher, union = teacher_of(folder, "all"), read_vocabulary(folder / "half")
    to, targets = student_ids(union, teacher.encoding), teacher.targets(0, 50)
    found = translated_targets(targets, to)
    known = found.ids < KEEP
    assert known.sum(axis=1).max() == KEEP
    assert all(len(set(row[ok].tolist())) == ok.sum() for row, ok in zip(found.ids, known, strict=True))
    with pytest.raises(IdentityError, match="dropped"):
        train(folder / "all" / "cache", folder / "refused", student=STUDENT, vocabulary=str(folder / "half"))


def test_a_student_takes_its_map_along_and_is_known_by_it(folder, tmp_path):
    cache, half = folder / "asked" / "cache", str(folder / "half")
    final = train(cache, tmp_path / "run", student=STUDENT, vocabulary=half)
    assert (final / TOKEN_MAP).read_bytes() == (folder / "half" / "tokenizer" / TOKEN_MAP).read_bytes()
    train(cache, tmp_path / "again", student={"pretrained": str(final)}, vocabulary=half)
    words = ["evaluate", str(final), str(cache), "--json"]
    printed = CliRunner().invoke(cli, [*words, "--vocabulary", half], catch_exceptions=False).stdout
    assert json.loads(printed)["kl_to_teacher_is"] == "lower bound"
    with pytest.raises(IdentityError, match="another vocabulary"):
        evaluate_folder(final, teacher_of(folder, "asked"), "held_out")
    with pytest.raises(IdentityError, match="another vocabulary"):
        train(cache, tmp_path / "none", student=STUDENT)
    write_compressed(tmp_path / "less", [Cache(folder / "all" / "cache").encoding()], KEEP - 10)
    with pytest.raises(IdentityError, match="another vocabulary"):
        train(cache, tmp_path / "other", student=STUDENT, vocabulary=str(tmp_path / "less"))
    with pytest.raises(IdentityError, match="another tokenizer"):
        train(
            folder / "all" / "cache",
            tmp_path / "plain",
            student={"pretrained": str(final)},
            loss={"kd_weight": 0},
        )
