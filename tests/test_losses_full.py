"""The loss on whole distributions, from cached last hidden states and the teacher's head."""

import math

import pytest
import torch
from safetensors.torch import save
from torch.nn import functional

import tiny
from cache_tools.errors import FormatError
from loss_fixtures import loss, naive_sum, random_logits, with_gradient
from tolerances import ELEMENTWISE, log_prob_rounding, model_rounding, rounding
from trainer.losses.full import TeacherHead, full_divergence

DIVERGENCES = ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"]
divergences = pytest.mark.parametrize("kind", DIVERGENCES)
temperatures = pytest.mark.parametrize("temperature", [1.0, 2.5])


def naive(logits_NV, teacher_logits_NU, settings):
    """Return the divergence per position in float64, ids that the teacher lacks having probability 0."""
    rows = []
    for student, teacher in zip(logits_NV.double(), teacher_logits_NU.double(), strict=True):
        q, p = ((side / settings.temperature).softmax(0) for side in (student, teacher))
        shared = len(p)
        if shared < len(q):
            p, q = torch.cat([p, p.new_zeros(1)]), torch.cat([q[:shared], q[shared:].sum()[None]])
        rows.append(naive_sum(p, q, settings))
    return torch.stack(rows)


@divergences
@temperatures
@pytest.mark.parametrize("padding", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_the_naive_sum(kind, temperature, padding, dtype):
    teacher, student = random_logits(5, 61), random_logits(5, 61 + padding, seed=1, dtype=dtype)
    settings = loss(kind, tail=None, temperature=temperature)
    values, gradient = with_gradient(full_divergence, student, teacher, settings)
    expected, expected_gradient = with_gradient(naive, student.double(), teacher, settings)
    assert (values.dtype, gradient.dtype) == (torch.float32, dtype)
    tolerance = 2 * temperature**2 * log_prob_rounding(61 + padding, 2 * max(teacher.abs().max(), student.abs().max()))
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=tolerance)
    if dtype == torch.bfloat16:
        tolerance += rounding(dtype, 1, expected_gradient)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=tolerance)


@divergences
def test_mass_on_ids_that_the_teacher_lacks_is_paid_for_and_pushed_down(kind):
    teacher = random_logits(3, 20)
    student = torch.cat([teacher, teacher.logsumexp(1, keepdim=True)], dim=1)  # half of its mass
    values, gradient = with_gradient(full_divergence, student, teacher, loss(kind))
    assert (values > 0.1).all()
    assert (gradient[:, 20] > 0.01).all()


def test_padding_of_the_teacher_that_the_student_lacks_is_renormalised_away():
    teacher = random_logits(4, 30)
    content = save({"weight": teacher.T.contiguous()})  # rows of one-hot states
    head = TeacherHead(content, student_vocabulary_size=25)
    found = full_divergence(random_logits(4, 25, seed=1), head(torch.eye(4)), loss())
    torch.testing.assert_close(found, full_divergence(random_logits(4, 25, seed=1), teacher[:, :25], loss()))
    assert head(torch.eye(4)).shape == (4, 25)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "cohere", "granite", "bert"])
def test_a_captured_teacher_as_student_has_nothing_to_learn_at_any_temperature(tmp_path, model_type):
    """From a real capture: last hidden states in float32, and heads with bias, softcap and logit scale."""
    masked = model_type == "bert"
    made = tiny.model(model_type, **tiny.ARCHITECTURES[model_type])
    folder = tiny.save_teacher(tmp_path / "teacher", made, masked=masked)
    objective = {"objective": "masked"} if masked else {}
    cache = tiny.capture(tmp_path, folder, hidden={"layers": ["last"], "codec": "float32"}, **objective)
    teacher = cache.encoding().teacher()
    head = TeacherHead(teacher.file("head.safetensors"), teacher.manifest.vocabulary_size)
    sequence = teacher.encoding.sequence(0)
    ids = torch.from_numpy(sequence.input_ids.astype("int64"))[None]
    with torch.inference_mode():
        student = made(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, sequence.positions()]
    rebuilt = head(torch.from_numpy(teacher.hidden("last", *sequence.rows)))
    for temperature in (1.0, 4.0):
        found = full_divergence(student, rebuilt, loss(tail=None, temperature=temperature))
        assert len(found) > 3
        tolerance = temperature**2 * (model_rounding(made.config, 48, student) + log_prob_rounding(300, student))
        assert found.abs().max() < tolerance
    rolled = full_divergence(student.roll(1, dims=0), rebuilt, loss())
    assert rolled.max() > 0.1


def test_the_head_applies_scale_bias_and_softcap_as_the_format_says():
    generator = torch.Generator().manual_seed(0)
    weight, bias, states = (torch.randn(*shape, generator=generator) for shape in ((9, 4), (9,), (3, 4)))
    content = save({"weight": weight, "bias": bias}, metadata={"logit_scale": "0.25", "softcap": "5.0"})
    z = 0.25 * (states.double() @ weight.double().T + bias.double())
    expected, tolerance = 5 * torch.tanh(z / 5), rounding(torch.float32, 4 + ELEMENTWISE, z)
    torch.testing.assert_close(TeacherHead(content, 9)(states).double(), expected, rtol=0, atol=tolerance)


def test_mixed_precision_does_not_round_the_teacher():
    content = save({"weight": torch.randn(50, 16, generator=torch.Generator().manual_seed(0))})
    states = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    head = TeacherHead(content, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.linear(states, head.weight).dtype == torch.bfloat16
        inside = head(states)
    assert torch.equal(inside, head(states))


def test_the_head_is_frozen_and_left_out_of_checkpoints():
    head = TeacherHead(save({"weight": torch.ones(9, 4)}), 9, torch.bfloat16)
    assert head.weight.dtype == torch.bfloat16
    assert not list(head.parameters())
    assert not head.state_dict()
    assert not head(torch.ones(2, 4, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a safetensors file",
        save({"other": torch.ones(2, 2)}),
        save({"weight": torch.ones(2)}),
        save({"weight": torch.ones(2, 2), "bias": torch.ones(3)}),
        save({"weight": torch.ones(2, 2)}, metadata={"softcap": "high"}),
    ],
)
def test_refuses_a_file_that_is_no_output_matrix(content):
    with pytest.raises(FormatError, match=r"head\.safetensors: this is not the output matrix of a teacher"):
        TeacherHead(content, 2)


@divergences
def test_equal_logits_cost_nothing_up_to_a_constant(kind):
    logits = random_logits(4, 40)
    values = full_divergence(logits + 7, logits, loss(kind))
    assert values.abs().max() < 2 * log_prob_rounding(40, logits.abs() + 7)
    assert math.isfinite(float(values.sum()))
