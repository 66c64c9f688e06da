"""Finding a base model: a folder, or a name on the hub, maybe with @REVISION. Needs no torch, so a typo is
reported at once."""

import errno
import hashlib
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from asrlora.errors import UserError, first_line

BASE_FILE = "base.json"  # beside an adapter: see trained_on
# a revision becomes part of a path in the hub's cache, and an adapter from elsewhere may name any
HUB_NAME = re.compile(r"(?P<name>(?!\.)[\w.-]+/[\w.-]+)(@(?P<revision>(?![./])(?!.*\.\.)[\w./-]+))?")
NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}


def find_model(model_id: str) -> Path:
    """The local folder of a model: the folder itself, or the hub's cache (downloaded at need).

    Raises UserError when there is no such model, or one without weights that are read.
    """
    folder = _find(model_id, ["*.json", "*.safetensors", "*.txt", "*.model"])
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"--model-id {model_id}: holds no *.safetensors file; other weights are not read")
    return folder


def pin(model_id: str) -> str:
    """A model on the hub at the commit that it has now, for all that loads it later; a folder as it is."""
    commit = commit_of(model_id, _find(model_id, ["config.json"]))
    return model_id if commit is None else f"{split(model_id)[0]}@{commit}"


def split(model_id: str) -> tuple[str, str | None]:
    """Name and revision of a model on the hub, or a folder's absolute path and None: what adapters record,
    since they will be used from other working directories."""
    match = None if os.path.isdir(model_id) else HUB_NAME.fullmatch(model_id)
    return (match["name"], match["revision"]) if match else (os.path.abspath(model_id), None)


def commit_of(model_id: str, folder: Path) -> str | None:
    """The commit of a model that was found in `folder`; None of one that was given as a folder."""
    return None if os.path.isdir(model_id) else folder.name


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
    place, _, revision = model_id.rpartition("@")
    if os.path.isdir(place):
        raise UserError(f"--model-revision {revision}: leave it out; --model-id {place} is a folder")
    if not HUB_NAME.fullmatch(model_id):
        raise UserError(
            f"--model-id {model_id}: there is no such folder, and it is no hub name such as"
            " UsefulSensors/moonshine-tiny or UsefulSensors/moonshine-tiny@main"
        )
    folder = _download(model_id, wanted)
    if not (folder / "config.json").is_file():
        raise UserError(f"--model-id {model_id}: holds no config.json on the hub, so it is no model")
    return folder


def _download(model_id: str, wanted: list[str]) -> Path:
    """The folder of the hub's cache, named by the commit. Other processes wait, by the client's locks."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    name, revision = split(model_id)
    if os.environ.get("LOCAL_RANK", "0") != "0" or not sys.stderr.isatty():
        disable_progress_bars()
    warnings.filterwarnings("ignore", "Not enough free disk space")  # if so, the error says it
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the client raises many kinds, those of its HTTP library too
        raise UserError(f"--model-id {model_id}: {_explain(error, name, revision)}") from None


def _explain(error: Exception, name: str, revision: str | None) -> str:
    """What is wrong and what to do about it, by the kind of the client's error."""
    from huggingface_hub import constants, errors

    hub, cache, login = constants.ENDPOINT, constants.HF_HUB_CACHE, "set HF_TOKEN or run `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: accept its terms on {hub}/{name}, and {login}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such folder, nor model on {hub}: check the spelling; if it is private, {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no branch, tag or commit {revision}: see {hub}/{name}/commits/main"
    chain: list[Any] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    status = next((one.response.status_code for one in chain if isinstance(one, errors.HfHubHTTPError)), None)
    why = first_line(chain[-1])
    if status in (401, 403):
        return f"{hub} refuses the token ({status}): {login} anew, or without one where the model is public"
    if any(getattr(one, "errno", 0) in NOT_WRITTEN or "No space left" in str(one) for one in chain):
        return f"{cache} is full or cannot be written to ({why}): free it, or set HF_HUB_CACHE to another"
    if not isinstance(error, errors.LocalEntryNotFoundError):
        return f"the download broke off ({why}): run the command again, what is complete is kept"
    answer = f"answered {status}" if status else f"cannot be reached ({why})"
    if constants.HF_HUB_OFFLINE:
        answer = "is not asked (HF_HUB_OFFLINE=1)"
    return f"{hub} {answer}, and {cache} has not all of it: try again, or set HF_ENDPOINT to a mirror"


def adapter_settings(adapter: Path) -> dict[str, Any]:
    """adapter_config.json. Raises UserError where the folder holds none."""
    path = adapter / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"--adapter-dir {adapter}: holds no adapter_config.json, so it is no adapter")
    return _read_object(path, "save or copy the adapter again")


def trained_on(adapter: Path) -> dict[str, Any]:
    """How the base was loaded when the adapter was trained: sha256, weights (float32 or nf4) and
    matmul_precision; its commit where it came from the hub; and the audio path. Empty where that was not
    recorded, as by other trainers."""
    path = adapter / BASE_FILE
    return _read_object(path, "copy the adapter again") if path.is_file() else {}


def base_of(adapter: Path) -> str:
    """The base that an adapter names, for `find_model`: looked for from the working directory, the adapter's
    own folder, or on the hub.

    Raises UserError that names the adapter, the base as recorded, and where it was looked for.
    """
    settings = adapter_settings(adapter)
    named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(named, str) or not named:
        raise UserError(f"{adapter / 'adapter_config.json'}: names no base model; give --model-id")
    tried = list(dict.fromkeys((os.path.abspath(named), os.path.abspath(adapter / named))))
    for folder in tried:
        if os.path.isfile(os.path.join(folder, "config.json")):
            return folder
    looked = f"no model at {' or '.join(tried)}"
    reference = f"{named}@{revision}" if revision else named
    if HUB_NAME.fullmatch(reference):
        try:
            find_model(reference)
            return reference
        except UserError as error:
            looked += f"; {error}"
    raise UserError(
        f"--adapter-dir {adapter}: its base is recorded as {reference}, and there is {looked}; give its place"
        " by --model-id"
    )


def chosen(model_id: str | None, adapter: Path | None) -> str | None:
    """The base that a command is to load: the one given, or the one that the adapter names. Where both are
    one name on the hub and none is given a revision, it is at the adapter's. Raises UserError."""
    if adapter is None:
        return model_id
    recorded = adapter_settings(adapter).get("base_model_name_or_path")
    same = split(model_id or "") == (recorded, None) and not os.path.isdir(model_id or "")
    return base_of(adapter) if model_id is None or same else model_id


def check_found(model_id: str | None, adapter: Path | None) -> None:
    """Raises UserError where the base or the adapter that a command names is not there."""
    if base := chosen(model_id, adapter):
        find_model(base)


def hash_weights(folder: Path) -> str:
    """sha256 over the bytes of all weight files, in order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
