"""The peer in bench/seq2seq.py: transformers answers the same prompts, in a process of its own.

    python bench/seq2seq_peer.py MODEL PROMPTS DTYPE BEAMS NEW END THREADS BATCH...

MODEL is a folder in Hugging Face layout, PROMPTS a JSON file. Of the sizes of batches the fastest one is kept.
"""

import json
import sys
import time
from pathlib import Path

import torch
from generate_worker import serve
from transformers import AutoModelForCausalLM, PreTrainedModel


def main() -> None:
    path, file, dtype, *numbers = sys.argv[1:]
    beams, new, end, threads, *sizes = map(int, numbers)
    torch.set_num_threads(threads)
    prompts = json.loads(Path(file).read_text())["prompts"]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    options = {"num_beams": beams, "do_sample": False, "max_new_tokens": new, "eos_token_id": end, "pad_token_id": end}

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()

    def answers(model: PreTrainedModel, size: int) -> list[list[int]]:
        found = [[] for _ in prompts]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            longest = len(prompts[rows[-1]])
            pads = [longest - len(prompts[i]) for i in rows]
            ids = torch.tensor([[end] * pad + prompts[i] for i, pad in zip(rows, pads, strict=True)])
            mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
            for i, row in zip(rows, model.generate(ids, attention_mask=mask, **options).tolist(), strict=True):
                answer = row[longest:]
                found[i] = answer[: answer.index(end) + 1] if end in answer else answer
        return found

    def seconds(model: PreTrainedModel, size: int) -> float:
        start = time.perf_counter()
        answers(model, size)
        return time.perf_counter() - start

    best: list[int] = []

    def answer(model: PreTrainedModel) -> list[list[int]]:
        if not best:
            best.append(min(sizes, key=lambda size: seconds(model, size)))
            print(f"transformers: batches of {best[0]}", file=sys.stderr)
        return answers(model, best[0])

    serve(load, answer)


if __name__ == "__main__":
    main()
