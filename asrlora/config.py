"""The settings of a run: one typed model, read from a YAML file and from flags (flags win)."""

import argparse
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from asrlora.arguments import ALLOW_OUTSIDE, DOMAIN_WORDS, GENERAL_TEXT, TEXT_NORMALISER, Parser
from asrlora.errors import UserError

Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


# settings that may change when a run is resumed
RESUMABLE_SETTINGS = set(
    """resume save_interval keep_checkpoints max_minutes wandb_mode wandb_artifact tensorboard allow_outside
    expect_baseline baseline_tolerance report_audio rescue heartbeat_timeout work_timeout""".split()
)
RESCUE_CHECKPOINTS = 5  # that `--rescue auto` averages at most
# names that a further guardrail cannot take: other sets, and other keys of scores.json
RESERVED_NAMES = set(
    """train replay domain domain_chosen_on domain_report heldout scores step seconds metric
    fingerprint""".split()
)


def _split(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _path_or_url(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and "://" not in value else value


def _paths(value: Any) -> Any:
    """One path, several joined by commas, or a list of them, whose members may hold commas."""
    found = [] if value is None else value
    if isinstance(value, str | Path):
        found = str(value).split(",")
    if isinstance(found, list | tuple) and not all(str(path).strip() for path in found):
        raise ValueError("an empty path is no manifest; name one, or several joined by commas")
    return found


def _one_or_all(paths: tuple[Path, ...]) -> str | list[str] | None:
    """A single path is recorded as a str, as it was before there could be several."""
    return [str(path) for path in paths] if len(paths) > 1 else str(paths[0]) if paths else None


# a URL stays a str: Path would make one slash of its two
PathOrUrl = Annotated[Path | str, pydantic.BeforeValidator(_path_or_url)]
Paths = Annotated[
    tuple[Path, ...],
    pydantic.BeforeValidator(_paths),
    pydantic.PlainSerializer(_one_or_all, when_used="json"),
]
Numbers = Annotated[tuple[float, ...], pydantic.BeforeValidator(_split)]


class RunConfig(pydantic.BaseModel):
    """Every field is a flag (`--max-steps`) and a key of the YAML file (`max_steps`)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    model_id: str = Field("UsefulSensors/moonshine-tiny", description="base model: folder or hub name")
    model_revision: str | None = Field(
        None, min_length=1, description="branch, tag or commit of a base on the hub; default: main"
    )
    language: str = Field(
        "en", pattern=r"^[a-z]{2,3}$", description="language of multilingual Whisper models, such as de"
    )
    dataset_path: PathOrUrl = Field(
        description="training manifest (JSONL), folder of shards, or its s3:// address"
    )
    manifest_path: Path = Field(description="domain manifest: its WER must fall")
    safety_manifest_path: Paths = Field(
        (),
        description="heldout manifest, or several joined by commas: their WERs must not rise; without one no"
        " run can be accepted",
    )
    report_manifest: Literal["auto", "none"] | Path = Field(
        "auto",
        union_mode="left_to_right",
        description="domain utterances that do not select the best step: a manifest of them, auto"
        " (half of a domain manifest of 400 or more), or none",
    )
    expect_baseline: float | None = Field(
        None,
        ge=0,
        lt=5,
        description="known domain WER (or --metric) of the base, a fraction such as 0.1168: no step is"
        " trained unless the base reproduces it",
    )
    baseline_tolerance: float = Field(
        0.001, ge=0, lt=1, description="how far the base may be from --expect-baseline, a fraction"
    )
    allow_outside: bool = Field(False, description=ALLOW_OUTSIDE)
    output_dir: Path = Field(description="run directory; must not hold another run")

    max_steps: Count = Field(200, description="optimizer steps")
    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="shape of the learning rate after warm-up"
    )
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps spent warming up")
    eval_interval: Count = Field(50, description="steps between evaluations")
    batch_size: Count | None = Field(
        None, description="utterances in a microbatch (default 1; not with --batch-seconds)"
    )
    batch_seconds: Seconds | None = Field(None, description="padded audio in a microbatch, seconds")
    gradient_accumulation_steps: Count = Field(
        8, description="microbatches per optimizer step, over all processes together"
    )
    max_seconds: Seconds = Field(20.0, description="longer training utterances are left out, seconds")
    min_seconds: float = Field(0.1, ge=0, description="shorter training utterances are left out, seconds")
    label_case: Literal["keep", "lower", "upper", "sentence"] = Field(
        "keep", description="how training texts are written: the base should not be taught another style"
    )
    label_punctuation: Literal["keep", "strip", "full-stop"] = Field(
        "keep", description="the same for punctuation; full-stop adds one where a text ends without a mark"
    )
    label_characters: Literal["keep", "plain"] = Field(
        "keep",
        description="characters of training texts; plain takes out those that cannot be seen and writes"
        " look-alikes (curly quotes, full-width letters) in one form",
    )
    seed: int = Field(42, ge=0, description="of initialisation, order, dropout and augmentation")
    on_damage: Literal["stop", "skip"] = Field(
        "stop",
        description="damaged training samples: stop, or read all before the first step and skip those",
    )
    replay_path: PathOrUrl | None = Field(
        None, description="general data mixed into the training set (manifest or shards), against forgetting"
    )
    replay_ratio: float = Field(0.2, gt=0, lt=1, description="share of replayed utterances in every epoch")
    replay_share: float | None = Field(
        None, gt=0, lt=1, description="share of replayed audio in every epoch, in place of --replay-ratio"
    )
    augment_speed: Numbers = Field((), description="speeds drawn from, such as 0.9,1.0,1.1")
    augment_noise_snr: Numbers = Field((), description="white noise, dB below the speech, such as 10,30")
    augment_time_masks: int = Field(
        0, ge=0, description="stretches silenced in each utterance, each up to a twentieth of it"
    )

    lora_r: Count = Field(8, description="rank of the adapter")
    lora_alpha: Count = Field(16, description="scale of the adapter (alpha / rank)")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapter's input")
    lora_targets: str = Field(
        "attention+ffn",
        description="attention, attention+ffn, all-linear, or module names joined by commas",
    )
    lora_module_filter: str | None = Field(
        None, description="only modules whose name holds this word, such as encoder"
    )
    use_dora: bool = Field(False, description="weight-decomposed adapter (DoRA)")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the adapter, such as 0.99, which is then"
        " evaluated and saved in its place",
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(rank), for high ranks (rsLoRA)")
    init_lora_weights: str = Field(
        "default",
        pattern=r"^(default|gaussian|olora|pissa|pissa_niter_[0-9]+)$",
        description="default, gaussian, olora, pissa or pissa_niter_N",
    )
    min_domain_reduction: float = Field(
        0.01, ge=0, lt=1, description="by how much the domain WER must fall for an accept, a fraction"
    )
    max_heldout_regression: float = Field(
        0.002,
        ge=0,
        lt=1,
        description="by how much a heldout WER may rise, a fraction: a step past it is never the best one",
    )
    wer_stop_threshold: float | None = Field(
        None,
        gt=0,
        description="stop once a WER (or --metric) passes this many times its baseline, such as 1.1",
    )
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16 autocast in training steps")
    matmul_precision: Literal["highest", "high"] = Field(
        "highest", description="of fp32 products on a GPU, in training and evaluation: high allows TF32"
    )
    torch_compile: bool = Field(False, description="compile the training step: for GPUs, slow to start")
    load_in_4bit: bool = Field(
        False, description="keep the base in 4 bits (QLoRA; GPUs only, needs asrlora[qlora])"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    text_normaliser: str | None = Field(None, description=TEXT_NORMALISER)
    metric: Literal["wer", "cer", "mer"] | None = Field(
        None,
        description="error rate of selection, guardrails and verdict: words (wer), characters (cer), or both"
        " mixed (mer: characters of scripts without spaces, words of others); default: cer for a --language"
        " written without spaces between words, such as zh, ja or th, else wer",
    )
    domain_words: Path | None = Field(None, description=DOMAIN_WORDS)
    general_text: Path | None = Field(None, description=GENERAL_TEXT)
    resample_by: Literal["auto", "utterance", "speaker"] = Field(
        "auto",
        description="what is drawn for intervals: auto draws the speakers of a set that names 20 or more, and"
        " else utterances",
    )
    eval_batch_seconds: Seconds = Field(160.0, description="padded audio in an evaluation batch, seconds")
    num_beams: Count = Field(1, description="beams of evaluation, where the model has a decoder; 1 is greedy")
    repetition_guard: bool = Field(
        False,
        description="evaluation decodes again what loops or does not end, without writing five tokens twice",
    )
    save_interval: Count | None = Field(
        None, description="steps between checkpoints; there is always one after an evaluation"
    )
    keep_checkpoints: Count = Field(2, description="older checkpoints are deleted")
    rescue: Literal["never", "auto"] = Field(
        "never",
        description="auto: if the run is not accepted because of what it forgot, try its adapter at part of"
        " its strength, and averaged over the last five checkpoints, which are kept for it",
    )
    resume: Literal["never", "auto"] = Field(
        "never", description="auto: resume the run in --output-dir if there is one, else start it"
    )
    max_minutes: float | None = Field(
        None, gt=0, description="save, and end with exit code 75, before this many minutes are over"
    )
    max_nonfinite_steps: Count = Field(
        3, description="fail after this many steps in a row without a finite loss and gradient"
    )
    heartbeat_timeout: float = Field(
        60.0,
        ge=5,
        description="a rank without a heartbeat for so long is dead: the run ends and names it, seconds",
    )
    work_timeout: float = Field(
        600.0,
        ge=5,
        description="a rank hangs if it takes longer for one piece of its work (reading a batch, computing a"
        " loss), or to reach the point where the others wait for it, seconds",
    )
    report_audio: bool = Field(
        True, description="keep the audio of the utterances that report.html shows, and put it into the page"
    )
    wandb_mode: Literal["online", "offline", "disabled"] | None = Field(
        None, description="Weights & Biases; default: $WANDB_MODE, else online where logged in, else offline"
    )
    wandb_artifact: bool = Field(False, description="send the best adapter to W&B, as an artifact")
    tensorboard: bool = Field(False, description="write TensorBoard's files too (needs asrlora[tensorboard])")

    @pydantic.model_validator(mode="after")
    def _agree(self) -> "RunConfig":
        if self.batch_size is not None and self.batch_seconds is not None:
            raise ValueError("batch_size and batch_seconds exclude each other; give one")
        if self.domain_words is not None and self.general_text is not None:
            raise ValueError("domain_words and general_text exclude each other; give one")
        if self.replay_share is not None and "replay_ratio" in self.model_fields_set:
            raise ValueError("replay_ratio and replay_share exclude each other; give one")
        if self.replay_share is not None and self.replay_path is None:
            raise ValueError("replay_share is a share of --replay-path, which is not given; give both")
        if self.min_seconds >= self.max_seconds:
            raise ValueError(
                f"min_seconds ({self.min_seconds:g}) must be below max_seconds ({self.max_seconds:g})"
            )
        if not all(0.5 <= speed <= 2 for speed in self.augment_speed):
            raise ValueError("augment_speed must lie from 0.5 to 2, such as 0.9,1.0,1.1")
        if len(self.augment_noise_snr) not in (0, 2) or list(self.augment_noise_snr) != sorted(
            self.augment_noise_snr
        ):
            raise ValueError("augment_noise_snr must be the lowest and the highest dB, such as 10,30")
        if self.init_lora_weights.startswith(("pissa", "olora")):
            if self.use_dora:
                # PEFT's conversion of these pairs is silently wrong (logit errors 3e-2 and 2e-1).
                raise ValueError(
                    f"use_dora and init_lora_weights {self.init_lora_weights} do not combine; choose one"
                )
            if self.load_in_4bit:
                raise ValueError(
                    f"init_lora_weights {self.init_lora_weights} rewrites the base, which load_in_4bit keeps"
                    " in 4 bits; choose one"
                )
        return self

    @property
    def base(self) -> str:
        """The base as models/hub.py names it: a folder, NAME or NAME@REVISION."""
        return self.model_id if self.model_revision is None else f"{self.model_id}@{self.model_revision}"

    @property
    def guardrails(self) -> dict[str, Path]:
        """The heldout manifests by name: the first is `heldout`, the others are called like their files."""
        named: dict[str, Path] = {}
        for path in self.safety_manifest_path:
            name = stem = re.sub(r"[^\w.-]+", "-", path.stem) if named else "heldout"
            number = 1
            while name in named or (named and name in RESERVED_NAMES):
                number += 1
                name = f"{stem}-{number}"
            named[name] = path
        return named

    @property
    def microbatch(self) -> dict[str, Any]:
        """What `plan_epoch` needs to cut microbatches."""
        if self.batch_seconds is not None:
            return {"batch_seconds": self.batch_seconds}
        return {"batch_size": self.batch_size or 1}

    def evaluates_at(self, step: int) -> bool:
        """Every eval_interval steps, and after the last one."""
        return step % self.eval_interval == 0 or step == self.max_steps

    def saves_at(self, step: int) -> bool:
        """After every evaluation, and every save_interval steps."""
        return self.evaluates_at(step) or (self.save_interval is not None and step % self.save_interval == 0)

    @property
    def checkpoints_kept(self) -> int:
        """How many checkpoints stay on the disk: a rescue averages the last ones."""
        return max(self.keep_checkpoints, RESCUE_CHECKPOINTS if self.rescue == "auto" else 0)

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Which settings differ from those of the run to resume, though they must not: one sentence each.

        A setting that the run's version of this program did not have was at its default.
        """
        ours = self.model_dump(mode="json")
        fields = type(self).model_fields
        theirs = {name: field.default for name, field in fields.items() if not field.is_required()} | other
        if (ours["resample_by"], theirs["resample_by"]) == ("auto", "utterance"):
            theirs["resample_by"] = "auto"  # the default before: the run keeps what run.json says
        return [
            f"--{name.replace('_', '-')} is {ours.get(name)!r} and was {theirs.get(name)!r}"
            for name in sorted(ours.keys() | other.keys())
            if name not in RESUMABLE_SETTINGS and ours.get(name) != theirs.get(name)
        ]

    def to_yaml(self) -> str:
        """The settings as a YAML file, which --config reads."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_run(argv: Sequence[str] | None = None, prog: str = "asrlora/train.py") -> RunConfig:
    """Reads `--config FILE` and flags. Raises UserError naming the flag or key and how to correct it."""
    parser = Parser(prog=prog, description="Trains one adapter and judges it.", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the keys below")
    add_flags(parser, RunConfig.model_fields)
    flags = vars(parser.parse_args(sys.argv[1:] if argv is None else argv))
    return validate(flags.pop("config"), flags)


def add_flags(parser: argparse._ActionsContainer, names: Iterable[str]) -> None:
    """Adds fields as flags; one that is not given is absent from what the parser returns."""
    for name in names:
        field = RunConfig.model_fields[name]
        flag = "--" + name.replace("_", "-")
        text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            default = "required" if field.is_required() else f"default: {field.default}"
            text = f"{text} ({default})".strip()
            metavar = _metavar(field.annotation)
            parser.add_argument(flag, default=argparse.SUPPRESS, metavar=metavar, help=text)


def validate(file: str | None, flags: dict[str, Any]) -> RunConfig:
    """The settings of a file, if any, and of flags, which win. Raises UserError."""
    settings = read_yaml(Path(file)) if file else {}
    try:
        return RunConfig.model_validate({**settings, **flags})
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, file, flags)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises UserError."""
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must hold 'key: value' lines such as 'max_steps: 200'")
    return loaded


def _explain(error: pydantic.ValidationError, file: str | None, flags: dict[str, Any]) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    name = str(first["loc"][0])
    flag = "--" + name.replace("_", "-")
    where = flag if name in flags or not file else f"{file}: key {name}"
    if first["type"] == "missing":
        return f"{flag} is required; give it as a flag or as the key {name} of a --config file"
    if first["type"] == "extra_forbidden":
        import difflib

        near = difflib.get_close_matches(name, RunConfig.model_fields, 1)
        advice = f"did you mean {near[0]}?" if near else "see --help for the keys there are"
        return f"{where} is not a setting of a run; {advice}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, not {first['input']!r}"


def _metavar(annotation: Any) -> str:
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kind = kinds[0]
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")
