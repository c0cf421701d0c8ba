"""Train a student from a cache with Lightning: ``python docs/examples/loop_lightning.py CACHE STUDENT``."""

import sys

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitcask import distillation


class DistilledModule(lightning.LightningModule):
    """A student with a loss against cached predictions, which is a submodule: it moves between devices with it."""

    def __init__(self, model, kd, learning_rate):
        super().__init__()
        self.model, self.cached_loss = model, kd.loss
        self.head, self.learning_rate, self.losses = kd.head, learning_rate, []

    def training_step(self, batch, _):
        """Return the loss of a batch."""
        hidden_states, _ = self.head.run(self.model, {name: batch[name] for name in ("input_ids", "attention_mask")})
        loss = self.cached_loss(batch, hidden_states=hidden_states, head=self.head).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        """Return the optimizer of student and loss."""
        return torch.optim.SGD(self.parameters(), self.learning_rate)


def train(cache: str, folder: str, steps: int = 3, batch_size: int = 8) -> list[float]:
    """Train for some steps; return the loss of each in nats."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).train(), AutoTokenizer.from_pretrained(folder)
    kd = distillation({"cache": cache, "loss": {"kd_weight": 0.9}}, student=model, tokenizer=tokenizer)
    loader = DataLoader(kd.dataset, batch_size, sampler=kd.sampler(42, batch_size), collate_fn=kd.collate)
    module = DistilledModule(model, kd, learning_rate=0.05)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(accelerator="cpu", devices=1, max_steps=steps, gradient_clip_val=1.0, **quiet).fit(module, loader)
    return module.losses


if __name__ == "__main__":
    print(train(*sys.argv[1:3]))
