"""The peer in bench/seq2seq.py: transformers answers the same prompts, in a process of its own.

    python bench/seq2seq_peer.py MODEL PROMPTS DTYPE BEAMS NEW END BATCH THREADS

MODEL is a folder in Hugging Face layout, PROMPTS a JSON file.
"""

import json
import sys
from pathlib import Path

import torch
from generate_worker import serve
from transformers import AutoModelForCausalLM, PreTrainedModel


def main() -> None:
    path, file, dtype, *numbers = sys.argv[1:]
    beams, new, end, size, threads = map(int, numbers)
    torch.set_num_threads(threads)
    prompts = json.loads(Path(file).read_text())["prompts"]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    options = {"num_beams": beams, "do_sample": False, "max_new_tokens": new, "eos_token_id": end, "pad_token_id": end}

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()

    def answer(model: PreTrainedModel) -> list[list[int]]:
        found = [[] for _ in prompts]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            longest = len(prompts[rows[-1]])
            pads = [longest - len(prompts[i]) for i in rows]
            ids = torch.tensor([[end] * pad + prompts[i] for i, pad in zip(rows, pads, strict=True)])
            mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
            for i, row in zip(rows, model.generate(ids, attention_mask=mask, **options).tolist(), strict=True):
                new_tokens = row[longest:]
                found[i] = new_tokens[: new_tokens.index(end) + 1] if end in new_tokens else new_tokens
        return found

    serve(load, answer)


if __name__ == "__main__":
    main()
