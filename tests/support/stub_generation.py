"""What the stub of a server does when it is asked to continue a prompt; it misbehaves on demand.

The draws come from numpy's generator, seeded by the request, one token after the other from the stub's language model.
That suffices: the product must not depend on how a server turns a seed into tokens, only on the same request getting
the same ones.
"""

from types import SimpleNamespace

import numpy as np

LONGER = 3
"""Tokens that a fault writes beyond the length that was asked for."""


def asked(question):
    """Return the settings of a request of either kind."""
    settings = question.get("sampling_params", question)
    longest = settings.get("max_new_tokens", settings.get("max_tokens"))
    seed = settings.get("sampling_seed", settings.get("seed"))
    return SimpleNamespace(**settings | {"longest": longest, "seed": seed, "logit_bias": settings.get("logit_bias")})


def continued(log_probs, prompt, settings, fault="", generator=None):
    """Return the tokens that continue a prompt, and the reason of the end.

    Args:
        log_probs: The language model: ids to the log-probabilities before each, (n, V).
        prompt: Ids.
        settings: Of ``asked``.
        fault: What is done wrong; nothing if empty.
        generator: Draws in place of the request's seed, for some faults.
    """
    draws = generator if fault == "no seed" else np.random.default_rng(settings.seed)
    longest = settings.longest + (LONGER if fault == "longer" else 0)
    tokens, reason = [], "length"
    while len(tokens) < longest:
        logits = log_probs([*prompt, *tokens, 0][-3:])[-1].copy()  # the model looks two tokens back
        for token, bias in ({} if fault == "no bias" else settings.logit_bias or {}).items():
            logits[int(token)] += bias
        tokens.append(drawn(logits, settings, fault, draws))
        if tokens[-1] in settings.stop_token_ids and fault != "goes on":
            reason = "stop"
            break
    return tokens, reason


def rounded(tokens, seed):
    """Return tokens as another rounding has them: of one seed in five, the first is another one."""
    changed = seed % 5 == 0 and len(tokens) > 1
    return [(tokens[0] + 1) % 30, *tokens[1:]] if changed else tokens


def drawn(logits, settings, fault, draws):
    """Return a token, by temperature, then the likeliest k, then the nucleus."""
    temperature = {"greedy": 0, "no temperature": 1, "tempered": 0.7 * settings.temperature}.get(
        fault, settings.temperature
    )
    top_k = {"own top_k": 10, "no top_k": 0}.get(fault, max(settings.top_k, 0))
    top_p = {"no top_p": 1, "own top_p": 0.8}.get(fault, settings.top_p)
    if temperature == 0:
        return int(logits.argmax())
    weights = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-weights, kind="stable")[: top_k or None]
    shares = weights[order] / weights[order].sum()
    inside = np.cumsum(shares) - shares < top_p
    order, shares = order[inside], shares[inside] / shares[inside].sum()
    return int(order[np.searchsorted(np.cumsum(shares), draws.random() * 0.999999)])


def spoilt(tokens, reason, fault, vocabulary):
    """Return a completion, its reason and its number of tokens, with what is wrong in them."""
    changed = {
        "empty": ([], "stop", 0),
        "shorter": (tokens[: len(tokens) // 2] or tokens, "length", None),
        "stop text": (tokens[:1], "stop", None),
        "filtered": (tokens, "content_filter", None),
        "no reason": (tokens, None, None),
        "hidden": (tokens, reason, len(tokens) + 4),
        "beyond": ([vocabulary + 5, *tokens[1:]], reason, None),
        "texts": ([f"token_id:{token}" for token in tokens], reason, None),
    }.get(fault, (tokens, reason, None))
    ids, reason, stated = changed
    return ids, reason, len(ids) if stated is None else stated


def likeliest_of(question):
    """Return of how many tokens a request wants log-probabilities."""
    return question.get("logprobs") or question.get("top_logprobs_num") or 0


def rows_of(log_probs, prompt, ids, likeliest):
    """Return for each drawn token the (id, log-probability) of the likeliest tokens, then of itself."""
    rows = []
    if not likeliest:
        return rows
    for place, token in enumerate(ids):
        row = log_probs([*prompt, *ids[:place], 0][-3:])[-1]
        top = np.argsort(-row, kind="stable")[:likeliest].tolist()
        rows.append([(t, float(row[t])) for t in dict.fromkeys([*top, token])])
    return rows


def completion(model, prompt, ids, reason, stated, fault, rows=None):
    """Return the answer of ``/v1/completions``."""
    choice = {"index": 0, "text": "x", "finish_reason": reason, "prompt_token_ids": prompt, "token_ids": ids}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": stated}
    if rows:
        choice["logprobs"] = {"top_logprobs": [{f"token_id:{token}": value for token, value in row} for row in rows]}
    if fault == "no ids":
        choice |= {"token_ids": None}
    if fault == "no prompt":
        choice, usage = choice | {"prompt_token_ids": None}, {}
    return {"model": model, "choices": [choice] * (2 if fault == "two" else 1), "usage": usage}


def native(prompt, ids, reason, stated, fault, rows=None):
    """Return the answer of SGLang's ``/generate``."""
    facts = {"prompt_tokens": len(prompt), "completion_tokens": stated, "finish_reason": {"type": reason}}
    if rows:
        triples = [[[value, token, None] for token, value in row] for row in rows]
        own = [next([v, t, None] for v, t, _ in row if t == token) for row, token in zip(triples, ids, strict=True)]
        facts |= {"output_token_logprobs": own, "output_top_logprobs": triples}
    return {"text": "x"} | ({} if fault == "no ids" else {"output_ids": ids}) | {"meta_info": facts}
