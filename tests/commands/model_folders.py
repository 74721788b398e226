"""Folders with tiny models and vocabularies, in the layout of Hugging Face, as the commands read them."""

import json
from pathlib import Path

import tiny
import torch
from torch import nn

from minillm.gpt import GPT
from minillm.published import checkpoint
from minillm.published.subwords import letters_of_bytes

END = "<|endoftext|>"
MERGED = ["th", "the", "Ġthe", "ST", "OP", "STOP"]  # tokens of more than a byte
TURNS = "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}[assistant]{% endif %}"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sky", "is", "blue", "good", "bad", "film"]


def write_bytes_vocabulary(folder: Path, template: str | None = None) -> int:
    """GPT-2's files with all bytes, a few merges and an end → the number of tokens."""
    tokens = [*letters_of_bytes(), *MERGED, END]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\nS T\nO P\nST OP\n")
    config = {"eos_token": END} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


@torch.no_grad()
def write_gpt(folder: Path, template: str | None = TEMPLATE, max_seq_len: int = 64) -> Path:
    """A Llama with random weights that, greedily, only says ASCII letters and never ends."""
    folder.mkdir()
    size = write_bytes_vocabulary(folder, template)
    config = tiny.gpt_config(
        vocab_size=size, max_seq_len=max_seq_len, bias=False, **{**tiny.LLAMA, "tie_embeddings": False}
    )
    model = tiny.shake(GPT(config)).float()
    letters = [i for i, letter in enumerate(letters_of_bytes()) if letter.isascii() and letter.isalpha()]
    silent = torch.ones(size, dtype=torch.bool)
    silent[letters] = False
    model.output.weight[silent] = 0
    checkpoint.save(model, folder)
    return folder


def write_bert(folder: Path, head: type[nn.Module], *made_of) -> Path:
    """A BERT with this head and random weights that knows WORDS."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    checkpoint.save(tiny.shake(head(tiny.bert_config(vocab_size=len(WORDS)), *made_of)).float(), folder)
    return folder
