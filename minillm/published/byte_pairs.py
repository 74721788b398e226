"""Byte-level BPE of one's own, for models that write and start from nothing; and what stands around a prompt."""

from collections.abc import Sequence

from minillm.errors import UserError, need
from minillm.published.subwords import Subwords
from minillm.tokenizer import END, Tokenizer

# A word with the blank before it, one digit, a run of signs, blanks; digits alone, so that a number is read by places.
PIECES = r" ?\p{L}[\p{L}\p{M}]*| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SEEN = 10  # times that a pair must occur: what was seen less often is not learned, and its parts are
PROMPT = "{prompt}"


def learn_byte_pairs(texts: Sequence[str], vocab_size: int, control: Sequence[str] = ()) -> Subwords:
    """Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019) of at most so many tokens,
    END and further `control` tokens among them; every text can be written in it, and is found again.

    The same texts make the same vocabulary: of pairs that occur equally often, the one of lower numbers is merged.
    """
    library = need("tokenizers", "text", "learning a vocabulary")
    backend = library.Tokenizer(library.models.BPE())
    parts = library.pre_tokenizers
    cut = parts.Split(library.Regex(PIECES), "isolated")
    backend.pre_tokenizer = parts.Sequence([cut, parts.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=SEEN,
        special_tokens=[END, *control],
        initial_alphabet=sorted(parts.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Subwords(backend, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END})


def require_subwords(tokenizer: Tokenizer, task: str) -> None:
    """UserError for a vocabulary of symbols, in which texts cannot be written."""
    if not isinstance(tokenizer, Subwords):
        raise UserError(f"this model does not know what --task {task} is written in: its vocabulary is one of symbols")


def set_prompt_format(tokenizer: Subwords, form: str) -> None:
    """From now on, what this tokenizer reads as one text is a prompt, with around it what `form` has around {prompt}.

    Control tokens in it count as such. It is a part of tokenizer.json, so that whoever reads a prompt with it, here or
    in transformers, reads it as the model was trained to; tokenizer_config.json has it as `prompt_format`. UserError.
    """
    if form.count(PROMPT) != 1:
        raise UserError(f"the prompt format {form!r} must have {PROMPT} in it, once")
    library = need("tokenizers", "text", "a prompt format")
    before, behind = (tokenizer.parse(text)[0] for text in form.split(PROMPT))
    first = tokenizer.wrap("")[0][:1]
    if first == [tokenizer.begin] != before[:1]:  # a token that this vocabulary puts before every text
        before = first + before
    pieces = {"before": before, "$A": [], "behind": behind}
    tokenizer.backend.post_processor = library.processors.TemplateProcessing(
        single=[name for name, ids in pieces.items() if ids or name == "$A"],
        pair=["$A", "$B:1"],
        special_tokens=[
            {"id": name, "ids": ids, "tokens": list(map(tokenizer.backend.id_to_token, ids))}
            for name, ids in pieces.items()
            if ids
        ],
    )
    tokenizer.config = {**tokenizer.config, "prompt_format": form}
