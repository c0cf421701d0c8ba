"""Dataset, collator and loss in a loop of one's own: what goes wrong silently elsewhere is refused here."""

import math
import pickle

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

import tiny
from cache_tools.errors import ConfigError, IdentityError, IncompleteError, ModelError
from cache_tools.torch_models.loading import check_objective
from logitcask import distillation
from student_fixtures import GRADIENT_ROUNDING, LLAMA, LOSS_ROUNDING
from trainer.data.binding import COLUMNS, target_fingerprints
from trainer.student.cached_loss import StudentShape
from trainer.student.student import DistilledStudent

VOCABULARY = 300
EVERYTHING = {"kd_weight": 0.5, "temperature": 2, "hidden": [{"student_layer": 1, "teacher_layer": 1}]}


def untrained(vocabulary_size=VOCABULARY, seed=3):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA, vocab_size=vocabulary_size))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loop")


@pytest.fixture(scope="module")
def cache(folder):
    return tiny.capture(folder, target={"k": 16, "temperatures": [2]}, hidden={"layers": ["last", 1]}).path


@pytest.fixture(scope="module")
def other_cache(folder, tmp_path_factory):
    """The same texts, read by another teacher."""
    other = tmp_path_factory.mktemp("other")
    teacher = tiny.save_teacher(other / "teacher", tiny.model(seed=9))
    return tiny.capture(other, teacher, target={"k": 16, "temperatures": [2]}, hidden={"layers": ["last", 1]}).path


def made(cache, student=None, tokenizer=None, **config):
    return distillation({"cache": cache, **config}, student=student or untrained(), tokenizer=tokenizer)


def first_batch(kd, sequences=4):
    return kd.collate([kd.dataset[i] for i in range(sequences)])


def logits_of(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.fixture(scope="module")
def kd(cache):
    return made(cache, loss=EVERYTHING)


@pytest.fixture(scope="module")
def batch(kd):
    return first_batch(kd)


def loss_of(kd, batch, like=None, **changes):
    """Return the loss of outputs of the right shape for a batch, or for one ``like`` it."""
    rows, length = (batch if like is None else like)["input_ids"].shape
    given = {"logits": torch.zeros(rows, length, VOCABULARY), "layers": [torch.zeros(rows, length, 32)] * 3}
    return kd.loss(batch, **given | changes)


@pytest.mark.parametrize(
    ("loss", "vocabulary_size"),
    [({}, VOCABULARY), ({}, 320), (EVERYTHING, VOCABULARY), ({"source": "hidden", "divergence": "reverse_kl"}, 320)],
)
def test_logits_hidden_states_and_the_wrapped_student_of_train_give_one_loss(cache, loss, vocabulary_size):
    student = untrained(vocabulary_size)  # 320: the student pads the vocabulary of 300
    kd = made(cache, student, loss=loss)
    batch = first_batch(kd)
    hidden_states, output = kd.head.run(student, {**inputs_of(batch), "output_hidden_states": True})
    layers = output.hidden_states
    losses = [
        kd.loss(batch, logits=logits_of(student, batch), layers=layers).loss,
        kd.loss(batch, hidden_states=hidden_states, head=kd.head, layers=layers).loss,
        DistilledStudent(student, kd.loss)(**batch)["loss"],
    ]
    for value in losses[1:]:
        assert value.item() == pytest.approx(
            losses[0].item(), rel=0, abs=5 * LOSS_ROUNDING
        )  # the divergence counts T² = 4 times
    gradients = [torch.autograd.grad(value, student.lm_head.weight, retain_graph=True)[0] for value in losses]
    for gradient in gradients:
        assert (gradient - gradients[0]).norm() <= 2 * GRADIENT_ROUNDING * gradients[0].norm()


def inputs_of(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_parts_are_means_over_positions_and_make_up_the_loss(cache):
    student = untrained()
    kd = made(cache, student, loss={"kd_weight": 0.25})
    batch = first_batch(kd)
    result = kd.loss(batch, logits=logits_of(student, batch))
    assert result.num_positions == len(batch["target_ids"])
    expected = 0.25 * result.means["kl_nats"] + 0.75 * result.means["cross_entropy_nats"]
    assert result.loss.item() == pytest.approx(expected, rel=0, abs=2 * LOSS_ROUNDING)
    half = kd.loss(batch, logits=logits_of(student, batch), num_positions=2 * result.num_positions)
    assert half.loss.item() == pytest.approx(result.loss.item() / 2, rel=0, abs=LOSS_ROUNDING)


@pytest.mark.parametrize("column", [*sorted(COLUMNS), "scalars/logsumexp", "hidden/1"])
def test_a_dropped_column_is_refused(kd, batch, column):
    name, _, inner = column.partition("/")
    rest = {key: value for key, value in batch.items() if key != name}
    if inner:
        rest[name] = {key: value for key, value in batch[name].items() if key != inner}
    with pytest.raises(ConfigError, match=f"lacks columns that the loss needs .*{column}"):
        loss_of(kd, rest, like=batch)


def test_rows_that_were_shuffled_beside_their_predictions_are_refused(kd, batch):
    order = torch.tensor([1, 0, 2, 3])
    tokens = {name: batch[name][order] for name in ("input_ids", "attention_mask", "gold_ids", "target_sources")}
    for moved in ({"input_ids": tokens["input_ids"]}, tokens, {"gold_ids": batch["gold_ids"].roll(1, dims=1)}):
        with pytest.raises(IdentityError, match="not those that its predictions belong to"):
            loss_of(kd, batch | moved, like=batch)


def test_gold_tokens_of_the_same_positions_that_were_shifted_once_more_are_refused(kd, batch):
    gold_ids = batch["gold_ids"].clone()
    kept = gold_ids != -100
    gold_ids[kept] = gold_ids[kept].roll(-1)
    with pytest.raises(IdentityError, match="not those that its predictions belong to"):
        loss_of(kd, batch | {"gold_ids": gold_ids}, like=batch)


def test_padding_on_the_other_side_moves_no_prediction(batch):
    shift = int(batch["input_ids"].shape[1] - batch["attention_mask"].sum(dim=1).min())
    assert shift > 0
    wider = {name: torch.nn.functional.pad(batch[name], (shift, 0)) for name in ("input_ids", "attention_mask")}
    wider["gold_ids"] = torch.nn.functional.pad(batch["gold_ids"], (shift, 0), value=-100)
    assert torch.equal(target_fingerprints(wider), batch["target_fingerprints"])


def test_a_table_of_numbers_may_be_shuffled_and_one_with_tokens_only_together_with_them(kd):
    table = Dataset.from_dict({"sequence": range(6), "input_ids": [kd.dataset[i].input_ids.tolist() for i in range(6)]})
    rows = [table.shuffle(seed=0)[i] for i in range(4)]
    assert torch.equal(
        kd.collate(rows)["target_ids"], kd.collate([kd.dataset[row["sequence"]] for row in rows])["target_ids"]
    )
    tokens = table.select_columns("input_ids").shuffle(seed=0)
    with pytest.raises(IdentityError, match="other tokens than the cached sequence"):
        kd.collate([{"sequence": table[i]["sequence"], "input_ids": tokens[i]["input_ids"]} for i in range(6)])
    with pytest.raises(IdentityError, match="other tokens"):  # cut, as by a trainer's max_length
        kd.collate([table[0] | {"input_ids": table[0]["input_ids"][:-1]}])
    with pytest.raises(ConfigError, match="does not say which cached sequence"):
        kd.collate([tokens[0]])
    with pytest.raises(ConfigError, match="no such sequence"):
        kd.collate([{"sequence": len(kd.dataset)}])


def test_a_batch_of_another_cache_is_refused_and_one_of_the_other_split_is_not(kd, batch, cache, other_cache):
    other = made(other_cache, loss=EVERYTHING)
    assert torch.equal(first_batch(other)["target_fingerprints"], batch["target_fingerprints"])  # the same texts
    with pytest.raises(IdentityError, match="comes from another cache"):
        loss_of(kd, first_batch(other))
    config = {"cache": cache, "loss": EVERYTHING}
    loss_of(kd, first_batch(distillation(config, student=untrained(), tokenizer=None, split="held_out")))


def test_a_batch_made_for_a_student_with_another_vocabulary_is_refused(cache, batch):
    wider = made(cache, untrained(320), loss=EVERYTHING)
    with pytest.raises(IdentityError, match="another vocabulary"):
        loss_of(wider, batch, logits=torch.zeros(*batch["input_ids"].shape, 320))


def test_logits_of_another_vocabulary_or_shifted_ones_are_refused(kd, batch):
    rows, length = batch["input_ids"].shape
    with pytest.raises(IdentityError, match="logits of another vocabulary"):
        loss_of(kd, batch, logits=torch.zeros(rows, length, VOCABULARY + 20))
    with pytest.raises(ConfigError, match="do not shift them"):
        loss_of(kd, batch, logits=torch.zeros(rows, length - 1, VOCABULARY))
    with pytest.raises(ConfigError, match="not those of this batch's tokens"):
        loss_of(kd, batch, logits=torch.zeros(rows, length + 3, VOCABULARY))


def test_another_tokenizer_and_a_student_with_too_few_logits_are_refused(cache):
    made(cache, tokenizer=tiny.tokenizer())
    with pytest.raises(IdentityError, match="another tokenizer"):
        made(cache, tokenizer=tiny.tokenizer(280))
    with pytest.raises(IdentityError, match="fewer logits"):
        made(cache, untrained(280))
    with pytest.raises(IdentityError, match="fewer logits"):
        made(cache, StudentShape(280))
    with pytest.raises(ModelError, match="no output matrix"):
        made(cache, untrained().model)


def test_a_model_that_shifts_labels_itself_is_given_none_and_returns_no_loss(kd, batch, tmp_path):
    assert untrained()(**inputs_of(batch), gold_ids=batch["gold_ids"]).loss is None
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none", max_steps=1, disable_tqdm=True)
    trainer = Trainer(untrained(), arguments, train_dataset=kd.dataset, data_collator=kd.collate)
    with pytest.raises((ValueError, TypeError), match=r"did not return a loss|unexpected keyword"):
        trainer.train()


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        ({"tail": "renormalise"}, "biased on this cache"),
        ({"divergence": "reverse_kl", "tail": "none"}, "refused on this cache"),
        ({"temperature": 3}, "biased on this cache"),
        ({"hidden": [{"student_layer": 9, "teacher_layer": 1}]}, "a layer that the student does not have"),
        ({"label_weight": 2}, "these documents have no labels"),
    ],
)
def test_a_loss_that_train_refuses_is_refused_here(cache, loss, problem):
    with pytest.raises(ConfigError, match=problem):
        made(cache, loss=loss)


def test_arguments_that_do_not_make_a_loss_are_refused(kd, batch, cache):
    rows, length = batch["input_ids"].shape
    hidden_states = torch.zeros(rows, length, 32)
    for wrong in ({"logits": None}, {"hidden_states": hidden_states}, {"logits": None, "hidden_states": hidden_states}):
        with pytest.raises(ConfigError, match="either logits, or hidden states and a head"):
            loss_of(kd, batch, **wrong)
    with pytest.raises(ConfigError, match="an output matrix alone does not say"):
        loss_of(kd, batch, logits=None, hidden_states=hidden_states, head=nn.Linear(32, VOCABULARY, bias=False))
    with pytest.raises(ConfigError, match="compares hidden states, and none were given"):
        loss_of(kd, batch, layers=None)
    with pytest.raises(ConfigError, match="width of the student's is not known"):
        made(cache, StudentShape(VOCABULARY), loss=EVERYTHING)


@pytest.mark.parametrize("number", [0, -1, math.nan, math.inf])
def test_a_loss_is_divided_by_no_number_of_positions_that_a_batch_cannot_have(kd, batch, number):
    with pytest.raises(ConfigError, match="cannot be divided by this number of positions"):
        loss_of(kd, batch, num_positions=number)


def test_outputs_in_place_of_their_logits_and_empty_batches_are_refused(kd, batch):
    outputs = untrained()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    with pytest.raises(ConfigError, match=r"Pass output\.logits"):
        loss_of(kd, batch, logits=outputs)
    with pytest.raises(ConfigError, match="at least one row"):
        kd.collate([])


def test_a_student_of_the_other_objective_is_refused(cache):
    with pytest.raises(ModelError, match="found a masked one"):
        made(cache, tiny.model("bert"))
    with pytest.raises(ModelError, match="found a causal one"):
        check_objective("LlamaForCausalLM", "masked")
    check_objective("BertForMaskedLM", "masked")
    check_objective("MyOwnModel", "causal")


def test_a_split_without_sequences_is_refused(tmp_path):
    whole = tiny.capture(tmp_path, target={"k": 4}, held_out_fraction=0)
    with pytest.raises(IncompleteError, match="the held_out split has no sequences"):
        distillation({"cache": whole.path}, student=untrained(), tokenizer=None, split="held_out")


def test_dataset_and_collator_reach_the_workers_of_a_loader_and_batches_pass_accelerate(kd, batch):
    copies = pickle.loads(pickle.dumps((kd.dataset, kd.collate)))
    loader = DataLoader(copies[0], batch_size=4, collate_fn=copies[1])
    (first, *_) = Accelerator(cpu=True).prepare(loader)
    assert first["scalars"].keys() == batch["scalars"].keys()
    assert torch.equal(first["target_log_probs"], batch["target_log_probs"])
    assert loss_of(kd, first).loss.item() == loss_of(kd, batch).loss.item()
