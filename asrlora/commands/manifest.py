"""`asrlora manifest`: import, check, merge, split, filter, restyle and count manifests."""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asrlora.arguments import Parser, add_allow_outside, count
from asrlora.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from asrlora.data.audit.findings import Audit
    from asrlora.data.manifest import Utterance

# settings of a run that `check` and `restyle` need
RECIPE = """max_steps batch_size batch_seconds gradient_accumulation_steps min_seconds max_seconds
label_case label_punctuation label_characters language text_normaliser metric model_revision""".split()
STYLE = ("label_case", "label_punctuation", "label_characters")


def add_arguments(parser: Parser) -> None:
    """Adds the steps of `manifest`."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    steps.add_parser("check", help="look for faults that make a run worthless", add=_add_check)
    steps.add_parser("import", help="make a manifest of another project's data", add=_add_import)
    steps.add_parser("merge", help="join several manifests into one", add=_add_merge)
    steps.add_parser("split", help="split a manifest into parts that share nothing", add=_add_split)
    steps.add_parser("filter", help="keep utterances by length, text or speaker", add=_add_filter)
    steps.add_parser("restyle", help="change case, punctuation or characters of the texts", add=_add_restyle)
    steps.add_parser("stats", help="durations, speakers, words and characters", add=_add_stats)


def _add_check(parser: Parser) -> None:
    from asrlora.config import add_flags

    parser.set_defaults(run=_check)
    parser.add_argument("train", type=Path)
    parser.add_argument("--domain", type=Path, required=True)
    parser.add_argument("--heldout", help="one manifest, or several joined by commas")
    parser.add_argument("--quick", action="store_true", help="manifests and audio headers only")
    parser.add_argument("--output", type=Path, help="write the findings here as JSON")
    add_allow_outside(parser)
    recipe = parser.add_argument_group("the run that is planned", "as for asrlora/train.py")
    recipe.add_argument("--config", metavar="FILE", help="YAML file of the run")
    recipe.add_argument(
        "--model-id", default=argparse.SUPPRESS, help="base model: its tokens and style are checked too"
    )
    add_flags(recipe, RECIPE)


def _check(args: argparse.Namespace) -> int:
    from asrlora.config import validate
    from asrlora.console import console
    from asrlora.data import plan
    from asrlora.data.audit import manifest_check
    from asrlora.models import registry
    from asrlora.models.hub import find_model
    from asrlora.storage import write_json

    paths = {"dataset_path": args.train, "manifest_path": args.domain, "safety_manifest_path": args.heldout}
    given = {name: value for name, value in vars(args).items() if name in ("model_id", *RECIPE)}
    config = validate(args.config, {**given, **paths, "output_dir": Path()})
    named = "model_id" in config.model_fields_set
    with_model = named and not args.quick
    costs = registry.cost_of(config.base) if named else plan.by_length
    if with_model:
        find_model(config.base)
    sets = {"train": args.train, "domain": args.domain, **config.guardrails}
    found, opened = manifest_check.check(sets, config, args.allow_outside, decode=not args.quick, cost=costs)
    if with_model and opened:
        from asrlora.engine.inference import audit_model

        found = audit_model(config, found, opened)
    for table in _tables(found):
        console.print(table)
    for finding in found.findings:
        console.print(f"{'STOP' if finding.stops else 'note'}: {finding.kind}: {finding.message}")
    if args.output:
        write_json(args.output, found.as_json())
    return 3 if found.stops else 0


def _tables(found: "Audit") -> "list[Table]":
    """What the sets hold, and how many of their utterances each --max-seconds would keep."""
    from rich.table import Table

    from asrlora.data.audit.checks import FILTERS

    held = Table("set", "lines", "kept", "left out", "hours", "speakers", "epochs", "provable change")
    filters = Table("utterances kept by", *(f"{limit:g} s" for limit in FILTERS))
    for name, one in found.sets.items():
        left_out = ", ".join(f"{number:,} {reason}" for reason, number in sorted(one["rejected"].items()))
        epochs = f"{one['epochs']:.1f}" if one.get("epochs") else ""
        margin = f"{100 * one['margin']:.2f} points" if one.get("margin") else ""
        cells = (f"{one['lines']:,}", f"{one['kept']:,}", left_out or "none", f"{one['hours']:.2f}")
        held.add_row(name, *cells, str(one["speakers"]), epochs, margin)
        filters.add_row(name, *(f"{number:,}" for number in one["kept_by_max_seconds"].values()))
    return [held, filters]


def _add_import(parser: Parser) -> None:
    from asrlora.data.importers import READERS

    parser.set_defaults(run=_import)
    parser.add_argument(
        "source",
        help="JSON (this project's, NeMo's, Hugging Face's, Lhotse's), a table or file list, a folder of"
        " Kaldi, of LibriSpeech or of audio with .txt beside it, or hf:NAME:CONFIG:SPLIT",
    )
    _add_output(parser)
    parser.add_argument(
        "--format",
        choices=tuple(READERS),
        help="default: detected",
    )
    parser.add_argument(
        "--audio-root",
        type=Path,
        metavar="DIR",
        help="where relative paths of audio start (default: the folder of the source)",
    )
    parser.add_argument("--text-field", metavar="NAME", help="the field or column that holds the text")
    parser.add_argument("--split", metavar="NAME", help="only the records whose field split has this value")
    parser.add_argument(
        "--role", choices=("train", "domain"), default="train", help="domain: --samples 500 unless given"
    )
    parser.add_argument(
        "--samples", type=count, help="draw so many, stratified by duration and speaker, and shuffle"
    )
    _add_seed(parser)
    add_allow_outside(parser)


def _import(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.data import manifest
    from asrlora.data.importers import convert

    samples = args.samples or (convert.DOMAIN_SAMPLES if args.role == "domain" else None)
    made = convert.import_source(
        args.source,
        args.output,
        form=args.format,
        samples=samples,
        seed=args.seed,
        allow_outside=args.allow_outside,
        audio_root=args.audio_root,
        split=args.split,
        text_field=args.text_field,
    )
    console.print(
        f"{args.output}: {made.total:,} records ({made.format}); "
        + manifest.describe(len(made.utterances), made.left_out)
    )
    for note in made.notes:
        console.print(f"note: {note}")
    if samples and len(made.utterances) < samples:
        console.print(f"note: {samples:,} samples were wanted, and there are no more")
    _note_outside(args.output, made.outside)
    return 0


def _add_merge(parser: Parser) -> None:
    parser.set_defaults(run=_merge)
    parser.add_argument("manifests", type=Path, nargs="+")
    _add_output(parser)
    add_allow_outside(parser)


def _merge(args: argparse.Namespace) -> int:
    from asrlora.data import manifest, subsets

    if len(set(args.manifests)) < len(args.manifests):
        raise UserError("a manifest is named twice; name each once")
    manifest.check_new(args.output)
    merged = subsets.merge(
        {path: manifest.read_manifest(path, args.allow_outside) for path in args.manifests}
    )
    _write(args.output, merged)
    return 0


def _add_split(parser: Parser) -> None:
    parser.set_defaults(run=_split)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--output-dir", type=Path, required=True, help="each part is NAME.jsonl there")
    parser.add_argument("--parts", required=True, help="names and shares: train=0.9,domain=0.1")
    parser.add_argument("--by-speaker", action="store_true", help="no speaker in two parts")
    _add_seed(parser)
    add_allow_outside(parser)


def _split(args: argparse.Namespace) -> int:
    from asrlora.data import manifest, subsets

    parts = subsets.parse_parts(args.parts)
    for name in parts:
        manifest.check_new(args.output_dir / f"{name}.jsonl")
    utterances = manifest.read_manifest(args.manifest, args.allow_outside)
    for name, part in subsets.split(utterances, parts, args.seed, args.by_speaker).items():
        _write(args.output_dir / f"{name}.jsonl", part)
    return 0


def _add_filter(parser: Parser) -> None:
    parser.set_defaults(run=_filter)
    parser.add_argument("manifest", type=Path)
    _add_output(parser)
    parser.add_argument("--min-seconds", type=float, default=0.0)
    parser.add_argument("--max-seconds", type=float, default=math.inf)
    parser.add_argument("--min-words", type=int, default=0)
    parser.add_argument("--max-words", type=int, default=math.inf)
    parser.add_argument("--match", metavar="REGEX", help="found anywhere in the text")
    parser.add_argument("--speakers", type=Path, metavar="FILE", help="speakers to keep, one a line")
    add_allow_outside(parser)


def _filter(args: argparse.Namespace) -> int:
    from asrlora.data import manifest, subsets

    manifest.check_new(args.output)
    try:
        match = re.compile(args.match) if args.match else None
    except re.error as error:
        raise UserError(f"--match {args.match}: no regular expression ({error})") from None
    speakers = None
    if args.speakers:
        speakers = {line.strip() for line in manifest.text_lines(args.speakers) if line.strip()}
    limits = (args.min_seconds, args.max_seconds, args.min_words, args.max_words)
    utterances = manifest.read_manifest(args.manifest, args.allow_outside)
    kept, left_out = subsets.apply_filter(utterances, subsets.Filter(*limits, match, speakers))
    if not kept:
        raise UserError(f"{args.manifest}: {manifest.describe(0, left_out)}")
    _write(args.output, kept, left_out)
    return 0


def _add_restyle(parser: Parser) -> None:
    from asrlora.config import add_flags

    parser.set_defaults(run=_restyle)
    parser.add_argument("manifest", type=Path)
    _add_output(parser)
    add_flags(parser, STYLE)
    add_allow_outside(parser)


def _restyle(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from asrlora.config import validate
    from asrlora.console import console
    from asrlora.data import manifest
    from asrlora.data.audit.transcript_style import restyle

    asked = {name: value for name, value in vars(args).items() if name in STYLE}
    run = {"dataset_path": args.manifest, "manifest_path": args.manifest, "output_dir": Path()}
    config = validate(None, {**asked, **run})  # for its checks of what was asked
    style = (config.label_case, config.label_punctuation, config.label_characters)
    if style == ("keep",) * 3:
        raise UserError("nothing to restyle; give --label-case, --label-punctuation or --label-characters")
    manifest.check_new(args.output)
    utterances = manifest.read_manifest(args.manifest, args.allow_outside)
    styled = [replace(one, text=restyle(one.text, *style)) for one in utterances]
    _write(args.output, styled)
    changed = [one.id for one, before in zip(styled, utterances, strict=True) if one.text != before.text]
    console.print(f"{len(changed):,} texts changed" + (f", such as {changed[0]!r}" if changed else ""))
    return 0


def _add_stats(parser: Parser) -> None:
    parser.set_defaults(run=_stats)
    parser.add_argument("manifest", type=Path)
    add_allow_outside(parser)


def _stats(args: argparse.Namespace) -> int:
    from rich.table import Table

    from asrlora.console import console
    from asrlora.data import manifest, subsets

    table = Table("", str(args.manifest))
    for row in subsets.statistics(manifest.read_manifest(args.manifest, args.allow_outside)).items():
        table.add_row(*row)
    console.print(table)
    return 0


# what several steps share


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="the new manifest")


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=42, help="of the draw (default: 42)")


def _write(path: Path, utterances: "Sequence[Utterance]", left_out: Mapping[str, int] | None = None) -> None:
    """Writes a manifest, and prints how many are in it and why others are not."""
    from asrlora.console import console
    from asrlora.data import manifest

    outside = manifest.write_manifest(path, utterances)
    console.print(f"{path}: {manifest.describe(len(utterances), left_out or {})}")
    _note_outside(path, outside)


def _note_outside(path: Path, number: int) -> None:
    from asrlora.console import console

    if number:
        console.print(
            f"note: {number:,} utterances have their audio outside {path.parent}: reading {path.name} needs"
            " --allow-outside, unless you write it to a folder above its audio"
        )
