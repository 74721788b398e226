"""Another peer in bench/generate.py: CTranslate2 continues the same prompts, in a process of its own.

    python bench/generate_ct2_peer.py MODEL PROMPTS COMPUTE NEW THREADS

MODEL is a folder of GPT-2's family in Hugging Face layout, PROMPTS a safetensors file with token ids (B, T), COMPUTE
float32 or int8, as CTranslate2 calls it.
"""

import sys
import tempfile
from types import SimpleNamespace

import ctranslate2
from ctranslate2.converters import TransformersConverter
from generate_worker import serve
from safetensors.torch import load_file
from transformers import AutoConfig

END = "<end>"  # in place of the last token, which may not come before an answer has its full length


class Converter(TransformersConverter):
    """Of a model without a vocabulary: its tokens are named by their numbers."""

    def load_tokenizer(self, tokenizer_class: type, path: str, **_: object) -> SimpleNamespace:
        size = AutoConfig.from_pretrained(path).vocab_size
        names = {f"{i}": i for i in range(size - 1)} | {END: size - 1}
        return SimpleNamespace(get_vocab=lambda: names, bos_token=END, eos_token=END, unk_token=END)


def main() -> None:
    path, prompts, compute, new, threads = sys.argv[1:]
    tokens = [[str(i) for i in row] for row in load_file(prompts)["prompts"].tolist()]
    how = {"max_length": int(new), "min_length": int(new), "sampling_topk": 1, "include_prompt_in_result": False}
    with tempfile.TemporaryDirectory() as folder:
        Converter(path).convert(folder, quantization=compute, force=True)

        def load() -> ctranslate2.Generator:
            return ctranslate2.Generator(folder, compute_type=compute, intra_threads=int(threads), inter_threads=1)

        def answer(model: ctranslate2.Generator) -> list[list[int]]:
            return [found.sequences_ids[0] for found in model.generate_batch(tokens, **how)]

        serve(load, answer)


if __name__ == "__main__":
    main()
