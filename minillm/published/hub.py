"""Models by their id on the hub, and data sets by their name there: files are fetched, and nothing of them is run."""

import re
from pathlib import Path
from typing import Any

from minillm.errors import UserError, need

OF_DATA = "hub:"  # how the name of a data set begins: hub:OWNER/NAME, with /CONFIG and :SPLIT behind it
DATA = re.compile(r"hub:(\w[\w.-]*/\w[\w.-]*)(?:/(\w[\w.-]*))?(?::(\w[\w.-]*))?", re.ASCII)
PARQUET = (
    "refs/convert/parquet"  # the branch in which the hub keeps a copy of every data set, CONFIG/SPLIT/0000.parquet
)


def download(hub_id: str) -> Path:
    """A folder with what of a model can be read: never pickles, never code."""
    wanted, unwanted = (
        ["*.safetensors", "*.json", "*.txt", "*.jinja"],
        ["[!1-9]*/*"],
    )  # of all folders but 1_Pooling and its like
    what = f"there is no folder {hub_id}, and downloading it from the hub"
    return fetched(what, hub_id, allow_patterns=wanted, ignore_patterns=unwanted)


def data_files(name: str) -> list[Path]:
    """The Parquet files of a data set that is called so; of the split "train" where none is named. UserError."""
    if not (parts := DATA.fullmatch(name)):
        raise UserError(f"{name} is no data set of the hub: write hub:OWNER/NAME, and behind it /CONFIG and :SPLIT")
    owner_and_name, config, split = parts[1], parts[2], parts[3] or "train"
    # Where no configuration is named, the first file of each tells which there are.
    wanted = f"{config}/{split}/*.parquet" if config else f"*/{split}/0000.parquet"
    folder = fetched_data(name, owner_and_name, wanted)
    configs = sorted(path.parent.parent.name for path in folder.glob(wanted.replace("*.parquet", "0000.parquet")))
    if not configs:
        what = f"configuration {config!r} with a split {split!r}" if config else f"split {split!r}"
        raise UserError(
            f"{name}: the hub has no {what} of this data set; name another, as in hub:OWNER/NAME/CONFIG:SPLIT"
        )
    if len(configs) > 1 and "default" not in configs:
        there = ", ".join(configs)
        raise UserError(f"{name} has the configurations {there}: name one, as in hub:{owner_and_name}/{configs[0]}")
    chosen = config or ("default" if "default" in configs else configs[0])
    files = f"{chosen}/{split}/*.parquet"
    return sorted(fetched_data(name, owner_and_name, files).glob(files))


def fetched_data(name: str, owner_and_name: str, wanted: str) -> Path:
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
