"""Compare a completion with what a server was asked, and refuse it with what the server did.

A text that was cut by another limit, that went on behind its end, or of which the server kept some tokens to itself is
no sample of the model's distribution, and nothing in a file of text would show it. So every answer passes here, and
each fault has a sentence of its own. How tokens were drawn cannot be seen in one answer; ``trial.py`` looks at many.
"""

from cache_tools.errors import IdentityError, ModelError
from pipeline.engines.row_checks import Place, refusal, require_prompt
from pipeline.engines.server_requests import Question
from pipeline.generation.completion_requests import Completion, CompletionAnswer, CompletionQuestion

NO_SAMPLE = "the text would be no sample of the model's distribution"


def checked_completion(answer: CompletionAnswer, question: CompletionQuestion, place: Place) -> Completion:
    """Return the tokens that continue a prompt.

    Raises:
        IdentityError: another model answers, it read another prompt, or its vocabulary is another one.
        ModelError: the tokens are not those of one completion that ended where it was asked to.
    """
    require_prompt(answer.prompt, Question(question.model, question.ids, 0), place)
    _require_known_prompt(answer, question, place)
    _require_one(answer, place)
    ids = _required_ids(answer, place)
    _require_vocabulary(ids, place)
    _require_length(ids, question, place)
    _require_end(ids, answer, question, place)
    return Completion(ids, answer.rows)


def require_tokens(ids: list[int], without_token: frozenset[int], place: Place) -> None:
    """Refuse a completion with an id that has no token.

    Args:
        ids: The completion.
        without_token: Ids that have none.
        place: Where it belongs, for errors.

    Raises:
        ModelError: it has one.
    """
    missing = [token for token in ids if token in without_token]
    if missing:
        raise refusal(
            ModelError,
            "the server drew an id that has no token",
            place,
            found=missing[0],
            why="the logits of a model may be wider than its vocabulary, and no text has this token",
            fix="Use a server that applies 'logit_bias', which rules such ids out, or lower sampling.temperature",
        )


def _require_known_prompt(answer: CompletionAnswer, question: CompletionQuestion, place: Place) -> None:
    if answer.prompt.ids is None and not isinstance(answer.prompt.tokens_read, int):
        raise refusal(
            ModelError,
            "the server does not say which prompt it read",
            place,
            expected=f"{len(question.ids)} prompt ids, or their number",
            why="it may have cut the prompt or put tokens before it",
            fix="Use a server that returns them, such as vLLM",
        )


def _require_one(answer: CompletionAnswer, place: Place) -> None:
    if answer.completions != 1:
        raise refusal(
            ModelError,
            "the server returned another number of completions than it was asked for",
            place,
            expected=1,
            found=answer.completions,
            why="one was chosen by a rule that is unknown",
        )


def _required_ids(answer: CompletionAnswer, place: Place) -> list[int]:
    if answer.ids is None:
        raise refusal(
            ModelError,
            "the server returned no token ids",
            place,
            expected="the ids that it drew",
            found="text at most",
            why="a tokenizer may split the text into other tokens than the model drew",
            fix="Use a server that returns ids: a recent vLLM, or SGLang with request: sglang",
        )
    strange = next((token for token in answer.ids if type(token) is not int), None)
    if strange is not None:
        raise refusal(ModelError, "a completion holds something else than token ids", place, found=repr(strange))
    if answer.stated_tokens is not None and answer.stated_tokens != len(answer.ids):
        raise refusal(
            ModelError,
            "the server counts other tokens than it returned",
            place,
            expected=f"{answer.stated_tokens} ids",
            found=f"{len(answer.ids)} ids",
            why="tokens that it keeps to itself, such as reasoning, are part of what was drawn",
            fix="Switch off what removes them from the answer",
        )
    if not answer.ids:
        raise refusal(ModelError, "the server wrote nothing", place, expected="at least a stop token")
    return list(answer.ids)


def _require_vocabulary(ids: list[int], place: Place) -> None:
    beyond = [token for token in ids if not 0 <= token < place.vocabulary_size]
    if beyond:
        raise refusal(
            IdentityError,
            "a completion holds an id beyond the vocabulary",
            place,
            expected=f"ids below {place.vocabulary_size}",
            found=beyond[0],
            why="the server runs a model with another vocabulary than policy.model",
            fix="Name the served model in policy.model; a folder with its tokenizer needs its config.json as well",
        )


def _require_length(ids: list[int], question: CompletionQuestion, place: Place) -> None:
    longest, stops = question.sampling.max_new_tokens, question.sampling.stop_ids
    if len(ids) > longest:
        raise refusal(
            ModelError,
            "the server wrote more tokens than it was asked for",
            place,
            expected=f"at most {longest} tokens",
            found=f"{len(ids)} tokens",
            why="sampling.max_new_tokens would be recorded and not be true",
        )
    early = next((number for number, token in enumerate(ids[:-1]) if token in stops), None)
    if early is not None:
        raise refusal(
            ModelError,
            "the server went on behind a stop token",
            place,
            expected=f"an end at id {ids[early]}",
            found=f"{len(ids) - early - 1} tokens behind it",
            why=NO_SAMPLE,
            fix="Use a server that applies 'stop_token_ids'",
        )


def _require_end(ids: list[int], answer: CompletionAnswer, question: CompletionQuestion, place: Place) -> None:
    longest, stopped = question.sampling.max_new_tokens, ids[-1] in question.sampling.stop_ids
    if answer.reason == "stop" and not stopped:
        raise refusal(
            ModelError,
            "the server stopped at something else than a stop token",
            place,
            expected=f"one of the ids {', '.join(map(str, question.sampling.stop_ids)) or '(none)'} at the end",
            found=f"id {ids[-1]}",
            why=NO_SAMPLE,
            fix="Start the server without texts to stop at; if it stops at a token of its own, name that as "
            "eos_token_id in the generation_config.json of policy.model",
        )
    if answer.reason == "length" and len(ids) < longest:
        raise refusal(
            ModelError,
            "the server cut a completion that had room left",
            place,
            expected=f"{longest} tokens, or a stop token at the end and 'stop'",
            found=f"{len(ids)} tokens and 'length'",
            why=NO_SAMPLE,
            fix="Raise the server's limit (vLLM: --max-model-len), or lower sampling.max_new_tokens",
        )
    if answer.reason not in ("stop", "length"):
        raise refusal(
            ModelError,
            "a completion ended for a reason that is neither a stop token nor its length",
            place,
            expected="stop or length",
            found=repr(answer.reason),
            why=NO_SAMPLE,
            fix="See what the server reports; switch off filters and time limits",
        )
