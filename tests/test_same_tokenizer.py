"""The same vocabulary is not the same tokenizer: what changes the ids of a text is refused, other spellings are not."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import tiny
from cache_tools.errors import IdentityError
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.compressed_folder import write_compressed
from cache_tools.vocabularies.same_tokenizer import canonical_rules, first_difference, probes, sampled_texts
from tokenizer_fixtures import edited
from trainer.config.student_file import StudentConfig
from trainer.data.opening import open_teachers
from trainer.evaluation.evaluate import evaluate_folder
from trainer.run.train import run_training

USUAL = tiny.tokenizer().backend_tokenizer


def swap_merges(state):
    """Two merges that compete for one letter change places: of ``t h e``, either ``th`` or ``he`` comes first."""
    merges = state["model"]["merges"]
    for number, (left, right) in enumerate(merges):
        for other, (begin, _) in enumerate(merges[number + 1 :], number + 1):
            if begin == right and len(left + right) == 2:
                merges[number], merges[other] = merges[other], merges[number]
                return
    raise AssertionError("no merges compete")


def splitting_digits(state):
    state["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False},
            state["pre_tokenizer"],
        ],
    }


OTHER = {
    "a merge fewer": lambda state: state["model"]["merges"].pop(),
    "merges in another order": lambda state: state["model"]["merges"].reverse(),
    "two merges exchanged": swap_merges,
    "lower-cased": lambda state: state.update(normalizer={"type": "Lowercase"}),
    "accents stripped": lambda state: state.update(normalizer={"type": "StripAccents"}),
    "NFC": lambda state: state.update(normalizer={"type": "NFC"}),
    "NFD": lambda state: state.update(normalizer={"type": "NFD"}),
    "NFKC": lambda state: state.update(normalizer={"type": "NFKC"}),
    "white space stripped": lambda state: state.update(
        normalizer={"type": "Strip", "strip_left": False, "strip_right": True}
    ),
    "one rare character replaced": lambda state: state.update(
        normalizer={"type": "Replace", "pattern": {"String": "\u2a0c"}, "content": "x"}
    ),
    "a space in front": lambda state: state["pre_tokenizer"].update(add_prefix_space=True),
    "split at a letter": splitting_digits,
    "space before an added token swallowed": lambda state: state["added_tokens"][0].update(lstrip=True),
    "space behind an added token swallowed": lambda state: state["added_tokens"][0].update(rstrip=True),
    "added tokens as words only": lambda state: state["added_tokens"][0].update(single_word=True),
}

SAME = {
    "unchanged": lambda state: None,
    "merges as strings": lambda state: state["model"].update(merges=[" ".join(m) for m in state["model"]["merges"]]),
    "keys in another order": lambda state: [state.update({key: state.pop(key)}) for key in sorted(state)],
    "truncation": lambda state: state.update(
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    ),
    "padding": lambda state: state.update(
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|end|>",
        }
    ),
    "another decoder": lambda state: state.update(decoder={"type": "Fuse"}),
    "a frame": lambda state: state.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}},
        }
    ),
}
UNLIKE_SPELLINGS = {
    "steps in a sequence": lambda state: state.update(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [state["pre_tokenizer"]]},
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
    ),
}


def difference(tokenizer):
    return first_difference(USUAL, tokenizer.backend_tokenizer, probes(USUAL))


@pytest.mark.parametrize("change", OTHER)
def test_other_behaviour_with_the_same_vocabulary_is_found(change):
    other = edited(OTHER[change])
    assert other.get_vocab() == USUAL.get_vocab()
    found = difference(other)
    assert found is not None
    assert found.first != found.second


@pytest.mark.parametrize("change", SAME | UNLIKE_SPELLINGS)
def test_another_spelling_is_the_same_tokenizer(change):
    other = edited((SAME | UNLIKE_SPELLINGS)[change])
    assert difference(other) is None
    assert (canonical_rules(other.backend_tokenizer) == canonical_rules(USUAL)) == (change in SAME)


def test_a_sentencepiece_model_with_a_normaliser_equals_the_one_with_a_splitter():
    """Both put ``▁`` before words, as older and newer conversions of one model do."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.train_from_iterator(
        tiny.TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    )
    state = json.loads(made.to_str())
    state["model"]["fuse_unk"] = True
    made = Tokenizer.from_str(json.dumps(state))
    legacy = Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": None}))
    legacy.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = ["the shard", "a map"]
    assert canonical_rules(made) != canonical_rules(legacy)
    assert first_difference(made, legacy, words) is None


def test_scores_of_a_unigram_model_and_a_zero_id_count():
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -1.5)]
    first = Tokenizer(models.Unigram(pieces, unk_id=0))
    second = Tokenizer(models.Unigram([*pieces[:3], ("ab", -9.0)], unk_id=0))
    assert first_difference(first, second, ["ab"]) is not None
    assert canonical_rules(first) != canonical_rules(Tokenizer(models.Unigram(pieces, unk_id=None)))


# Where it is asked for


def save(folder, tokenizer, seed=0):
    tiny.model(seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other():
    return edited(OTHER["two merges exchanged"])


def second_teacher(folder, tokenizer):
    values = tiny.capture_values(folder)
    block = values["teachers"][0] | {"name": "second", "model": str(save(folder / "second", tokenizer, seed=1))}
    return values | {"teachers": [*values["teachers"], block]}


def test_a_second_teacher_with_other_merges_is_refused_before_anything_is_written(tmp_path, other):
    with pytest.raises(IdentityError) as error:
        tiny.run(second_teacher(tmp_path, other))
    text = str(error.value)
    assert "the tokenizer of teacher 'second' splits text unlike that of the encoding (expected" in text
    assert "encoding.name" in text
    assert not (tmp_path / "cache").exists()


def test_a_difference_that_only_the_corpus_shows_is_found_after_encoding(tmp_path):
    word = "position"
    rare = edited(
        lambda state: state.update(
            normalizer={"type": "Replace", "pattern": {"String": f"until {word}"}, "content": "until place"}
        )
    )
    with pytest.raises(IdentityError, match="splits text unlike"):
        tiny.run(second_teacher(tmp_path, rare))


def test_a_second_teacher_with_another_spelling_is_captured(tmp_path):
    assert set(tiny.run(second_teacher(tmp_path, edited(UNLIKE_SPELLINGS["steps in a sequence"])))) == {"toy", "second"}


@pytest.fixture(scope="module")
def captured(tmp_path_factory, other):
    """A cache, and one of the tokenizer with the other merges."""
    folder = tmp_path_factory.mktemp("captured")
    for name, tokenizer in (("usual", tiny.tokenizer()), ("other", other)):
        (folder / name).mkdir()
        tiny.capture(folder / name, save(folder / name / "model", tokenizer))
    return folder


def student(captured, tmp_path, pretrained):
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "save_strategy": "no"}
    values = {"cache": str(captured / "usual/cache"), "student": {"pretrained": str(pretrained)}, "training": training}
    return StudentConfig.model_validate(values)


def test_a_pretrained_student_with_other_merges_is_refused(captured, tmp_path):
    with pytest.raises(
        IdentityError, match="the student's tokenizer splits text unlike the one that it is trained with"
    ):
        run_training(student(captured, tmp_path, captured / "other/model"))
    assert not (tmp_path / "run/final").exists()


def test_a_pretrained_student_with_another_spelling_is_trained(captured, tmp_path):
    folder = save(tmp_path / "student", edited(UNLIKE_SPELLINGS["steps in a sequence"]))
    assert run_training(student(captured, tmp_path, folder)).student.exists()


def test_evaluate_refuses_a_student_with_other_merges(captured):
    teacher = Cache(captured / "usual/cache").encoding().teacher()
    with pytest.raises(IdentityError, match="splits text unlike"):
        evaluate_folder(captured / "other/model", teacher, "held_out")
    assert evaluate_folder(captured / "usual/model", teacher, "held_out")


def test_caches_of_one_vocabulary_and_two_tokenizers_are_not_mixed(captured, tmp_path):
    caches = [{"cache": str(captured / name / "cache")} for name in ("usual", "other")]
    base = student(captured, tmp_path, captured / "usual/model").model_dump(mode="json", exclude_unset=True)
    values = {key: value for key, value in base.items() if key != "cache"} | {"caches": caches}
    with pytest.raises(IdentityError, match=r"caches\.1 has a tokenizer that splits text unlike that of the first"):
        open_teachers(StudentConfig.model_validate(values))
    encodings = [Cache(captured / name / "cache").encoding() for name in ("usual", "other")]
    with pytest.raises(IdentityError, match="several tokenizers"):
        write_compressed(tmp_path / "vocabulary", encodings, 0.5)


def test_texts_of_a_cache_are_spread_over_it(captured):
    encoding = Cache(captured / "usual/cache").encoding()
    texts = list(sampled_texts(encoding))
    assert texts[0] == encoding.sequences(0)[0].text
    assert texts[-1] in {sequence.text for sequence in encoding.sequences(len(encoding.shards) - 1)}
