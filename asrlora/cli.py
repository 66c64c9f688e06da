"""The command `asrlora`. Each sub-command is one function; heavy imports wait until it runs."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from asrlora.config import Parser, add_flags, validate
from asrlora.console import console, progress
from asrlora.errors import UserError, exit_code
from asrlora.models.hub import find_model

# settings of a run that `manifest check` wants to know
RECIPE = """max_steps batch_size batch_seconds gradient_accumulation_steps min_seconds max_seconds
label_case label_punctuation""".split()


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv

    def run() -> int:
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

    manifest = commands.add_parser("manifest", help="audit manifests")
    manifest_steps = manifest.add_subparsers(required=True, metavar="STEP", parser_class=Parser)
    check = manifest_steps.add_parser("check", help="look for what makes a run worthless")
    check.set_defaults(run=_manifest_check)
    check.add_argument("train", type=Path)
    check.add_argument("--domain", type=Path, required=True)
    check.add_argument("--heldout", type=Path)
    check.add_argument("--quick", action="store_true", help="manifests and audio headers only")
    check.add_argument("--output", type=Path, help="write the findings here as JSON")
    recipe = check.add_argument_group("the run that is planned", "as for asrlora/train.py")
    recipe.add_argument("--config", metavar="FILE", help="YAML file of the run")
    recipe.add_argument(
        "--model-id", default=argparse.SUPPRESS, help="base model: its tokens and style are looked at too"
    )
    add_flags(recipe, RECIPE)

    shards = commands.add_parser("shards", help="build and verify WebDataset tars")
    shards_steps = shards.add_subparsers(required=True, metavar="STEP", parser_class=Parser)
    build = shards_steps.add_parser("build", help="manifest to tars and index")
    build.set_defaults(run=_shards_build)
    build.add_argument("manifest", type=Path)
    build.add_argument("out", type=Path)
    build.add_argument("--workers", type=int, help="processes (default: one a core)")
    verify = shards_steps.add_parser("verify", help="check every byte")
    verify.set_defaults(run=_shards_verify)
    verify.add_argument("folder", type=Path)

    evaluate = commands.add_parser("eval", help="hypotheses and WER of a model on a manifest")
    evaluate.set_defaults(run=_eval)
    evaluate.add_argument("--model-id", required=True)
    evaluate.add_argument("--adapter-dir", type=Path)
    evaluate.add_argument("--manifest-path", type=Path, required=True)
    evaluate.add_argument("--output-dir", type=Path, required=True)
    evaluate.add_argument("--eval-batch-seconds", type=float, default=160.0)

    judge = commands.add_parser("verdict", help="judge a run again from its files")
    judge.set_defaults(run=_verdict)
    judge.add_argument("run_dir", type=Path)

    transcribe = commands.add_parser("transcribe", help="print what is said in audio files")
    transcribe.set_defaults(run=_transcribe)
    transcribe.add_argument("audio", type=Path, nargs="+")
    transcribe.add_argument("--model-id", help="default: the base of the adapter, else the demo's base")
    transcribe.add_argument("--adapter-dir", type=Path)

    ledger = commands.add_parser("ledger", help="draw the run matrix from run records")
    ledger.set_defaults(run=_ledger)
    ledger.add_argument("folders", type=Path, nargs="+", help="where run directories are")
    ledger.add_argument("--page", type=Path, default=Path("docs/experiment_plan.md"))
    return parser


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
    from asrlora.data import check
    from asrlora.runs.record import write_whole

    paths = {"dataset_path": args.train, "manifest_path": args.domain, "safety_manifest_path": args.heldout}
    given = {name: value for name, value in vars(args).items() if name in ("model_id", *RECIPE)}
    config = validate(args.config, {**given, **paths, "output_dir": Path()})
    with_model = "model_id" in config.model_fields_set and not args.quick
    if with_model:
        find_model(config.model_id)
    sets = {"train": args.train, "domain": args.domain, "heldout": args.heldout}
    found, opened = check.check(
        {name: path for name, path in sets.items() if path}, config, decode=not args.quick
    )
    if with_model and opened:
        from asrlora.engine.offline import audit_model

        found = audit_model(config, found, opened)
    for table in check.tables(found):
        console.print(table)
    for finding in found.findings:
        console.print(f"{'STOP' if finding.stops else 'note'}: {finding.kind}: {finding.message}")
    if args.output:
        write_whole(args.output, json.dumps(found.as_json(), indent=1) + "\n")
    return 3 if found.stops else 0


def _shards_build(args: argparse.Namespace) -> int:
    from asrlora.data import manifest, shards

    utterances = manifest.read_manifest(args.manifest)
    with progress("shards", sum(u.duration for u in utterances)) as advance:
        built = shards.build(utterances, args.out, workers=args.workers, progress=advance)
    console.print(
        f"{args.out}: {manifest.describe(len(built.samples), built.rejected)}, {built.seconds / 3600:.2f} h"
    )
    return 0


def _shards_verify(args: argparse.Namespace) -> int:
    from asrlora.data import shards

    damaged = shards.verify(args.folder)
    for identity in damaged:
        console.print(f"damaged: {identity}")
    console.print(f"{args.folder}: {'sound' if not damaged else f'{len(damaged)} samples damaged'}")
    return 3 if damaged else 0


def _eval(args: argparse.Namespace) -> int:
    from asrlora.data import manifest

    utterances = manifest.read_manifest(args.manifest_path)
    find_model(args.model_id)
    scores_path = args.output_dir / "scores.json"
    if scores_path.exists():
        raise UserError(f"--output-dir {args.output_dir} holds another evaluation; give a new folder")
    from asrlora.engine.offline import evaluate_manifest

    scores = evaluate_manifest(
        args.model_id, args.adapter_dir, utterances, args.output_dir, args.eval_batch_seconds
    )
    console.print(
        f"WER {scores['wer']:.2%} ({scores['substitutions']} substitutions, {scores['deletions']}"
        f" deletions, {scores['insertions']} insertions in {scores['words']} words,"
        f" {scores['utterances']} utterances, {scores['audio_seconds'] / scores['seconds']:,.0f} audio-s/s)"
    )
    return 0


def _verdict(args: argparse.Namespace) -> int:
    from asrlora.runs.record import judge_run
    from asrlora.score.verdict import EXIT_CODES

    judged = judge_run(args.run_dir)
    console.print(f"{judged['verdict']}: {judged['reason']}")
    return EXIT_CODES[judged["verdict"]]


def _transcribe(args: argparse.Namespace) -> int:
    for path in args.audio:
        if not path.is_file():
            raise UserError(f"the audio file {path} does not exist")
    from asrlora.engine.offline import transcribe_files

    for path, text in transcribe_files(args.model_id, args.adapter_dir, args.audio):
        print(text if len(args.audio) == 1 else f"{path}\t{text}", flush=True)
    return 0


def _ledger(args: argparse.Namespace) -> int:
    from asrlora.runs import ledger

    runs = ledger.find_runs(args.folders)
    ledger.write_matrix(args.page, runs)
    console.print(f"{args.page}: {len(runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
