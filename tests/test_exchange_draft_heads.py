"""Hidden states leave a cache as draft heads are trained from them; wrong ones are named before they are written."""

import datasets
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import tiny
from cache_tools.errors import ConfigError, IdentityError, ModelError
from cache_tools.exchange.draft_heads import export_states
from cache_tools.exchange.draft_states import DraftOptions
from cache_tools.exchange.state_check import KeptEntries, Rounding, compare, likely_cause, open_head, too_many
from cache_tools.models.final_norm import FinalNorm, read_final_norm
from cache_tools.store.reader import Cache
from logitcask import cli
from processes import finish, kill_at_rename, start
from row_fixtures import SILENT

LAYERS = ["1", "2", "3"]


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """A teacher of five layers whose norm has unequal weights, and its cache with four layers of states."""
    folder = tmp_path_factory.mktemp("heads")
    made = tiny.model(num_hidden_layers=5)
    with torch.no_grad():
        made.model.norm.weight.copy_(torch.linspace(0.5, 2, 32))
    model = tiny.save_teacher(folder / "teacher", made)
    tiny.capture(folder, model, hidden={"layers": [1, 2, 3, "last"], "codec": "float32"})
    return folder


def teacher_of(folder):
    return Cache(folder / "cache").encoding().teacher()


def exported(folder, target, trainer, **options):
    options = {"model": folder / "teacher"} | options
    return export_states(teacher_of(folder), target, DraftOptions(trainer, **options), SILENT)


def sequences_of(teacher, split):
    return [s for shard in teacher.encoding.split_shards(split) for s in teacher.encoding.sequences(shard)]


def states_of(folder, sequence):
    """Return transformers' states of all layers (L, 6, D), the last before the final norm, and the logits (L, V)."""
    model = tiny.AutoModelForCausalLM.from_pretrained(folder / "teacher")
    before = []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0][0]))
    ids = torch.from_numpy(sequence.input_ids[: sequence.num_positions].astype(np.int64))[None]
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    return torch.stack([*(layer[0] for layer in output.hidden_states[:-1]), before[0]], dim=1), output.logits[0], model


def test_speculators_finds_states_before_the_norm_beside_its_dataset(captured, tmp_path):
    report = exported(captured, tmp_path / "out", "speculators")
    rows, teacher = datasets.load_from_disk(tmp_path / "out"), teacher_of(captured)
    sequences = sequences_of(teacher, "train") + sequences_of(teacher, "held_out")
    assert len(rows) == len(sequences) == report.sequences
    assert report.training_share == len(sequences_of(teacher, "train")) / len(sequences)
    assert report.layer_ids == (1, 2, 3)
    assert report.error_nats <= report.tolerance_nats
    for number in (0, len(sequences) - 1):
        sample = load_file(tmp_path / "out" / "hidden_states" / f"hs_{number}.safetensors")
        states, logits, model = states_of(captured, sequences[number])
        assert torch.equal(sample["token_ids"], rows[number]["input_ids"])
        assert sample["hidden_states"].dtype == torch.bfloat16
        assert torch.allclose(sample["hidden_states"][:, :3].float(), states[:, 1:4], rtol=2**-8, atol=1e-5)
        last = sample["hidden_states"][:, 3].float()
        assert torch.allclose(
            last / last.norm(dim=1, keepdim=True), torch.nn.functional.normalize(states[:, 5]), atol=2e-3
        )
        with torch.no_grad():  # what speculators makes its targets from
            targets = model.lm_head(model.model.norm(last)).log_softmax(1)
        kl = (logits.log_softmax(1).exp() * (logits.log_softmax(1) - targets)).sum(1)
        assert kl.max() <= report.tolerance_nats**2
    counts = torch.load(tmp_path / "out" / "token_freq.pt", weights_only=True)
    flat = np.concatenate([row["input_ids"].numpy() for row in rows])
    assert counts == {int(token): int((flat == token).sum()) for token in np.unique(flat)}


def test_specforge_finds_states_behind_the_norm_in_folders_of_each_split(captured, tmp_path):
    report, teacher = exported(captured, tmp_path / "out", "specforge"), teacher_of(captured)
    assert report.layer_ids == (0, 1, 2)  # SpecForge counts the outputs of layers
    for split, name in (("train", "train"), ("held_out", "test")):
        sequences = sequences_of(teacher, split)
        files = sorted((tmp_path / "out" / name).rglob("*.ckpt"))
        assert len(files) == len(sequences)
        sample = torch.load(tmp_path / "out" / name / "rows_0-2000" / "data_0.ckpt", mmap=True, weights_only=True)
        states, _, model = states_of(captured, sequences[0])
        length = len(states)
        assert {key: (value.dtype, tuple(value.shape)) for key, value in sample.items()} == {
            "input_ids": (torch.int64, (length,)),
            "loss_mask": (torch.int64, (length,)),
            "aux_hidden_state": (torch.bfloat16, (1, length, 96)),
            "hidden_state": (torch.bfloat16, (1, length, 32)),
        }
        assert torch.allclose(sample["aux_hidden_state"][0].float(), states[:, 1:4].flatten(1), rtol=2**-8, atol=1e-5)
        with torch.no_grad():
            behind = model.model.norm(states[:, 5])
        assert torch.allclose(sample["hidden_state"][0].float(), behind, rtol=2**-8, atol=1e-4)


def test_the_state_before_a_norm_is_found_again():
    rng = np.random.default_rng(0)
    norm = FinalNorm(rng.uniform(0.2, 3, 64).astype(np.float32), 1e-5, 4)
    states = rng.normal(size=(40, 64)).astype(np.float32) * np.geomspace(1e-3, 1e3, 40, dtype=np.float32)[:, None]
    behind = norm.apply(states)
    again = norm.apply(norm.undo(behind))
    assert np.abs(again - behind).max() <= 1e-4 * np.abs(behind).max()  # epsilon, and the float32 sum of 64 squares
    felt = np.square(states).mean(axis=1) < 1e-4
    assert np.allclose(norm.undo(behind)[felt], states[felt], rtol=1e-2)  # there even the length is told


WRONG = {
    "twice": (lambda norm, states: norm.apply(states), "applied twice"),
    "never": (lambda norm, states: norm.undo(states), "applied never"),
    "shifted": (lambda norm, states: np.roll(states, 1, axis=0), "shifted by one"),
    "strange": (lambda norm, states: np.random.default_rng(0).permuted(states, axis=1), "nothing in common"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_states_are_named(captured, kind):
    change, words = WRONG[kind]
    teacher, norm = teacher_of(captured), read_final_norm(captured / "teacher")
    head, (start, stop) = open_head(teacher), teacher.encoding.sequences(0)[0].rows
    states, entries = teacher.hidden("last", start, stop), KeptEntries.of(teacher.targets(start, stop))
    rounding = Rounding.of_shard(teacher, 0)
    assert not too_many(compare(head, states, entries, rounding), rounding)
    wrong = change(norm, states)
    assert too_many(compare(head, wrong, entries, rounding), rounding)
    assert words in likely_cause(head, wrong, entries, rounding, norm)


def test_another_layer_is_named(captured):
    teacher, norm = teacher_of(captured), read_final_norm(captured / "teacher")
    sequence = teacher.encoding.sequences(0)[0]
    rounding, entries = Rounding.of_shard(teacher, 0), KeptEntries.of(teacher.targets(*sequence.rows))
    before = states_of(captured, sequence)[0][:, 4].numpy()
    cause = likely_cause(open_head(teacher), norm.apply(before), entries, rounding, norm)
    assert "another layer's" in cause


def test_a_norm_of_another_model_is_refused_before_anything_is_written(captured, tmp_path):
    other = tiny.save_teacher(tmp_path / "other", tiny.model(num_hidden_layers=5))
    with pytest.raises(IdentityError, match="another model's"):
        exported(captured, tmp_path / "out", "speculators", model=other)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    gpt2 = tiny.save_teacher(tmp_path / "gpt2", tiny.model("gpt2"))
    with pytest.raises(ModelError, match="no RMS norm"):
        exported(captured, tmp_path / "out", "speculators", model=gpt2)


def test_what_a_draft_head_needs_is_said(captured, tmp_path):
    with pytest.raises(ConfigError, match="--model"):
        exported(captured, tmp_path / "out", "speculators", model=None)
    with pytest.raises(ConfigError, match="3 auxiliary layers"):
        exported(captured, tmp_path / "out", "specforge", layers=("1", "2"))
    with pytest.raises(ConfigError, match="3 auxiliary layers"):
        exported(captured, tmp_path / "out", "specforge", layers=("1", "2", "7"))


def killed_export(suffix, folder, target):
    kill_at_rename(suffix, lambda: exported(folder, target, "speculators"))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_export_of_states_ends_in_the_same_bytes(captured, tmp_path):
    exported(captured, tmp_path / "straight", "speculators")
    assert finish(start(killed_export, "hs_3.safetensors", captured, tmp_path / "out")) == -9
    exported(captured, tmp_path / "out", "speculators")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_the_command_says_how_to_train_with_the_files(captured, tmp_path):
    arguments = ["export", str(captured / "cache"), str(tmp_path / "out"), "--format", "speculators"]
    result = CliRunner().invoke(cli, [*arguments, "--model", str(captured / "teacher"), "--layers", "1,2,3"])
    assert result.exit_code == 0, result.output
    assert "--target-layer-ids 1 2 3" in result.output
    assert "1.00" not in result.output.split("bytes")[1].split("in the files")[0]
    other = CliRunner().invoke(cli, ["export", str(captured / "cache"), str(tmp_path / "rows"), "--layers", "1"])
    assert other.exit_code == 2
