"""The peer in bench/train.py: transformers takes the same training steps from the same checkpoint, in a process of its
own, which never sees this repository's package `kernels` (transformers asks for one of that name).

    python bench/train_peer.py FOLDER THREADS [--compile]

FOLDER holds a checkpoint in Hugging Face layout and batch.safetensors. On every line of standard input it takes a
step and answers with a line of JSON.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from train_worker import serve
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

MODELS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "": AutoModelForCausalLM,
}


def padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token ids (B, T) and their mask, as a data collator of transformers makes them of rows of any length."""
    ids = padded_rows(batch, "tokens", 0)
    if len(set(batch["lengths"].tolist())) == 1:
        return {"input_ids": ids}
    mask = torch.arange(ids.shape[1]) < batch["lengths"][:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def padded_rows(batch: dict[str, Tensor], name: str, value: int) -> Tensor:
    """(B, T)"""
    rows = batch[name].split(batch["lengths"].tolist())
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def main() -> None:
    folder, threads, *options = sys.argv[1:]
    torch.set_num_threads(int(threads))
    batch = load_file(Path(folder) / "batch.safetensors")
    inputs = padded(batch)
    config = AutoConfig.from_pretrained(folder)
    kind = config.architectures[0]
    make = next(make for ending, make in MODELS.items() if kind.endswith(ending))
    model = make.from_pretrained(folder, config=config, attn_implementation="sdpa").train()
    labels = batch["labels"] if "labels" in batch else padded_rows(batch, "targets", -100)
    run = torch.compile(model) if "--compile" in options else model

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if make is not AutoModelForCausalLM:
                return run(**inputs, labels=labels).loss
            logits = run(**inputs, use_cache=False).logits
        # As transformers' own loss for language models: logits in float32, one mean over all tokens.
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["targets"])

    def step() -> Tensor:
        value = loss()
        value.backward()
        return value.detach()

    serve(model, step)


if __name__ == "__main__":
    main()
