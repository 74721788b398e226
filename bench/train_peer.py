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
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

Model = torch.nn.Module


def padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token ids (B, T) and their mask, as a data collator of transformers makes them of rows of any length."""
    rows = batch["tokens"].split(batch["lengths"].tolist())
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if len(set(batch["lengths"].tolist())) == 1:
        return {"input_ids": ids}
    mask = torch.arange(ids.shape[1]) < batch["lengths"][:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def main() -> None:
    folder, threads, *options = sys.argv[1:]
    torch.set_num_threads(int(threads))
    batch = load_file(Path(folder) / "batch.safetensors")
    inputs = padded(batch)
    is_classifier = "labels" in batch
    make = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    model = make.from_pretrained(folder, config=AutoConfig.from_pretrained(folder), attn_implementation="sdpa").train()
    run = torch.compile(model) if "--compile" in options else model

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if is_classifier:
                return run(**inputs, labels=batch["labels"]).loss
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
