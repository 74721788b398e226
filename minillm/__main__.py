"""Models on the command line: published ones, and those that were trained here.

  python -m minillm generate MODEL --prompt "Once upon a time"    a GPT goes on with a text
  python -m minillm chat MODEL                                    a conversation with a GPT
  python -m minillm answer RUN "a prompt"                         what a GPT that learned to answer makes of it
  python -m minillm embed MODEL "one text" "another"              how alike texts mean, by a BERT
  python -m minillm classify RUN "a text"                         which class a text belongs to
  python -m minillm tag RUN "a text"                              its entities, or what each word is
  python -m minillm score RUN --prompt "a question" "an answer"   how good a reward model finds it
  python -m minillm fill MODEL "The [MASK] is blue."              the words that a BERT would put there
  python -m minillm merge ADAPTER --base MODEL --out FOLDER       LoRA's pairs into the weights that they are for
  python -m minillm reward FILE.py:score "an answer"              what a reward for train_rl.py says of answers
  python -m minillm rollout RUN                                   answers that it draws, with their rewards
  python -m minillm evaluate RUN --file FILE                      how good its answers are, with intervals
  python -m minillm compare RUN RUN                               whether one is better than the other
  python -m minillm report RUN                                    the page of a run, made anew

MODEL is a folder in the layout of Hugging Face, a run of train_sft.py or train_rl.py, the id of a model on the hub
(pip install -e '.[hub]'), or a .gguf file (pip install -e '.[gguf]'). No code that comes with a model is run; chat
templates are, in a sandbox.

Every command has a --help with examples: python -m minillm chat --help
"""

import minillm  # noqa: F401, first: it sets how threads wait

# isort: split

import importlib
import sys

from minillm import cli
from minillm.errors import UserError

COMMANDS = (
    "generate",
    "chat",
    "answer",
    "embed",
    "classify",
    "tag",
    "score",
    "fill",
    "merge",
    "reward",
    "rollout",
    "evaluate",
    "compare",
    "report",
)


def main() -> None:
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip())
        return
    name, *argv = sys.argv[1:]
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}, only {', '.join(COMMANDS)}; see python -m minillm --help")
    command = importlib.import_module(f"minillm.commands.{name}")
    command.main(cli.parse(command.Args, command.__doc__, argv, prog=f"python -m minillm {name}"))


if __name__ == "__main__":
    cli.run(main)
