"""The pictures: that they show what was logged and measured, and what happens without matplotlib."""

import json

import pytest
from click.testing import CliRunner

import tiny
from cache_tools.errors import ConfigError
from logitcask import cli
from student_fixtures import train
from trainer import plots
from trainer.run.curves import draw_curves

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'logitcask[plots]'")

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.fixture(scope="module")
def output(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(cache, folder, picture=True, eval_strategy="steps", eval_steps=1)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written from here on."""
    from matplotlib.figure import Figure

    figures, savefig = [], Figure.savefig

    def keep(figure, *arguments, **named):
        figures.append(figure)
        savefig(figure, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def lines(figure):
    """Return the points of every line of a figure, by its label."""
    return {
        line.get_label(): list(zip(*line.get_data(), strict=True)) for axes in figure.axes for line in axes.get_lines()
    }


def test_a_run_ends_with_a_picture_of_all_that_was_logged(output, drawn):
    assert (output / "curves.png").read_bytes().startswith(PNG)
    draw_curves(output)
    log = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    shown = lines(drawn[0])
    for name, label, factor in (
        ("loss", "loss, as minimised", 1),
        ("kl_nats", "KL to the teacher", 1),
        ("eval_kl_to_teacher_nats", "KL to the teacher, held out", 1),
        ("eval_top1_agreement", "same best token as the teacher, held out", 100),
        ("learning_rate", "learning rate", 1),
    ):
        assert shown[label] == [(line["step"], factor * line[name]) for line in log if name in line]
        assert len(shown[label]) == 3


def test_steps_stand_below_and_tokens_above(output, drawn):
    draw_curves(output)
    first, last = drawn[0].axes[0], drawn[0].axes[-1]
    (above,) = first.child_axes
    assert (last.get_xlabel(), above.get_xlabel()) == ("optimizer steps", "tokens read")
    log = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert above.get_xlim() == pytest.approx((0, max(line.get("num_input_tokens_seen", 0) for line in log)))
    assert all(axes.get_ylabel() for axes in drawn[0].axes)


def test_without_evaluation_its_panel_is_left_out(tmp_path, drawn):
    log = [{"step": step, "loss": 3.0 - step, "learning_rate": 0.1} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    draw_curves(tmp_path)
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["loss per position", "learning rate"]


def test_a_run_without_matplotlib_ends_without_a_picture(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert (train(cache, tmp_path, picture=True, max_steps=1) / "model.safetensors").exists()
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(("ending", "first_bytes"), [("png", PNG), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_reliability_diagram_shows_the_bins_of_the_calibration_error(
    cache, output, tmp_path, drawn, ending, first_bytes
):
    file = tmp_path / f"reliability.{ending}"
    result = CliRunner().invoke(cli, ["evaluate", str(output / "final"), str(cache), "--plot", str(file), "--json"])
    assert file.read_bytes().startswith(first_bytes)
    printed = json.loads(result.stdout)
    bins = printed["reliability"]
    shown = [(100 * line["confidence"], 100 * line["accuracy"]) for line in bins]
    assert lines(drawn[0])["student"] == shown
    error = sum(line["positions"] * abs(line["accuracy"] - line["confidence"]) for line in bins) / printed["positions"]
    assert printed["calibration_error"] == pytest.approx(error)
    assert sum(line["positions"] for line in bins) == printed["positions"]


@pytest.mark.parametrize(
    ("file", "installed", "words"),
    [("r.gif", True, r"r.gif: pictures cannot be written in this format \(expected .png, .svg, .pdf\)"),
     ("r.png", False, r"--plot: matplotlib is not installed. Install it: pip install 'logitcask\[plots\]'.")],
)  # fmt: skip
def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(monkeypatch, file, installed, words):
    monkeypatch.setattr(plots, "can_plot", lambda: installed)
    with pytest.raises(ConfigError, match=words):
        CliRunner().invoke(cli, ["evaluate", "nowhere", "nowhere", "--plot", file], catch_exceptions=False)
