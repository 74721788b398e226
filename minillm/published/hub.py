"""Models by their id on the hub."""

from pathlib import Path

from minillm.errors import UserError, need


def download(hub_id: str) -> Path:
    """A folder with what of a model can be read: never pickles, never code."""
    hub = need("huggingface_hub", "hub", f"there is no folder {hub_id}, and downloading it from the hub")
    wanted, unwanted = (
        ["*.safetensors", "*.json", "*.txt", "*.jinja"],
        ["[!1-9]*/*"],
    )  # of all folders but 1_Pooling and its like
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=unwanted))
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"there is no folder {hub_id}, and downloading it from the hub failed: {reason}") from None
