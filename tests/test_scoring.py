"""Scoring a model against its cached original: how the divergence spreads, its floor, and what is written down."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_gguf import write_gguf
from transformers import AutoModelForCausalLM

import tiny
from cache_tools.errors import ConfigError, IdentityError, ModelError
from cache_tools.models.files import weights_sha256
from cache_tools.store.reader import Cache
from logitcask import cli, evaluate
from student_fixtures import TINY
from tolerances import log_prob_rounding, loss_rounding
from trainer.evaluation.evaluate import evaluate_folder
from trainer.evaluation.spread import group_sums, interval, spread_of
from trainer.evaluation.stored import floor_of
from trainer.losses.full import whole_kl

TOLERANCE = loss_rounding(TINY, tokens=48, logits=10)
"""In nats, as in ``test_evaluate``."""

STORED = {
    "float32": {"codec": "float32"},
    "bfloat16": {"codec": "bfloat16"},
    "budget": {"codec": "budget", "max_kl_nats": 1e-3},
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Caches of one teacher with differently stored states, and the teacher rounded to 4 bits."""
    folder = tmp_path_factory.mktemp("scored")
    teacher = tiny.save_teacher(folder / "teacher")
    rounded = AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        for module in rounded.model.modules():
            if isinstance(module, torch.nn.Linear):
                step = module.weight.abs().amax(dim=1, keepdim=True) / 7
                module.weight.copy_((module.weight / step).round() * step)
    tiny.save_teacher(folder / "rounded", rounded)
    for name, hidden in STORED.items():
        (folder / name).mkdir()
        tiny.capture(folder / name, teacher, target={"k": 2, "exact": True}, hidden={"layers": ["last"], **hidden})
    return folder


def open_teacher(folder):
    return Cache(folder / "cache").encoding().teacher()


@torch.inference_mode()
def naive_kl(folder, other, cached, states=None):
    """Return the KL of each held-out position in float64, from sequences read one at a time, and their groups.

    ``states`` maps the true last states of a sequence's positions and its first row to those that are compared.
    """
    model, compared = (AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("teacher", other))
    values, groups = [], []
    for shard in cached.encoding.split_shards("held_out"):
        for sequence in cached.encoding.sequences(shard):
            ids, where = torch.from_numpy(sequence.input_ids.astype("int64"))[None], sequence.positions()
            log_p = model(ids).logits[0, where].double().log_softmax(1)
            if states is None:
                logits = compared(ids).logits[0, where]
            else:
                logits = model.lm_head(torch.from_numpy(states(sequence)))
            log_q = logits.double().log_softmax(1)
            values.append((log_p.exp() * (log_p - log_q)).sum(1).numpy())
            groups.append((sequence.group_id, len(where)))
    return np.concatenate(values), groups


def test_percentiles_and_mean_are_those_of_naive_computation(scored):
    cached = open_teacher(scored / "float32")
    result = evaluate_folder(scored / "rounded", cached, "held_out", batch_size=3)
    values, groups = naive_kl(scored, "rounded", cached)
    expected = {
        "mean_nats": values.mean(),
        "median_nats": np.quantile(values, 0.5),
        "p90_nats": np.quantile(values, 0.9),
        "p95_nats": np.quantile(values, 0.95),
        "p99_nats": np.quantile(values, 0.99),
        "p99_9_nats": np.quantile(values, 0.999),
        "max_nats": values.max(),
    }
    assert {name: getattr(result.kl, name) for name in expected} == pytest.approx(expected, rel=0, abs=TOLERANCE)
    assert result.kl.mean_nats == pytest.approx(result.kl_to_teacher_nats, rel=0, abs=TOLERANCE)
    assert result.kl.groups == len({name for name, _ in groups}) > 2
    low, high = interval(*group_sums(values, groups))
    assert (result.kl.low_nats, result.kl.high_nats) == pytest.approx((low, high), rel=0, abs=TOLERANCE)
    assert low < values.mean() < high
    assert result.perplexity == pytest.approx(np.exp(result.cross_entropy_nats))
    assert result.teacher_perplexity == pytest.approx(np.exp(result.teacher_cross_entropy_nats))


def test_more_positions_of_the_same_documents_do_not_narrow_an_interval():
    values = np.random.default_rng(0).exponential(size=60)
    groups = [(f"document {i % 4}", 5) for i in range(12)]
    once = spread_of(values, groups)
    repeated = spread_of(np.repeat(values, 10), [(name, 50) for name, _ in groups])
    assert (repeated.low_nats, repeated.high_nats) == pytest.approx((once.low_nats, once.high_nats))
    assert once.low_nats < once.mean_nats < once.high_nats


def test_one_document_has_no_interval():
    spread = spread_of(np.ones(5), [("only", 5)])
    assert (spread.low_nats, spread.high_nats, spread.groups) == (None, None, 1)


@pytest.mark.parametrize(("scale", "padding"), [(1e-4, 0), (1.0, 0), (1.0, 3), (60.0, 3)])
def test_whole_kl_is_that_of_float64_and_never_negative(scale, padding):
    """Nearly equal distributions, padding that only the student has, and logits whose exponentials overflow."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(40, 50, generator=generator) * max(scale, 1)
    other = torch.cat([teacher + scale * torch.randn(40, 50, generator=generator), torch.zeros(40, padding)], dim=1)
    log_p, log_q = teacher.double().log_softmax(1), other.double().log_softmax(1)[:, :50]
    expected = (log_p.exp() * (log_p - log_q)).sum(1)
    actual = whole_kl(other, teacher)
    assert (actual >= 0).all()
    tolerance = log_prob_rounding(53, other) * max(scale, 1e-4)  # an error of a logarithm, times d
    assert (actual.double() - expected).abs().max() <= tolerance


def test_states_kept_bit_for_bit_have_no_floor(scored):
    floor = floor_of(open_teacher(scored / "float32"), "held_out", torch.device("cpu"))
    assert (floor.origin, floor.mean_nats, floor.max_nats, floor.top1_agreement) == ("exact", 0, 0, 1)


@pytest.mark.parametrize("codec", ["bfloat16", "budget"])
def test_the_estimated_floor_is_the_error_that_storing_made(scored, codec):
    """Checked against the true states, which a cache does not hold. Two samples of some 500 values are compared."""
    cached = open_teacher(scored / codec)
    floor = floor_of(cached, "held_out", torch.device("cpu"))
    values, _ = naive_kl(scored, "teacher", cached, lambda sequence: cached.hidden("last", *sequence.rows))
    assert floor.origin == "estimated"
    assert floor.positions == len(values)
    assert floor.mean_nats == pytest.approx(values.mean(), rel=0.15)
    for name, level in {"median_nats": 0.5, "p90_nats": 0.9, "p99_nats": 0.99}.items():
        assert getattr(floor, name) == pytest.approx(np.quantile(values, level), rel=0.35)
    assert 0.95 < floor.top1_agreement <= 1


def test_the_floor_of_stored_rows_is_what_the_capture_measured(tmp_path, scored):
    cached = tiny.capture(tmp_path, scored / "teacher", target={"k": 5, "max_kl_nats": 1e-3}).encoding().teacher()
    floor = floor_of(cached, "held_out", torch.device("cpu"))
    assert floor.origin == "measured"
    assert 0 < floor.mean_nats <= 1e-3 < floor.max_nats * 1e3
    assert floor.p99_nats is None


def test_draws_have_neither_percentiles_nor_a_floor(tmp_path, scored):
    cached = tiny.capture(tmp_path, scored / "teacher", target={"kind": "sampled", "draws": 20}).encoding().teacher()
    result = evaluate_folder(scored / "rounded", cached, "held_out")
    assert result.kl is None
    assert (result.floor.origin, result.floor.mean_nats) == ("unknown", None)


def test_a_gguf_file_scores_as_the_folder_of_its_dequantised_weights(tmp_path):
    pytest.importorskip("gguf")
    teacher = tiny.save_teacher(tmp_path / "plain", tiny.model(tie_word_embeddings=True))
    file = write_gguf(teacher, tmp_path / "g" / "m.gguf")
    from cache_tools.torch_models.gguf import load_tokenizer
    from cache_tools.torch_models.loading import auto_class, load_checkpoint

    load_checkpoint(auto_class("causal"), file, "the model", dtype=torch.float32).save_pretrained(tmp_path / "folder")
    load_tokenizer(file).save_pretrained(tmp_path / "folder")
    load_tokenizer(file).save_pretrained(teacher)
    cached = tiny.capture(tmp_path, teacher, hidden={"layers": ["last"]}).encoding().teacher()
    packed, plain = (evaluate_folder(source, cached, "held_out") for source in (file, tmp_path / "folder"))
    assert packed.kl == plain.kl
    assert packed.kl.mean_nats > 0
    assert packed.model.quantisation.startswith("Q8_0")
    assert (packed.model.weight_bytes, packed.model.sha256) == (file.stat().st_size, weights_sha256(file))
    assert plain.model.quantisation is None


def test_a_missing_gguf_file_is_refused(scored):
    with pytest.raises(ModelError, match="no such folder or GGUF file"):
        evaluate_folder(scored / "nowhere.gguf", open_teacher(scored / "float32"), "held_out")


def test_the_original_run_again_shows_what_a_perfect_copy_scores(scored):
    result = evaluate(scored / "rounded", scored / "budget" / "cache", original=scored / "teacher")
    own = result.original
    assert own.model.sha256 == weights_sha256(scored / "teacher") != result.model.sha256
    assert own.kl.mean_nats == pytest.approx(result.floor.mean_nats, rel=0.15)
    assert own.kl.mean_nats < result.kl.mean_nats / 10
    rounding = TOLERANCE + result.floor.gold_nats
    assert own.cross_entropy_nats == pytest.approx(result.teacher_cross_entropy_nats, rel=0, abs=rounding)


def test_another_model_is_refused_as_the_original(scored):
    cache = scored / "float32" / "cache"
    with pytest.raises(IdentityError, match="not the model whose predictions the cache holds"):
        evaluate(scored / "teacher", cache, original=scored / "rounded")
    with pytest.raises(ModelError, match="no safetensors weights"):
        evaluate(scored / "teacher", cache, original=scored / "nowhere")


def test_a_model_computes_in_the_type_that_is_asked_for(scored):
    cache = scored / "float32" / "cache"
    exact, coarse = (evaluate(scored / "teacher", cache, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (exact.model.dtype, coarse.model.dtype) == ("float32", "bfloat16")
    assert exact.kl.max_nats <= TOLERANCE < coarse.kl.mean_nats
    with pytest.raises(ConfigError, match="not a choice"):
        evaluate(scored / "teacher", cache, dtype="int8")


def test_the_bytes_are_those_of_the_objects_that_are_read(scored):
    stored = evaluate_folder(scored / "rounded", open_teacher(scored / "bfloat16"), "held_out").stored
    cached = open_teacher(scored / "bfloat16")
    positions = cached.encoding.manifest.splits["held_out"].positions
    assert stored.bytes_per_position == stored.read_bytes / positions
    files = [cached.receipt(shard).objects for shard in cached.encoding.split_shards("held_out")]
    entropies = sum(record.bytes for objects in files for key, record in objects.items() if key.startswith("entropy"))
    assert entropies > 0
    assert stored.read_bytes <= sum(record.bytes for objects in files for record in objects.values()) - entropies
    assert stored.once_bytes >= cached.manifest.files["head.safetensors"].bytes
    assert stored.float32_logits_bytes_per_position == 4 * cached.manifest.vocabulary_size


def test_the_card_states_models_figures_floor_and_bytes(scored, tmp_path):
    arguments = ["evaluate", str(scored / "rounded"), str(scored / "budget" / "cache"), "--json"]
    arguments += ["--original", str(scored / "teacher"), "--card", str(tmp_path / "card.md")]
    printed = json.loads(CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout)
    card = (tmp_path / "card.md").read_text()
    assert printed["model"]["sha256"] in card
    assert printed["original"]["model"]["sha256"] in card
    assert f"{printed['stored']['bytes_per_position']:,.0f} bytes per position" in card
    table = [line.split(" | ") for line in card.splitlines() if line.startswith("|")]
    assert {len(row) for row in table} == {4}
    assert sum(row[0].endswith("percentile") for row in table) == 4
    assert "estimated at" in card


def test_a_card_is_not_written_into_the_cache(scored):
    cache = str(scored / "float32" / "cache")
    arguments = ["evaluate", str(scored / "teacher"), cache, "--card", f"{cache}/card.md"]
    with pytest.raises(ConfigError, match="card"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)


def test_names_cannot_write_into_the_card():
    from trainer.evaluation.card import _code

    assert _code("a`b|c\nd") == "`a'b¦c\\nd`"
