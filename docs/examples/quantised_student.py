"""Train a student whose weights are rounded: ``python docs/examples/quantised_student.py CACHE STUDENT OUTPUT``."""

import sys
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitcask import distillation


class Rounded(nn.Module):
    """Rounds a weight to the nearest level; its gradient passes as if it had not (the straight-through estimator)."""

    def __init__(self, bits: int, group: int) -> None:
        super().__init__()
        self.levels, self.group = 2 ** (bits - 1) - 1, group

    def forward(self, weight: Tensor) -> Tensor:
        """Return a weight with 2^bits - 1 levels in each group."""
        groups = weight.reshape(len(weight), -1, self.group)
        step = groups.detach().abs().amax(dim=2, keepdim=True).clamp(min=1e-12) / self.levels
        return weight + ((groups / step).round() * step - groups).detach().reshape(weight.shape)


def train(cache: str, folder: str, output: str, steps: int = 200, bits: int = 4, group: int = 32) -> None:
    """Train for some steps and write the rounded student as an ordinary folder."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    kd = distillation({"cache": cache, "loss": {"kd_weight": 1.0}}, student=model, tokenizer=tokenizer)
    linear = [layer for layer in model.base_model.modules() if type(layer) is nn.Linear]  # not the output matrix
    for layer in linear:
        parametrize.register_parametrization(layer, "weight", Rounded(bits, group))
    loader = DataLoader(kd.dataset, batch_size=8, sampler=kd.sampler(seed=0), collate_fn=kd.collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for batch in islice(chain.from_iterable(repeat(loader)), steps):
        states, _ = kd.head.run(model, {name: batch[name] for name in ("input_ids", "attention_mask")})
        kd.loss(batch, hidden_states=states, head=kd.head).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for layer in linear:
        parametrize.remove_parametrizations(layer, "weight")  # what is left is the rounded weight
    for part in (model, tokenizer):
        part.save_pretrained(output)


if __name__ == "__main__":
    train(*sys.argv[1:4])
