"""LoRA, rsLoRA, DoRA, PiSSA and OLoRA adapters by PEFT: attaching, saving, loading, checking.

A further option of PEFT is a flag in config.py and a line in `_peft_config`; where it moves part of the base
into the adapter, `rewrites_base` says so too.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig

from asrlora.config import RunConfig
from asrlora.data import audio
from asrlora.errors import UserError
from asrlora.models import decode, dora, objective, registry
from asrlora.models.family import Base
from asrlora.models.hub import BASE_FILE, adapter_settings, trained_on
from asrlora.storage import atomic_folder

WEIGHTS = "adapter_model.safetensors"
SHA256_KEY = "adapter_sha256"  # of that file, in base.json
OUTPUT_LAYERS = ("proj_out", "lm_head", "ctc_head")
AUDIO_KEY = "audio"  # the audio path that it was trained on, in base.json
SETTINGS = {"sha256": "weights of sha256", "weights": "weights in", "matmul_precision": "matrix products in"}
LOGIT_TOLERANCE = 1e-3  # of max |logits|; a right reload gives 1e-6, PEFT's wrong ones 5e-2 and more


def find_targets(base: Base, targets: str, module_filter: str | None) -> list[str]:
    """Full names of the linear modules to adapt. Raises UserError when there is none.

    The layer that scores tokens is never among them, nor are layers whose weights the model reads
    itself: an adapter there would get no gradient and change nothing.
    """
    known = base.targets
    linear = [
        name
        for name, module in base.model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.rpartition(".")[2] not in (*OUTPUT_LAYERS, *known.unreachable)
    ]
    if targets == "all-linear":
        chosen = linear
    else:
        named = {"attention": known.attention, "attention+ffn": known.attention + known.feed_forward}
        wanted = named[targets] if targets in named else tuple(t.strip() for t in targets.split(","))
        chosen = [name for name in linear if name.rpartition(".")[2] in wanted or name in wanted]
    if module_filter:
        chosen = [name for name in chosen if module_filter in name]
    if not chosen:
        there = sorted({name.rpartition(".")[2] for name in linear})
        unreachable = ", ".join(known.unreachable)
        raise UserError(
            f"--lora-targets {targets} --lora-module-filter {module_filter} match no module; there"
            f" are {', '.join(there)}, in modules such as {linear[0]} and {linear[-1]}"
            + (f"; adapters on {base.kind}'s {unreachable} do nothing" if unreachable else "")
        )
    return chosen


def attach(base: Base, config: RunConfig, initial: Path | None = None) -> Any:
    """Wraps the base in a trainable adapter; returns the PeftModel. Draws from torch's RNG.

    `initial` is what save_initial wrote when the run began, for a run that is resumed: an initialisation
    that moves part of the base into the adapter must move the same part again.
    """
    settings = _peft_config(base, config)
    init = settings.init_lora_weights
    if initial is not None:
        settings.init_lora_weights = True
    model = get_peft_model(base.model, settings)
    dora.replace(model)
    if initial is not None:
        model.peft_config["default"].init_lora_weights = init
        subtract_from_base(model, load_file(initial / WEIGHTS))
    return model


def _peft_config(base: Base, config: RunConfig) -> LoraConfig:
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=find_targets(base, config.lora_targets, config.lora_module_filter),
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
        init_lora_weights=True if config.init_lora_weights == "default" else config.init_lora_weights,
        revision=base.commit,
        task_type=None,  # the SEQ_2_SEQ_LM wrapper would pass input_ids, and this is audio
    )


def subtract_from_base(model: Any, moved: dict[str, torch.Tensor]) -> None:
    """Subtracts from the base what an initialisation had moved into the adapter: `moved`, on the CPU."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight.data
            down, up = (moved[f"{name}.lora_{part}.weight"].to(weight) for part in "AB")
            weight -= layer.scaling["default"] * up @ down


def rewrites_base(config: RunConfig) -> bool:
    """Whether this initialisation moves part of the base's weights into the adapter."""
    return config.init_lora_weights.startswith(("pissa", "olora"))


def save_initial(model: Any, folder: Path) -> None:
    """Keeps the adapter as initialised: PiSSA and OLoRA need it to be saved against the true base."""
    adapter_config = model.peft_config["default"]
    init, adapter_config.init_lora_weights = adapter_config.init_lora_weights, True
    model.save_pretrained(folder, save_embedding_layers=False)
    adapter_config.init_lora_weights = init


def save(
    model: Any,
    folder: Path,
    initial: Path | None,
    base: Base | None = None,
    made_from: dict[str, Any] | None = None,
) -> None:
    """Writes the adapter in PEFT's layout for the *untouched* base; replaces `folder` whole.

    `initial` is what save_initial wrote, for initialisations that rewrite the base. How `base` was loaded
    is recorded beside the adapter (base.json), with the sha256 of the adapter's file, for `load` to compare;
    and `made_from`, of an adapter that was computed from others.
    """
    # the conversion renames the live adapter's config while it works, so it gets a copy of it
    converted = {"path_initial_model_for_weight_conversion": str(initial)} if initial else {}
    with atomic_folder(folder) as aside:
        # embeddings are never trained; left to itself, PEFT asks the hub whether they were resized
        model.save_pretrained(aside, save_embedding_layers=False, **converted)
        (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        if base is not None:
            recorded = {**_as_loaded(base), AUDIO_KEY: audio.FINGERPRINT, SHA256_KEY: sha256(aside)}
            if base.commit is not None:
                recorded["commit"] = base.commit  # not compared: the same weights come from elsewhere, too
            if made_from is not None:
                recorded["made_from"] = made_from
            (aside / BASE_FILE).write_text(json.dumps(recorded, indent=1) + "\n")


def load(base: Base, folder: Path, name: str = "default", beside: Any = None) -> Any:
    """Puts a saved adapter on a base, on the base's device; returns the PeftModel in eval mode.

    `beside` is the PeftModel of that base where it has adapters already; the new one, called `name`, is then
    not active. Raises UserError where the adapter is damaged or does not fit, or was trained by another audio
    path, on another base or on one loaded otherwise: what the two write together was never evaluated.
    """
    adapter_settings(folder)
    now, recorded = _as_loaded(base), trained_on(folder)
    if SHA256_KEY in recorded and recorded[SHA256_KEY] != sha256(folder):
        raise UserError(
            f"--adapter-dir {folder}: {WEIGHTS} is damaged (its sha256 is not that of {BASE_FILE}); copy the"
            " adapter again, or train it again"
        )
    for key, then in recorded.items():
        if key in now and now[key] != then:
            raise UserError(
                f"--adapter-dir {folder} was trained on a base with {SETTINGS[key]} {then}, and that of"
                f" {base.folder} is {now[key]}; give the base and the settings that it was trained with"
            )
    if recorded.get(AUDIO_KEY, audio.FINGERPRINT) != audio.FINGERPRINT:
        raise UserError(
            f"--adapter-dir {folder} was trained by another audio path ({recorded[AUDIO_KEY]}, now"
            f" {audio.FINGERPRINT}); train it again"
        )
    try:
        # read on the CPU and copied to where its layers are: PEFT would take the first GPU for every rank
        if beside is None:
            return PeftModel.from_pretrained(base.model, str(folder), name, torch_device="cpu").eval()
        beside.load_adapter(str(folder), name, torch_device="cpu")
        return beside.eval()
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--adapter-dir {folder} does not fit --model-id {base.folder} ({reason})") from None


def sha256(folder: Path) -> str:
    """Of an adapter's file of weights."""
    with open(folder / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_loaded(base: Base) -> dict[str, str]:
    """What decides which function of audio the base is."""
    return {
        "sha256": base.sha256,
        "weights": "nf4" if base.in_4bit else "float32",
        "matmul_precision": decode.matmul_precision(),
    }


def check_written(model: Any, folder: Path) -> None:
    """Compares a saved adapter's tensors with the live ones, bit by bit. Raises RuntimeError.

    A converted one holds the live adapter in front of the initial one, at twice the rank.
    """
    saved = load_file(folder / WEIGHTS)
    live = _tensors(model)
    for name in sorted(live.keys() | saved.keys()):
        if (
            name not in live
            or name not in saved
            or not torch.equal(_part(saved, live, name), live[name].cpu())
        ):
            raise RuntimeError(f"{folder}: {name} is not as it was trained")


def check_reloads(model: Any, base: Base, folder: Path) -> float:
    """At the end of a run, when the live adapter is that of the last step and no longer needed: gives it the
    saved one's numbers, and compares with a fresh base as check_saved does."""
    saved = load_file(folder / WEIGHTS)
    live = _tensors(model)
    for name, tensor in live.items():
        tensor.copy_(_part(saved, live, name))
    return check_saved(model, base, folder)


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """The live adapter's, detached, by their names in its file."""
    tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _part(saved: dict[str, torch.Tensor], live: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return saved[name][tuple(slice(size) for size in live[name].shape)]


def check_saved(model: Any, base: Base, folder: Path) -> float:
    """Reloads a saved adapter on a fresh base and compares logits with the live model.

    Returns max |difference| over max |logits|. Raises RuntimeError above LOGIT_TOLERANCE: the run
    must not end with an adapter that is not the one that was evaluated.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        live = _probe(model, base)
        fresh = registry.load_base(str(base.folder), registry.Decoding(base.language), base.in_4bit)
        fresh.model.to(live.device)
        saved = _probe(load(fresh, folder), fresh)
    model.train(was_training)
    return _same(
        live,
        saved,
        f"the adapter saved in {folder} is not the one that was trained, reloaded on a fresh base",
    )


def merge(model: Any, base: Base, folder: Path) -> float:
    """Writes base and adapter as one model in Transformers' own format, with the base's tokenizer and
    feature extractor. `model` is what `load` gave; it is merged in place.

    Returns max |difference| of the logits over max |logits|, reloaded against active adapter. Raises
    RuntimeError above LOGIT_TOLERANCE.
    """
    with torch.inference_mode():
        active = _probe(model, base)
    for path in base.folder.iterdir():  # the files themselves: re-saved ones are those of another version
        if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json"):
            shutil.copy(path, folder / path.name)
    model.merge_and_unload().save_pretrained(folder)
    settings = AutoConfig.from_pretrained(base.folder)  # without load_base's changes for training
    settings.dtype = torch.float32  # the sum of base and adapter needs it, whatever the base was saved in
    settings.save_pretrained(folder)
    with torch.inference_mode():
        fresh = registry.load_base(str(folder), registry.Decoding(base.language))
        fresh.model.to(active.device)
        merged = _probe(fresh.model, fresh)
    return _same(active, merged, f"the merged model in {folder} is not the base with its adapter")


def _same(one: torch.Tensor, other: torch.Tensor, fault: str) -> float:
    """max |difference| over max |logits|. Raises RuntimeError with the fault above LOGIT_TOLERANCE."""
    difference = float((one - other).abs().max() / one.abs().max())
    if not difference <= LOGIT_TOLERANCE:
        raise RuntimeError(f"{fault}: its logits differ by {difference:.1e} of their size")
    return difference


def _probe(model: Any, base: Base) -> torch.Tensor:
    """Logits for two seconds of fixed noise and fixed labels."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    waves = 0.075 * torch.randn(2, 16_000, generator=generator).to(device)
    labels = torch.randint(4, min(30, base.model.config.vocab_size), (2, 8), generator=generator)
    mask = torch.ones_like(waves, dtype=torch.long)
    return objective.logits(model, base, waves, mask, labels.to(device))


def digest(folder: Path) -> str:
    """sha256 of an adapter's weights and configuration, wherever its base lies."""
    settings = {**adapter_settings(folder), "base_model_name_or_path": None, "revision": None}
    weights = load_file(folder / WEIGHTS)
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(weights):
        hasher.update(name.encode() + weights[name].numpy().tobytes())
    return hasher.hexdigest()


def digest_frozen(model: Any) -> str:
    """sha256 of all that training must leave as it is: weights without gradient, and buffers such as
    BatchNorm's statistics."""
    hasher = hashlib.sha256()
    kept = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    for name, tensor in sorted({**kept, **dict(model.named_buffers())}.items()):
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        hasher.update(name.encode())
        hasher.update(values.data)
    return hasher.hexdigest()
