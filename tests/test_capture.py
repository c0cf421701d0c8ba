"""What the cache holds must be what the teacher says: one unpadded sequence at a time, by transformers alone."""

import json
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaModel

import tiny
from cache_tools.errors import IdentityError, ModelError
from cache_tools.format import layout
from cache_tools.hidden_codecs.bfloat16 import from_bfloat16, to_bfloat16
from cache_tools.maintenance.verify import verify
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Cache
from pipeline.config.capture_file import CaptureConfig
from pipeline.run import Worker, run_capture
from tolerances import assert_same_kept_tokens, loss_rounding, model_rounding

TOKENS = 48
"""Of the longest sequence."""
EXACT = {"k": 300, "exact": True}
SMALL_SHARDS = {"positions_per_shard": 128, "chunk_positions": 32}
SCALAR_ROUNDING = 2.0**-11
"""Half of the step in which scalars are stored."""


def build(model_type, **changes):
    """Return a tiny model in which no bias is zero, so none can be forgotten."""
    made = tiny.model(model_type, **{**tiny.ARCHITECTURES[model_type], **changes})
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 10)
    return made


def captured(folder, model, texts=tiny.TEXTS[:8], **changes):
    """Capture ``model`` over ``texts`` and return it with the opened encoding and teacher."""
    masked = "MaskedLM" in type(model).__name__
    folder.mkdir(exist_ok=True)
    tiny.write_corpus(folder / "corpus.jsonl", texts)
    teacher = tiny.save_teacher(folder / "teacher", model, masked=masked)
    changes |= {"objective": "masked"} if masked else {}
    encoding = tiny.capture(folder, teacher, **changes).encoding()
    return SimpleNamespace(model=model, encoding=encoding, teacher=encoding.teacher())


USUAL = ("llama", "gemma2", "gpt2", "granite", "bert")
"""A plain head, a capped one, one of older names, a scaled one and a masked one; the others are like one of them."""


def architecture(name):
    """Return one case; slow where its like is among the others."""
    return pytest.param(name, marks=[] if name in USUAL else [pytest.mark.slow])


@pytest.fixture(scope="module", params=[architecture(name) for name in tiny.ARCHITECTURES])
def whole(request, tmp_path_factory):
    """Each architecture, captured with its whole vocabulary, all in float32."""
    changes = {"target": EXACT, "hidden": {"layers": [0, 1, "last"], "codec": "float32"}, "batch_tokens": 150}
    changes |= SMALL_SHARDS
    with patch.dict("pipeline.capture.predict.HEAD_CHUNK_BYTES", cpu=7 * 4 * 300):  # seven positions
        made = captured(tmp_path_factory.mktemp(request.param), build(request.param), **changes)
    made.truths = [(sequence, said(made.model, sequence)) for sequence in sequences(made.encoding)]
    return made


def sequences(encoding):
    return [sequence for shard in range(len(encoding.shards)) for sequence in encoding.sequences(shard)]


@torch.inference_mode()
def said(model, sequence):
    """Return what transformers says about the kept positions of one unpadded sequence.

    ``logits`` and ``log_probs`` are (P, V), ``hidden`` maps a layer to (P, D), ``gold`` is (P,).
    """
    into_matrix = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: into_matrix.append(inputs[0]))
    ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None]
    output = model(input_ids=ids, output_hidden_states=True)
    hook.remove()
    kept = sequence.positions()
    states = {str(layer): states for layer, states in enumerate(output.hidden_states)} | {"last": into_matrix[0]}
    logits = output.logits[0, kept].double()
    following = "causal" if sequence.original_ids is None else "masked"
    return SimpleNamespace(
        logits=logits.numpy(),
        log_probs=logits.log_softmax(1).numpy(),
        hidden={layer: values[0, kept].numpy() for layer, values in states.items()},
        gold=sequence.gold_ids(following),
    )


def test_the_corpus_makes_several_batches_of_different_lengths(whole):
    lengths = {len(sequence.input_ids) for sequence in sequences(whole.encoding)}
    assert len(lengths) > 3
    assert len(whole.encoding.shards) > 1


def test_every_kept_position_holds_what_the_model_says(whole):
    for sequence, model_says in whole.truths:
        targets, truth = whole.teacher.targets(*sequence.rows), model_says.log_probs
        stored = np.full_like(truth, np.nan)
        np.put_along_axis(stored, targets.ids.astype(int), targets.log_probs, axis=1)
        assert (np.abs(stored - truth) <= loss_rounding(whole.model.config, TOKENS, truth)).all()
        assert np.isneginf(targets.log_left_out).all()


def test_every_kept_position_holds_the_scalars_of_the_whole_distribution(whole):
    for sequence, truth in whole.truths:
        expected = {
            "logsumexp": np.log(np.exp(truth.logits).sum(axis=1)),
            "entropy": -(np.exp(truth.log_probs) * truth.log_probs).sum(axis=1),
            "gold_logprob": np.take_along_axis(truth.log_probs, truth.gold[:, None].astype(int), axis=1)[:, 0],
        }
        for name, values in expected.items():
            stored = whole.teacher.scalar(name, *sequence.rows)
            tolerance = SCALAR_ROUNDING + loss_rounding(whole.model.config, TOKENS, truth.logits)
            np.testing.assert_allclose(stored, values, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("layer", ["0", "1", "last"])
def test_hidden_states_are_those_of_the_model(whole, layer):
    for sequence, model_says in whole.truths:
        truth = model_says.hidden[layer]
        stored = whole.teacher.hidden(layer, *sequence.rows)
        np.testing.assert_allclose(stored, truth, rtol=0, atol=model_rounding(whole.model.config, TOKENS, truth))


def test_the_kept_head_turns_last_hidden_states_into_the_logits(whole):
    path = whole.teacher.path / layout.HEAD
    kept, content = load_file(path), path.read_bytes()
    scaling = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    weight, bias = kept["weight"].numpy(), kept["bias"].numpy() if "bias" in kept else 0
    scale, softcap = float(scaling["logit_scale"] or 1), float(scaling["softcap"] or 0)
    for sequence, truth in whole.truths:
        z = scale * (whole.teacher.hidden("last", *sequence.rows) @ weight.T + bias)
        logits = softcap * np.tanh(z / softcap) if softcap else z
        tolerance = model_rounding(whole.model.config, TOKENS, z)
        np.testing.assert_allclose(logits, truth.logits, rtol=0, atol=tolerance)


def test_the_whole_cache_is_sound(whole):
    assert verify(whole.encoding.path.parents[1], deep=True) == []


@pytest.mark.parametrize("model_type", ["llama", "bert"])
@pytest.mark.parametrize("codec", ["float32", "bfloat16"])
def test_hidden_states_of_unpadded_batches_are_exact_up_to_their_codec(tmp_path, model_type, codec):
    changes = {"batch_tokens": 1, "hidden": {"layers": [1, 2], "codec": codec}}
    one = captured(tmp_path, build(model_type), tiny.TEXTS[:3], **changes)
    for sequence in sequences(one.encoding):
        truth = said(one.model, sequence)
        for layer in ("1", "2"):
            kept = truth.hidden[layer] if codec == "float32" else from_bfloat16(to_bfloat16(truth.hidden[layer]))
            assert np.array_equal(one.teacher.hidden(layer, *sequence.rows), kept)


@pytest.mark.parametrize("model_type", ["llama", "bert"])
def test_the_batch_size_changes_nothing(tmp_path, model_type):
    model = build(model_type)
    few, many = (captured(tmp_path / str(tokens), model, batch_tokens=tokens).teacher for tokens in (1, 4096))
    for sequence in sequences(few.encoding):
        rows, truth = sequence.rows, said(model, sequence)
        tolerance = loss_rounding(model.config, TOKENS, truth.logits)
        assert_same_kept_tokens(few.targets(*rows).ids, many.targets(*rows).ids, truth.log_probs, tolerance)
        for name in few.manifest.scalars:
            left, right = (teacher.scalar(name, *rows) for teacher in (few, many))
            np.testing.assert_allclose(left, right, rtol=0, atol=2 * SCALAR_ROUNDING + tolerance)


@pytest.mark.parametrize("vocabulary", [pytest.param(131_071, marks=pytest.mark.slow), 131_072, 262_144])
def test_ids_of_a_large_vocabulary_survive(tmp_path, vocabulary):
    """The teacher's logits are wider than the tokenizer; ids at 16- and 17-bit borders and the ends are made likely."""
    likely = sorted({0, 65_535, 65_536, 131_070, 131_072 % vocabulary, vocabulary - 1})
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = tiny.model("llama", vocab_size=vocabulary, num_key_value_heads=1, **shape)
    with torch.no_grad():
        model.lm_head.weight[likely] *= 20
    one = captured(tmp_path, model, tiny.TEXTS[:2], target={"k": 4})
    assert (one.teacher.manifest.vocabulary_size, one.encoding.manifest.vocabulary_size) == (vocabulary, 300)
    seen = set()
    for sequence in sequences(one.encoding):
        targets, truth = one.teacher.targets(*sequence.rows), said(one.model, sequence).log_probs
        top = np.argpartition(-truth, 4, axis=1)[:, :4]
        assert_same_kept_tokens(targets.ids, top, truth, loss_rounding(model.config, TOKENS, truth[truth > -40]))
        kept = np.take_along_axis(truth, targets.ids.astype(int), axis=1)
        shard = one.encoding.shard_of(sequence.sequence_id)
        first = shard * one.encoding.manifest.positions_per_shard
        stored = one.teacher.stored_targets(shard, *(row - first for row in sequence.rows))
        low, high = (bound[:, :-1] for bound in one.teacher.codec.bounds(stored.arrays, stored.parameters))
        rounding = 2e-5 * (1 + np.abs(kept))  # of the teacher's logits in float32
        assert ((kept >= low - rounding) & (kept <= high + rounding)).all()
        seen.update(targets.ids.ravel().tolist())
    assert seen >= set(likely)


def test_receipts_hold_the_means_of_their_shard(tmp_path):
    one = captured(tmp_path, build("llama"), target={"k": 16})
    for shard, entry in enumerate(one.encoding.shards):
        truths = [said(one.model, sequence) for sequence in one.encoding.sequences(shard)]
        log_probs, gold = (np.concatenate([getattr(t, name) for t in truths]) for name in ("log_probs", "gold"))
        expected = {
            "cross_entropy_nats": -log_probs[np.arange(len(gold)), gold].mean(),
            "entropy_nats": -(np.exp(log_probs) * log_probs).sum(axis=1).mean(),
            "kept_mass": np.sort(np.exp(log_probs), axis=1)[:, -16:].sum(axis=1).mean(),
        }
        receipt = one.teacher.receipt(shard)
        assert (receipt.positions, receipt.tokens) == (len(gold), entry.tokens)
        tolerance = loss_rounding(one.model.config, TOKENS, log_probs)
        assert {name: receipt.statistics[name] for name in expected} == pytest.approx(expected, rel=0, abs=tolerance)
        assert 0 < receipt.statistics["codec_kl_nats"] < receipt.statistics["codec_kl_nats_max"] < 1e-2
        assert receipt.provenance["targets"]["seconds"] >= 0


@pytest.mark.parametrize("max_kl_nats", [1e-6, 1e-3])
def test_what_is_read_back_costs_no_more_than_the_budget(tmp_path, max_kl_nats):
    """KL(said || stored) over the kept tokens and the rest, of each shard's mean position."""
    one = captured(tmp_path, build("llama"), target={"k": 16, "max_kl_nats": max_kl_nats})
    for shard in range(len(one.encoding.shards)):
        truth = np.concatenate([said(one.model, sequence).log_probs for sequence in one.encoding.sequences(shard)])
        stored = one.teacher.targets(*one.teacher.shard_rows(shard))
        kept = np.take_along_axis(truth, stored.ids.astype(int), axis=1)
        rest = np.log1p(-np.exp(kept).sum(axis=1))
        kl = (np.exp(kept) * (kept - stored.log_probs)).sum(axis=1) + np.exp(rest) * (rest - stored.log_left_out)
        assert max_kl_nats / 10 < kl.mean() < max_kl_nats * 1.02


class Counting(Reporter):
    """Counts the tokens of each stage that counts any."""

    def __init__(self):
        self.expected, self.counted = {}, {}

    def stage(self, name, total=None, *_, **__):
        self.name, self.total = name, total
        self.counted.pop(name, None)

    def advance(self, count, share_done=None, **__):
        self.expected[self.name] = self.total
        self.counted[self.name] = self.counted.get(self.name, 0) + count


def run(values, reporter=None):
    run_capture(CaptureConfig.model_validate(values), Worker(), reporter or tiny.SilentReporter())
    return Cache(values["cache"]).encoding()


def test_progress_counts_every_token_once(tmp_path):
    values, reporter = tiny.capture_values(tmp_path), Counting()
    encoding = run(values, reporter)
    tokens = sum(entry.tokens for entry in encoding.shards)
    assert reporter.expected == {"encode": None, "teacher toy": tokens}
    assert reporter.counted == {"encode": tokens, "teacher toy": tokens}
    layout.receipt_file(encoding.teacher().path, 1).unlink()
    run(values, reporter)
    assert reporter.expected["teacher toy"] == reporter.counted["teacher toy"] == encoding.shards[1].tokens


def test_refuses_a_teacher_with_fewer_logits_than_the_tokenizer_has_ids(tmp_path):
    with pytest.raises(IdentityError, match=r"fewer logits than the tokenizer has ids \(expected at least 300, "):
        captured(tmp_path, tiny.model(vocab_size=90))
    assert Cache(tmp_path / "cache").encoding().teachers == []


@pytest.mark.parametrize("layer", [-1, 3])
def test_refuses_a_layer_that_does_not_exist(tmp_path, layer):
    with pytest.raises(ModelError, match=rf"has no layer {layer} \(expected 0 \(embeddings\) to 2, or last"):
        captured(tmp_path, tiny.model(), hidden={"layers": [layer]})
    assert Cache(tmp_path / "cache").encoding().teachers == []


TEXTS_WITH_ONE_Z = ["nothing here", "nor here", "but Z is here", "and no more"]


def spoil_everything(model):
    model.lm_head.weight.fill_(torch.nan)


def spoil_one_token(model):
    model.model.embed_tokens.weight[tiny.tokenizer().convert_tokens_to_ids("Z")] = torch.nan


@pytest.mark.parametrize("hidden_layers", [[], ["last", 1]])
@pytest.mark.parametrize(
    ("spoil", "sequence"),
    [(spoil_everything, "sequence 0, document 'doc0'"), (spoil_one_token, "sequence 2, document 'doc2'")],
)
def test_refuses_a_teacher_that_says_nan_and_names_the_document(tmp_path, spoil, sequence, hidden_layers):
    model = tiny.model()
    with torch.no_grad():
        spoil(model)
    with pytest.raises(ModelError, match=f"{sequence}: the teacher's logits are not numbers"):
        captured(tmp_path, model, TEXTS_WITH_ONE_Z, hidden={"layers": hidden_layers}, held_out_fraction=0)
    teacher = Cache(tmp_path / "cache").encoding().teacher()
    assert teacher.missing_shards() == list(range(len(teacher.encoding.shards)))


def test_rows_that_are_not_numbers_are_left_empty_and_counted_if_asked(tmp_path):
    model = tiny.model()
    with torch.no_grad():
        spoil_one_token(model)
    changes = {"hidden": {"layers": ["last", 1]}, "held_out_fraction": 0, "nan_rows": "skip"}
    one = captured(tmp_path, model, TEXTS_WITH_ONE_Z, **changes)
    spoilt = 0
    for sequence in sequences(one.encoding):
        targets, truth = one.teacher.targets(*sequence.rows), said(model, sequence).log_probs
        nan = np.isnan(truth).any(axis=1)
        spoilt += nan.sum()
        assert np.isneginf(targets.log_probs[nan]).all()
        assert (targets.log_left_out[nan] == 0).all()
        assert np.isfinite(targets.log_probs[~nan, 0]).all()
        assert (one.teacher.hidden("last", *sequence.rows)[nan] == 0).all()
    assert spoilt > 0
    receipts = [one.teacher.receipt(shard) for shard in range(len(one.encoding.shards))]
    assert sum(receipt.statistics.get("skipped_positions", 0) for receipt in receipts) == spoilt
    assert all(np.isfinite(receipt.statistics["cross_entropy_nats"]) for receipt in receipts)
    assert verify(one.encoding.path.parents[1], deep=True) == []


@pytest.mark.parametrize("kind", [{"kind": "sampled", "draws": 5}, {"kind": "dense"}])
def test_kinds_without_empty_rows_cannot_skip(tmp_path, kind):
    with pytest.raises(ValueError, match="rows that can be empty"):
        CaptureConfig.model_validate(tiny.capture_values(tmp_path, target=kind, nan_rows="skip"))


def test_packed_sequences_are_read_as_if_alone(tmp_path, whole):
    model, padded = whole.model, whole.teacher
    packed = captured(tmp_path, model, target=EXACT, packing=True, hidden={"layers": [1]}, **SMALL_SHARDS).teacher
    read = [sequence.input_ids.tolist() for sequence in sequences(padded.encoding)]
    assert [sequence.input_ids.tolist() for sequence in sequences(packed.encoding)] == read
    for sequence in sequences(padded.encoding):
        rows = sequence.rows
        theirs, ours = padded.targets(*rows), packed.targets(*rows)
        np.testing.assert_allclose(
            ours.log_probs, theirs.log_probs, rtol=0, atol=loss_rounding(model.config, TOKENS, theirs.log_probs)
        )
        left, right = (teacher.hidden("1", *rows) for teacher in (packed, padded))
        # Rounded to bfloat16 when stored: a difference in the last bit of float32 can cost one step of it.
        np.testing.assert_allclose(
            left, right, rtol=torch.finfo(torch.bfloat16).eps, atol=model_rounding(model.config, TOKENS, right)
        )


def test_refuses_to_pack_for_a_teacher_that_mixes_the_sequences_of_a_row(tmp_path, monkeypatch):
    whole_row = LlamaModel.forward  # without positions a row is one sequence, as for a recurrent body
    monkeypatch.setattr(LlamaModel, "forward", lambda self, position_ids=None, **named: whole_row(self, **named))
    with pytest.raises(ModelError, match="does not keep packed sequences apart"):
        captured(tmp_path, build("llama"), packing=True)


def test_a_teacher_is_compiled_only_if_asked(tmp_path, monkeypatch):
    """Compiling takes a minute here, so that it is asked for is all that is tested."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append((type(self), options)))
    for asked in (False, True):
        captured(tmp_path / str(asked), build("llama"), tiny.TEXTS[:2], compile=asked)
        assert compiled == ([(LlamaModel, {"dynamic": True})] if asked else [])
