"""Stage two from Python: what ``logitcask train`` and ``logitcask evaluate`` do, as functions that return values.

``logitcask.train``, ``logitcask.distillation`` and ``logitcask.evaluate`` are these functions. They are thin on
purpose: a configuration is read here, and everything else happens in the rooms ``run``, ``loop`` and ``evaluation``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cache_tools.configuration import NO_OVERRIDES, checked_arguments, configured
from cache_tools.errors import ConfigError, IncompleteError
from cache_tools.format.manifest import SPLITS, Split
from cache_tools.progress.lines import open_reporter
from cache_tools.storage import StorePath, store_path
from cache_tools.torch_models.loading import check_objective
from cache_tools.torch_models.segments import read_segments
from trainer.config.student_file import DistillationConfig, StudentConfig
from trainer.evaluation.evaluate import ROWS, Dtype, Positions, evaluate_student
from trainer.evaluation.results import EvaluateResult
from trainer.loop.distillation import Distillation, distillation_of
from trainer.loop.inputs import Inputs, open_inputs
from trainer.run.run_folder import TrainResult
from trainer.run.train import run_training
from trainer.student.cached_loss import StudentShape, vocabulary_size
from trainer.student.student import check_vocabulary_size, first_runs
from trainer.tokenizers.cached import require_vocabulary, student_tokenizer
from trainer.tokenizers.check import require_behaviour


@checked_arguments
def train(
    config: str | Path | Mapping[str, Any] | StudentConfig, *, overrides: Mapping[str, Any] = NO_OVERRIDES
) -> TrainResult:
    """Train the student of a student file from its cache; no teacher is loaded.

    After a stop, the same call continues from the last checkpoint; a finished run is not repeated. In a program that
    ``torchrun`` starts, every process makes the same call. Progress is shown on standard error.

    Args:
        config: Path of a student file, the mapping that such a file holds, or a checked configuration.
        overrides: New values by dotted key, such as ``{"training.learning_rate": 1e-4}``.

    Returns:
        Where the student is, and how the run ended.

    Raises:
        ConfigError: The configuration is wrong, or asks for a loss that the cache does not allow.
        ModelError: The student cannot be loaded or trained.
        IdentityError: The student's tokenizer is not the cache's, or the output folder holds another run.
        IncompleteError: Shards of the cache have not been captured yet.
        LogitcaskError: Any of these, damage to the cache, and what the disk refuses.

    Example:
        ::

            from logitcask import train

            places = {"cache": "runs/python/cache", "training.output_dir": "runs/python/student"}
            result = train("configs/demo/student.yaml", overrides={**places, "training.max_steps": 20})
            print(result.student, result.steps, result.loss_nats)
    """
    return run_training(configured(config, StudentConfig, overrides))


@checked_arguments
def distillation(
    config: str | Path | Mapping[str, Any] | DistillationConfig,
    *,
    student: PreTrainedModel | StudentShape,
    tokenizer: PreTrainedTokenizerBase | None,
    split: Split = "train",
    overrides: Mapping[str, Any] = NO_OVERRIDES,
) -> Distillation:
    """Return a dataset, a collator and a loss for a training loop of any kind; no teacher is loaded.

    ``train`` stands on the same three. Each batch is bound to its cache and its tokens: a loss refuses one that lacks
    columns, comes from another cache, or whose rows were moved.

    Args:
        config: The keys of a student file, without ``student`` and ``training``: a path, a mapping, or a checked
            configuration. A loss that is biased on the cache is refused, as by ``train``.
        student: The model, on any device (of a PEFT model, ``get_base_model()``); or its shape, if it is no model of
            transformers. Of an encoding with ``segments``, the model reads segments from then on; a loop with a shape
            must give them to its model.
        tokenizer: The student's tokenizer, which must be the cache's; None if the student has none of its own.
        split: ``train`` or ``held_out``.
        overrides: New values by dotted key, such as ``{"loss.kd_weight": 0.5}``.

    Returns:
        What belongs together; nothing of it depends on a training loop.

    Raises:
        ConfigError: The configuration is wrong, or asks for a loss that the cache or the student does not allow.
        IdentityError: The student's tokenizer or vocabulary is not the cache's.
        ModelError: The student cannot be run, or is masked where the teacher is causal, or the other way round.
        IncompleteError: Shards of the split have not been captured yet, or it has no sequences.
        LogitcaskError: Any of these, and damage to the cache.

    Example:
        ::

            from torch.utils.data import DataLoader
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from logitcask import distillation

            student = AutoModelForCausalLM.from_pretrained("runs/python/student/final")
            tokenizer = AutoTokenizer.from_pretrained("runs/python/student/final")
            kd = distillation({"cache": "runs/python/cache"}, student=student, tokenizer=tokenizer)
            loader = DataLoader(kd.dataset, batch_size=4, sampler=kd.sampler(seed=0), collate_fn=kd.collate)
            batch = next(iter(loader))
            logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            kd.loss(batch, logits=logits).loss.backward()
    """
    _check_choice("split", split, SPLITS)
    settings = configured(config, DistillationConfig, overrides)
    inputs, kind = open_inputs(settings), type(student).__name__
    width = student.vocabulary_size if isinstance(student, StudentShape) else vocabulary_size(student)
    check_vocabulary_size(width, inputs.vocabulary, kind)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, settings, inputs)
    if isinstance(student, StudentShape):
        return _with_sequences(distillation_of(settings, inputs, student, split), split)
    check_objective(type(student).__name__, inputs.encoding.manifest.objective)
    read_segments(student, inputs.separator)
    with first_runs(student, kind):
        return _with_sequences(distillation_of(settings, inputs, student, split), split)


def _with_sequences(distillation: Distillation, split: Split) -> Distillation:
    if not len(distillation.dataset):
        raise IncompleteError(
            f"the {split} split has no sequences",
            where="split",
            fix="Choose the other split, or capture with another corpus.held_out_fraction",
        )
    return distillation


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: DistillationConfig, inputs: Inputs) -> None:
    """Refuse a tokenizer that gives ids another meaning, or splits text in another way, than the cache's."""
    source = tokenizer.name_or_path or type(tokenizer).__name__
    require_vocabulary(tokenizer, inputs.vocabulary, source)
    reference = student_tokenizer(config.vocabulary, inputs.encoding, inputs.alignment)
    require_behaviour(tokenizer, reference, inputs.encoding, source)


@checked_arguments
def evaluate(
    student: str | Path,
    cache: str | StorePath,
    *,
    encoding: str | None = None,
    teacher: str | None = None,
    split: Split = "held_out",
    positions: Positions = "all",
    vocabulary: str | StorePath | None = None,
    batch_size: int = 8,
    device: str = "auto",
    trust_remote_code: bool = False,
    dtype: Dtype = "float32",
    original: str | Path | None = None,
) -> EvaluateResult:
    """Compare a student or a quantised model with the text and with a cached teacher.

    No teacher is loaded, unless ``original`` names it.

    Progress is shown on standard error.

    Args:
        student: A transformers model folder with its tokenizer, such as ``TrainResult.student``, or a GGUF file.
        cache: Folder or URL of the cache.
        encoding: Name of the encoding; may be left out if the cache has one.
        teacher: Name of the teacher; may be left out if the encoding has one.
        split: ``held_out`` or ``train``.
        positions: In an encoding with labels: ``labels``, all other positions (``tokens``), or ``all``.
        vocabulary: Folder that ``logitcask vocabulary`` wrote, if the student was trained with one.
        batch_size: Sequences per forward pass, at least 1.
        device: A torch device; ``auto`` takes a GPU if there is one.
        trust_remote_code: Run Python code that comes with the student. Only for models you trust.
        dtype: Type in which the model computes: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        original: Folder or GGUF file of the cached teacher, to be run in the same way, for comparison.

    Returns:
        The measures, in nats and shares.

    Raises:
        ConfigError: An argument has a value that it cannot have.
        ModelError: The folder holds no model that can be used.
        IdentityError: The student's tokenizer is not the cache's.
        IncompleteError: The split is empty, or has not been captured yet.
        FormatError: There is no such cache, encoding or teacher.
        LogitcaskError: Any of these, and damage to the cache.

    Example:
        ::

            from logitcask import evaluate

            result = evaluate("runs/python/student/final", "runs/python/cache")
            print(f"{result.cross_entropy_nats:.3f} nats on {result.positions:,} positions")
    """
    _check_choice("split", split, SPLITS)
    _check_choice("positions", positions, ROWS)
    _check_choice("dtype", dtype, get_args(Dtype))
    if batch_size < 1:
        raise ConfigError("a batch holds at least one sequence", where="batch_size", found=batch_size)
    with open_reporter() as reporter:
        return evaluate_student(
            Path(student),
            store_path(cache),
            reporter,
            encoding=encoding,
            teacher=teacher,
            split=split,
            positions=positions,
            vocabulary=None if vocabulary is None else store_path(vocabulary),
            batch_size=batch_size,
            device=device,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            original=None if original is None else Path(original),
        )


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError("this is not a choice", where=name, expected=f"one of {', '.join(choices)}", found=value)
