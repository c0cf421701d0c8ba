"""Measures of students with their own tokenizer: against naive computation, one sequence at a time, in float64."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from alignment_fixtures import save, tokenizer
from cache_tools.alignments.making import align_encoding
from cache_tools.alignments.matching import NO_ROW
from cache_tools.alignments.stored import Alignment
from cache_tools.errors import ConfigError, FormatError, IdentityError, ModelError
from cache_tools.progress.reporter import Reporter
from cache_tools.store.predictions import SCALAR_STEP_NATS
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.tokenizer_folder import open_tokenizer
from json_schema import mismatches
from logitcask import cli
from student_fixtures import LLAMA, TINY, naive_kl_nats, student_values, train
from tolerances import loss_rounding
from trainer.config.student_file import StudentConfig
from trainer.data.aligned_sequences import AlignedSequences
from trainer.evaluation.aligned import evaluate_aligned_student, teacher_bits_per_byte
from trainer.evaluation.evaluate import evaluate_folder
from trainer.evaluation.results import AlignedEvaluateResult
from trainer.run.train import run_training

TOLERANCE = loss_rounding(TINY, tokens=128, logits=10)
LONGER = {"student": {"config": LLAMA | {"max_position_embeddings": 256}}}
BIASED = {"loss": {"kd_weight": 0.5, "allow_biased": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a cache, its teacher, alignments, and untrained students with their own tokenizers."""
    folder = tmp_path_factory.mktemp("aligned-evaluation")
    encoding = tiny.capture(folder).encoding()
    for family in ("byte_level", "unigram"):
        place = save(family, folder / family)
        made = tiny.model(seed=2, vocab_size=len(tokenizer(family)) + 3, max_position_embeddings=256)
        made.save_pretrained(place)
        align_encoding(encoding, family, open_tokenizer(str(place)))
    align_encoding(encoding, "same", open_tokenizer(str(folder / "teacher")))
    return folder


def measured(folder, student, alignment, **options):
    return evaluate_aligned_student(folder / student, Cache(folder / "cache").path, alignment, Reporter(), **options)


def naive_id(token_id, theirs, own, family):
    """Return the student's id of a teacher's token by the strings of the two vocabularies."""
    if family == "byte_level":
        return own.token_to_id(theirs.id_to_token(token_id))
    text = theirs.decode([token_id], skip_special_tokens=False)
    return own.token_to_id("</s>" if text == "<|end|>" else text.replace(" ", "▁"))


@pytest.mark.parametrize("family", ["byte_level", "unigram"])
@torch.inference_mode()
def test_code_length_and_agreement_are_those_of_naive_computation(folder, family):
    encoding = Cache(folder / "cache").encoding()
    alignment, teacher = Alignment(encoding, family), encoding.teacher()
    theirs, own = (Tokenizer.from_file(str(folder / name / "tokenizer.json")) for name in ("teacher", family))
    model = AutoModelForCausalLM.from_pretrained(folder / family).eval()
    nats = num_bytes = positions = with_row = agreeing = 0
    for shard in encoding.split_shards("held_out"):
        for sequence, aligned in zip(encoding.sequences(shard), alignment.sequences(shard), strict=True):
            ids = torch.from_numpy(aligned.input_ids.astype("int64"))
            log_q = model(input_ids=ids[None]).logits[0].double().log_softmax(dim=1)
            stored = teacher.targets(*sequence.rows)
            for position in aligned.positions().tolist():
                nats -= float(log_q[position, ids[position + 1]])
                num_bytes += int(aligned.byte_lengths[position + 1])
                positions += 1
                row = int(aligned.first_rows[position])
                if row == NO_ROW:
                    continue
                with_row += 1
                if aligned.num_rows[position] > 1:  # the product rule may make the composed token the likeliest
                    continue
                best = naive_id(int(stored.ids[row][stored.log_probs[row].argmax()]), theirs, own, family)
                agreeing += int(log_q[position].argmax()) == best
    result = measured(folder, family, family)
    assert (result.positions, result.text_bytes) == (positions, num_bytes)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=0, abs=TOLERANCE)
    assert result.cross_entropy_nats == pytest.approx(nats / positions, rel=0, abs=TOLERANCE)
    assert result.aligned_share == pytest.approx(with_row / positions)
    composed = result.coverage.composed
    assert agreeing <= round(result.top1_agreement * with_row) <= agreeing + composed
    assert result.coverage.positions == positions
    assert result.coverage.none == positions - with_row
    assert result.low_bits_per_byte < result.bits_per_byte < result.high_bits_per_byte
    assert result.kl_to_teacher_is == "biased"


@torch.inference_mode()
def test_the_divergence_per_byte_is_that_of_the_mapped_rows(folder):
    encoding = Cache(folder / "cache").encoding()
    alignment = Alignment(encoding, "byte_level")
    data = AlignedSequences(encoding.teacher(), alignment, "held_out", alignment.manifest.vocabulary_size + 3)
    model = AutoModelForCausalLM.from_pretrained(folder / "byte_level").eval()
    total, num_bytes = 0.0, 0
    for index in range(len(data)):
        example, sequence = data[index], data.sequence(index)
        shard = encoding.shard_of(sequence.sequence_id)
        aligned = alignment.sequences(shard)[sequence.sequence_id - encoding.shards[shard].first_sequence]
        ids = torch.from_numpy(example.input_ids.astype("int64"))
        logits = model(input_ids=ids[None]).logits[0].double()
        has_row = aligned.first_rows[example.positions] != NO_ROW
        for at, position in enumerate(example.positions.tolist()):
            if not has_row[at]:
                continue
            used = example.targets.log_probs[at] > -torch.inf
            kept = torch.from_numpy(example.targets.ids[at][used].astype("int64"))[None]
            log_probs = torch.from_numpy(example.targets.log_probs[at][used]).double()[None]
            left_out = torch.tensor([float(example.targets.log_left_out[at])], dtype=torch.float64)
            total += float(naive_kl_nats(logits[position][None], kept, log_probs, left_out, "ghost").sum())
            num_bytes += int(aligned.byte_lengths[position + 1])
    result = measured(folder, "byte_level", "byte_level")
    assert result.kl_to_teacher_nats_per_byte == pytest.approx(total / num_bytes, rel=1e-4, abs=TOLERANCE)


def test_the_same_tokenizer_gives_what_an_evaluation_without_alignment_gives(folder):
    teacher = Cache(folder / "cache").encoding().teacher()
    plain, own = evaluate_folder(folder / "teacher", teacher, "held_out"), measured(folder, "teacher", "same")
    assert own.positions == plain.positions
    assert own.cross_entropy_nats == pytest.approx(plain.cross_entropy_nats, abs=1e-9)
    assert own.top1_agreement == pytest.approx(plain.top1_agreement, abs=1e-9)
    assert own.kl_to_teacher_is == plain.kl_to_teacher_is
    kl = plain.kl_to_teacher_nats * plain.positions / own.text_bytes
    assert own.kl_to_teacher_nats_per_byte == pytest.approx(kl, abs=1e-9)
    assert own.aligned_share == 1
    assert own.bits_per_byte == pytest.approx(
        own.teacher_bits_per_byte, rel=0, abs=SCALAR_STEP_NATS / 2 / math.log(2) + TOLERANCE
    )
    assert own.teacher_bits_per_byte == teacher_bits_per_byte(teacher, "held_out")


def test_a_student_is_measured_during_training_as_afterwards(folder, tmp_path):
    measures = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "best"}
    measures["metric_for_best_model"] = "bits_per_byte"
    final = train(folder / "cache", tmp_path / "run", alignment="unigram", **BIASED, **LONGER, **measures)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    [logged] = [line for line in lines if "eval_bits_per_byte" in line]
    result = evaluate_aligned_student(final, Cache(folder / "cache").path, "unigram", Reporter())
    for name in ("bits_per_byte", "top1_agreement", "aligned_share", "kl_to_teacher_nats_per_byte"):
        assert logged[f"eval_{name}"] == pytest.approx(getattr(result, name), abs=TOLERANCE)
    assert logged["eval_kl_to_teacher_is"] == "biased"


def test_a_finished_student_writes_text_with_its_own_tokenizer(folder, tmp_path):
    final = train(folder / "cache", tmp_path / "run", alignment="unigram", **BIASED, **LONGER)
    own, model = AutoTokenizer.from_pretrained(final), AutoModelForCausalLM.from_pretrained(final)
    prompt = own("The value", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0].tolist()
    assert written[: prompt["input_ids"].shape[1]] == prompt["input_ids"][0].tolist()
    assert max(written) < len(own)
    assert own.get_vocab() == tokenizer("unigram").get_vocab()
    assert own.decode(written, skip_special_tokens=True).startswith("The value")


def test_the_command_prints_a_table_and_the_schema_of_its_dataclass(folder):
    arguments = ["evaluate", str(folder / "byte_level"), str(folder / "cache"), "--alignment", "byte_level"]
    printed = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert mismatches(printed, AlignedEvaluateResult) == []
    shown = CliRunner().invoke(cli, arguments, env={"COLUMNS": "100"}).stdout
    for words in ("bits per byte", "the teacher's own code length", "biased", "exact", "no row", "per byte"):
        assert words in shown


@pytest.mark.parametrize("option", [["--positions", "labels"], ["--vocabulary", "."], ["--original", "teacher"]])
def test_options_without_a_meaning_are_refused(folder, option):
    arguments = ["evaluate", str(folder / "byte_level"), str(folder / "cache"), "--alignment", "byte_level"]
    result = CliRunner().invoke(cli, arguments + option)
    assert result.exit_code == 2
    assert f"cannot be used together with {option[0]}" in result.stderr


def test_a_student_with_another_tokenizer_than_the_alignments_is_refused(folder, tmp_path):
    with pytest.raises(IdentityError, match="another tokenizer"):
        measured(folder, "byte_level", "unigram")
    with pytest.raises(FormatError, match="no alignment 'other'"):
        measured(folder, "byte_level", "other")
    with pytest.raises(ConfigError, match="is a cache"):
        measured(folder, "cache", "byte_level")
    tiny.model(vocab_size=len(tokenizer("unigram")), max_position_embeddings=32).save_pretrained(tmp_path)
    save("unigram", tmp_path)
    with pytest.raises(ModelError, match="longer than it can read"):
        evaluate_aligned_student(tmp_path, Cache(folder / "cache").path, "unigram", Reporter())


def test_measures_of_tokens_do_not_rank_students_with_their_own_tokenizer(folder, tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "kl_to_teacher_nats"}
    values = student_values(folder / "cache", tmp_path / "run", alignment="unigram", **BIASED, **LONGER, **best)
    with pytest.raises(ConfigError, match="expected one of bits_per_byte"):
        run_training(StudentConfig.model_validate(values))
