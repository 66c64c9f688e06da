"""`asrlora strength`: an adapter that forgot, at the strength at which it keeps what it learned."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlora.arguments import Parser, add_allow_outside
from asrlora.errors import UserError

if TYPE_CHECKING:
    from asrlora.config import RunConfig

# settings of a run that decide an evaluation and a verdict
SETTINGS = """model_id language manifest_path safety_manifest_path report_manifest text_normaliser metric
domain_words general_text resample_by min_domain_reduction max_heldout_regression eval_batch_seconds num_beams
repetition_guard load_in_4bit matmul_precision""".split()
STRONGEST = 1.5


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `strength`."""
    from asrlora.config import add_flags

    parser.set_defaults(run=_strength)
    parser.add_argument("source", type=Path, metavar="RUN_DIR", help="a complete run, or an adapter's folder")
    parser.add_argument(
        "--strength",
        type=_strength_value,
        nargs="+",
        default=[],
        metavar="X",
        help="try only these, from above 0 (the base) to 1 (as trained) to 1.5 (default: a search)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        help="a new run directory (default: the run itself, whose adapter and verdict are kept in"
        " before_rescue/)",
    )
    add_allow_outside(parser)
    group = parser.add_argument_group("for an adapter's folder", "a run has its own settings")
    add_flags(group, SETTINGS)


def _strength_value(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value <= STRONGEST:
        raise argparse.ArgumentTypeError(f"{given!r} is not above 0 and at most {STRONGEST:g}")
    return value


def _strength(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.data import manifest
    from asrlora.engine.launcher import check_processes
    from asrlora.models.hub import find_model
    from asrlora.record import run_dir
    from asrlora.score import selection
    from asrlora.score.verdict import EXIT_CODES

    check_processes()
    is_run = (args.source / "run.json").exists()
    config = _of_run(args) if is_run else _of_adapter(args)
    held: dict[str, Path] = {"domain": config.manifest_path, **config.guardrails}
    if isinstance(config.report_manifest, Path):
        held[selection.REPORT] = config.report_manifest
    sets = {name: manifest.read_manifest(path, config.allow_outside) for name, path in held.items()}
    find_model(run_dir.base_of_run(args.source, config))
    from asrlora.engine.strength_search import search

    judged = search(config, sets, args.strength, args.source)
    if judged is None:
        return 0  # one of several processes; the first one prints
    console.print(f"{judged.verdict}: {judged.reason}")
    return EXIT_CODES[judged.verdict]


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name in SETTINGS}


def _of_run(args: argparse.Namespace) -> "RunConfig":
    """The settings of a complete run. Raises UserError."""
    from asrlora.config import validate
    from asrlora.record import run_dir

    if given := _given(args):
        flag = "--" + next(iter(given)).replace("_", "-")
        raise UserError(f"{flag} is for an adapter's folder; {args.source} is a run, which has its own")
    identity = run_dir.read_run(args.source)
    if identity.state != "complete":
        raise UserError(
            f"{args.source}: the run is {identity.state}; continue it with --resume auto, and rescue it when"
            " it is complete"
        )
    place = {"output_dir": args.output_dir or args.source}
    if args.output_dir:
        run_dir.check_free(args.output_dir)
    allowed = {"allow_outside": True} if args.allow_outside else {}
    return validate(str(args.source / "config.yaml"), {**place, **allowed})


def _of_adapter(args: argparse.Namespace) -> "RunConfig":
    """Settings for an adapter's folder. Raises UserError."""
    from asrlora.config import validate
    from asrlora.models.hub import adapter_settings, chosen, trained_on
    from asrlora.record import run_dir

    adapter_settings(args.source)
    given = _given(args)
    missing = [name for name in ("manifest_path", "safety_manifest_path") if name not in given]
    if args.output_dir is None:
        missing.append("output_dir")
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UserError(
            f"{args.source} is an adapter and no run, so it has no manifests; give {flags}, or the directory"
            " of its run"
        )
    run_dir.check_free(args.output_dir)
    trained = trained_on(args.source)
    known = {
        "load_in_4bit": trained.get("weights") == "nf4",
        "matmul_precision": trained.get("matmul_precision", "highest"),
    }
    return validate(
        None,
        {
            **known,
            **given,
            "model_id": chosen(given.get("model_id"), args.source),
            "dataset_path": args.source,  # nothing is trained
            "max_steps": 1,
            "output_dir": args.output_dir,
            "allow_outside": args.allow_outside,
        },
    )
