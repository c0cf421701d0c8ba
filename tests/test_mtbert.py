"""The recipe end to end on sentences of our own; stage zero, the loss and the arms against their definitions."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from cache_tools.configuration import configured, load_config
from configs.papers.mtbert import data, questions, run, scores, tables
from configs.papers.mtbert.arms import (
    MEAN,
    MT_BERT,
    NAMES,
    NO_HIDDEN,
    NO_TEACHER,
    ONE_NOISY,
    SAME_TOTAL,
    SEPARATE,
    Hidden,
    Team,
    arms_of,
    layer_map,
    student_changes,
)
from configs.papers.mtbert.cofinetune import (
    Examples,
    Tuning,
    cofinetune,
    corrupted,
    joint_loss,
    training_examples,
    with_one_head,
)
from configs.papers.mtbert.parts import STUDENTS as STUDENTS_PART
from configs.papers.mtbert.parts import write_parts
from configs.papers.mtbert.spaces import linear_cka
from configs.papers.recipes import labelled_sequences, truncated
from pipeline.encoding.held_out import is_held_out
from student_fixtures import largest_difference, weights, without_pictures
from tolerances import loss_rounding
from topics import labelled, write_topics
from trainer.config.student_file import StudentConfig
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import collate
from trainer.data.opening import open_teachers
from trainer.data.sources import loss_of, training_sequences
from trainer.student.student import distilled

ARMS, (JOINT, ALONE, NOISY) = arms_of(NAMES), Team.of(NAMES)
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
BATCH = "training.per_device_train_batch_size=20"
CHANGES = {
    "--set-pretrain": [
        *(f"student.config.{key}={value}" for key, value in SHAPE.items()),
        "training.max_steps=10",
        BATCH,
    ],
    "--set-capture": [
        "encoding.positions_per_shard=4096",
        "encoding.chunk_positions=512",
        *(f"teachers.{number}.target.k=200" for number in range(3)),  # the whole vocabulary
    ],
    "--set-student": ["training.max_steps=50", "training.learning_rate=0.01", BATCH],
}
STUDENTS = (NO_TEACHER, MEAN, MT_BERT, f"{SAME_TOTAL}{ONE_NOISY}")
STUDENT = run.HERE / "student.yaml"
TEXTS = ["a small oak", "a heavy saw near the mill"]


def run_recipe(work, students=STUDENTS):
    options = [word for option, changes in CHANGES.items() for change in changes for word in (option, change)]
    arguments = [str(work.parent / "texts"), str(work), "--seeds", "1", "--tokens", "120", "--noisy-times", "1"]
    tuning = ["--tuning-steps", "40", "--tuning-rate", "0.01", *(word for arm in students for word in ("--arms", arm))]
    result = CliRunner().invoke(run.run, [*arguments, *tuning, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtbert")
    write_topics(folder / "texts")
    with without_pictures():
        (folder / "printed").write_text(run_recipe(folder / "work"))
    return folder / "work"


@pytest.fixture(scope="module")
def teachers(work):
    return work / "wordnet" / "teachers" / "0"


@pytest.fixture(scope="module")
def found(work, teachers):
    """What was measured of students and teachers, each of number 0."""
    return run.measured(settings(work))


def settings(work):
    return run.Settings(work.parent / "texts", work, "wordnet", 1, Tuning(), 1, {}, {})


def right(found, name):
    return (found.students | found.teachers)[name][0].right


@pytest.mark.slow
def test_all_students_and_teachers_answer_the_same_held_out_texts(found, teachers):
    held_out = labelled_sequences(teachers / "cache")
    assert len(held_out) > 60
    for name in (*STUDENTS, *JOINT, *NOISY):
        assert right(found, name).shape == (len(held_out),)
    for of_all in (found.ensembles["together"][0], found.bag_of_words[0]):
        assert of_all.right.shape == of_all.nats.shape == (len(held_out),)


@pytest.mark.slow
def test_teachers_learn_the_task_and_the_student_learns_it_from_them(found, teachers):
    assert min(right(found, name).mean() for name in (*JOINT, *ALONE)) > 0.5  # by chance a third
    assert right(found, MT_BERT).mean() > 0.5
    assert found.bag_of_words[0].right.mean() > 0.5


@pytest.mark.slow
def test_the_noisy_teacher_counts_least(found, teachers):
    assert found.weights[NOISY[-1]][0] < min(found.weights[name][0] for name in ALONE)


@pytest.mark.slow
def test_the_weights_in_the_table_are_those_of_the_teachers_asked_anew(found, teachers):
    texts, losses = labelled_sequences(teachers / "cache", "train"), []
    model = AutoModelForMaskedLM.from_pretrained(teachers / NOISY[-1]).eval().double()
    for each in texts:
        with torch.no_grad():
            logits_V = model(input_ids=torch.from_numpy(each.input_ids.astype(np.int64))[None]).logits[0, 0]
        losses.append(float(F.cross_entropy(logits_V, torch.tensor(int(each.gold_ids("masked")[0])))))
    expected = np.mean([1 / (1 + loss) for loss in losses])
    assert found.weights[NOISY[-1]][0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_its_teachers_probabilities_of_the_labels(found, teachers):
    labels, texts = sorted({each["label"] for each in labelled()}), labelled_sequences(teachers / "cache")
    columns = AutoTokenizer.from_pretrained(teachers / JOINT[0]).convert_tokens_to_ids(labels)
    models = [AutoModelForMaskedLM.from_pretrained(teachers / name).eval().double() for name in JOINT]
    for row, text in list(enumerate(texts))[:20]:
        with torch.no_grad():
            ids = torch.from_numpy(text.input_ids.astype(np.int64))[None]
            p_C = sum(model(input_ids=ids).logits[0, 0, columns].softmax(0) for model in models) / len(models)
        gold = columns.index(int(text.gold_ids("masked")[0]))
        assert found.ensembles["together"][0].nats[row] == pytest.approx(-float(p_C[gold].log()), rel=1e-4, abs=1e-6)
        assert found.ensembles["together"][0].right[row] == (int(p_C.argmax()) == gold)


@pytest.mark.slow
def test_equal_weights_of_the_same_total_add_up_to_the_discounted_ones(work, found):
    folder = run.run_folder(work / "wordnet" / "students" / "0", f"{SAME_TOTAL}{ONE_NOISY}")
    recorded = json.loads((folder / "run.json").read_text())["config"]["loss"]
    total = sum(found.weights[name][0] for name in NOISY)
    assert recorded["kd_weight"] / (1 - recorded["kd_weight"]) == pytest.approx(total, rel=1e-3)
    assert [pair["weight"] for pair in recorded["hidden"]] == pytest.approx([1 - recorded["kd_weight"]] * 6)


@pytest.mark.slow
def test_arms_of_an_earlier_command_stay_in_the_tables(work):
    printed = run_recipe(work, students=(NO_TEACHER, MT_BERT))
    for name in (*STUDENTS, tables.BAG_OF_WORDS, "ensemble of the teachers tuned together"):
        assert f"| {name} " in printed


@pytest.mark.slow
def test_teachers_tuned_together_have_one_head_and_encoders_of_their_own(found, teachers):
    together, alone = ([weights(teachers / name) for name in names] for names in (JOINT, ALONE))
    head = [name for name in together[0] if name.startswith("cls.")]
    encoder = [name for name in together[0] if name.startswith("bert.") and together[0][name].ndim == 2]
    assert {"cls.predictions.decoder.weight", "cls.predictions.transform.dense.weight"} <= set(head)

    def apart(models, names):
        return min(largest_difference(*({n: each[n] for n in names} for each in pair)) for pair in pairwise(models))

    assert apart(together, head) == 0 < apart(alone, head)
    assert apart(together, encoder) > 0 < apart(alone, encoder)
    joint, each = (found.agreements[how][0] for how in ("together", "each alone"))
    assert joint.own_head - joint.other_head == 0
    assert each.own_head - each.other_head > 0.1


@pytest.mark.slow
def test_no_held_out_text_was_seen_in_stage_zero(work, teachers):
    tokenizer = AutoTokenizer.from_pretrained(work / "start")
    seen = training_examples(work.parent / "texts" / "wordnet.jsonl", 0.3, tokenizer)
    held_out = {each.group_id for each in labelled_sequences(teachers / "cache")}
    assert set(seen.texts) == {each["group"] for each in labelled()} - held_out
    assert [tokenizer.convert_ids_to_tokens(label) for label in seen.labels[:3]] == [
        each["label"] for each in labelled() if each["group"] not in held_out
    ][:3]


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_prints_the_same_tables(work):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    assert run_recipe(work) == (work.parent / "printed").read_text()
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == before


class Live:
    """The batch of a student with MT-BERT's loss, and what the teachers say of it live, in float64."""

    def __init__(self, work, teachers):
        places = (f"cache={teachers / 'cache'}", f"student.pretrained={work / 'start'}", "training.use_cpu=true")
        self.config = load_config(STUDENT, StudentConfig, places)
        cached = open_teachers(self.config)
        torch.manual_seed(0)
        student = AutoModelForMaskedLM.from_pretrained(work / "start").eval()
        self.module = distilled(student, self.config.loss, *cached, objective=loss_of(self.config, cached))
        for matrix in self.module.loss.match.parameters():
            torch.nn.init.normal_(matrix, std=0.2)  # the identity would not tell which side is mapped
        examples = training_sequences(self.config, cached, student.config.vocab_size)
        self.batch = collate([examples[i] for i in range(0, 40, 4)])
        self.module.eval()
        self.kept = self.batch["gold_ids"] != IGNORED
        self.label_P = torch.cat([torch.arange(int(row.sum())) == 0 for row in self.kept])
        self.gold = self.batch["gold_ids"][:, 0]
        names = [teacher.name for teacher in cached]
        self.said = {name: self.asked(AutoModelForMaskedLM.from_pretrained(teachers / name)) for name in names}

    def asked(self, model):
        """Return log-probabilities at the label, and hidden states at the kept positions."""
        inputs = {name: self.batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            output = model.eval().double()(**inputs, output_hidden_states=True)
        model.float()
        return output.logits[:, 0].log_softmax(dim=1), [states[self.kept] for states in output.hidden_states]


@pytest.mark.slow
def test_the_cached_loss_is_the_paper_s_of_teachers_asked_live(work, teachers):
    """The soft term is a KL, which is the paper's cross-entropy less what the student cannot change."""
    live = Live(work, teachers)
    log_q, mine = live.asked(live.module.student)
    projections = iter(live.module.loss.match.parameters())
    soft, hidden = torch.zeros(len(log_q), dtype=torch.float64), 0.0
    for log_p, states in live.said.values():
        kl = (log_p.exp() * (log_p - log_q)).sum(dim=1)
        soft += kl / (1 + F.nll_loss(log_p, live.gold, reduction="none"))
        for layer in (1, 2):
            mapped = states[2 * layer] @ next(projections).detach().double().T
            hidden += float(((mine[layer] - mapped) ** 2).mean())
    at_labels = float(soft.sum() + F.nll_loss(log_q, live.gold, reduction="sum"))
    with torch.no_grad():
        found = live.module(**live.batch)
    positions, counts = len(live.label_P), float(live.batch["position_weights"][live.label_P][0])
    assert float(found["kl_nats"]) / counts == pytest.approx(float(soft.sum()), rel=5e-3)
    assert float(found["hidden_loss"]) / positions == pytest.approx(hidden / 2, rel=5e-3)
    assert float(found["loss"]) == pytest.approx((counts * at_labels / positions + hidden) / 2, rel=5e-3)


def test_every_arm_weighs_the_task_and_each_hidden_pair_alike(tmp_path):
    """As in a plain sum of losses. The student file as committed is the arm of that name."""
    for name, arm in ARMS.items():
        config = configured(STUDENT, StudentConfig, student_changes(arm, total=2.0))
        assert {pair.weight for pair in config.loss.hidden} <= {1 - config.loss.kd_weight}
        assert (not config.loss.hidden) == (NO_HIDDEN in name or name == NO_TEACHER)
        assert [teacher.name for teacher in config.teachers] == list(arm.teachers)
        given = config.loss.kd_weight / (1 - config.loss.kd_weight)
        expected = {NO_TEACHER: 0, "MT-BERT, equal weights": 3}.get(name, 2 if arm.same_total else 1)
        assert given == pytest.approx(expected, rel=1e-3)
        if name == MT_BERT:
            assert config == load_config(STUDENT, StudentConfig)


def test_layers_are_compared_at_the_same_relative_depth_rounded_up():
    assert layer_map(4, 2) == {1: 2, 2: 4}
    assert layer_map(3, 2) == {1: 2, 2: 3}
    assert layer_map(6, 3) == {1: 2, 2: 4, 3: 6}
    hidden = Hidden({"deep": 6, "flat": 3}, 2, "ridge")
    pairs = student_changes(arms_of(["deep", "flat"])[MT_BERT], hidden=hidden)["loss.hidden"]
    compared = [(pair["teacher"], pair["student_layer"], pair["teacher_layer"]) for pair in pairs]
    assert compared == [("joint-deep", 1, 3), ("joint-deep", 2, 6), ("joint-flat", 1, 2), ("joint-flat", 2, 3)]
    assert {pair["start"] for pair in pairs} == {"ridge"}


def test_the_weights_of_two_teachers_are_those_of_a_plain_sum_too():
    arms = arms_of(["deep", "flat"])
    given = {name: student_changes(arm, total=1.5)["loss.kd_weight"] for name, arm in arms.items()}
    ratios = {name: kd_weight / (1 - kd_weight) for name, kd_weight in given.items()}
    assert ratios[MT_BERT] == pytest.approx(1)
    assert ratios["MT-BERT, equal weights"] == pytest.approx(2)
    assert ratios[SAME_TOTAL] == pytest.approx(1.5)


def test_a_teacher_may_not_have_the_name_of_the_students_texts(tmp_path):
    given = [word for name in ("a", STUDENTS_PART) for word in ("--pretrained", f"{name}={tmp_path}")]
    AutoConfig.for_model("bert").save_pretrained(tmp_path)
    result = CliRunner().invoke(run.run, [str(tmp_path), str(tmp_path / "work"), *given, "--own-texts"])
    assert result.exit_code == 2
    assert "another name" in result.output


@pytest.mark.parametrize("given", [["deep"], ["deep=models/deep"], ["=x", "a=b"]])
def test_pre_trained_teachers_without_a_name_or_a_second_one_are_refused(given, tmp_path):
    words = [str(tmp_path), str(tmp_path / "work"), *(word for each in given for word in ("--pretrained", each))]
    result = CliRunner().invoke(run.run, words)
    assert result.exit_code == 2
    assert "--pretrained NAME=FOLDER" in result.output


@pytest.mark.slow
def test_teachers_of_other_depths_take_the_place_of_those_trained_here(work):
    """The recipe again, with models of 4 layers and of 2; the student has one."""
    folder = work.parent / "given"
    folder.mkdir()
    plain = work / "untrained"
    truncated(plain, 2, folder / "flat")
    given = ["--pretrained", f"deep={plain}", "--pretrained", f"flat={folder / 'flat'}", "--student-layers", "1"]
    changes = [option for option in CHANGES["--set-capture"] if not option.startswith("teachers.2")]
    capture = [word for change in changes for word in ("--set-capture", change)]
    words = [str(work.parent / "texts"), str(folder / "work"), *given, "--seeds", "1", "--tuning-steps", "5", *capture]
    arms = [word for arm in (MT_BERT, f"{SAME_TOTAL}{ONE_NOISY}") for word in ("--arms", arm)]
    steps = ["--set-student", "training.max_steps=5", "--start", "ridge"]
    result = CliRunner().invoke(run.run, [*words, *arms, *steps], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for name in ("MT-BERT", "teacher joint-deep", "teacher noisy-flat", "ensemble of the teachers tuned together"):
        assert f"| {name} " in result.output
    assert AutoConfig.from_pretrained(folder / "work" / "start").num_hidden_layers == 1


@pytest.mark.slow
def test_with_texts_of_their_own_no_teacher_has_seen_a_text_of_the_students_or_of_another(work):
    """The recipe with three copies of one model."""
    folder = work.parent / "own"
    names = ("a", "b", "c")
    given = [word for name in names for word in ("--pretrained", f"{name}={work / 'untrained'}")]
    words = [str(work.parent / "texts"), str(folder), *given, "--own-texts", "--seeds", "1", "--tuning-steps", "5"]
    steps = [*("--arms", MT_BERT), *("--arms", SEPARATE), "--set-student", "training.max_steps=5"]
    capture = [word for change in CHANGES["--set-capture"] for word in ("--set-capture", change)]
    result = CliRunner().invoke(run.run, [*words, *steps, *capture], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "teacher joint-a" in result.output
    assert "ensemble of the teachers tuned each alone" in result.output
    made = folder / "wordnet-own-texts"
    read = {name: {each["group"] for each in records_of(made / "parts" / f"{name}.jsonl")} for name in names}
    cache = made / "teachers" / "0" / "cache"
    trained_on, held_out = (
        {each.group_id for each in labelled_sequences(cache, split)} for split in ("train", "held_out")
    )
    assert min(map(len, (*read.values(), trained_on, held_out))) > 30
    groups = [*read.values(), trained_on, held_out]
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(labelled())


def test_parts_of_a_task_keep_groups_whole_and_give_the_held_out_texts_to_the_students(tmp_path):
    records = [{"id": str(i), "group": f"g{i // 3}", "text": str(i), "label": "[x]"} for i in range(3000)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_parts(tmp_path / "task.jsonl", ["a", "b"], 0.4, tmp_path / "parts")
    parts = {name: records_of(tmp_path / "parts" / f"{name}.jsonl") for name in ("a", "b", STUDENTS_PART)}
    assert sorted(int(each["id"]) for part in parts.values() for each in part) == list(range(3000))
    groups = {name: {each["group"] for each in part} for name, part in parts.items()}
    assert sum(map(len, groups.values())) == 1000
    held_out = {each["group"] for each in records if is_held_out(each["group"], 0.4)}
    assert held_out < groups[STUDENTS_PART]
    sizes = [len(groups["a"]), len(groups["b"]), len(groups[STUDENTS_PART] - held_out)]
    share = (1000 - len(held_out)) / 3
    assert sizes == pytest.approx([share] * 3, abs=5 * share**0.5)  # five standard deviations of a count


def test_questions_are_records_with_a_token_for_their_class(tmp_path):
    (tmp_path / "train.txt").write_bytes("HUM:ind Who was Günter ?\nNUM:count How many ?\n".encode("latin-1"))
    (tmp_path / "test.txt").write_bytes(b"NUM:count How many ?\n\n")
    words = [str(tmp_path), str(tmp_path / "out")]
    assert CliRunner().invoke(questions.write, words, catch_exceptions=False).exit_code == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "questions.jsonl").read_text().splitlines()]
    assert [(each["text"], each["label"]) for each in records] == [
        ("Who was Günter ?", "[hum:ind]"),
        ("How many ?", "[num:count]"),
    ]
    assert len({each["group"] for each in records}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("texts_of_each", [[TEXTS], [TEXTS, TEXTS[:1], TEXTS[1:]]], ids=["of all", "of each"])
def test_the_loss_of_stage_zero_is_the_sum_of_each_teacher_s_own(work, texts_of_each):
    starts = [work / "pretrained" / name / "final" for name in ("wordnet", "debian", "both")]
    teachers, tokenizer = with_one_head(starts).eval(), AutoTokenizer.from_pretrained(starts[0])
    batches = [
        (tokenizer(texts, padding=True, return_tensors="pt"), torch.tensor([len(text) for text in texts]))
        for texts in texts_of_each
    ]
    found = float(joint_loss(teachers, batches).detach())
    expected = 0.0
    for number, teacher in enumerate(teachers.double()):
        inputs, labels = batches[number if len(batches) > 1 else 0]
        with torch.no_grad():
            expected += float(F.cross_entropy(teacher(**inputs).logits[:, 0], labels))
    assert found == pytest.approx(expected, rel=loss_rounding(teachers[0].config, 48, 1))
    assert len({id(teacher.cls) for teacher in teachers}) == 1


@pytest.mark.slow
def test_stage_zero_lowers_its_loss_and_depends_on_its_seed_alone(work, tmp_path):
    start = work / "pretrained" / "debian" / "final"
    tokenizer = AutoTokenizer.from_pretrained(start)
    examples = training_examples(work.parent / "texts" / "wordnet.jsonl", 0.3, tokenizer)
    runs = [
        cofinetune(
            [start], [examples], [tmp_path / str(number)], Tuning(steps=12, batch=16, learning_rate=0.01, seed=seed)
        )
        for number, seed in enumerate((0, 0, 1))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert np.mean(runs[0][-3:]) < runs[0][0] / 2


def test_wrong_labels_are_a_share_of_all_and_of_all_classes():
    examples = Examples([str(i) for i in range(6000)], [i % 3 for i in range(6000)])
    wrong = corrupted(examples, 0.4, seed=0)
    changed = np.array(wrong.labels) != examples.labels
    assert wrong.texts == examples.texts
    assert changed.mean() == pytest.approx(0.4 * 2 / 3, abs=0.03)  # a third of those drawn anew are right by chance
    assert np.bincount(np.array(wrong.labels)[changed], minlength=3).min() > 400


def naive_cka(x, y):
    """Return HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of linear kernels (Kornblith et al., ICML 2019, section 3)."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n

    def hsic(a, b):
        return np.trace(a @ a.T @ centre @ b @ b.T @ centre)

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def test_cka_is_that_of_the_kernels_and_blind_to_rotation_scale_and_place():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 7)), rng.normal(size=(50, 4))
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y))
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x, y) < 0.5


def test_tasks_are_short_texts_once_each_and_plain_text_is_of_other_groups():
    records = [
        {"id": f"{i}", "group": f"g{i // 2}", "text": f"text number {i // 3}", "label": "[a]" if i % 2 else None}
        for i in range(30)
    ] + [{"id": "long", "group": "long", "text": "word " * 40, "label": "[a]"}]
    tasks, plain = data.parted(records, 4)
    texts = [each["text"] for each in (*tasks, *plain)]
    assert len(tasks) == 4
    assert plain
    assert len(set(texts)) == len(texts)
    assert not {each["group"] for each in tasks} & {each["group"] for each in plain}
    assert all("label" not in each for each in plain)


def test_descriptions_have_the_section_of_their_package_if_it_says_what_it_is_about(tmp_path):
    lines = [
        {"id": "toy", "group": "toy", "section": "games", "text": "board game. It has pieces."},
        {"id": "libtoy", "group": "toy", "section": "libs", "text": "board game. Shared library."},
    ]
    (tmp_path / "en.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [(each["text"], each["label"]) for each in data.descriptions(tmp_path / "en.jsonl")]
    assert found == [("board game", "[games]"), ("board game", None)]


def records_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(right):
    return scores.Answers(np.array(right, np.float64), 1 - np.array(right, np.float64))


def test_students_are_paired_by_the_number_of_their_seed_and_not_by_their_place():
    """Seed 0 of one student is missing; its seed 1 is compared with the other's seed 1, and with nothing else."""
    rng = np.random.default_rng(0)
    both = {seed: answers(rng.random(40) < 0.5) for seed in (0, 1, 2)}
    later = {seed: answers(1 - both[seed].right) for seed in (1, 2)}
    terms = [(1, both), (-1, later)]
    table = tables.markdown("students", "seeds", "points", "nats")
    tables.add_gains(table, "shown", terms)
    (shown,) = ([*column.cells] for column in table.columns[1:2])
    assert shown == ["2"]
    expected = 100 * np.mean([both[seed].right - later[seed].right for seed in (1, 2)])
    assert tables.gain(terms, [1, 2], "right").mean == pytest.approx(expected)


def test_what_weights_by_sample_save_is_a_difference_of_differences_at_equal_totals():
    right = {name: np.zeros(50) for name in (SEPARATE, SAME_TOTAL)}
    right |= {f"{SEPARATE}{ONE_NOISY}": -0.1 * np.ones(50), f"{SAME_TOTAL}{ONE_NOISY}": -0.3 * np.ones(50)}
    students = {name: {0: scores.Answers(values, values)} for name, values in right.items()}
    table = tables.corruption(students)
    cells = [[*column.cells] for column in table.columns]
    row = cells[0].index("MT-BERT's weights less equal ones of the same total")
    assert cells[2][row].startswith("+20.000")
