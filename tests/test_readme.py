"""README.md and README.zh-CN.md say the same in two languages, and what they say of files, options and sizes is true.

Words are a translator's; commands, code spans, figures and links are not. What differs is named, all of it at once.
"""

import contextlib
import importlib
import io
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest
from scripts import ROOT

import train_rl
import train_sft
from minillm import cli
from minillm.__main__ import COMMANDS
from minillm.errors import UserError
from minillm.tasks import TASKS

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
NAMES = {CHINESE, ENGLISH}  # each links to the other
SCRIPTS = {"train_sft.py": train_sft, "train_rl.py": train_rl}
OF_OTHERS = {"--help", "--no-deps", "--nproc-per-node"}  # argparse's, pip's, torchrun's
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
TARGET = re.compile(r"\]\(([^)]+)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
PROGRAM = re.compile(r"(?:(?P<script>train_sft\.py|train_rl\.py)|python -m minillm (?P<name>\w+)) (?P<words>.+)")
NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?")


def spans(text: str) -> list[str]:
    """What stands between backticks. A line may break within one, as any blank may."""
    return SPAN.findall(re.sub(r"(?<=\S)\n(?=\S)", " ", text))


def numbers(text: str) -> list[str]:
    """Of its words, without thousands separators: per cents with or without a blank before their sign are alike."""
    words = TARGET.sub("]", SPAN.sub("", re.sub(r"(?<=\S)\n(?=\S)", " ", text)))
    return [number.replace(",", "") for number in NUMBER.findall(words)]


class Block(NamedTuple):
    """What stands between two blank lines; a fenced one is whole."""

    text: str

    @property
    def kind(self) -> str:
        """`##`, the fence of code with its language, `|` of a table, or a paragraph, indented or not."""
        return re.match(r"#+|```\w*|\||    |", self.text).group()

    @property
    def is_code(self) -> bool:
        return self.kind.startswith("```")

    @property
    def rows(self) -> list[str]:
        """Of a table each for itself, its rule left out; of all else one."""
        rows = self.text.splitlines() if self.kind == "|" else [self.text]
        return [row for row in rows if not re.fullmatch(r"[|\s:-]+", row)]

    @property
    def code(self) -> list[str]:
        """Its lines without what is said in them: comments, and what a tree of files says of each."""
        lines = self.text.splitlines()
        if self.kind == "```":
            return [re.match(r" *(?:[\w/]+(?:\.py|/)(?: |$))*", line).group().rstrip() for line in lines]
        return [re.sub(r"\s+#\s.*", "", line) for line in lines]

    def __str__(self) -> str:
        return repr(self.text[:60])


def read(name: str) -> str:
    return re.sub(r"<!--.*?-->", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def blocks(name: str) -> list[Block]:
    """All but the line that links to the other language."""
    found = re.findall(r"^```[^`]*?\n.*?^```$|^(?:(?!```)[^\n]+\n?)+", read(name), re.MULTILINE | re.DOTALL)
    return [Block(text.rstrip()) for text in found if not NAMES & set(TARGET.findall(text))]


def pairs() -> list[tuple[Block, Block]]:
    """Of the two files, one beside the other, as far as they are of the same kinds."""
    both = zip(blocks(ENGLISH), blocks(CHINESE), strict=False)
    return list(takewhile(lambda pair: pair[0].kind == pair[1].kind, both))


def differences(what: str, where: object, english: Iterable[str], chinese: Iterable[str]) -> list[str]:
    """None if both hold the same, as often, in whatever order."""
    one, other = Counter(english), Counter(chinese)
    sides = ((ENGLISH, one - other), (CHINESE, other - one))
    only = [f"only in {name}: {', '.join(left.elements())}" for name, left in sides if left]
    return [f"{what} of {where}: {'; '.join(only)}"] if only else []


def check(faults: Sequence[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


# ---- the same in both ----------------------------------------------------------------------------


def test_both_have_the_same_blocks():
    """Headings, paragraphs, code and tables. Behind the first difference nothing else is compared."""
    same = len(pairs())
    left = [(name, blocks(name)[same:]) for name in (ENGLISH, CHINESE)]
    ends = [f"{name} goes on with {rest[0] if rest else 'nothing'}" for name, rest in left]
    assert not any(rest for _, rest in left), "; ".join(ends)


def test_both_have_the_same_code():
    """Every command, in its order, and what it prints; comments are a translator's."""
    lines = [pair for one, other in pairs() if one.is_code for pair in zip_longest(one.code, other.code)]
    check([f"{ENGLISH} has the line {one!r}, {CHINESE} {other!r}" for one, other in lines if one != other])


def test_both_have_the_same_tables():
    sizes = [(str(one), len(one.rows), len(other.rows)) for one, other in pairs() if one.kind == "|"]
    check([f"table {where} has {n} rows, in {CHINESE} {m}" for where, n, m in sizes if n != m])


@pytest.mark.parametrize("facts", [spans, numbers, TARGET.findall], ids=["spans", "numbers", "links"])
def test_both_state_the_same_facts(facts):
    """In each paragraph and each row of a table the same code spans, the same figures, the same links and images."""
    alike = [(one, other) for one, other in pairs() if not one.is_code and len(one.rows) == len(other.rows)]
    rows = [pair for one, other in alike for pair in zip(one.rows, other.rows, strict=True)]
    name = getattr(facts, "__name__", "links").replace("findall", "links")
    check([fault for one, other in rows for fault in differences(name, repr(one[:60]), facts(one), facts(other))])


def test_each_links_to_the_other():
    for name, other in ((ENGLISH, CHINESE), (CHINESE, ENGLISH)):
        assert other in TARGET.findall("\n".join(read(name).splitlines()[:4])), f"{name} does not begin with a link"


# ---- true of the repository ----------------------------------------------------------------------


def commands() -> list[str]:
    """What README says one may type, in code blocks and in words."""
    lines = [line.removeprefix("$ ") for block in blocks(ENGLISH) if block.is_code for line in block.code]
    return [command for line in lines for command in line.split(" && ")] + spans(read(ENGLISH))


def tree() -> list[Path]:
    """What the tree of files names, whole paths."""
    found: list[Path] = []
    folder = {0: Path()}
    block = next(block for block in blocks(ENGLISH) if block.is_code and "train_sft.py  " in block.text)
    for line in block.code:
        depth, names = len(line) - len(line.lstrip()), line.split()
        paths = [folder[depth] / name for name in names if re.search(r"\.py$|/$", name)]
        folder[depth + 2] = paths[-1] if paths else folder[depth]
        found += paths
    return found


def test_files_exist():
    """Those of the tree, those in code spans and commands, and those that links lead to."""
    words = [word for command in commands() for word in command.split()]
    named = [word for word in words if re.fullmatch(r"(minillm|kernels|bench|tests)/[\w./-]+", word)]
    modules = [word.replace(".", "/") + ".py" for word in words if re.fullmatch(r"(tests|bench)\.[\w.]+", word)]
    links = [target for target in TARGET.findall(read(ENGLISH)) if "://" not in target]
    assert len(named) > 5, named
    assert len(tree()) > 50, tree()
    missing = [path for path in [*tree(), *named, *modules, *links] if not (ROOT / path).exists()]
    check([f"{ENGLISH} names {path}, which there is not" for path in missing])


def test_the_tree_has_every_file_of_the_engine():
    files = [file for name in ("minillm", "kernels") for file in (ROOT / name).glob("[!_]*.py")]
    missing = sorted({file.relative_to(ROOT) for file in files} - set(tree()))
    check([f"the tree of {ENGLISH} has no line for {path}" for path in missing])


def options() -> set[str]:
    """Of both scripts, of all tasks and of all commands; of the benchmarks, which are not imported, by their text."""
    kinds = [script.Args for script in SCRIPTS.values()] + [task.Options for task in TASKS.values()]
    kinds += [importlib.import_module(f"minillm.commands.{name}").Args for name in COMMANDS]
    names = {name for kind in kinds for name in cli.names_of(kind)}
    for text in (file.read_text(encoding="utf-8") for file in (ROOT / "bench").glob("*.py")):
        names |= {*re.findall(r"^    (\w+): .+ = cli\.option\(", text, re.MULTILINE)}
        names |= {*re.findall(r'add_argument\(\s*"--([a-z0-9-]+)"', text)}
    return {f"--{name.replace('_', '-')}" for name in names}


def test_options_exist():
    unknown = sorted(set(OPTION.findall(read(ENGLISH))) - options() - OF_OTHERS)
    check([f"{ENGLISH} names {option}, which no program has" for option in unknown])


def parse(command: str) -> None:
    """As its own program would, if it is one of ours; nothing is opened or run."""
    if found := PROGRAM.search(command):
        words = [word for word in shlex.split(found["words"]) if word not in ("…", "--help")]
        if found["script"]:
            cli.parse_with_task(SCRIPTS[found["script"]].Args, TASKS, "", words)
        else:
            cli.parse(importlib.import_module(f"minillm.commands.{found['name']}").Args, "", words)


def test_commands_are_understood():
    """Every option stands with a program, and a task, that knows it, and has a value that it takes."""
    faults = []
    for command in commands():
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parse(command)
        except (SystemExit, UserError, ImportError) as error:
            faults.append(f"{ENGLISH}: {command}: {said.getvalue().strip().rpartition('error: ')[2] or error}")
    check(faults)


def lines_of(files: Iterable[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def resolve(names: Sequence[str]) -> list[Path]:
    """The files of a row of "Reading it", whose later names leave out what the first one or the package says."""
    package = "kernels" if names[0].startswith("kernels/") else "minillm"
    folders = (ROOT, ROOT / package, (ROOT / names[0]).parent)
    found = [[folder / name for folder in folders if (folder / name).exists()] for name in names]
    assert all(found), f"of {names} some are not there"
    return [paths[0] for paths in found]


def test_sizes_are_right():
    """Of each afternoon, of what is left, and of the tour, to within a twentieth."""
    table = next(block for block in blocks(ENGLISH) if "| lines |" in block.text)
    afternoons = {row: resolve(spans(row)) for row in table.rows[1:]}
    engine = {ROOT / name for name in SCRIPTS}.union(*((ROOT / name).rglob("*.py") for name in ("minillm", "kernels")))
    rest, tour = (
        re.search(rf"{words} [\d,]+ lines", read(ENGLISH)).group() for words in ("The rest,", "test_tour.py`:")
    )
    sizes = {row: lines_of(files) for row, files in afternoons.items()}
    sizes |= {rest: lines_of(engine.difference(*afternoons.values())), tour: lines_of([ROOT / "tests/test_tour.py"])}
    given = {words: int(numbers(words)[-1]) for words in sizes}
    check([f"{words!r}: it is {n}" for words, n in sizes.items() if abs(n - given[words]) > n / 20])
