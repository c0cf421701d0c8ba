"""Generation as a whole: read the prompts, load the model, write the parts that are missing.

A line of a part is a record that a corpus reads::

    id, group                            of the prompt; further samples of a prompt have #1, #2, … behind the id
    ids, mask                            the tokens that were read and drawn; 1 for each that was drawn
    completion                           the drawn tokens as text, without special tokens
    text, or messages and tools          prompt and completion as plain text or as a chat; not of prompts given as ids
    stop                                 "token": a stop token was drawn, the last one; "length": cut there
    prompt_tokens, completion_tokens     how many of each there are
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from cache_tools.errors import ConfigError
from cache_tools.mappings import JsonObject
from cache_tools.progress.reporter import Reporter
from cache_tools.separate_places import is_inside
from cache_tools.store.claims import only_process
from pipeline.config.generation import GenerateConfig
from pipeline.corpus.policies import CompletionFile, GenerationRecord
from pipeline.generation.completing import CompletesPrompts, Request
from pipeline.generation.folder import open_folder, part_name, write_part
from pipeline.generation.opening import open_writer, prepare_model
from pipeline.generation.prompts import Prompt, describe_prompts, read_prompts


@dataclass(frozen=True)
class GenerateResult:
    """What a generation has written: the object that ``logitcask generate --json`` prints.

    Attributes:
        output: Folder of the completions.
        policy: Fingerprint of who wrote them: weights, tokenizer, sampling, and whose student it is.
        prompts: Number of prompts.
        completions: Number of completions.
        prompt_tokens: Tokens of the prompts, counted once for each completion.
        completion_tokens: Tokens that were drawn.
        stopped: Completions that ended with a stop token; the others were cut at ``max_new_tokens``.
        written: Completions that this call has written; the others were there before.
        seconds: Wall-clock time of this call; two results are equal whatever time they took.
    """

    output: Path
    policy: str
    prompts: int
    completions: int
    prompt_tokens: int
    completion_tokens: int
    stopped: int
    written: int
    seconds: float = field(compare=False)


def run_generation(config: GenerateConfig, reporter: Reporter) -> GenerateResult:
    """Write the completions of a generation file, continuing whatever is already there.

    Args:
        config: The generation file.
        reporter: Shows the progress.

    Raises:
        LogitcaskError: something was refused; finished parts stay.
    """
    began = time.monotonic()
    _refuse_output_among_prompts(config)
    reporter.stage("checking the generation file and its model", None)
    prepared = prepare_model(config)
    reporter.stage("reading prompts", None)
    limit = prepared.longest_tokens
    longest = None if limit is None else max(0, limit - config.sampling.max_new_tokens)
    prompts = read_prompts(config.prompts, prepared.tokenizer, longest, reporter.advance)
    reporter.stage("loading the model and hashing its weights", None)
    writer, policy = open_writer(config, prepared)
    record = open_folder(config.output, policy, describe_prompts(prompts), config.part_completions)
    before = _completions(record)
    if len(record.files) < record.parts:
        with only_process(config.output):
            record = _write_missing(config.output, record, prompts, writer, prepared.tokenizer, reporter)
    return _result(config.output, record, before, time.monotonic() - began)


def _write_missing(
    output: Path,
    record: GenerationRecord,
    prompts: list[Prompt],
    writer: CompletesPrompts,
    tokenizer: PreTrainedTokenizerFast,
    reporter: Reporter,
) -> GenerationRecord:
    """Write every part that the folder lacks; return the record of the whole."""
    sampling = record.policy.sampling
    requests = [Request(prompt, sample) for prompt in prompts for sample in range(sampling.samples_per_prompt)]
    missing = [part for part in range(record.parts) if part_name(part) not in record.files]
    reporter.stage("checking how it writes", None)
    writer.check(requests)
    reporter.stage("generate", len(requests), "completions", speed_unit="tokens", done=_completions(record))
    for part in missing:
        mine = requests[part * record.part_completions : (part + 1) * record.part_completions]
        tokens: dict[int, list[int]] = {}
        for batch in _batches(mine, writer.batch_completions or len(mine)):
            completed = writer.complete([mine[i] for i in batch], lambda done, work: reporter.advance(done, work=work))
            tokens |= dict(zip(batch, completed, strict=True))
        lines = [_line(request, tokens[i], record, tokenizer) for i, request in enumerate(mine)]
        record = write_part(output, record, part, lines)
    return record


def _batches(requests: list[Request], size: int) -> Iterator[list[int]]:
    """Yield the places of requests with prompts of similar lengths, the longest first: if memory runs out, at once."""
    order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt.ids), i))
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _line(
    request: Request, tokens: list[int], record: GenerationRecord, tokenizer: PreTrainedTokenizerFast
) -> JsonObject:
    """Return the record of one completion."""
    prompt, before = request.prompt, request.prompt.ids.tolist()
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    line: JsonObject = {
        "id": f"{prompt.id}#{request.sample}" if request.sample else prompt.id,
        "group": prompt.group,
        "ids": before + tokens,
        "mask": [0] * len(before) + [1] * len(tokens),
        "completion": text,
    }
    if prompt.messages is not None:
        line["messages"] = [*prompt.messages, {"role": "assistant", "content": text}]
        line |= {"tools": prompt.tools} if prompt.tools else {}
    elif prompt.text is not None:
        line["text"] = f"{prompt.text}{text}"
    line |= prompt.context_fields
    stopped = tokens[-1] in record.policy.sampling.stop_ids
    counts = {"prompt_tokens": len(before), "completion_tokens": len(tokens)}
    return line | {"stop": "token" if stopped else "length"} | counts


def _refuse_output_among_prompts(config: GenerateConfig) -> None:
    inside = [path for path in config.prompts.paths if is_inside(config.output, path)]
    if inside:
        raise ConfigError(
            "the output lies inside a folder of prompts",
            where=config.output,
            expected=f"a place outside {inside[0]}",
            why="completions would be read as further prompts",
            fix="Choose another output",
        )


def _completions(record: GenerationRecord) -> int:
    return sum(file.completions for file in record.files.values())


def _result(output: Path, record: GenerationRecord, before: int, seconds: float) -> GenerateResult:
    files: list[CompletionFile] = list(record.files.values())
    return GenerateResult(
        output=output,
        policy=record.policy.fingerprint,
        prompts=record.prompts.count,
        completions=_completions(record),
        prompt_tokens=sum(file.prompt_tokens for file in files),
        completion_tokens=sum(file.completion_tokens for file in files),
        stopped=sum(file.stopped for file in files),
        written=_completions(record) - before,
        seconds=seconds,
    )
