"""Finding a base model: a folder, or a name on the hub. Needs no torch, so a typo is reported at once."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from asrlora.errors import UserError, first_line

BASE_FILE = "base.json"  # beside an adapter: see trained_on
HUB_NAME = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")  # OWNER/MODEL


def find_model(model_id: str) -> Path:
    """The local folder of a model: the folder itself, or the hub's cache (downloaded at need).

    Raises UserError when there is no such model.
    """
    return _find(model_id, ["*.json", "*.safetensors", "*.txt", "*.model"])


def read_config(model_id: str) -> dict[str, Any]:
    """config.json of a model, without its weights. Raises UserError when there is no such model."""
    path = _find(model_id, ["config.json"]) / "config.json"
    return _read_object(path, f"save or copy the model again, or give another --model-id than {model_id}")


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError that names the file and what to do."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: is not a JSON object; {remedy}")
    return found


def _find(model_id: str, wanted: list[str]) -> Path:
    folder = Path(model_id)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise UserError(f"--model-id {model_id}: the folder holds no config.json, so it is no model")
    if not HUB_NAME.fullmatch(model_id):
        raise UserError(
            f"--model-id {model_id}: there is no such folder, and it is no hub name such as"
            " UsefulSensors/moonshine-tiny"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(model_id, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises many kinds; all mean the same here
        raise UserError(
            f"--model-id {model_id}: there is no such folder, and the model hub gave no such model"
            f" ({first_line(error)})"
        ) from None


def lasting_name(model_id: str) -> str:
    """What an adapter records of its base: the absolute path of a folder, since the adapter will be used from
    other working directories; a hub name as it is."""
    return os.path.abspath(model_id) if os.path.isdir(model_id) else model_id


def adapter_settings(adapter: Path) -> dict[str, Any]:
    """adapter_config.json. Raises UserError where the folder holds none."""
    path = adapter / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"--adapter-dir {adapter}: holds no adapter_config.json, so it is no adapter")
    return _read_object(path, "save or copy the adapter again")


def trained_on(adapter: Path) -> dict[str, Any]:
    """How the base was loaded when the adapter was trained: sha256, weights (float32 or nf4) and
    matmul_precision; and the audio path. Empty where that was not recorded, as by other trainers."""
    path = adapter / BASE_FILE
    return _read_object(path, "copy the adapter again") if path.is_file() else {}


def base_of(adapter: Path) -> str:
    """The base that an adapter names, for `find_model`: looked for from the working directory, the adapter's
    own folder, or on the hub.

    Raises UserError that names the adapter, the base as recorded, and where it was looked for.
    """
    named = adapter_settings(adapter).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise UserError(f"{adapter / 'adapter_config.json'}: names no base model; give --model-id")
    tried = list(dict.fromkeys((os.path.abspath(named), os.path.abspath(adapter / named))))
    for folder in tried:
        if os.path.isfile(os.path.join(folder, "config.json")):
            return folder
    looked = f"no model at {' or '.join(tried)}"
    if HUB_NAME.fullmatch(named):
        try:
            find_model(named)
            return named
        except UserError:
            looked += ", and the model hub gave none of that name"
    raise UserError(
        f"--adapter-dir {adapter}: its base is recorded as {named}, and there is {looked}; give its place by"
        " --model-id"
    )


def check_found(model_id: str | None, adapter: Path | None) -> None:
    """Raises UserError where the base or the adapter that a command names is not there."""
    if adapter:
        adapter_settings(adapter)
    if model_id:
        find_model(model_id)
    elif adapter:
        base_of(adapter)


def hash_weights(folder: Path) -> str:
    """sha256 over the bytes of all weight files, in order of their names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"--model-id {folder}: holds no *.safetensors file")
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
