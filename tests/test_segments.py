"""Pairs: what follows the first separator is the second segment, for teachers, students and measures."""

import json

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

import tiny
from cache_tools.errors import ConfigError, CorpusError, IdentityError, ModelError
from cache_tools.store.reader import Cache
from cache_tools.torch_models.segments import read_segments, segments_of
from logitcask import distillation
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.tokenizer import separator_of
from student_fixtures import BERT, curve, train
from trainer.data.binding import IGNORED
from trainer.evaluation.evaluate import evaluate_folder

SEPARATOR = 2
BEGINNINGS = [" ".join(text.split()[:6]) for text in tiny.TEXTS]
PAIRS = [f"{text} [SEP] {word} it is" for text, word in zip(BEGINNINGS, "abcdef" * 6, strict=True)]
STILL = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}


def capture(folder, **changes):
    if not (folder / "corpus.jsonl").exists():
        tiny.write_corpus(folder / "corpus.jsonl", PAIRS)
    teacher = tiny.save_teacher(folder / "teacher", tiny.model("bert", **STILL), masked=True)
    settings = {"objective": "masked", "overlap_tokens": 0, "masking": {"probability": 0.3}, "target": {"k": 300}}
    return tiny.capture(folder, teacher, **settings | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    capture(folder, segments=True)
    return folder


def sequences(cache):
    encoding = cache.encoding()
    return [sequence for shard in range(len(encoding.shards)) for sequence in encoding.sequences(shard)]


def live(model, input_ids, segmented=True):
    """Return log-probabilities at every token of one sequence, in float64, with its segments or without."""
    ids = torch.from_numpy(input_ids.astype(np.int64))[None]
    first = ids[0].tolist().index(SEPARATOR)
    segments = (torch.arange(ids.shape[1]) > first).long()[None] if segmented else torch.zeros_like(ids)
    with torch.no_grad():
        return model.double()(input_ids=ids, token_type_ids=segments).logits[0].log_softmax(1)


def test_segments_are_those_that_a_tokenizer_gives_a_pair():
    tokenizer = tiny.tokenizer(masked=True)
    special = [("[CLS]", 1), ("[SEP]", SEPARATOR)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=special
    )
    for first, second in (("a shard", "the row is kept"), ("x", "y")):
        pair = tokenizer(first, second, return_token_type_ids=True)
        found = segments_of(torch.tensor([pair["input_ids"]]), SEPARATOR)
        assert found.tolist() == [pair["token_type_ids"]]
    assert separator_of(tokenizer) == SEPARATOR


def test_the_cache_holds_what_the_teacher_predicts_of_pairs_with_their_segments(folder):
    cache, model = Cache(folder / "cache"), AutoModelForMaskedLM.from_pretrained(folder / "teacher").eval()
    cached, differences = cache.encoding().teacher("toy"), []
    for sequence in sequences(cache)[:6]:
        targets = cached.targets(*sequence.rows)
        kept = sequence.positions()
        for with_segments in (True, False):
            log_p = live(model, sequence.input_ids, with_segments)[kept].numpy()
            stored = np.take_along_axis(log_p, targets.ids.astype(np.int64), 1)
            differences.append((with_segments, np.abs(np.exp(stored) - np.exp(targets.log_probs)).max()))
    assert max(error for with_segments, error in differences if with_segments) < 0.01
    assert min(error for with_segments, error in differences if not with_segments) > 0.05


def nats(model, sequences, segmented):
    """Return the cross-entropy of one model over some sequences, in float64."""
    rows = [
        -live(model, s.input_ids, segmented)[s.positions()].numpy()[np.arange(s.num_positions), s.gold_ids("masked")]
        for s in sequences
    ]
    return float(np.concatenate(rows).mean())


def test_a_student_reads_segments_in_training_and_in_its_measures(folder, tmp_path):
    """The first step is over all of the training text, and the student is then what it starts from."""
    student = {"pretrained": str(folder / "teacher")}
    run = {"max_steps": 2, "per_device_train_batch_size": 64, "loss": {"kd_weight": 0}}
    trained = train(folder / "cache", tmp_path / "student", student=student, **run)
    cached = Cache(folder / "cache").encoding().teacher("toy")
    split = {
        name: [s for shard in cached.encoding.split_shards(name) for s in cached.encoding.sequences(shard)]
        for name in ("train", "held_out")
    }
    first = AutoModelForMaskedLM.from_pretrained(folder / "teacher").eval()
    assert len(split["train"]) <= 64
    logged = curve(tmp_path / "student")[0]["cross_entropy_nats"]
    assert logged == pytest.approx(nats(first, split["train"], True), rel=1e-4)
    assert nats(first, split["train"], False) != pytest.approx(nats(first, split["train"], True), rel=1e-2)
    last = AutoModelForMaskedLM.from_pretrained(trained).eval()
    measured = evaluate_folder(trained, cached, "held_out").cross_entropy_nats
    assert measured == pytest.approx(nats(last, split["held_out"], True), rel=1e-4)
    assert measured != pytest.approx(nats(last, split["held_out"], False), rel=1e-2)


def test_a_loop_of_one_s_own_gets_the_loss_of_a_student_that_reads_segments(folder):
    student = tiny.model("bert", seed=3)
    made = distillation(
        {"cache": str(folder / "cache"), "loss": {"kd_weight": 0}},
        student=student,
        tokenizer=tiny.tokenizer(masked=True),
    )
    batch = made.collate([made.dataset[0], made.dataset[3]])
    loss = made.loss(batch, logits=student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits).loss
    plain, rows = tiny.model("bert", seed=3), []
    for ids, mask, gold in zip(batch["input_ids"], batch["attention_mask"], batch["gold_ids"], strict=True):
        log_q, kept = live(plain, ids[mask.bool()].numpy()), gold[mask.bool()] != IGNORED
        rows.append(F.nll_loss(log_q[kept], gold[gold != IGNORED], reduction="sum"))
    assert float(loss.detach()) == pytest.approx(float(sum(rows)) / int((batch["gold_ids"] != IGNORED).sum()), rel=1e-4)


def test_without_segments_nothing_changes_and_the_manifest_does_not_name_them(tmp_path, folder):
    manifests = {
        name: capture(tmp_path / str(name), segments=name).encoding().manifest
        for name in (True, False)
        if (tmp_path / str(name)).mkdir() is None
    }
    assert "segments" not in manifests[False].identity["encoding"]
    assert manifests[False].separator is None
    assert manifests[True].identity["encoding"]["segments"] == {"separator": SEPARATOR}
    assert manifests[True].separator == SEPARATOR
    assert manifests[True].fingerprint != manifests[False].fingerprint
    model = tiny.model("bert")
    read_segments(model, None)
    assert not model.base_model._forward_pre_hooks


def test_segments_are_read_once_however_often_it_is_asked_and_by_one_separator():
    model = tiny.model("bert")
    for _ in range(2):
        read_segments(model, SEPARATOR)
    assert len(model.base_model._forward_pre_hooks) == 1
    with pytest.raises(IdentityError, match="another separator"):
        read_segments(model, 3)


def test_a_model_that_has_one_segment_or_none_is_refused():
    for model in (tiny.model("bert", type_vocab_size=1), tiny.model("modernbert")):
        with pytest.raises(ModelError, match="cannot read pairs by their segments"):
            read_segments(model, SEPARATOR)


def test_segments_that_a_caller_gives_are_left_as_they_are():
    model, ids = tiny.model("bert"), torch.tensor([[1, 9, 2, 8, 2]])
    expected = model(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits
    read_segments(model, SEPARATOR)
    assert torch.equal(model(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits, expected)
    assert not torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "causal"}, "segments need objective: masked"),
        ({"tensor_parallel": 2}, "cannot be used together"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, changes, message):
    values = tiny.capture_values(tmp_path, tmp_path, **{"objective": "masked", "segments": True} | changes)
    with pytest.raises(ValueError, match=message):
        CaptureConfig.model_validate(values)


def test_a_pair_that_is_longer_than_a_sequence_is_refused_and_so_is_a_tokenizer_without_a_separator(tmp_path):
    tiny.write_corpus(tmp_path / "corpus.jsonl", [*PAIRS, "a b [SEP] " + "long " * 60])
    with pytest.raises(CorpusError, match="a pair is longer than one sequence"):
        capture(tmp_path, segments=True)
    with pytest.raises(ConfigError, match="has no separator"):
        separator_of(tiny.tokenizer())


def test_caches_with_and_without_segments_have_no_student_together(tmp_path, folder):
    capture(tmp_path)
    caches = [{"cache": str(folder / "cache")}, {"cache": str(tmp_path / "cache")}]
    with pytest.raises(IdentityError, match="another use of segments"):
        train(None, tmp_path / "student", student={"config": BERT}, caches=caches, max_steps=1)


def test_what_is_written_of_a_student_says_nothing_of_segments(folder, tmp_path):
    """A finished student is an ordinary model; whoever uses it gives its tokenizer two texts."""
    model = tiny.model("bert")
    read_segments(model, SEPARATOR)
    model.save_pretrained(tmp_path)
    assert "separator" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert not AutoModelForMaskedLM.from_pretrained(tmp_path).base_model._forward_pre_hooks
