"""Merges what LoRA has learned into the model that it began as, for programs that know no adapters.

  python -m minillm merge ADAPTER --base MODEL --out FOLDER
  python -m minillm merge runs/classify-sft/adapter --base MODEL --out FOLDER --classes bad,good

ADAPTER is a folder with adapter_config.json and adapter_model.safetensors, as peft and `train_sft.py --lora` write
them. FOLDER gets a model like any other, its weights in float32. A run of train_sft.py is merged already.
"""

from dataclasses import dataclass
from pathlib import Path

from minillm import cli
from minillm.commands.common import MODEL, note
from minillm.errors import UserError
from minillm.published import adapters, checkpoint
from minillm.published.vocabularies import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Args:
    adapter: str = cli.argument("folder of an adapter in peft's layout")
    base: str | None = cli.option(None, f"what it was trained on: {MODEL}")
    out: Path | None = cli.option(None, "folder to write the merged model to")
    classes: str | None = cli.option(
        None, "names of a classifier's outputs, e.g. bad,good, where the base has none (default: LABEL_0, …)"
    )


def main(args: Args) -> None:
    if args.base is None or args.out is None:
        raise UserError(f"--{'base MODEL' if args.base is None else 'out FOLDER'} is missing")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"--out {args.out} is there already; name a new folder")
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else []
    if len(set(classes)) < len(classes) or not all(classes):
        raise UserError(f"--classes {args.classes}: every class needs a name of its own")
    path = checkpoint.resolve(args.base)
    model = adapters.merged(checkpoint.resolve(args.adapter), checkpoint.open_checkpoint(path), classes)
    tokenizer = load_tokenizer(path)
    checkpoint.save(model, args.out)
    tokenizer.save(args.out)
    note(f"saved to {args.out}: {args.base} with {args.adapter} in its weights")
