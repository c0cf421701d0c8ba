"""Vocabularies, caches, initial weights and students, each made when it is first needed."""

import json
from dataclasses import dataclass, field
from itertools import accumulate
from operator import not_
from pathlib import Path

from cache_tools.configuration import configured
from cache_tools.storage import write_object
from configs.papers.glmd.arms import NO_CHANGES, UNKNOWN, VOCABULARIES, Arm
from configs.papers.glmd.measure import Measured, measured
from configs.papers.glmd.models import beginning
from configs.papers.glmd.texts import CLASSES
from configs.papers.measures import finished_seeds
from configs.papers.recipes import Overrides, capture_file, command, train_file
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.held_out import is_held_out

HERE = Path(__file__).parent
KINDS: dict[str, tuple[str, str, Overrides]] = {
    "pretraining": ("capture.yaml", "teacher", NO_CHANGES),
    "words": ("task.yaml", "tuned", NO_CHANGES),
    "labels": ("task.yaml", "tuned", {"encoding.masking.keep": "slots"}),
}
"""Kinds of caches: the capture file, the folder of the teacher, and the overrides of the file."""

WHOLE_DISTRIBUTION: Overrides = {"teachers.0.hidden": {"layers": ["last"]}}
"""What few texts are captured with, beside the 20 tokens: they are few, so the whole distribution costs little."""


@dataclass(frozen=True)
class Bench:
    """One folder of work.

    Attributes:
        texts: Folder of the texts.
        work: Folder to work in; it holds the finished teachers.
        steps: Optimizer steps of the stages P, F1 and F2.
        layers: Layers of the student.
        set_capture: Overrides of the capture files.
        set_student: Overrides of student.yaml.
        pretrained: Folder of a pre-trained teacher that is used as it is; None if the recipe trains it, or one.
        made: Caches that this process has finished or seen finished.
    """

    texts: Path
    work: Path
    steps: dict[str, int]
    layers: int
    set_capture: Overrides
    set_student: Overrides
    pretrained: Path | None = None
    made: set[Path] = field(default_factory=set)

    def vocabulary(self, name: str) -> Path:
        """Return the folder of a vocabulary."""
        folder, forced = self.work / "vocabularies" / name, self.work / "classes.txt"
        if not (folder / "vocabulary.json").exists():
            forced.write_text("\n".join(CLASSES) + "\n")
            similarity = name.partition("-")[2]
            by_embedding = ("--embeddings", self.teacher, "--similarity", similarity or "dot")
            read_as = () if similarity == UNKNOWN else by_embedding
            keep = ("--keep", VOCABULARIES[name], "--forced", forced)
            command("vocabulary", self.work / "text", *keep, *read_as, "-o", folder)
        return folder

    @property
    def teacher(self) -> Path:
        """Folder of the pre-trained teacher."""
        return self.pretrained or self.work / "teacher" / "final"

    def cache(self, kind: str, vocabulary: str) -> Path:
        """Return the folder of a finished cache."""
        if kind == "text":
            return self.work / "text"
        kind_of_all, _, texts = kind.partition("@")
        file, teacher, changes = KINDS[kind_of_all]
        folder = self.work / "caches" / vocabulary / kind
        model = self.teacher if teacher == "teacher" else self.work / teacher / "final"
        corpus = self.texts / ("student.jsonl" if kind == "pretraining" else "task.jsonl")
        if texts:
            corpus, changes = self.some_texts(file, int(texts)), {**changes, **WHOLE_DISTRIBUTION}
        target = {"teachers.0.target.vocabulary": self.vocabulary(vocabulary)}
        places = {"corpus.paths": [corpus], "teachers.0.model": model, "cache": folder}
        if folder not in self.made:
            capture_file(HERE / file, {**self.set_capture, **changes, **target, **places})
            self.made.add(folder)
        return folder

    def some_texts(self, file: str, number: int) -> Path:
        """Return the task with this number of its training texts, the first ones, and all of its held-out texts."""
        output = self.work / "texts" / f"task-{number}.jsonl"
        if not output.exists():
            fraction = configured(HERE / file, CaptureConfig, self.set_capture).corpus.held_out_fraction
            output.parent.mkdir(parents=True, exist_ok=True)
            lines = (self.texts / "task.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            held_out = [is_held_out(json.loads(line)["id"], fraction) for line in lines]
            before = accumulate(map(not_, held_out))
            kept = [line for line, out, n in zip(lines, held_out, before, strict=True) if out or n <= number]
            write_object(output, "".join(kept).encode())
        return output

    def folders(self, arm: Arm, seed: int) -> list[Path]:
        """Return the run folder of each stage of a student; arms with the same first stages share them."""
        names = [stage.name.replace(" ", "") for stage in arm.stages]
        place = self.work / "students" / arm.place
        return [place / f"{'+'.join(names[:end])}-{seed}" for end in range(1, len(names) + 1)]

    def finished_seeds(self, arm: Arm) -> list[int]:
        """Return the seeds of an arm whose students have been trained."""
        last = self.folders(arm, 0)[-1]
        return finished_seeds(last.parent, last.name.removesuffix("-0"))

    def student(self, arm: Arm, seed: int) -> Path:
        """Return the folder of a finished student."""
        vocabulary, start = self.vocabulary(arm.vocabulary), self.work / "starts" / arm.vocabulary
        beginning(self.teacher, self.layers, vocabulary, start)
        student: Overrides = {"student": {"pretrained": start} if arm.config is None else {"config": dict(arm.config)}}
        for stage, output in zip(arm.stages, self.folders(arm, seed), strict=True):
            if not (output / "final").exists():
                steps = sum(self.steps[name] for name in stage.steps)
                places = {"cache": self.cache(stage.cache, arm.vocabulary), **student, "vocabulary": vocabulary}
                run = {"training.seed": seed, "training.max_steps": steps, "training.output_dir": output}
                states = {"loss.hidden": [{"student_layer": self.layers, "teacher_layer": "last"}]}
                changes = {**self.set_student, **stage.changes, **(states if stage.hidden else {})}
                train_file(HERE / "student.yaml", {**changes, **places, **run})
            start, student = output / "final", {"student": {"pretrained": output / "final"}}
        return start

    @property
    def width(self) -> int:
        """Width of the models' hidden states."""
        return int(json.loads((self.teacher / "config.json").read_text())["hidden_size"])

    def measured(self, arm: Arm, seed: int, distance: bool) -> Measured:
        """Train a student unless it exists, and measure it."""
        student, caches = self.student(arm, seed), self.cache("labels", arm.vocabulary).parent
        if distance:
            self.cache("pretraining", arm.vocabulary)
        return measured(student, caches, self.vocabulary(arm.vocabulary), distance)
