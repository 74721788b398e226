"""The peer in bench/rl.py: TRL's RLOOTrainer takes steps from the same checkpoint, with the same prompts and reward,
in a process of its own.

    python bench/rl_peer.py FOLDER PROMPTS SAMPLES NEW DTYPE THREADS [--defaults]

FOLDER holds a checkpoint in Hugging Face layout, and prompts.json. On every line of standard input
the trainer takes a step and answers with a line of JSON. --defaults leaves TRL's own options as they are: gradient
checkpointing, and a KL penalty to a second copy of the model.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from train_worker import peak_mb, send
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import RLOOConfig, RLOOTrainer


def reward(completions: list[str], **_: object) -> list[float]:
    """The share of words with an even number."""
    words = [text.split() for text in completions]
    return [sum(int(word[1:]) % 2 == 0 for word in some) / max(1, len(some)) for some in words]


def words(vocab_size: int) -> PreTrainedTokenizerFast:
    """w0 w1 …, the last id being the end."""
    vocabulary = {f"w{i}": i for i in range(vocab_size - 1)} | {"<end>": vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


class Paced(TrainerCallback):
    """A step for each line of standard input."""

    def on_train_begin(self, *_: object, **__: object) -> None:
        send(ready=1)

    def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.start = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        send(ms=1e3 * (time.perf_counter() - self.start), peak_mb=peak_mb())


def main() -> None:
    folder, prompts, samples, new, dtype, threads, *options = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = words(model.config.vocab_size)
    model.config.bos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    texts = json.loads((Path(folder) / "prompts.json").read_text())
    alike = {} if "--defaults" in options else {"beta": 0.0, "gradient_checkpointing": False}
    config = RLOOConfig(
        output_dir=str(Path(folder) / "trl"),
        per_device_train_batch_size=int(prompts) * int(samples),
        num_generations=int(samples),
        max_completion_length=int(new),
        learning_rate=1e-5,
        temperature=1.0,
        max_steps=10_000,
        bf16=dtype == "bfloat16",
        use_cpu=True,
        disable_dropout=True,
        logging_steps=10_000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **alike,
    )
    data = Dataset.from_list([{"prompt": text} for text in texts])
    trainer = RLOOTrainer(model, reward, config, data, processing_class=tokenizer, callbacks=[Paced()])
    trainer.train()


if __name__ == "__main__":
    main()
