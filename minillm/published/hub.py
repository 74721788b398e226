"""Models by their id on the hub, and data sets by their name there: files are fetched, and nothing of them is run."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from minillm.errors import UserError, need

OF_DATA = "hub:"  # how the name of a data set begins: hub:OWNER/NAME, with /CONFIG and :SPLIT behind it
DATA = re.compile(r"hub:(\w[\w.-]*/\w[\w.-]*)(?:/(\w[\w.-]*))?(?::(\w[\w.-]*))?", re.ASCII)
# The branch in which the hub keeps a copy of every data set, as files CONFIG/SPLIT/0000.parquet.
PARQUET = "refs/convert/parquet"
SMALL = ".gitattributes"  # a file that every repository has


def download(hub_id: str) -> Path:
    """A folder with what of a model can be read: never pickles, never code."""
    wanted, unwanted = (
        ["*.safetensors", "*.json", "*.txt", "*.jinja"],
        ["[!1-9]*/*"],
    )  # of all folders but 1_Pooling and its like
    what = f"there is no folder {hub_id}, and downloading it from the hub"
    return fetched(what, hub_id, allow_patterns=wanted, ignore_patterns=unwanted)


def data_files(name: str) -> list[Path]:
    """The Parquet files of a data set that is called so, all of them; of the split "train" where none is named.
    UserError."""
    if not (parts := DATA.fullmatch(name)):
        raise UserError(f"{name} is no data set of the hub: write hub:OWNER/NAME, and behind it /CONFIG and :SPLIT")
    owner_and_name, config, split = parts[1], parts[2], parts[3] or "train"
    found = sorted(path.parts for path in map(PurePosixPath, listing(name, owner_and_name)) if is_table(path))
    configs = sorted({of for of, its_split, _ in found if its_split == split and config in (None, of)})
    if not configs:
        what = f"configuration {config!r} with a split {split!r}" if config else f"split {split!r}"
        there = ", ".join(sorted({f"{of}:{its_split}" for of, its_split, _ in found})) or "none"
        raise UserError(f"{name}: the hub has no {what} of this data set, of CONFIG:SPLIT only {there}")
    if len(configs) > 1 and "default" not in configs:
        there = ", ".join(configs)
        raise UserError(f"{name} has the configurations {there}: name one, as in hub:{owner_and_name}/{configs[0]}")
    chosen = "default" if "default" in configs else configs[0]
    wanted = ["/".join(path) for path in found if path[:2] == (chosen, split)]
    folder = fetched_data(name, owner_and_name, wanted)
    return [folder / path for path in wanted]


def is_table(path: PurePosixPath) -> bool:
    return path.suffix == ".parquet" and len(path.parts) == 3


def listing(name: str, owner_and_name: str) -> list[str]:
    """The names of all files that the hub has of a data set; without a network, as it had them when some were fetched.

    What lies here may be a part of a split, such as the first file of several: only the hub's list tells. UserError
    where nobody asked for it yet.
    """
    hub = need("huggingface_hub", "hub", f"reading {name}")
    if not hasattr(hub, "get_cached_repo_tree"):
        raise UserError(f"reading {name} needs a newer huggingface_hub: pip install --upgrade huggingface_hub")
    reason = None
    try:
        fetched_data(name, owner_and_name, [SMALL])  # whatever is fetched, the library keeps the list
    except UserError as error:  # of no account where the list is here
        reason = error
    try:
        return [file.path for file in hub.get_cached_repo_tree(owner_and_name, repo_type="dataset", revision=PARQUET)]
    except hub.errors.CachedRepoTreeNotFoundError:
        unknown = UserError(f"{name}: whether all its files are here can only be told with a network; give it one once")
        raise reason or unknown from None


def fetched_data(name: str, owner_and_name: str, wanted: list[str]) -> Path:
    what = f"downloading {name} from the hub"
    return fetched(what, owner_and_name, repo_type="dataset", revision=PARQUET, allow_patterns=wanted)


def fetched(what: str, hub_id: str, **which: Any) -> Path:
    """The folder in which a snapshot lies, also without a network if it was there before. UserError."""
    hub = need("huggingface_hub", "hub", what)
    try:
        return Path(hub.snapshot_download(hub_id, **which))
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{what} failed: {reason}") from None
