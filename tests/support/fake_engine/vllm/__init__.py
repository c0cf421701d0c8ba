"""As much of vLLM as the engine's process uses, with a tiny Llama in numpy behind it, so that it starts at once.

It suffices because the process is judged by its messages, and an implementation of its own makes equal rows a proof;
what is true of real vLLM is measured by ``benchmarks/engines.py``. FAKE_VLLM_DIE_AT kills the process before that
call, FAKE_VLLM_FAULT spoils the answers.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import load_file

__version__ = "0.0.fake"


class PoolingParams(SimpleNamespace):
    pass


class SamplingParams(SimpleNamespace):
    pass


class Layer:
    def get_attn_backend(self):
        return SimpleNamespace(get_name=lambda: "FAKE_ATTN")


class States(SimpleNamespace):
    """As much of a tensor as is used."""

    @property
    def shape(self):
        return self.rows.shape

    def float(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.rows


class LLM:
    def __init__(
        self,
        model,
        *,
        runner,
        dtype,
        max_model_len,
        max_num_batched_tokens,
        max_num_seqs,
        enable_prefix_caching,
        **more,
    ):
        print("this line must not mix with the answers")
        assert (enable_prefix_caching, dtype) == (False, "float32")
        if runner == "generate":
            self.max_logprobs = more["max_logprobs"]
        else:
            assert runner == "pooling"
            assert more["pooler_config"] == {"task": "token_embed", "use_activation": False}
        self.limits = (max_model_len, max_num_batched_tokens, max_num_seqs)
        self.config = SimpleNamespace(**json.loads((Path(model) / "config.json").read_text()))
        self.weights = {k: v.astype(float) for k, v in load_file(Path(model) / "model.safetensors").items()}
        self.calls, self.fault = 0, os.environ.get("FAKE_VLLM_FAULT", "")
        width = self.config.hidden_size + (self.fault == "width")
        model_config = SimpleNamespace(dtype=dtype, get_hidden_size=lambda: width)
        compilation_config = SimpleNamespace(static_forward_context={"0": Layer(), "1": Layer()})
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(model_config=model_config, compilation_config=compilation_config)
        )

    def encode(self, prompts, *, pooling_params, pooling_task, use_tqdm):
        self.calls += 1
        if self.calls == int(os.environ.get("FAKE_VLLM_DIE_AT", "0")):
            print("the last words of the engine", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        asked = (pooling_params.task, pooling_params.use_activation, pooling_task)
        assert asked == ("token_embed", False, "token_embed")
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        longest, most_tokens, most_sequences = self.limits
        assert max(map(len, ids)) <= longest
        assert sum(map(len, ids)) <= most_tokens
        assert len(ids) <= most_sequences
        return [self.output(own) for own in ids]

    def generate(self, prompts, params, use_tqdm):
        """Return the log-probabilities of one text, the token that follows first; FAKE_VLLM_FAULT may scale logits."""
        (prompt,) = prompts
        ids, most = prompt["prompt_token_ids"], params.prompt_logprobs
        assert (params.max_tokens, most <= self.max_logprobs) == (1, True)
        assert len(ids) < self.limits[0]  # one token is generated
        logits = self.states(np.array(ids)) @ self.weights["lm_head.weight"].T
        if self.fault == "scaled head":
            logits = logits / 2
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = []
        for row, following in zip(log_probs[:-1], ids[1:], strict=True):
            tokens = [following, *np.argsort(-row)[:most].tolist()]
            rows.append({token: SimpleNamespace(logprob=float(row[token])) for token in tokens})
        return [SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=[None, *rows])]

    def output(self, ids):
        rows = self.states(np.array(ids)).astype(np.float32)
        if self.fault == "normalised":
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        elif self.fault == "other layer":
            rows = np.float32(100) * rows[:, ::-1]
        elif self.fault == "rows":
            rows = rows[1:]
        read = [0, *ids[:-1]] if self.fault == "ids" else ids
        return SimpleNamespace(prompt_token_ids=read, outputs=SimpleNamespace(data=States(rows=rows)))

    def states(self, ids):
        """Return a Llama's states behind its last norm: (L, D) float64."""
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config.num_hidden_layers):
            named = f"model.layers.{layer}"
            x = x + self.attention(self.norm(x, f"{named}.input_layernorm"), f"{named}.self_attn")
            y = self.norm(x, f"{named}.post_attention_layernorm")
            gate = self.times(y, f"{named}.mlp.gate_proj")
            inner = gate / (1 + np.exp(-gate)) * self.times(y, f"{named}.mlp.up_proj")
            x = x + self.times(inner, f"{named}.mlp.down_proj")
        return self.norm(x, "model.norm")

    def times(self, x, name):
        return x @ self.weights[f"{name}.weight"].T

    def norm(self, x, name):
        scale = np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + self.config.rms_norm_eps)
        return x / scale * self.weights[f"{name}.weight"]

    def attention(self, x, name):
        heads = self.config.num_attention_heads
        q, k, v = (self.times(x, f"{name}.{part}_proj").reshape(len(x), heads, -1).swapaxes(0, 1) for part in "qkv")
        scores = rotated(q) @ rotated(k).swapaxes(1, 2) / np.sqrt(q.shape[2])
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        mixed = (weights / weights.sum(axis=2, keepdims=True)) @ v
        return self.times(mixed.swapaxes(0, 1).reshape(len(x), -1), f"{name}.o_proj")


def rotated(x):
    """Return queries or keys (heads, L, d) turned by their positions, base 10,000."""
    half = x.shape[2] // 2
    angles = np.arange(x.shape[1])[:, None] / 10_000 ** (np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)
