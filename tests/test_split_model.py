"""Body and head, cut apart and run one after the other, must be the model."""

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import BertModel, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

import tiny
from cache_tools.errors import ModelError
from cache_tools.torch_models.head_file import StoredHead, head_bytes, read_head
from cache_tools.torch_models.scaling import Scaling
from pipeline.teachers.body_and_head import (
    HeadOutput,
    body_of,
    check_head,
    output_parameters,
    output_scaling,
    run_body,
    run_head,
)
from tolerances import ELEMENTWISE, model_rounding, rounding
from trainer.student.head import StudentHead

LENGTHS = [9, 5, 1]
HEAD_ROUNDINGS = {torch.float32: 3 * (32 + ELEMENTWISE), torch.bfloat16: 5}
"""A head is at most two products over 32 channels, an activation, a norm, a scale and a softcap."""


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(params=tiny.ARCHITECTURES)
def model(request):
    made = tiny.model(request.param, **tiny.ARCHITECTURES[request.param])
    for parameter in made.parameters():
        if parameter.ndim == 1:  # a bias of zero could be forgotten
            parameter.add_(torch.randn_like(parameter) / 10)
    return made


def padded_batch():
    """Return (ids, mask) of sequences of LENGTHS, padded on the right with ids that mean something."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(4, 300, mask.shape, generator=torch.Generator().manual_seed(1))
    return ids, mask.long()


def one_sequence():
    return padded_batch()[0][:1]


def assert_close(logits, truth, dtype=torch.float32):
    torch.testing.assert_close(logits, truth, rtol=0, atol=rounding(dtype, HEAD_ROUNDINGS[dtype], truth))


@pytest.mark.parametrize("dtype", HEAD_ROUNDINGS)
def test_body_and_head_equal_the_model_at_every_position(model, dtype):
    model = model.to(dtype)
    ids, mask = padded_batch()
    last, _ = run_body(model, ids, mask, hidden=False)
    whole = model(input_ids=ids, attention_mask=mask).logits.float()
    assert_close(run_head(model, last[mask.bool()]).logits, whole[mask.bool()], dtype)


def test_padding_changes_nothing(model):
    ids, mask = padded_batch()
    together, _ = run_body(model, ids, mask, hidden=False)
    for row, length in enumerate(LENGTHS):
        alone = model(input_ids=ids[row : row + 1, :length]).logits[0]
        tolerance = model_rounding(model.config, max(LENGTHS), alone)
        torch.testing.assert_close(run_head(model, together[row, :length]).logits, alone, rtol=0, atol=tolerance)


def test_a_chunk_of_the_head_equals_its_part_of_the_whole(model):
    last_LD = run_body(model, one_sequence(), torch.ones(1, 9), hidden=False)[0][0]
    whole, part = run_head(model, last_LD), run_head(model, last_LD[2:5])
    assert_close(part.logits, whole.logits[2:5])
    assert_close(part.last, whole.last[2:5])


def test_hidden_states_are_those_of_the_model(model):
    ids, mask = padded_batch()
    last, layers = run_body(model, ids, mask, hidden=True)
    truth = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(layers, truth, strict=True))
    assert torch.equal(last, run_body(model, ids, mask, hidden=False)[0])
    assert run_body(model, ids, mask, hidden=False)[1] is None


@pytest.mark.parametrize("dtype", HEAD_ROUNDINGS)
def test_the_model_passes_its_own_check(model, dtype):
    check_head(model.to(dtype), one_sequence())


def test_the_kept_head_leads_from_the_last_state_to_the_logits(model, tmp_path):
    head = run_head(model, run_body(model, one_sequence(), torch.ones(1, 9), hidden=False)[0][0])
    content = head_bytes(StoredHead(*output_parameters(model), output_scaling(model, head)))
    (tmp_path / "head.safetensors").write_bytes(content)
    with safe_open(tmp_path / "head.safetensors", "pt") as kept:
        bias = kept.get_tensor("bias") if "bias" in kept.keys() else 0  # noqa: SIM118
        scale, softcap = (float(kept.metadata()[name] or 0) for name in ("logit_scale", "softcap"))
        z = scale * (head.last @ kept.get_tensor("weight").T + bias)
    assert_close(softcap * torch.tanh(z / softcap) if softcap else z, head.logits)


def test_the_kept_head_has_the_same_bytes_every_time():
    model = tiny.model("bert")
    head = StoredHead(*output_parameters(model), Scaling(2.0, 30.0))
    assert len({head_bytes(head) for _ in range(20)}) == 1
    stored = read_head(head_bytes(head))
    assert stored.scaling == head.scaling
    assert torch.equal(stored.weight, head.weight)


SCALINGS = {"cohere": 0.25, "granite": 1 / 4, "hyperclovax": 4.0}
"""Factors of the logits; two of these architectures call theirs ``logits_scaling``, and one of them divides by it."""


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_both_stages_measure_the_scale_and_softcap_that_the_model_computes_with(name):
    model = tiny.model(name, **tiny.ARCHITECTURES[name])
    head = run_head(model, run_body(model, one_sequence(), torch.ones(1, 9), hidden=False)[0][0])
    softcap = tiny.ARCHITECTURES[name].get("final_logit_softcapping", 0.0)
    epsilon = torch.finfo(torch.float32).eps
    for scaling in (output_scaling(model, head), StudentHead.of(model).scaling):
        assert scaling.logit_scale == pytest.approx(SCALINGS.get(name, 1.0), rel=2 * epsilon)
        assert scaling.softcap == pytest.approx(softcap, rel=2 * epsilon)


def test_refuses_a_last_state_that_does_not_lead_to_the_logits(model):
    head = run_head(model, run_body(model, one_sequence(), torch.ones(1, 9), hidden=False)[0][0])
    with pytest.raises(ModelError, match="does not lead back to this model's logits"):
        output_scaling(model, HeadOutput(head.logits * 1.01, head.last))


class WithIds(LlamaForCausalLM):
    """Adds a bonus for repeating the token just read."""

    def forward(self, input_ids=None, **others):
        output = super().forward(input_ids=input_ids, **others)
        output.logits = output.logits + nn.functional.one_hot(input_ids, output.logits.shape[-1])
        return output


class WithEmbeddings(LlamaForCausalLM):
    """Lets the embeddings of its input skip the body."""

    def forward(self, input_ids=None, **others):
        output = super().forward(input_ids=input_ids, **others)
        output.logits = output.logits + self.lm_head(self.model.embed_tokens(input_ids))
        return output


class WithNan(LlamaForCausalLM):
    """Has a number where its head alone has none."""

    def forward(self, input_ids=None, **others):
        output = super().forward(input_ids=input_ids, **others)
        output.logits[..., 5] += torch.where(input_ids == 0, torch.nan, 0)
        return output


class WithConstant(LlamaForCausalLM):
    """Looks up a constant in its body."""

    def forward(self, input_ids=None, **others):
        output = super().forward(input_ids=input_ids, **others)
        output.logits = output.logits * self.model.config.hidden_size / self.model.embed_tokens.embedding_dim
        return output


class Failing(LlamaForCausalLM):
    """Has no head for more than four positions."""

    def forward(self, input_ids=None, **others):
        output = super().forward(input_ids=input_ids, **others)
        if output.logits.shape[1] > 4:
            raise RuntimeError("out of memory")
        return output


def variant(cls):
    """Return a tiny Llama with the forward of ``cls``."""
    model = tiny.model()
    model.__class__ = cls
    return model


@pytest.mark.parametrize("cls", [WithIds, WithEmbeddings, WithNan])
def test_refuses_a_model_that_does_more_than_body_and_head(cls):
    model = variant(cls)
    with pytest.raises(ModelError, match=r"differ from the model's own \(expected a relative difference"):
        check_head(model, one_sequence())


def test_accepts_a_head_that_asks_its_body_for_a_constant():
    check_head(variant(WithConstant), one_sequence())


def test_leaves_logits_that_are_no_numbers_to_the_capture():
    model = tiny.model()
    model.lm_head.weight.fill_(torch.nan)
    check_head(model, one_sequence())


@pytest.mark.parametrize(
    ("cls", "model_type"), [(LlamaModel, "llama"), (BertModel, "bert"), (LlamaForSequenceClassification, "llama")]
)
def test_refuses_a_model_without_output_matrix(cls, model_type):
    model = cls(tiny.model(model_type).config).eval()
    with pytest.raises(ModelError, match=f"{cls.__name__}: this model cannot be cut into a body and a head"):
        check_head(model, one_sequence())


@pytest.mark.parametrize("cls", [LlamaForCausalLM, Failing])
def test_leaves_the_model_unharmed(cls):
    model = variant(cls)
    body, weights, ids = body_of(model), dict(model.state_dict()), one_sequence()[:, :4]
    before = model(input_ids=ids).logits
    states = torch.randn(5, 32)
    if cls is Failing:
        with pytest.raises(RuntimeError, match="out of memory"):
            run_head(model, states)
    else:
        run_head(model, states)
    assert body_of(model) is body
    assert list(model.state_dict()) == list(weights)
    assert not model.lm_head._forward_pre_hooks
    assert torch.equal(model(input_ids=ids).logits, before)
