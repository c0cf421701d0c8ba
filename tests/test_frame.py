"""Positions as a table: every cell is what the reader gives, and the example runs."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import kinds
import tiny
from cache_tools.inspection.dataframe import to_arrow, to_pandas
from store_fixtures import by_id

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("kind", ["topk", "topp", "sampled", "dense"])
def test_the_columns_are_what_the_reader_gives(tmp_path, kind):
    teacher = kinds.make(kind, tmp_path).open()
    sequence = teacher.encoding.sequence(4)
    table, targets = to_arrow(teacher, sequences=[4]), teacher.targets(*sequence.rows)
    assert table["position"].to_pylist() == sequence.positions().tolist()
    assert table["gold_id"].to_pylist() == sequence.gold_ids("causal").tolist()
    assert table["token_id"].to_pylist() == sequence.input_ids[:-1].tolist()
    for name in teacher.manifest.scalars:
        assert np.array_equal(table[name].to_numpy(), teacher.scalar(name, *sequence.rows))
    rows = [
        dict(zip(*row, strict=True))
        for row in zip(table["ids"].to_pylist(), table["log_probs"].to_pylist(), strict=True)
    ]
    assert rows == by_id(targets)
    assert all(list(row.values()) == sorted(row.values(), reverse=True) for row in rows)
    assert np.allclose(table["kept_mass"].to_numpy(), [sum(np.exp(list(row.values()))) for row in rows])
    assert table["top1_id"].to_pylist() == [next(iter(row)) for row in rows]
    assert np.allclose(table["top1_prob"].to_numpy(), [np.exp(next(iter(row.values()))) for row in rows])
    assert set(table["document_id"].to_pylist()) == {"document-1"}
    assert table["gold_text"].to_pylist() == [f"<id {i}>" for i in table["gold_id"].to_pylist()]


def test_rows_are_those_of_the_arrays_and_unused_ones_are_passed_over(tmp_path):
    teacher = kinds.make("topk", tmp_path).open()
    everything = to_arrow(teacher, sequences=range(9))
    assert len(everything) == 36
    assert to_arrow(teacher, rows=(0, 48)) == everything
    assert to_arrow(teacher, rows=(2, 18)) == everything.slice(2, 12)  # rows 12 to 15 belong to nobody
    assert len(to_arrow(teacher, rows=(12, 16))) == 0
    assert to_arrow(teacher, rows=(5, 5)).schema == everything.schema == to_arrow(teacher, sequences=[]).schema


@pytest.mark.parametrize("arguments", [{}, {"sequences": [0], "rows": (0, 1)}])
def test_sequences_or_rows_must_be_given(tmp_path, arguments):
    with pytest.raises(ValueError, match="sequences or rows"):
        to_arrow(kinds.make("topk", tmp_path).open(), **arguments)


@pytest.mark.parametrize("arguments", [{"sequences": [9]}, {"rows": (0, 49)}, {"rows": (-1, 2)}, {"rows": (3, 2)}])
def test_what_does_not_exist_is_an_index_error(tmp_path, arguments):
    with pytest.raises(IndexError):
        to_arrow(kinds.make("topk", tmp_path).open(), **arguments)


def test_a_position_where_nothing_was_kept_has_no_likeliest_token(tmp_path):
    def nothing(rng, n):
        return kinds.Targets(np.zeros((n, 4), np.uint32), np.full((n, 4), -np.inf, np.float32), np.zeros(n, np.float32))

    table = to_arrow(kinds.make("exact", tmp_path, draw=nothing).open(), sequences=[0])
    assert table["top1_id"].to_pylist() == table["top1_text"].to_pylist() == [None] * 4
    assert table["ids"].to_pylist() == [[]] * 4
    assert table["top1_prob"].to_pylist() == table["kept_mass"].to_pylist() == [0] * 4


def test_a_data_frame_is_the_table(tmp_path):
    pytest.importorskip("pandas")
    teacher = kinds.make("topk", tmp_path).open()
    frame, table = to_pandas(teacher, sequences=[1, 2]), to_arrow(teacher, sequences=[1, 2])
    assert list(frame.columns) == table.column_names
    assert frame["position"].tolist() == table["position"].to_pylist()
    assert isinstance(table, pa.Table)


@pytest.mark.parametrize("blocked", [True, False])
def test_the_example_draws_or_prints(tmp_path, monkeypatch, capsys, blocked):
    (tmp_path / "made").mkdir()
    cache = tiny.capture(tmp_path / "made").path
    if blocked:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "argv", ["surprise.py", str(cache), str(tmp_path / "surprise.png")])
    capsys.readouterr()
    runpy.run_path(str(ROOT / "docs/examples/surprise.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "mean surprise" in printed
    assert "#####" in printed or (not blocked and (tmp_path / "surprise.png").exists())
