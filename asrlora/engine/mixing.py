"""`asrlora mix`: one adapter from several of one base, or from the checkpoints of one run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from asrlora.config import RunConfig
from asrlora.data import audio
from asrlora.engine import checkpoint
from asrlora.engine.inference import open_base
from asrlora.errors import UserError
from asrlora.models import adapters, mixing
from asrlora.models.hub import base_of
from asrlora.models.mixing import Method
from asrlora.models.registry import Decoding
from asrlora.record.run_dir import read_run


def mix_adapters(
    folders: Sequence[Path], weights: Sequence[float], output: Path, method: Method, model_id: str | None
) -> str:
    """Writes the mix of adapters into a new folder, and reloads it on a fresh base; returns what it is, in
    words. Raises UserError."""
    mixing.check_kinds(folders, method.name)
    base = open_base(model_id, folders[0])
    made_from = {
        "method": method.name,
        "rank": method.rank,
        "density": method.density,
        "seed": method.seed if method.name.startswith("dare") else None,
        "adapters": [
            {"folder": str(folder.absolute()), "weight": weight, adapters.SHA256_KEY: adapters.sha256(folder)}
            for folder, weight in zip(folders, weights, strict=True)
        ],
    }
    model, difference = mixing.mix(base, folders, weights, output, method, made_from)
    adapters.check_saved(model, base, output)
    settings = model.peft_config[mixing.MIXED]
    kind = "DoRA" if settings.use_dora else "LoRA"
    return (
        f"a {kind} adapter of rank {settings.r}; what it changes differs from the weighted sum of the"
        f" adapters' changes by {difference:.2g} of their size"
    )


def average_run(
    run: Path, steps: Sequence[int], output: Path, config: RunConfig, model_id: str | None
) -> str:
    """Writes the average of a run's checkpoints as an adapter into a new folder, and reloads it on a fresh
    base; returns what it is, in words. Raises UserError."""
    fingerprint = read_run(run).fingerprint
    if fingerprint.get("audio", audio.FINGERPRINT) != audio.FINGERPRINT:
        raise UserError(f"{run} was trained by another audio path; train it again")
    initial = run / checkpoint.INITIAL
    if adapters.rewrites_base(config) and not (initial / adapters.WEIGHTS).exists():
        raise UserError(
            f"{initial} is missing, without which a {config.init_lora_weights} run has no adapter"
        )
    paths = [checkpoint.at(run / "checkpoints", step) for step in steps]
    found = []
    for path in paths:
        try:
            found.append(checkpoint.read(path))
        except checkpoint.DAMAGE as error:
            raise UserError(f"{path} is damaged ({error}); choose other checkpoints by --average") from None
    model_id = model_id or base_of(run / "adapter_best")
    base = open_base(model_id, None, Decoding(config.language), config.load_in_4bit, config.matmul_precision)
    if base.sha256 != fingerprint.get("base", base.sha256):
        raise UserError(
            f"{run} was trained on a base with weights of sha256 {fingerprint['base']}, and that of"
            f" {base.folder} is {base.sha256}; give the base that it was trained on by --model-id"
        )
    file = checkpoint.ADAPTER if found[0].ema is None else checkpoint.EMA
    made_from = {
        "run": str(run.absolute()),
        "checkpoints": [
            {"step": step, "file": file, "sha256": hashlib.sha256((path / file).read_bytes()).hexdigest()}
            for step, path in zip(steps, paths, strict=True)
        ],
    }
    averaged = checkpoint.average([one.evaluated for one in found])
    model = checkpoint.as_adapter(base, config, averaged, run, output, made_from)
    adapters.check_saved(model, base, output)
    return f"the average of {run} at steps {', '.join(map(str, steps))}"
