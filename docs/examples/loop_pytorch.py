"""Train a student from a cache in a loop of plain PyTorch: ``python docs/examples/loop_pytorch.py CACHE STUDENT``.

The loss takes hidden states and the student's head, so the logits of a batch never exist all at once.
"""

import sys

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitcask import distillation


def train(cache: str, folder: str, steps: int = 3, batch_size: int = 8, learning_rate: float = 0.05) -> list[float]:
    """Train for some steps; return the loss of each in nats."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    kd = distillation(
        {"cache": cache, "loss": {"kd_weight": 0.9}}, student=model, tokenizer=AutoTokenizer.from_pretrained(folder)
    )
    order = kd.sampler(seed=42, step_sequences=batch_size)  # as logitcask train; shuffle=True works too
    loader = DataLoader(kd.dataset, batch_size, sampler=order, collate_fn=kd.collate)
    optimizer, losses = torch.optim.SGD(model.parameters(), learning_rate), []
    model.train()
    while len(losses) < steps:
        for batch in loader:
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            hidden_states, _ = kd.head.run(model, inputs)
            loss = kd.loss(batch, hidden_states=hidden_states, head=kd.head).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) == steps:
                break
        order.set_epoch(order.epoch + 1)
    return losses


if __name__ == "__main__":
    print(train(*sys.argv[1:3]))
