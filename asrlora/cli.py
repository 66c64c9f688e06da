"""The command `asrlora`. Each sub-command is one function; heavy imports wait until it runs."""

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asrlora import allocation
from asrlora.config import ALLOW_OUTSIDE, Parser, add_flags, validate
from asrlora.console import console, progress, stderr
from asrlora.errors import UserError, exit_code
from asrlora.models.hub import adapter_settings, base_of, find_model

# settings of a run that `manifest check` wants to know
RECIPE = """max_steps batch_size batch_seconds gradient_accumulation_steps min_seconds max_seconds
label_case label_punctuation label_characters language metric""".split()

# settings of a run that `manifest restyle` wants to know
STYLE = ("label_case", "label_punctuation", "label_characters")

if TYPE_CHECKING:
    from asrlora.bench import Figures
    from asrlora.data.manifest import Utterance
    from asrlora.record.schema import EvalScores


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv

    def run() -> int:
        allocation.wait_passively()
        args = _parser().parse_args(arguments)
        return int(args.run(args))

    return exit_code(run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="asrlora",
        description="Adapt a speech recogniser to your domain without breaking it, and prove it.",
        epilog="Training: accelerate launch --config_file accelerate_configs/X.yaml asrlora/train.py FLAGS",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    demo = commands.add_parser("demo", help="the whole way on synthetic speech, in minutes on a CPU")
    demo.set_defaults(run=_demo)
    demo.add_argument("--output-dir", type=Path, default=Path("outputs/demo"))
    demo.add_argument("--data-dir", type=Path, default=Path("data/demo"))
    demo.add_argument("--seed", type=int, default=1, help="of training; the corpus stays the same")
    demo_steps = demo.add_subparsers(metavar="STEP", parser_class=Parser)
    corpus = demo_steps.add_parser("corpus", help="only speak the corpus and write its manifests")
    corpus.set_defaults(run=_corpus)
    corpus.add_argument("--data-dir", type=Path, default=Path("data/demo"))
    pretrain = demo_steps.add_parser("pretrain", help="train the base model from scratch (20 to 40 minutes)")
    pretrain.set_defaults(run=_pretrain)
    pretrain.add_argument("--output-dir", type=Path, required=True)
    pretrain.add_argument("--work-dir", type=Path, default=Path("data/pretrain"))
    pretrain.add_argument("--utterances", type=int, default=16_000)
    pretrain.add_argument("--steps", type=int, default=3_600)

    manifest = commands.add_parser("manifest", help="import, audit, merge, split and filter manifests")
    manifest_steps = manifest.add_subparsers(required=True, metavar="STEP", parser_class=Parser)
    check = manifest_steps.add_parser("check", help="look for what makes a run worthless")
    check.set_defaults(run=_manifest_check)
    check.add_argument("train", type=Path)
    check.add_argument("--domain", type=Path, required=True)
    check.add_argument("--heldout", help="one manifest, or several joined by commas")
    check.add_argument("--quick", action="store_true", help="manifests and audio headers only")
    check.add_argument("--output", type=Path, help="write the findings here as JSON")
    _allow_outside(check)

    recipe = check.add_argument_group("the run that is planned", "as for asrlora/train.py")
    recipe.add_argument("--config", metavar="FILE", help="YAML file of the run")
    recipe.add_argument(
        "--model-id", default=argparse.SUPPRESS, help="base model: its tokens and style are looked at too"
    )
    add_flags(recipe, RECIPE)

    importing = manifest_steps.add_parser("import", help="make a manifest of another project's data")
    importing.set_defaults(run=_manifest_import)
    importing.add_argument(
        "source",
        help="JSON (this project's, NeMo's, Hugging Face's, Lhotse's), a table or file list, a folder of"
        " Kaldi, of LibriSpeech or of audio with .txt beside it, or hf:NAME:CONFIG:SPLIT",
    )
    importing.add_argument("--output", type=Path, required=True, help="the new manifest")
    importing.add_argument(
        "--format",
        choices=("jsonl", "kaldi", "table", "librispeech", "folder", "hf"),
        help="default: found out by looking",
    )
    importing.add_argument(
        "--audio-root", type=Path, metavar="DIR",
        help="where relative paths of audio start (default: the folder of the source)",
    )  # fmt: skip
    importing.add_argument("--text-field", metavar="NAME", help="the field or column that holds the text")
    importing.add_argument(
        "--split", metavar="NAME", help="only the records whose field split has this value"
    )
    importing.add_argument(
        "--role", choices=("train", "domain"), default="train", help="domain: --samples 500 unless given"
    )
    importing.add_argument(
        "--samples", type=_count, help="draw so many, stratified by duration and speaker, and shuffle"
    )
    importing.add_argument("--seed", type=int, default=42, help="of the draw (default: 42)")
    _allow_outside(importing)
    merging = manifest_steps.add_parser("merge", help="several manifests to one")
    merging.set_defaults(run=_manifest_merge)
    merging.add_argument("manifests", type=Path, nargs="+")
    merging.add_argument("--output", type=Path, required=True, help="the new manifest")
    _allow_outside(merging)
    splitting = manifest_steps.add_parser("split", help="one manifest to several, nothing in two of them")
    splitting.set_defaults(run=_manifest_split)
    splitting.add_argument("manifest", type=Path)
    splitting.add_argument("--output-dir", type=Path, required=True, help="each part is NAME.jsonl there")
    splitting.add_argument("--parts", required=True, help="names and shares: train=0.9,domain=0.1")
    splitting.add_argument("--by-speaker", action="store_true", help="no speaker in two parts")
    splitting.add_argument("--seed", type=int, default=42, help="of the draw (default: 42)")
    _allow_outside(splitting)
    filtering = manifest_steps.add_parser("filter", help="keep what you name, and count the rest")
    filtering.set_defaults(run=_manifest_filter)
    filtering.add_argument("manifest", type=Path)
    filtering.add_argument("--output", type=Path, required=True, help="the new manifest")
    filtering.add_argument("--min-seconds", type=float, default=0.0)
    filtering.add_argument("--max-seconds", type=float, default=math.inf)
    filtering.add_argument("--min-words", type=int, default=0)
    filtering.add_argument("--max-words", type=int, default=math.inf)
    filtering.add_argument("--match", metavar="REGEX", help="found anywhere in the text")
    filtering.add_argument("--speakers", type=Path, metavar="FILE", help="speakers to keep, one a line")
    _allow_outside(filtering)
    restyling = manifest_steps.add_parser("restyle", help="write the texts in another style")
    restyling.set_defaults(run=_manifest_restyle)
    restyling.add_argument("manifest", type=Path)
    restyling.add_argument("--output", type=Path, required=True, help="the new manifest")
    add_flags(restyling, STYLE)
    _allow_outside(restyling)
    stats = manifest_steps.add_parser("stats", help="how much, how long, who, which words and characters")
    stats.set_defaults(run=_manifest_stats)
    stats.add_argument("manifest", type=Path)
    _allow_outside(stats)

    shards = commands.add_parser("shards", help="build and verify WebDataset tars")
    shards_steps = shards.add_subparsers(required=True, metavar="STEP", parser_class=Parser)
    build = shards_steps.add_parser("build", help="manifest to tars and index")
    build.set_defaults(run=_shards_build)
    build.add_argument("manifest", type=Path)
    build.add_argument("out", type=Path)
    build.add_argument("--workers", type=int, help="threads (default: one a CPU that this process may use)")
    _allow_outside(build)
    build.add_argument("--slice", type=_slice, metavar="I/N", help="only this part, for `shards merge`")
    merge = shards_steps.add_parser("merge", help="make one folder of all slices")
    merge.set_defaults(run=_shards_merge)
    merge.add_argument("out", type=Path)
    verify = shards_steps.add_parser("verify", help="check every byte")
    verify.set_defaults(run=_shards_verify)
    verify.add_argument("folder", type=Path)

    bench = commands.add_parser("bench", help="measure speed on this machine")
    bench_steps = bench.add_subparsers(required=True, metavar="STEP", parser_class=Parser)
    bench_data = bench_steps.add_parser("data", help="shards, plan and loader, in ratios (7 minutes)")
    bench_data.set_defaults(run=_bench_data)
    bench_data.add_argument("--output", type=Path, help="write the figures here as JSON")
    bench_data.add_argument("--small", action="store_true", help="a hundredth of everything: does it run?")
    bench_engine = bench_steps.add_parser("engine", help="checkpoints and going on, on the demo (3 minutes)")
    bench_engine.set_defaults(run=_bench_engine)
    bench_engine.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="the demo's corpus")
    bench_engine.add_argument("--output", type=Path, help="write the figures here as JSON")
    bench_verdict = bench_steps.add_parser(
        "verdict", help="how often the verdict is right where the truth is known (5 minutes)"
    )
    bench_verdict.set_defaults(run=_bench_verdict)
    bench_verdict.add_argument("--trials", type=_count, default=2000, help="a row (default: 2000)")

    bench_eval = bench_steps.add_parser("eval", help="evaluation against Transformers' pipeline (6 minutes)")
    bench_eval.set_defaults(run=_bench_eval)
    bench_eval.add_argument("--output", type=Path, help="write the figures here as JSON")
    bench_eval.add_argument("--utterances", type=_count, default=300, help="to speak (default: 300)")

    bench_together = bench_steps.add_parser(
        "together", help="two trials at once against each alone (6 minutes)"
    )
    bench_together.set_defaults(run=_bench_together)
    bench_together.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="the demo's corpus")
    bench_together.add_argument("--steps", type=_count, default=100, help="of a trial (default: 100)")
    bench_together.add_argument("--slurm", action="store_true", help="also as two tasks of srun on one node")
    bench_together.add_argument("--output", type=Path, help="write the figures here as JSON")

    evaluate = commands.add_parser("eval", help="hypotheses and WER of a model on a manifest")
    evaluate.set_defaults(run=_eval)
    source = evaluate.add_mutually_exclusive_group(required=True)
    source.add_argument("--model-id")
    source.add_argument(
        "--hypotheses", type=Path, metavar="FILE",
        help="score these instead of a model's: JSON lines or a table, with id (or audio and times, as NeMo"
        " writes them) and one of hypothesis_raw, pred_text, prediction, hypothesis, text",
    )  # fmt: skip
    evaluate.add_argument("--adapter-dir", type=Path)
    evaluate.add_argument("--manifest-path", type=Path, required=True)
    evaluate.add_argument("--output-dir", type=Path, required=True)
    evaluate.add_argument("--eval-batch-seconds", type=float, default=160.0)
    add_flags(evaluate, ("text_normaliser", "domain_words", "general_text"))
    _metric(evaluate, "error rate of the tables (default: by --language, as in a run)")
    how = evaluate.add_argument_group(
        "how the base is loaded", "with an adapter: as when it was trained, and another way is refused"
    )
    how.add_argument(
        "--load-in-4bit", action=argparse.BooleanOptionalAction, help="as QLoRA's base (default: no)"
    )
    how.add_argument(
        "--matmul-precision", choices=("highest", "high"), help="of fp32 products on a GPU (default: highest)"
    )
    _decoding(evaluate)
    _allow_outside(evaluate)

    judge = commands.add_parser("verdict", help="judge a run again from its files")
    judge.set_defaults(run=_verdict)
    judge.add_argument("run_dir", type=Path)
    judge.add_argument(
        "--resample-by", choices=("utterance", "speaker"), help="default: as the run was started"
    )

    comparing = commands.add_parser("compare", help="runs side by side: one HTML page and a table")
    comparing.set_defaults(run=_compare)
    comparing.add_argument("runs", type=Path, nargs="*", help="run directories, or folders that hold some")
    comparing.add_argument("--sweep", type=Path, metavar="FILE", help="the trials of this sweep file")
    comparing.add_argument(
        "--output", type=Path, help="the page (default: compare.html in the folder that holds the runs)"
    )
    comparing.add_argument(
        "--figures", type=Path, metavar="DIR", help="write figures for papers there too, as PDF and SVG"
    )

    status = commands.add_parser("status", help="how runs are getting on, from their files alone")
    status.set_defaults(run=_status)
    status.add_argument("runs", type=Path, nargs="+", help="run directories")

    track = commands.add_parser("track", help="Weights & Biases: send what waits, make a workspace")
    track_steps = track.add_subparsers(required=True, metavar="STEP", parser_class=Parser)
    sync = track_steps.add_parser("sync", help="send runs that were logged offline or cut off")
    sync.set_defaults(run=_track_sync)
    sync.add_argument("runs", type=Path, nargs="+", help="run directories")
    sync.add_argument("--dry-run", action="store_true", help="only tell what would be sent")
    space = track_steps.add_parser("workspace", help="a W&B workspace that compares a sweep")
    space.set_defaults(run=_track_workspace)
    space.add_argument("--entity", required=True, help="your W&B team or user")
    space.add_argument("--project", default="asrlora")
    _metric(space, "of its runs (default: wer)")
    space.add_argument("--group", help="only the runs of this sweep ($ASRLORA_SWEEP of its runs)")

    transcribe = commands.add_parser("transcribe", help="print what is said in audio files")
    transcribe.set_defaults(run=_transcribe)
    transcribe.add_argument("audio", type=Path, nargs="+")
    transcribe.add_argument("--model-id", help="default: the base of the adapter, else the demo's base")
    transcribe.add_argument("--adapter-dir", type=Path)
    transcribe.add_argument(
        "--output-format", choices=("text", "jsonl", "srt", "vtt"), default="text",
        help="text (default), or with times: JSON lines with segments, or subtitles of one file",
    )  # fmt: skip
    _decoding(transcribe)

    export = commands.add_parser("export", help="an adapter to use elsewhere, or merged into its base")
    export.set_defaults(run=_export)
    export.add_argument("adapter", type=Path)
    export.add_argument("output", type=Path, help="a new folder")
    export.add_argument("--merge", action="store_true", help="write a model that needs no adapter")
    export.add_argument("--model-id", help="default: the base that the adapter names")

    ledger = commands.add_parser("ledger", help="draw the run matrix from run records")
    ledger.set_defaults(run=_ledger)
    ledger.add_argument(
        "--runs", type=Path, nargs="+", metavar="DIR", help="where run directories are (docs/runs, outputs)"
    )
    _pages(ledger)
    ledger_steps = ledger.add_subparsers(metavar="STEP", parser_class=Parser)
    archive = ledger_steps.add_parser("archive", help="move a run to the archive, with the reason")
    archive.set_defaults(run=_ledger_archive)
    archive.add_argument("run_dir", type=Path)
    archive.add_argument("--reason", required=True)
    _pages(archive)
    verifying = ledger_steps.add_parser("verify", help="run a run's command again, and compare")
    verifying.set_defaults(run=_ledger_verify)
    verifying.add_argument("run_dir", type=Path)

    sweep = commands.add_parser("sweep", help="many trials from one file; see docs/guide/sweeps.md")
    sweep_steps = sweep.add_subparsers(required=True, metavar="STEP", parser_class=Parser)
    planning = sweep_steps.add_parser("plan", help="print the trials and the sbatch line")
    planning.set_defaults(run=_sweep_plan)
    planning.add_argument("file", type=Path)
    planning.add_argument(
        "--arrays", action="store_true", help="only phases, array ranges and offsets above 0, for scripts"
    )
    running = sweep_steps.add_parser("run", help="run the trials, or go on with them")
    running.set_defaults(run=_sweep_run)
    running.add_argument("file", type=Path)
    running.add_argument("--jobs", type=_count, default=1, metavar="N", help="so many at once")
    running.add_argument("--phase", help="only this one")
    running.add_argument("--trial", type=int, metavar="K", help="only this one, counted from 0")
    running.add_argument(
        "--offset", type=_offset, default=0, metavar="N",
        help="--trial counts from this one on: for arrays longer than Slurm's MaxArraySize, in parts",
    )  # fmt: skip
    status = sweep_steps.add_parser("status", help="how the trials stand, while they run too")
    status.set_defaults(run=_sweep_status)
    status.add_argument("file", type=Path)
    return parser


def _pages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--page", type=Path, default=Path("docs/experiment_plan.md"))
    parser.add_argument("--archive-page", type=Path, default=Path("docs/archive_legacy_results.md"))


def _metric(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--metric", choices=("wer", "cer", "mer"), help=text)


def _allow_outside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-outside", action="store_true", help=ALLOW_OUTSIDE)


def _decoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--language", default="en", help="of multilingual Whisper models (default: en)")
    parser.add_argument(
        "--num-beams", type=_count, default=1, help="of models with a decoder (default: 1, greedy)"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text}")
    return int(text)


def _offset(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text}")
    return int(text)


def _demo(args: argparse.Namespace) -> int:
    from asrlora.demo.demo import run_demo

    return run_demo(args.data_dir, args.output_dir, args.seed)


def _corpus(args: argparse.Namespace) -> int:
    from asrlora.demo.demo import make_corpus

    make_corpus(args.data_dir)
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    from asrlora.demo.pretrain import pretrain

    pretrain(args.output_dir, args.work_dir, utterances=args.utterances, steps=args.steps)
    return 0


def _manifest_check(args: argparse.Namespace) -> int:
    from asrlora.data import plan
    from asrlora.data.audit import manifest_check
    from asrlora.models import registry
    from asrlora.storage import write_json

    paths = {"dataset_path": args.train, "manifest_path": args.domain, "safety_manifest_path": args.heldout}
    given = {name: value for name, value in vars(args).items() if name in ("model_id", *RECIPE)}
    config = validate(args.config, {**given, **paths, "output_dir": Path()})
    named = "model_id" in config.model_fields_set
    with_model = named and not args.quick
    costs = registry.cost_of(config.model_id) if named else plan.by_length
    if with_model:
        find_model(config.model_id)
    sets = {"train": args.train, "domain": args.domain, **config.guardrails}
    found, opened = manifest_check.check(sets, config, args.allow_outside, decode=not args.quick, cost=costs)
    if with_model and opened:
        from asrlora.engine.inference import audit_model

        found = audit_model(config, found, opened)
    for table in manifest_check.tables(found):
        console.print(table)
    for finding in found.findings:
        console.print(f"{'STOP' if finding.stops else 'note'}: {finding.kind}: {finding.message}")
    if args.output:
        write_json(args.output, found.as_json())
    return 3 if found.stops else 0


def _manifest_import(args: argparse.Namespace) -> int:
    from asrlora.data import manifest
    from asrlora.data.importers import convert

    samples = args.samples or (convert.DOMAIN_SAMPLES if args.role == "domain" else None)
    made = convert.import_source(
        args.source, args.output, form=args.format, samples=samples, seed=args.seed,
        allow_outside=args.allow_outside, audio_root=args.audio_root, split=args.split,
        text_field=args.text_field,
    )  # fmt: skip
    console.print(
        f"{args.output}: {made.total:,} records ({made.format}); "
        + manifest.describe(len(made.utterances), made.left_out)
    )
    for note in made.notes:
        console.print(f"note: {note}")
    if samples and len(made.utterances) < samples:
        console.print(f"note: {samples:,} samples were wanted, and there are no more")
    _tell_outside(args.output, made.outside)
    return 0


def _manifest_merge(args: argparse.Namespace) -> int:
    from asrlora.data import manifest, subsets

    if len(set(args.manifests)) < len(args.manifests):
        raise UserError("a manifest is named twice; name each once")
    manifest.check_new(args.output)
    merged = subsets.merge(
        {path: manifest.read_manifest(path, args.allow_outside) for path in args.manifests}
    )
    _write_set(args.output, merged, {})
    return 0


def _manifest_split(args: argparse.Namespace) -> int:
    from asrlora.data import manifest, subsets

    parts = subsets.parse_parts(args.parts)
    for name in parts:
        manifest.check_new(args.output_dir / f"{name}.jsonl")
    utterances = manifest.read_manifest(args.manifest, args.allow_outside)
    for name, part in subsets.split(utterances, parts, args.seed, args.by_speaker).items():
        _write_set(args.output_dir / f"{name}.jsonl", part, {})
    return 0


def _manifest_filter(args: argparse.Namespace) -> int:
    from asrlora.data import manifest, subsets

    manifest.check_new(args.output)
    try:
        match = re.compile(args.match) if args.match else None
    except re.error as error:
        raise UserError(f"--match {args.match}: no regular expression ({error})") from None
    speakers = None
    if args.speakers:
        speakers = {line.strip() for line in manifest.text_lines(args.speakers) if line.strip()}
    wanted = subsets.Filter(
        args.min_seconds, args.max_seconds, args.min_words, args.max_words, match, speakers
    )  # fmt: skip
    kept, left_out = subsets.apply_filter(manifest.read_manifest(args.manifest, args.allow_outside), wanted)
    if not kept:
        raise UserError(f"{args.manifest}: {manifest.describe(0, left_out)}")
    _write_set(args.output, kept, left_out)
    return 0


def _manifest_restyle(args: argparse.Namespace) -> int:
    from dataclasses import replace

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
    _write_set(args.output, styled, {})
    changed = [one.id for one, was in zip(styled, utterances, strict=True) if one.text != was.text]
    console.print(f"{len(changed):,} texts changed" + (f", such as {changed[0]!r}" if changed else ""))
    return 0


def _manifest_stats(args: argparse.Namespace) -> int:
    from rich.table import Table

    from asrlora.data import manifest, subsets

    table = Table("", str(args.manifest))
    for row in subsets.statistics(manifest.read_manifest(args.manifest, args.allow_outside)).items():
        table.add_row(*row)
    console.print(table)
    return 0


def _write_set(path: Path, utterances: "Sequence[Utterance]", left_out: Mapping[str, int]) -> None:
    from asrlora.data import manifest

    outside = manifest.write_manifest(path, utterances)
    console.print(f"{path}: {manifest.describe(len(utterances), left_out)}")
    _tell_outside(path, outside)


def _tell_outside(path: Path, count: int) -> None:
    if count:
        console.print(
            f"note: {count:,} utterances have their audio outside {path.parent}: reading {path.name} needs"
            " --allow-outside, unless you write it to a folder above its audio"
        )


def _slice(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 2/8, not {text!r}")
    return int(number), int(count)


def _shards_build(args: argparse.Namespace) -> int:
    from asrlora.data import manifest
    from asrlora.data.shards import writer

    if args.workers is not None and args.workers < 1:
        raise UserError("--workers must be at least 1")
    chunks = writer.cut(manifest.read_manifest(args.manifest, args.allow_outside))
    number, count = args.slice or (1, 1)
    ours = [utterance for chunk in chunks[number - 1 :: count] for utterance in chunk.utterances]
    with progress("shards", sum(utterance.duration for utterance in ours)) as advance:
        writer.write_shards(chunks, args.out, part=(number, count), workers=args.workers, progress=advance)
    if args.slice:
        console.print(f"slice {number}/{count} of {args.out}: {len(ours):,} utterances; then merge")
        return 0
    return _shards_merge(args)


def _shards_merge(args: argparse.Namespace) -> int:
    from asrlora.data import manifest
    from asrlora.data.shards import reader, writer

    writer.finish(args.out)
    built = reader.open_shards(args.out)
    console.print(
        f"{args.out}: {manifest.describe(len(built.samples), built.rejected)}, {built.seconds / 3600:.2f} h"
    )
    return 0


def _shards_verify(args: argparse.Namespace) -> int:
    from asrlora.data.shards import reader

    damaged = reader.verify(args.folder)
    for identity in damaged:
        console.print(f"damaged: {identity}")
    console.print(f"{args.folder}: {'sound' if not damaged else f'{len(damaged)} samples or files damaged'}")
    return 3 if damaged else 0


def _bench_data(args: argparse.Namespace) -> int:
    from asrlora.bench import bench_data

    return _tell_figures(bench_data(0.01 if args.small else 1.0), args.output)


def _bench_engine(args: argparse.Namespace) -> int:
    from asrlora.bench_engine import bench_engine
    from asrlora.demo.demo import make_corpus

    make_corpus(args.data_dir)
    return _tell_figures(bench_engine(args.data_dir), args.output)


def _bench_eval(args: argparse.Namespace) -> int:
    from asrlora.bench_eval import bench_eval

    return _tell_figures(bench_eval(args.utterances), args.output)


def _bench_together(args: argparse.Namespace) -> int:
    from asrlora.bench_together import HERE, SLURM, bench_together
    from asrlora.demo.demo import make_corpus

    make_corpus(args.data_dir)
    ways = {**HERE, **(SLURM if args.slurm else {})}
    return _tell_figures(bench_together(args.data_dir, args.steps, ways), args.output)


def _tell_figures(figures: "Figures", output: Path | None) -> int:
    from asrlora.bench import tell

    tell(figures)
    if output:
        from asrlora.storage import write_json

        write_json(output, figures)
    return 0


def _bench_verdict(args: argparse.Namespace) -> int:
    from asrlora.score import calibration

    print(calibration.HEAD)
    for truth in calibration.TRUTHS:
        print(calibration.as_row(calibration.rates(truth, args.trials)), flush=True)
    print(f"\n{calibration.seconds():.2f} s of CPU time for 10,000 resamples of 5,000 utterances")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from asrlora.data import manifest, windows
    from asrlora.data.audit import checks
    from asrlora.data.importers.fields import fold
    from asrlora.record.hypothesis_file import PLAIN
    from asrlora.record.scores import score_file
    from asrlora.score import degenerate, keyword_recall, metric, text

    if args.hypotheses and args.adapter_dir:
        raise UserError("--hypotheses and --adapter-dir exclude each other; nothing is decoded")
    listed, general = (_path(args, name) for name in ("domain_words", "general_text"))
    if listed and general:
        raise UserError("--domain-words and --general-text exclude each other; give one")
    chosen = getattr(args, "text_normaliser", None)
    normaliser, by = text.normaliser(chosen, args.language), metric.choose(args.metric, args.language)
    utterances = manifest.read_manifest(args.manifest_path, args.allow_outside)
    if others := checks.other_languages(utterances, args.language):
        console.print(f"note: {others}")
    domain_words = keyword_recall.choose(listed, general, (u.text for u in utterances), None, normaliser)
    if (args.output_dir / "scores.json").exists():
        raise UserError(f"--output-dir {args.output_dir} holds another evaluation; give a new folder")
    scores: EvalScores | None
    if args.hypotheses:
        scores = score_file(
            args.hypotheses, utterances, args.output_dir, normaliser, by.name, domain_words,
            folder=args.manifest_path.parent,
        )  # fmt: skip
        field = str(scores.hypothesis_field)
        if scores.wer == 0 and fold(field) in PLAIN:
            console.print(f"note: no error at all; is {field} the reference in {args.hypotheses}?")
        speed = f"the field {field}"
    else:
        from asrlora.engine.launcher import check_processes

        check_processes()
        _check_model(args.model_id, args.adapter_dir)
        from asrlora.engine.inference import evaluate_manifest

        scores = evaluate_manifest(
            args.model_id, args.adapter_dir, utterances, args.output_dir, args.eval_batch_seconds,
            args.language, chosen, by.name, domain_words, args.num_beams,
            args.load_in_4bit, args.matmul_precision,
        )  # fmt: skip
        if scores is None:
            return 0  # one of several processes; the first one tells
        speed = f"{scores.rtfx:,.0f} audio-s/s"
    console.print(str(by))
    for finding in checks.spaces(str(args.manifest_path), utterances, by):
        console.print(f"note: {finding.message}")
    console.print(
        f"WER {scores.wer:.2%} ({scores.substitutions} substitutions, {scores.deletions}"
        f" deletions, {scores.insertions} insertions in {scores.words} words,"
        f" {scores.utterances} utterances, {speed}), CER {scores.cer:.2%}"
    )
    if by.name != "wer":
        of = metric.tally(scores.as_json(), by.name)
        what = metric.KEYS[by.name][1].replace("_", " ")
        console.print(f"{by.name.upper()} {of.rate:.2%} ({of.errors} errors in {of.length} {what})")
    if scores.windowed:
        limit = scores.fingerprint["decode"]["windows"]["seconds"]
        console.print(f"{scores.windowed:,} utterances are {windows.describe(scores.as_json(), limit)}")
    if strange := degenerate.told(scores.as_json()):
        console.print(f"of the hypotheses {strange}")
    _tell_breakdown(scores)
    return 0


def _path(args: argparse.Namespace, name: str) -> Path | None:
    return Path(getattr(args, name)) if hasattr(args, name) else None


SPEAKERS_SHOWN = 10


def _tell_breakdown(scores: "EvalScores") -> None:
    """Recall of domain words, and error rates by duration and by speaker, those with most errors first."""
    from rich.table import Table

    from asrlora.score.metric import KEYS

    if found := scores.domain_words:
        share = "not said once" if found.recall is None else f"recall {found.recall:.2%}"
        console.print(
            f"domain words: {share} ({found.hits} of {found.occurrences} times, {found.words} words)"
        )
    speakers = sorted(scores.by_speaker.items(), key=lambda item: (-item[1].errors, item[0]))
    name = scores.metric
    counted = ("errors", KEYS[name][1], "utterances")
    table = Table("", name.upper(), *(key.replace("_", " ") for key in counted))
    for row, part in [*scores.by_duration.items(), *speakers[:SPEAKERS_SHOWN]]:
        rate = f"{part.rate(name):.2%}" if part.length(name) else "-"
        table.add_row(row, rate, *(f"{getattr(part, key):,}" for key in counted))
    console.print(table)
    if len(speakers) > SPEAKERS_SHOWN:
        console.print(f"{len(speakers) - SPEAKERS_SHOWN} more speakers are in scores.json")


def _verdict(args: argparse.Namespace) -> int:
    from asrlora.record.judge import judge_run
    from asrlora.report.page import write_report
    from asrlora.score.verdict import EXIT_CODES

    judged = judge_run(args.run_dir, args.resample_by)
    console.print(f"{judged.verdict}: {judged.reason}")
    for name, section in judged.sets().items():
        told = f"{name}: better with probability {section.improvement_probability:.1%}"
        if section.mapsswe is not None:  # it needs two segments that differ
            told += f"; MAPSSWE p = {section.mapsswe.p_value:.2g}"
        console.print(told)
    console.print(f"report: {write_report(args.run_dir)}")
    return EXIT_CODES[judged.verdict]


def _compare(args: argparse.Namespace) -> int:
    from asrlora.report import compare

    places = [*args.runs, *(compare.trials(args.sweep) if args.sweep else ())]
    if not places:
        raise UserError("nothing to compare; give run directories, or --sweep FILE")
    runs = compare.read_runs(compare.find(places))
    groups = compare.grouped(runs)
    for table in compare.tables(groups):
        console.print(table)
    page = args.output or compare.default_page(runs)
    compare.write_page(groups, page)
    console.print(f"page: {page}")
    if args.figures:
        from asrlora.report.publication_figures import write_figures

        console.print(f"{len(write_figures(groups, args.figures))} figures: {args.figures}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from asrlora.record import status

    for run in args.runs:
        console.print(status.describe(run))
    return 0


def _track_sync(args: argparse.Namespace) -> int:
    from asrlora.tracking import sinks

    if not any(sinks.unsent(run) for run in args.runs):
        console.print("nothing waits to be sent to W&B")
        return 0
    return 1 if sinks.sync(args.runs, args.dry_run) else 0


def _track_workspace(args: argparse.Namespace) -> int:
    from asrlora.tracking import sinks

    made = sinks.workspace(args.entity, args.project, args.group, args.metric or "wer")
    made.save()
    console.print(f"workspace: {made.url}")
    return 0


def _transcribe(args: argparse.Namespace) -> int:
    from asrlora.data.manifest import audio_length

    for path in args.audio:
        if not path.exists():
            raise UserError(f"the audio file {path} does not exist")
        try:
            if not audio_length(path):
                raise UserError(f"the audio file {path} holds no samples")
        except ValueError as error:
            raise UserError(str(error)) from None
    form = args.output_format
    if form in ("srt", "vtt") and len(args.audio) > 1:
        raise UserError(f"--output-format {form}: subtitles are of one file; give one, or jsonl for several")
    _check_model(args.model_id, args.adapter_dir)
    from asrlora.engine.inference import transcribe_files
    from asrlora.record import transcripts

    for found in transcribe_files(args.model_id, args.adapter_dir, args.audio, args.language, args.num_beams):
        if found.note:
            stderr.print(f"{found.path} is {found.note}")
        if form == "text":
            print(found.text if len(args.audio) == 1 else f"{found.path}\t{found.text}", flush=True)
        elif form == "jsonl":
            print(transcripts.to_json(found), flush=True)
        else:
            print(transcripts.subtitles(found, form), end="", flush=True)
    return 0


def _check_model(model_id: str | None, adapter: Path | None) -> None:
    """Raises UserError where base or adapter is not there, before torch is imported."""
    if adapter:
        adapter_settings(adapter)
    if model_id:
        find_model(model_id)
    elif adapter:
        base_of(adapter)


def _export(args: argparse.Namespace) -> int:
    _check_model(args.model_id, args.adapter)
    from asrlora.engine.inference import export

    console.print(f"{args.output}: {export(args.adapter, args.output, args.model_id, args.merge)}")
    return 0


def _ledger(args: argparse.Namespace) -> int:
    from asrlora.record import ledger

    folders = args.runs or [path for path in (Path("docs/runs"), Path("outputs")) if path.is_dir()]
    active, archived = ledger.write_matrix(args.page, args.archive_page, ledger.find_runs(folders))
    console.print(f"{args.page}: {active} runs; {args.archive_page}: {archived}")
    return 0


def _ledger_archive(args: argparse.Namespace) -> int:
    from asrlora.record import ledger

    ledger.archive(args.run_dir, args.reason)
    ledger.write_matrix(args.page, args.archive_page, [args.run_dir])
    console.print(f"{args.run_dir} stands in {args.archive_page} now")
    return 0


def _ledger_verify(args: argparse.Namespace) -> int:
    from asrlora.record import ledger

    odd = ledger.verify(args.run_dir)
    for line in odd:
        console.print(f"differs: {line}")
    console.print(f"{args.run_dir}: {'does not come out again' if odd else 'comes out again'}")
    return 3 if odd else 0


def _sweep_plan(args: argparse.Namespace) -> int:
    from asrlora.sweep import phases, slurm, sweep_file

    loaded = sweep_file.load(args.file)
    allowed = slurm.limits()
    if args.arrays:
        for name, count in sweep_file.sizes(loaded).items():
            for part in slurm.parts(count, allowed):
                print(name, part.array(loaded.at_once), *([part.offset] if part.offset else []))
        return 0
    for chapter in phases.chapters(loaded):
        console.print(f"phase {chapter.phase.name}:")
        for number, trial in enumerate(chapter.trials):
            console.print(f"  {number} {trial.id} {trial.label}")
            console.print(f"    {sweep_file.typed(sweep_file.command(loaded, trial))}")
    for line in slurm.describe(loaded, args.file, allowed):
        console.print(line)
    return 0


def _sweep_run(args: argparse.Namespace) -> int:
    import os

    from asrlora.sweep import phases, slurm, sweep_file

    loaded = sweep_file.load(args.file)
    sweep_file.check_jobs(loaded, args.jobs if args.trial is None else 1)
    named = {phase.name: phase for phase in sweep_file.phases_of(loaded)}
    if args.phase is None and args.trial is None:
        return phases.run(loaded, args.jobs)
    name = args.phase or next(iter(named))
    if name not in named:
        raise UserError(f"--phase {name}: {args.file} has the phases {', '.join(named)}")
    number = args.trial
    if number is not None:
        count = sweep_file.sizes(loaded)[name]
        number = slurm.number_of(number, args.offset, count, args.file, loaded)
        if partly := slurm.note(count, os.environ):
            console.print(partly)
    phases.check_parity(loaded)
    return phases.run_phase(loaded, named[name], args.jobs, number)


def _sweep_status(args: argparse.Namespace) -> int:
    from rich.table import Table

    from asrlora.sweep import phases, sweep_file

    loaded = sweep_file.load(args.file)
    for chapter in phases.chapters(loaded):
        table = Table("trial")
        table.add_column(chapter.phase.name, overflow="fold")
        label = "/".join(sorted({one.metric.upper() for one in chapter.standings}))
        for header in ("state", "step", f"domain\n{label}, %", f"heldout\n{label}, %", "verdict"):
            table.add_column(header)
        for one in chapter.standings:
            wers = [
                f"{100 * one.baseline[name]:.2f}\n→ {100 * one.tuned[name]:.2f}"
                if one.baseline and one.tuned and name in one.baseline and name in one.tuned
                else "–"
                for name in ("domain", "heldout")
            ]
            verdict = one.judged.verdict if one.judged else "–"
            steps = f"{one.step}/{one.max_steps}" if one.max_steps else "–"
            table.add_row(one.trial.id, one.trial.label, one.state, steps, *wers, verdict)
        console.print(table)
        for one in chapter.standings:  # whole lines: in a column, sentences would stand a word a line
            if one.why:
                console.print(f"{one.trial.id}: {one.why}", markup=False)
    phases.write_outcome(loaded)
    return 0


if __name__ == "__main__":
    sys.exit(main())
