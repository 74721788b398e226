"""The peer in bench/generate.py: transformers continues the same prompts, in a process of its own.

    python bench/generate_peer.py MODEL PROMPTS DTYPE NEW THREADS

MODEL is a folder in Hugging Face layout or a GGUF file, PROMPTS a safetensors file with token ids (B, T).
"""

import sys
from pathlib import Path

import torch
from generate_worker import serve
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel


def main() -> None:
    path, prompts, dtype, new, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    path, ids = Path(path), load_file(prompts)["prompts"]

    def load() -> PreTrainedModel:
        where, options = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
        model = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, dtype), **options).eval()
        model.generation_config.eos_token_id = None  # every answer gets its full length
        model.generation_config.pad_token_id = 0
        return model

    options = {"max_new_tokens": int(new), "do_sample": False, "attention_mask": torch.ones_like(ids)}
    serve(load, lambda model: model.generate(ids, **options)[:, ids.shape[1] :].tolist())


if __name__ == "__main__":
    main()
