"""The documentation's blocks that are marked ``run`` run, in a folder that looks like the repository's root.

A page's blocks run in order and share the folder. Python blocks that follow each other are one program, as the cells
of a notebook are. In place of the demo's results the folder holds those of a tiny teacher with random weights: the
blocks are to run, not to teach.
"""

import os
import runpy
import sys
from itertools import groupby

import pytest

import processes
from doc_blocks import GUIDES, ROOT, blocks
from reader_folder import reader_folder, run

FEW_DOCUMENTS = 12
"""Enough documents that some of them are held out."""
CHARACTERS = 600
"""Title, date and a paragraph or two of a document."""

TRAIN_STUDENT = """
logitcask train configs/demo/student.yaml --set training.max_steps=2 --set training.output_dir=runs/demo/student_cached
"""


def run_page(folder, page):
    """Write the files and run the blocks of a page, in order; return all output."""
    used = [block for block in blocks(ROOT / page) if block.file or "run" in block.marks]
    output = ""
    for (name, language), group in groupby(used, key=lambda block: (block.file, block.language)):
        text = "\n".join(block.text for block in group)
        if name:
            (folder / name).write_text(text)
        else:
            output += run(folder, language, text)
    return output


def pages_that_run():
    return {block.page for page in GUIDES for block in blocks(page) if "run" in block.marks}


def test_every_page_with_blocks_to_run_is_run_here():
    assert pages_that_run() == {
        "docs/tutorial/notebook.md",
        "docs/how-to/subset-and-copy.md",
        "docs/tutorial/your-own-corpus.md",
        "docs/how-to/judge.md",
        "docs/how-to/generate.md",
    }


@pytest.mark.slow
def test_the_notebook_page_runs(tmp_path):
    output = run_page(reader_folder(tmp_path), "docs/tutorial/notebook.md")
    assert "['toy']" in output
    assert "was expected" in output
    assert (tmp_path / "surprise.png").exists() or "nats" in output


@pytest.mark.slow
def test_the_page_about_subsets_and_copies_runs(tmp_path):
    output = run_page(reader_folder(tmp_path), "docs/how-to/subset-and-copy.md")
    assert (tmp_path / "runs/copy/zarr.json").exists()
    assert "toy" in output


@pytest.mark.slow
def test_the_tutorial_on_a_corpus_of_ones_own_runs(tmp_path):
    """On the beginnings of a few documents: all of them take the demo's teacher half a minute."""
    folder = reader_folder(tmp_path)
    (folder / "docs").unlink()
    (folder / "docs/decisions").mkdir(parents=True)
    for path in sorted((ROOT / "docs/decisions").glob("*.md"))[:FEW_DOCUMENTS]:
        (folder / "docs/decisions" / path.name).write_text(path.read_text()[:CHARACTERS])
    output = run_page(folder, "docs/tutorial/your-own-corpus.md")
    assert "what k keeps and costs" in output
    assert "KL to the teacher" in output
    assert (tmp_path / "runs/mine/student/final/model.safetensors").exists()


@pytest.mark.slow
def test_the_page_about_judging_runs(tmp_path):
    folder = reader_folder(tmp_path)
    run(folder, "bash", TRAIN_STUDENT)
    assert "cross-entropy" in run_page(folder, "docs/how-to/judge.md")


def build_site(output):
    """Build the site as ``make docs`` does, without the tree of all pages in each margin: a third of the time."""
    import furo
    from sphinx.cmd.build import main

    furo._compute_navigation_tree = lambda context: ""
    with open(output / "stderr", "w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    trees = ["-d", str(output / "trees")]
    sys.exit(main(["-W", "--keep-going", "-q", "-b", "html", *trees, str(ROOT / "docs"), str(output / "html")]))


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_its_index_names_every_page(tmp_path):
    pytest.importorskip("sphinx")
    code = processes.finish(processes.start(build_site, tmp_path))
    assert code == 0, (tmp_path / "stderr").read_text()
    index = (tmp_path / "html" / "llms.txt").read_text()
    generated = {"genindex", "search", "py-modindex", "index"}
    pages = {str(path.relative_to(tmp_path / "html"))[:-5] for path in (tmp_path / "html").rglob("*.html")} - generated
    assert [page for page in sorted(pages) if f"({page}.html)" not in index] == []


def test_a_task_for_the_public_harness_asks_for_words_of_held_out_text(tmp_path):
    """What the harness does with the file is not tested here: it is no dependency."""
    task = runpy.run_path(str(ROOT / "docs/examples/next_words.py"))
    text = "The capital of the country " * 30 + "is called Examplia."
    for question in task["questions"](text):
        assert len(question["context"]) == task["CONTEXT_CHARACTERS"]
        assert f"{question['context']} {question['word']}" in text
    assert len(task["questions"](text)) == 10  # every fifth of 47


@pytest.mark.slow
def test_the_page_about_generation_runs(tmp_path):
    run_page(reader_folder(tmp_path), "docs/how-to/generate.md")
    assert (tmp_path / "runs/demo/completions/policy.json").exists()
