"""The peer in bench/chat.py: TRL's SFTTrainer takes steps from the same checkpoint, over the same conversations, in a
process of its own.

    python bench/chat_peer.py FOLDER STEPS LR RANK THREADS ROW

FOLDER holds model/, a checkpoint in Hugging Face layout, and talks.json. On every line of standard input the trainer
takes a step, STEPS of which read everything once, and answers with a line of JSON. RANK is LoRA's, or 0; with ROW above
0 conversations are packed into rows of so many tokens.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from torch import Tensor
from train_worker import peak_mb, send
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Losses(SFTTrainer):
    """Remembers the last step's."""

    last: Tensor

    def compute_loss(self, *given: object, **named: object) -> object:
        found = super().compute_loss(*given, **named)
        self.last = (found[0] if isinstance(found, tuple) else found).detach()
        return found


class Paced(TrainerCallback):
    """A step for each line of standard input."""

    trainer: Losses

    def on_train_begin(self, *_: object, **__: object) -> None:
        send(ready=1)

    def on_step_begin(self, *_: object, **__: object) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.start = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        loss = float(self.trainer.last)
        send(loss=loss, ms=1e3 * (time.perf_counter() - self.start), peak_mb=peak_mb())


def nothing() -> PreTrainedTokenizerFast:
    """A vocabulary, which the trainer wants although everything is tokens already."""
    words = Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def main() -> None:
    folder, steps, lr, rank, threads, row = sys.argv[1:]
    folder, steps, rank, row = Path(folder), int(steps), int(rank), int(row)
    torch.set_num_threads(int(threads))
    talks = json.loads((folder / "talks.json").read_text())
    packs = {"packing": True, "max_length": row} if row else {"packing": False, "max_length": None}
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=len(talks) // steps,
        learning_rate=float(lr),
        lr_scheduler_type="constant",
        max_steps=10_000,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
        logging_steps=10_000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **packs,
    )
    pairs = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if rank else None
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    paced = Paced()
    given = {"processing_class": nothing(), "peft_config": pairs, "callbacks": [paced]}
    paced.trainer = trainer = Losses(model, config, train_dataset=Dataset.from_list(talks), **given)
    if row:  # as many steps as without packing
        trainer._train_batch_size = config.per_device_train_batch_size = math.ceil(len(trainer.train_dataset) / steps)
    trainer.train()


if __name__ == "__main__":
    main()
