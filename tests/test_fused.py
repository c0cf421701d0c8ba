"""The loss in chunks is the loss of whole logits: value, every parameter's gradient, and what is never allocated.

Shapes are awkward on purpose: 509 tokens, 36 channels, 53 positions, chunks that do not divide them.
"""

import copy
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import tiny
from cache_tools.torch_models.scaling import Scaling
from ranks import on_ranks
from student_fixtures import naive_kl_nats
from tolerances import gradient_rounding, loss_rounding, rounding, softmax_roundings
from trainer.config.student_file import LossConfig
from trainer.data.binding import IGNORED
from trainer.losses.distillation_loss import DistillationLoss
from trainer.losses.masses import log_probs_at
from trainer.student import fused_loss
from trainer.student.cached_loss import CachedLoss
from trainer.student.fused_loss import chunked_loss
from trainer.student.head import StudentHead
from trainer.student.student import DistilledStudent

VOCABULARY, WIDTH, POSITIONS, K = 509, 36, 53, 5
HALF_ROUNDINGS = 5
"""In half precision: of the logits, their gradient, the gradients of the matrix and the states, and the result."""

STUDENTS = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {"final_logit_softcapping": 5.0, "head_dim": 18}),
    "gpt2": ("gpt2", {"n_embd": WIDTH, "n_head": 2, "n_layer": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "granite": ("granite", {"logits_scaling": 3.0, "attention_multiplier": 0.2}),
    "bert": ("bert", {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}),
}
"""Heads that differ: tied, soft-capped, multiplied, divided, with a bias behind a transform."""


def student(name="llama"):
    model_type, changes = STUDENTS[name]
    ends = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "cls_token_id": 1}
    return tiny.model(model_type, **ends, **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, **changes})


def a_batch(positions=POSITIONS, seed=0):
    """Return a batch of 3 sequences, one padded, with a sparse target at each of ``positions`` positions."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, VOCABULARY, (3, 21), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[2, 18:] = 0
    kept = torch.randperm(60, generator=generator)[:positions].sort().values
    labels = torch.full((63,), IGNORED)
    labels[kept] = torch.randint(0, VOCABULARY, (positions,), generator=generator)
    log_p = (3 * torch.randn(positions, VOCABULARY, generator=generator)).log_softmax(dim=1)
    log_probs, ids = log_p.topk(K, dim=1)
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "gold_ids": labels.reshape(3, 21),
        "target_ids": ids,
        "target_log_probs": log_probs,
        "target_log_left_out": log_p.scatter(1, ids, -torch.inf).logsumexp(dim=1),
    }


def distilled(made, fused_path=True):
    """Wrap a copy of a student; the loss is half KL, half cross-entropy."""
    module = DistilledStudent(copy.deepcopy(made), CachedLoss(DistillationLoss(LossConfig(kd_weight=0.5))))
    assert module.head is not None
    module.head = module.head if fused_path else None
    return module


def trained(module, batch, **named):
    """Return the loss and every parameter's gradient by name, float64."""
    module.zero_grad()
    loss = module(**batch, **named)["loss"]
    loss.backward()
    return collected(module, loss)


def collected(module, loss):
    return {"loss": loss.detach().double()} | {
        name: parameter.grad.double() for name, parameter in module.named_parameters() if parameter.grad is not None
    }


def reference(made, batch):
    """The same in float64, from the model's own logits and one target entry after the other."""
    module = nn.ModuleDict({"student": copy.deepcopy(made).double()})
    kept = batch["gold_ids"] != IGNORED
    logits = module["student"](input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[kept]
    names = ("target_ids", "target_log_probs", "target_log_left_out")
    kl = naive_kl_nats(logits, *(batch[name] for name in names), "ghost").mean()
    loss = 0.5 * kl + 0.5 * F.cross_entropy(logits, batch["gold_ids"][kept])
    loss.backward()
    return collected(module, loss)


def difference(found, expected):
    """Return the largest relative difference, by norm, between two results.

    A gradient a thousand times smaller than the largest is compared with that: some, as of a
    bias that attention does not feel, are nothing but rounding.
    """
    assert found.keys() == expected.keys()
    floor = max(1e-9, *(float(value.norm()) / 1000 for value in expected.values()))
    return max(float((found[name] - expected[name]).norm() / expected[name].norm().clamp(min=floor)) for name in found)


def tolerance(made, dtype=torch.float32):
    """Return how far two results may lie apart, by ``difference``, if only the order of sums differs."""
    return gradient_rounding(made.config, tokens=21, positions=POSITIONS, vocabulary=VOCABULARY, dtype=dtype)


@pytest.fixture(autouse=True)
def seven_positions_in_a_chunk(monkeypatch):
    monkeypatch.setattr(fused_loss, "CHUNK_POSITIONS", 7)


@pytest.mark.parametrize("name", STUDENTS)
def test_loss_and_gradients_are_those_of_whole_logits_and_of_float64(name):
    made, batch = student(name), a_batch()
    found, whole = trained(distilled(made), batch), trained(distilled(made, fused_path=False), batch)
    expected = reference(made, batch)
    assert difference(found, whole) < tolerance(made)
    assert difference(found, expected) < tolerance(made)
    rounded = loss_rounding(made.config, 21, made(input_ids=batch["input_ids"]).logits)
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=0, abs=rounded)


@pytest.mark.parametrize("name", STUDENTS)
def test_in_bfloat16_the_chunks_are_as_close_to_float64_as_whole_logits_are(name):
    made, batch = student(name).bfloat16(), a_batch()
    expected = reference(made, batch)
    whole = trained(distilled(made, fused_path=False), batch)
    error = difference(whole, expected)
    assert error < tolerance(made, torch.bfloat16)
    assert difference(trained(distilled(made), batch), expected) < 2 * error  # as an error of the same size may be


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.3, 5.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_engine_equals_float64_in_every_precision(dtype, scale, softcap, bias):
    gold = torch.arange(POSITIONS)[:, None]
    results = []
    for fused_path in (True, False):
        torch.manual_seed(0)
        head = StudentHead(nn.Linear(WIDTH, VOCABULARY, bias), Scaling(scale, softcap))
        hidden = (4 * torch.randn(POSITIONS, WIDTH)).to(dtype)
        head.matrix.to(dtype)
        if fused_path:
            chunk_loss = lambda x, rows: {"loss": -log_probs_at(x, gold[rows]).sum()}  # noqa: E731
            sums = chunked_loss(hidden.requires_grad_(), head, chunk_loss, chunk_positions=7)
            loss = sums["loss"]
        else:
            hidden = hidden.double().requires_grad_()
            loss = F.cross_entropy(head.logits(head.matrix.double()(hidden)), gold[:, 0], reduction="sum")
        (loss / POSITIONS).backward()
        results.append(collected(head.matrix, loss) | {"hidden": hidden.grad.double()})
    sums = WIDTH + softmax_roundings(VOCABULARY) + VOCABULARY + POSITIONS
    assert difference(*results) < rounding(dtype, sums if dtype == torch.float32 else HALF_ROUNDINGS)


def test_the_gradient_of_a_bfloat16_matrix_does_not_stagnate_over_many_chunks():
    matrix, hidden, gold = (
        nn.Linear(4, 8, bias=False).bfloat16(),
        torch.ones(2000, 4).bfloat16(),
        torch.zeros(1, 1).long(),
    )
    gradients = []
    for chunk_positions in (1, 2000):
        matrix.zero_grad()
        sums = chunked_loss(
            hidden,
            StudentHead(matrix, Scaling()),
            lambda x, rows: {"loss": -log_probs_at(x, gold.expand(len(x), 1)).sum()},
            chunk_positions,
        )
        sums["loss"].backward()
        gradients.append({"weight": matrix.weight.grad.double()})
    assert difference(*gradients) < rounding(torch.bfloat16, 2)


@pytest.mark.parametrize("positions", [0, 1, 6, 7, 8, 53])
def test_any_number_of_positions_will_do(positions):
    made, batch = student(), a_batch(positions)
    found = trained(distilled(made), batch, num_items_in_batch=23)
    assert difference(found, trained(distilled(made, fused_path=False), batch, num_items_in_batch=23)) < tolerance(made)
    assert (found["loss"] == 0) == (positions == 0)


def test_a_batch_without_positions_has_no_loss_and_no_gradient():
    found = trained(distilled(student()), a_batch(0))
    assert not any(value.any() for value in found.values())


@pytest.mark.parametrize("size", [1, 2, 52, 53, 54, 1000])
def test_the_size_of_a_chunk_changes_nothing(size):
    made, batch = student(), a_batch()
    before = trained(distilled(made), batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_loss, "CHUNK_POSITIONS", size)
        assert difference(trained(distilled(made), batch), before) < tolerance(made)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation has returned in one tensor."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        sizes = [x.numel() for x in tree_iter(result) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_no_tensor_holds_the_logits_of_all_positions(name):
    for fused_path in (True, False):
        module, batch = distilled(student(name), fused_path), a_batch()
        with LargestTensor() as largest:
            trained(module, batch)
        assert (largest.elements >= POSITIONS * VOCABULARY) != fused_path
    assert POSITIONS > WIDTH  # or the largest tensor would be the matrix


def test_a_frozen_head_gets_no_gradient_and_costs_none():
    made, batch = student(), a_batch()
    whole = trained(distilled(made), batch)
    module = distilled(made)
    module.student.lm_head.weight.requires_grad_(False)
    products = Products()
    with products:
        found = trained(module, batch)
    assert whole.keys() - found.keys() == {"student.lm_head.weight"}
    assert difference(found, {name: whole[name] for name in found}) == 0
    assert products.of_size(VOCABULARY * WIDTH) == 0
    with products:
        trained(distilled(made), batch)
    assert products.of_size(VOCABULARY * WIDTH) == 8  # one for each chunk


class Products(TorchDispatchMode):
    """Remembers the size of every matrix product."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def of_size(self, elements):
        return self.sizes.count(elements)

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.sizes.append(result.numel())
        return result


def test_a_frozen_body_leaves_the_head_s_gradient_as_it_is():
    made, batch = student(), a_batch()
    whole, module = trained(distilled(made), batch), distilled(made)
    module.student.model.requires_grad_(False)
    found = trained(module, batch)
    assert found.keys() == {"loss", "student.lm_head.weight"}
    assert difference(found, {name: whole[name] for name in found}) == 0


@pytest.mark.parametrize("name", ["llama", "llama tied", "gemma2"])
def test_autocast_multiplies_in_bfloat16_and_keeps_gradients_in_float32(name):
    made, batch = student(name), a_batch()
    results = []
    for fused_path in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            module = distilled(made, fused_path)
            results.append(trained(module, batch))
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())
    assert 0 < difference(results[0], trained(distilled(made), batch)) < 0.1
    assert difference(*results) < rounding(torch.bfloat16, HALF_ROUNDINGS)


def test_a_scaled_loss_scales_every_gradient():
    made, batch = student(), a_batch()
    module, expected = distilled(made), trained(distilled(made), batch)
    loss = module(**batch)["loss"] * 1024
    loss.backward()
    assert difference({name: value / 1024 for name, value in collected(module, loss).items()}, expected) == 0


def test_accumulated_batches_end_as_one():
    made, batches = student(), [a_batch(53, seed=0), a_batch(4, seed=1)]
    results = []
    for fused_path in (True, False):
        module = distilled(made, fused_path)
        losses = [module(**batch, num_items_in_batch=torch.tensor(57))["loss"] for batch in batches]
        for loss in losses:
            loss.backward()
        results.append(collected(module, sum(losses)))
    assert difference(*results) < tolerance(made)


def test_the_gradients_can_be_used_once():
    loss = distilled(student())(**a_batch())["loss"]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up by its first backward pass"):
        loss.backward()


def test_without_gradients_none_is_computed():
    module, batch = distilled(student()), a_batch()
    expected, products = module(**batch), Products()
    with torch.no_grad(), products:
        found = module(**batch)
    assert found == {name: value.detach() for name, value in expected.items()}
    assert products.of_size(VOCABULARY * WIDTH) == 0


def test_recomputed_activations_change_nothing():
    made, batch = student().train(), a_batch()
    module = distilled(made)
    expected = trained(module, batch)
    later = hasattr(made, "activation_checkpointing_enable")
    (module.activation_checkpointing_enable if later else module.gradient_checkpointing_enable)()
    assert difference(trained(module, batch), expected) < tolerance(made)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at what passes its graph break
def test_a_compiled_student_has_the_same_loss_and_gradients():
    made = student()
    module = torch.compile(distilled(made), backend="aot_eager")
    for seed in range(2):
        batch = a_batch(50 + seed, seed)
        found = {name.removeprefix("_orig_mod."): value for name, value in trained(module, batch).items()}
        assert difference(found, trained(distilled(made), batch)) < tolerance(made)


def test_the_student_is_whole_again_after_its_loss():
    module, batch = distilled(student()), a_batch()
    before = module.student(input_ids=batch["input_ids"]).logits
    trained(module, batch)
    assert torch.equal(module.student(input_ids=batch["input_ids"]).logits, before)


@pytest.mark.parametrize(
    ("name", "scale", "softcap"), [("llama", 1, 0), ("gemma2", 1, 5), ("cohere", 1 / 4, 0), ("granite", 1 / 3, 0)]
)
def test_scale_and_softcap_are_measured_in_every_precision(name, scale, softcap):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        head = StudentHead.of(student(name).to(dtype))
        assert (head.scaling.logit_scale, head.scaling.softcap) == pytest.approx((scale, softcap), rel=1e-9)


def masked(logits):
    return logits.index_fill(2, torch.tensor([3]), -torch.inf)


@pytest.mark.parametrize(
    "behind",
    [
        masked,
        lambda logits: logits * nn.Parameter(torch.ones(())),
        lambda logits: logits + 0.5,
        lambda logits: logits.clamp(-5, 5),
        lambda logits: logits[:, -1:],
    ],
    ids=["masked token", "learned scale", "offset", "clamp", "last position"],
)
def test_a_head_that_does_something_else_keeps_whole_logits_and_says_so(behind, caplog):
    class Peculiar(type(student())):
        def forward(self, **named):
            output = super().forward(**named)
            output.logits = behind(output.logits)
            return output

    made = student()
    made.__class__ = Peculiar
    with caplog.at_level(logging.WARNING):
        module = DistilledStudent(made, CachedLoss(DistillationLoss(LossConfig())))
    assert module.head is None
    assert "Peculiar" in caplog.text


def test_an_adapter_on_the_output_matrix_keeps_whole_logits():
    class Adapted(nn.Linear):
        pass

    made = student()
    made.lm_head.__class__ = Adapted
    assert StudentHead.of(made) is None


def test_looking_at_the_head_draws_no_random_number():
    made = student().train()
    state = torch.get_rng_state()
    StudentHead.of(made)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("k", [1, 12])
def test_log_probabilities_at_tokens_are_those_of_the_whole_softmax(k):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(23, VOCABULARY, generator=generator)
    ids = torch.randint(0, 20, (23, k), generator=generator)  # some twice in a row
    arriving = torch.randn(23, k, generator=generator)
    results = []
    for dtype, function in ((torch.float32, log_probs_at), (torch.float64, lambda x, i: x.log_softmax(1).gather(1, i))):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        values = function(leaf, ids)
        (values * arriving).sum().backward()
        results.append({"values": values.detach().double(), "gradient": leaf.grad.double()})
    assert difference(*results) < rounding(torch.float32, softmax_roundings(VOCABULARY))


def save_gradients(folder):
    """Write this rank's gradients of two students under DDP and under FSDP2."""
    fused_loss.CHUNK_POSITIONS = 7
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()

    def gradients(name, wrap):
        module = distilled(student(name))
        wrapped = wrap(module)
        share = a_batch(*((53, 0), (0, 1))[rank])  # the second rank has nothing to learn from
        loss = 2 * wrapped(**share, num_items_in_batch=53)["loss"]  # gradients are averaged over ranks
        loss.backward()
        return {name: parameter.grad for name, parameter in module.named_parameters()}

    def shard(module):
        for layer in module.student.model.layers:
            fully_shard(layer)
        return fully_shard(module)

    for name in ("llama", "llama tied"):
        save_file(gradients(name, DistributedDataParallel), folder / f"{name} ddp {rank}")
        whole = {key: value.full_tensor() for key, value in gradients(name, shard).items()}
        save_file(whole, folder / f"{name} fsdp2 {rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_end_with_the_gradients_of_one_process(tmp_path):
    on_ranks(2, tmp_path / "gradients", save_gradients, tmp_path)
    for name in ("llama", "llama tied"):
        expected = trained(distilled(student(name), fused_path=False), a_batch())
        for engine in ("ddp", "fsdp2"):
            first, second = (load_file(tmp_path / f"{name} {engine} {rank}") for rank in (0, 1))
            found = {"loss": expected["loss"]} | {key: value.double() for key, value in first.items()}
            assert difference(found, expected) < tolerance(student(name))
            assert all(torch.equal(first[key], second[key]) for key in first)
