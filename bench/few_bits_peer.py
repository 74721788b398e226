"""The peer in bench/few_bits.py: llama.cpp goes on with the same prompts, greedily, in a process of its own.

python bench/few_bits_peer.py FILE.gguf PROMPTS NEW THREADS
"""

import sys

from generate_worker import serve
from llama_cpp import Llama
from safetensors.torch import load_file


def main() -> None:
    path, prompts, new, threads = sys.argv[1:]
    tokens = load_file(prompts)["prompts"].tolist()
    room = len(tokens[0]) + int(new)

    def load() -> Llama:
        threads_of = {"n_threads": int(threads), "n_threads_batch": int(threads)}
        return Llama(path, n_ctx=room, n_batch=512, verbose=False, **threads_of)

    def answer(model: Llama) -> list[list[int]]:
        found = []
        for prompt in tokens:
            model.reset()
            written = []
            while len(written) < int(new):
                model.eval(written[-1:] or prompt)
                written.append(model.sample(temp=0.0))
            found.append(written)
        return found

    serve(load, answer)


if __name__ == "__main__":
    main()
