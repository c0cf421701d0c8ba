"""Train a student from a cache with TRL's SFTTrainer: ``python docs/examples/loop_trl.py CACHE STUDENT``.

SFTTrainer takes a table of the library ``datasets``. Its rows number cached sequences; the collator reads tokens
and predictions together, so the table may be shuffled, filtered and split as usual.
"""

import sys
import tempfile

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from logitcask import distillation


class DistillingSFTTrainer(SFTTrainer):
    """SFTTrainer with a loss against cached predictions."""

    def __init__(self, *, kd, **named):
        super().__init__(data_collator=kd.collate, **named)
        self.cached_loss = kd.loss.to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss of a batch; a mean over its positions."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        loss = self.cached_loss(inputs, logits=outputs.logits).loss
        return (loss, outputs) if return_outputs else loss


def train(cache: str, folder: str, steps: int = 3, batch_size: int = 8) -> list[float]:
    """Train for some steps; return the loss of each in nats."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    kd = distillation({"cache": cache, "loss": {"kd_weight": 0.9}}, student=model, tokenizer=tokenizer)
    rows = Dataset.from_dict({"sequence": list(kd.sampler(seed=42, step_sequences=batch_size))})
    arguments = {"per_device_train_batch_size": batch_size, "optim": "sgd", "learning_rate": 0.05, "max_steps": steps}
    arguments |= {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "logging_steps": 1}
    arguments |= {"save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True, "report_to": "none"}
    keep_rows = {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    with tempfile.TemporaryDirectory() as output:
        settings = SFTConfig(output, **arguments, **keep_rows)
        trainer = DistillingSFTTrainer(
            kd=kd, model=model, args=settings, train_dataset=rows, processing_class=tokenizer
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print(train(*sys.argv[1:3]))
