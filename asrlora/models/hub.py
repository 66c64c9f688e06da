"""Finding a base model: a folder, or a name on the hub. Needs no torch, so a typo is told at once."""

import hashlib
import re
from pathlib import Path

from asrlora.errors import UserError


def find_model(model_id: str) -> Path:
    """The local folder of a model: the folder itself, or the hub's cache (downloaded at need).

    Raises UserError when there is no such model.
    """
    folder = Path(model_id)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise UserError(f"--model-id {model_id}: the folder holds no config.json, so it is no model")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_id) or model_id.startswith("."):
        raise UserError(
            f"--model-id {model_id}: there is no such folder, and it is no hub name such as"
            " UsefulSensors/moonshine-tiny"
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                model_id, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]
            )
        )
    except Exception as error:  # the hub's client raises many kinds; all mean the same here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--model-id {model_id}: there is no such folder, and the model hub gave no such model ({reason})"
        ) from None


def hash_weights(folder: Path) -> str:
    """sha256 over the bytes of all weight files, in order of their names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"--model-id {folder}: holds no *.safetensors file")
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
