"""Train a student from a cache with transformers' Trainer: ``python docs/examples/loop_trainer.py CACHE STUDENT``."""

import sys
import tempfile

from torch.utils.data import Subset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from logitcask import distillation


class DistillingTrainer(Trainer):
    """The Trainer with a loss against cached predictions; ``remove_unused_columns`` keeps its default."""

    loss_is_scaled_for_ga = True  # the loss is divided by the positions of all micro-batches

    def __init__(self, *, kd, **named):
        super().__init__(train_dataset=named.pop("train_dataset", kd.dataset), data_collator=kd.collate, **named)
        self.cached_loss = kd.loss.to(self.args.device)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Count the positions of a step; of several ranks, take the mean."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch["target_ids"]) for batch in batches)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss of a batch."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = self.cached_loss(inputs, logits=outputs.logits, num_positions=num_items_in_batch).loss
        return (loss, outputs) if return_outputs else loss


def train(cache: str, folder: str, steps: int = 3, batch_size: int = 8, accumulated: int = 1) -> list[float]:
    """Train for some steps; return the loss of each in nats."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    kd = distillation({"cache": cache, "loss": {"kd_weight": 0.9}}, student=model, tokenizer=tokenizer)
    rows = Subset(kd.dataset, list(kd.sampler(seed=42, step_sequences=batch_size)))  # or kd.dataset, which it shuffles
    arguments = {"per_device_train_batch_size": batch_size // accumulated, "gradient_accumulation_steps": accumulated}
    arguments |= {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": steps}
    arguments |= {"train_sampling_strategy": "sequential", "logging_steps": 1, "save_strategy": "no", "use_cpu": True}
    with tempfile.TemporaryDirectory() as output:
        settings = TrainingArguments(output, disable_tqdm=True, report_to="none", **arguments)
        trainer = DistillingTrainer(kd=kd, model=model, args=settings, train_dataset=rows)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print(train(*sys.argv[1:3]))
