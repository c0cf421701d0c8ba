"""Plan a whole capture file: the corpus, its encoding and every teacher, without writing anything."""

from dataclasses import dataclass, field, replace

from cache_tools.format import layout
from cache_tools.format.manifest import Split
from cache_tools.json_output import FLAT
from cache_tools.progress.reporter import Reporter
from cache_tools.store.reader import Encoding
from cache_tools.torch_models.quantised import Quantisation, quantisation_of
from pipeline.capture.host_memory import host_bytes_per_position, recommended_positions, shape_of, sized
from pipeline.capture.target import ResolvedTeacher, resolve_teacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.encoding import EncodingConfig
from pipeline.config.engines import ServerConfig
from pipeline.corpus.documents import corpus_sources
from pipeline.encoding.encode import is_encoded
from pipeline.encoding.recipe import Recipe
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.engines.opening import open_teacher, where_it_runs
from pipeline.planning.choices import KChoice
from pipeline.planning.fit import DeviceFit, plan_fit
from pipeline.planning.held import held_encoding, held_teacher
from pipeline.planning.measure import MEASURED_SECONDS, Measurement, Sample, drawn_order, measure
from pipeline.planning.memory import SERVER, MemoryPlan, plan_memory, plan_server_memory
from pipeline.planning.plan import Cost, EncodingPlan, Rates, Remaining, cost_of, plan_encoding, rates_of
from pipeline.planning.scale import Simulation, StudentLoad, Workload, simulation, student_bytes_per_s
from pipeline.planning.simulate import Cluster
from pipeline.planning.survey import Extent, Survey, survey
from pipeline.teachers.fitting import check_teacher
from pipeline.teachers.loading import resolve_tokenizer
from pipeline.teachers.tensor_plan import meta_model


@dataclass(frozen=True)
class PlanSettings:
    """What a plan assumes, and how much it measures.

    Attributes:
        sample_documents: Documents to tokenise.
        measured_sequences: Sequences that each teacher reads at most to be measured; 0 measures nothing.
        measured_seconds: How long each teacher reads at most to be measured.
        tokens_per_s: Speed of a worker; default: the measured one.
        corpus_tokens: Plan for a corpus of this size, like the given one; default: the given one.
        device_memory_bytes: Memory of the GPU to plan for; default: that of the device here.
        cluster: The workers.
        simulate: Simulate the workers with their failures; needs a speed.
        student: How a student reads the cache.
    """

    sample_documents: int = 500
    measured_sequences: int = 0
    measured_seconds: float = MEASURED_SECONDS
    tokens_per_s: float | None = None
    corpus_tokens: float | None = None
    device_memory_bytes: int | None = None
    cluster: Cluster = field(default_factory=lambda: Cluster(1))
    simulate: bool = False
    student: StudentLoad = field(default_factory=StudentLoad)


@dataclass(frozen=True)
class TeacherPlan:
    """What one teacher costs.

    Attributes:
        name: Its name in the capture file.
        quantisation: How its weights are stored, such as ``gptq, 4 bits, groups of 128``; None for ordinary weights.
        output_head: The same of its output matrix; None for an ordinary one.
        engine: The engine that reads its tokens; None for transformers.
        measured: Whether it was measured, or planned by rules of thumb.
        measured_on: What it read to be measured, if it was.
        rates: What it costs per position, token and shard.
        whole: What the whole corpus costs.
        remaining: What the cache lacks, and what that costs.
        choices: What each k would keep and cost; empty unless measured.
        memory: Memory that one worker needs.
        fit: Whether the teacher fits its device.
        student_bytes_per_s: What the store must deliver to one student.
        simulation: The workers with their failures, if they were to be simulated and work remains.
    """

    name: str
    quantisation: str | None
    output_head: str | None
    engine: str | None
    measured: bool
    measured_on: Sample | None
    rates: Rates = field(metadata=FLAT)
    whole: Cost = field(metadata=FLAT)
    remaining: Remaining
    choices: tuple[KChoice, ...]
    memory: MemoryPlan
    fit: DeviceFit
    student_bytes_per_s: float
    simulation: Simulation | None


@dataclass(frozen=True)
class CapturePlan:
    """What a capture costs: the object that ``logitcask plan --json`` prints.

    Attributes:
        documents: Number of documents in the corpus.
        exact: Whether the totals are counted and not estimated from a sample.
        splits: Extent of the corpus by split.
        stored_bytes: Size of the whole cache.
        remaining_bytes: Size of what it lacks.
        positions_per_shard: Size of shards that is planned with.
        recommended_positions_per_shard: What ``encoding.positions_per_shard: auto`` chooses for a corpus of this size.
        encoding: What the sequences take.
        teachers: What each teacher costs.
        context: Templates of what teachers read and students do not, by key of ``corpus.context``. All tokens are those
            of teachers.
    """

    documents: int
    exact: bool
    splits: dict[Split, Extent]
    stored_bytes: int
    remaining_bytes: int
    positions_per_shard: int
    recommended_positions_per_shard: int
    encoding: EncodingPlan
    teachers: tuple[TeacherPlan, ...]
    context: dict[str, str] = field(default_factory=dict)


def plan_capture(
    config: CaptureConfig, settings: PlanSettings | None = None, reporter: Reporter | None = None
) -> CapturePlan:
    """Return what a capture will cost; nothing is written.

    Unless teachers are measured, only their configurations and tokenizers are read.

    Args:
        config: The capture file.
        settings: What to assume.
        reporter: Shows the progress.

    Raises:
        LogitcaskError: the capture file, a teacher or the corpus was refused.
    """
    settings, reporter = settings or PlanSettings(), reporter or Reporter()
    reporter.stage("checking the capture file and its teachers", None)
    teachers = [resolve_teacher(teacher, settings.measured_sequences > 0) for teacher in config.teachers]
    named = config.encoding.tokenizer
    tokenizer = load_tokenizer(resolve_tokenizer(named) if named else teachers[0].folder)
    for teacher in teachers:
        restriction = teacher.target.keep.restriction
        check_teacher(teacher.config, teacher.folder, tokenizer, config.encoding.max_length_tokens, restriction)
    recipe = sized(Recipe(config.corpus, config.encoding, tokenizer), config.cache, teachers)
    encoding = held_encoding(config.cache, recipe)
    corpus = _survey(config, recipe, encoding, settings, reporter)
    recommended = recommended_positions(
        corpus.total.positions, host_bytes_per_position(teachers, recipe.encoding), recipe.encoding
    )
    if settings.corpus_tokens and not encoding and config.encoding.positions_per_shard == "auto":
        larger = recipe.encoding.model_copy(update={"positions_per_shard": recommended})
        recipe, corpus = replace(recipe, encoding=larger), corpus.of_size(settings.corpus_tokens, recommended)
    sequences = plan_encoding(corpus, encoding)
    planned = tuple(
        _plan_teacher(teacher, recipe, corpus, encoding, sequences.sequence_bytes_per_position, settings, reporter)
        for teacher in teachers
    )
    costs = [(plan.whole.stored.stored_bytes, plan.remaining.cost.stored.stored_bytes) for plan in planned]
    costs.append((sequences.whole.stored_bytes, sequences.remaining.stored_bytes))
    whole, remaining = map(sum, zip(*costs, strict=True))
    planned_size = recipe.encoding.shard_positions
    context = {} if config.corpus.context is None else config.corpus.context.identity()
    return CapturePlan(
        corpus.documents,
        corpus.exact,
        corpus.totals,
        whole,
        remaining,
        planned_size,
        recommended,
        sequences,
        planned,
        context,
    )


def _survey(
    config: CaptureConfig, recipe: Recipe, encoding: Encoding | None, settings: PlanSettings, reporter: Reporter
) -> Survey:
    """Survey the corpus, with exact totals if the cache holds it whole, at the size that is planned for."""
    sources = corpus_sources(config.corpus)
    corpus = survey(recipe, sources.values(), settings.sample_documents, reporter)
    folder = layout.encoding_folder(config.cache, config.encoding.name)
    if encoding and is_encoded(folder, sources):
        corpus = corpus.as_encoded(encoding)
    if settings.corpus_tokens:
        corpus = corpus.of_size(settings.corpus_tokens, recipe.encoding.shard_positions)
    return corpus


def _plan_teacher(
    teacher: ResolvedTeacher,
    recipe: Recipe,
    corpus: Survey,
    encoding: Encoding | None,
    sequence_bytes_per_position: float,
    settings: PlanSettings,
    reporter: Reporter,
) -> TeacherPlan:
    config, objective, workers = teacher.config, recipe.encoding.objective, settings.cluster.workers
    measurement = (
        _measure(teacher, recipe.encoding, corpus, settings, reporter) if settings.measured_sequences else None
    )
    reporter.stage(f"planning teacher {config.name}", None)
    shape = shape_of(teacher, objective)
    rates = rates_of(teacher, shape.vocabulary_size, shape.width, measurement, settings.tokens_per_s)
    left = corpus.total.without(held_teacher(encoding, teacher, shape.vocabulary_size))
    remaining = Remaining(left, cost_of(left, rates, workers))
    if isinstance(config.engine, ServerConfig):
        stored, memory = Quantisation(), plan_server_memory(teacher, shape, recipe.encoding)
        fit = DeviceFit(SERVER, None, None, 0, None, None, None, None)
    else:
        stored, model = quantisation_of(teacher.folder), meta_model(config, objective, teacher.folder)
        memory = plan_memory(teacher, model, recipe.encoding, settings.device_memory_bytes)
        fit = plan_fit(config, model, memory)
    return TeacherPlan(
        name=config.name,
        quantisation=stored.weights,
        output_head=stored.output_head,
        engine=None if config.engine is None else config.engine.kind,
        measured=measurement is not None,
        measured_on=measurement.measured_on if measurement else None,
        rates=rates,
        whole=cost_of(corpus.total, rates, workers),
        remaining=remaining,
        choices=measurement.choices if measurement else (),
        memory=memory,
        fit=fit,
        student_bytes_per_s=student_bytes_per_s(rates, sequence_bytes_per_position, settings.student),
        simulation=_simulate(rates, remaining, memory, recipe.encoding.shard_positions, settings),
    )


def _measure(
    teacher: ResolvedTeacher, encoding: EncodingConfig, corpus: Survey, settings: PlanSettings, reporter: Reporter
) -> Measurement:
    objective = encoding.objective
    reporter.stage(f"loading teacher {teacher.config.name}{where_it_runs(teacher.config)}", None)
    loaded = open_teacher(teacher.config, teacher.folder, objective, encoding.max_length_tokens)
    sample = drawn_order(corpus.sequences)[: settings.measured_sequences]
    return measure(loaded, teacher, objective, sample, settings.measured_seconds, reporter)


def _simulate(
    rates: Rates, remaining: Remaining, memory: MemoryPlan, positions_per_shard: int, settings: PlanSettings
) -> Simulation | None:
    if not settings.simulate or rates.tokens_per_s is None or not remaining.extent.shards:
        return None
    workload = Workload(remaining, rates.tokens_per_s, positions_per_shard, memory.kept_bytes)
    return simulation(workload, settings.cluster)
