"""WordNet's data files are read as its manual describes them; the lines are ours, in the same format."""

import subprocess

import click
import pytest
from click.testing import CliRunner

from configs.papers import wordnet

LINES = {
    "noun": [
        "  1 A licence stands here, each line numbered and indented.  ",
        '00000100 05 n 02 grebling 0 lake_grebling 0 001 @ 00000900 n 0000 | a small wet bird; "the grebling dived; '
        'it came up"; "two lake greblings"  ',
        '00000200 10 n 01 byword 0 000 | a phrase, such as "as wet as a grebling", that everybody knows  ',
    ],
    "verb": ['00000100 38 v 01 grebble 1 001 @ 00000300 v 0000 02 + 02 00 + 08 00 | dive, "it grebbled"  '],
    "adj": ["00000100 00 s 0a " + "wet(a) 0 " + "so_wet(ip) 0 " + "x 0 " * 8 + '000 | "wet weather"  '],
    "adv": ["00000100 02 r 01 wetly 0 000 | in a wet way  "],
}


@pytest.fixture
def folder(tmp_path):
    for name, lines in LINES.items():
        (tmp_path / f"data.{name}").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_synsets_are_read_as_the_manual_says(folder):
    bird, byword, verb, adjective, adverb = wordnet.synsets(folder)
    examples = ("the grebling dived; it came up", "two lake greblings")
    names = ("grebling", "lake grebling")
    assert bird == ("n00000100", "n", "noun.animal", names, "a small wet bird", examples)
    assert byword.definition == 'a phrase, such as "as wet as a grebling", that everybody knows'
    assert byword.examples == ()
    assert verb == ("v00000100", "v", "verb.motion", ("grebble",), "dive", ("it grebbled",))
    assert adjective == ("a00000100", "a", "adj.all", ("wet", "so wet", *"x" * 8), "", ("wet weather",))
    assert adverb == ("r00000100", "r", "adv.all", ("wetly",), "in a wet way", ())


def test_every_lexicographer_file_has_its_number():
    """Numbers of the manual, some from each part of the list."""
    numbers = {"adj.all": 0, "noun.Tops": 3, "noun.animal": 5, "noun.plant": 20, "noun.time": 28, "verb.body": 29}
    assert {name: wordnet.LEXNAMES.index(name) for name in numbers} == numbers
    assert (len(wordnet.LEXNAMES), len(set(wordnet.LEXNAMES))) == (45, 45)
    assert wordnet.LEXNAMES[43:] == ("verb.weather", "adj.ppl")


@pytest.mark.parametrize("line", ["00000100 05 n 01 bird 0 000", "a few words | and a bar", "00000100 77 n 01 x 0 | y"])
def test_a_file_of_another_format_is_refused_by_its_name(folder, line):
    (folder / "data.verb").write_text(line + "\n")
    with pytest.raises(click.ClickException, match=r"data\.verb is no data file"):
        list(wordnet.synsets(folder))


def test_a_missing_file_is_refused_by_its_name(folder):
    (folder / "data.adv").unlink()
    with pytest.raises(click.ClickException, match=r"data\.adv"):
        list(wordnet.synsets(folder))


def test_what_is_there_is_not_fetched_again_and_no_network_leaves_nothing(folder, monkeypatch):
    def refuse(command, **_):
        raise subprocess.CalledProcessError(100, command)

    monkeypatch.setattr(subprocess, "run", refuse)
    assert CliRunner().invoke(wordnet.fetch, [str(folder)]).output == "5 synsets\n"
    result = CliRunner().invoke(wordnet.fetch, [str(folder / "new" / "wordnet")])
    assert result.exit_code == 1
    assert "wordnet-base could not be had from APT" in result.output
    assert list((folder / "new").iterdir()) == []
