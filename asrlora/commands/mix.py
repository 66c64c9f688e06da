"""`asrlora mix`: one adapter from several of one base, or from the checkpoints of one run."""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asrlora.arguments import Parser, count
from asrlora.errors import UserError
from asrlora.score.metric import Metric
from asrlora.score.selection import CHOSEN_ON

FACTORS = ("ties", "dare_linear", "dare_ties", "magnitude_prune")  # these need --density
METHODS = ("cat", "svd", "linear", *FACTORS, *(f"{name}_svd" for name in FACTORS))
FOR_ADAPTERS = ("weights", "method", "rank", "density", "seed")


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `mix`."""
    parser.set_defaults(run=_mix)
    parser.add_argument("sources", type=Path, nargs="+", help="adapters; with --average one run directory")
    parser.add_argument("--output-dir", type=Path, required=True, help="a new folder, for the adapter")
    parser.add_argument("--weights", type=float, nargs="+", metavar="X", help="one for each adapter")
    parser.add_argument(
        "--average",
        metavar="last:N|best:N",
        help="average N checkpoints of a run: the last ones, or those with the lowest domain WER",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="PEFT's combination_type (default: cat, which is exact, at the sum of the ranks)",
    )
    parser.add_argument(
        "--rank", type=count, help="of methods that end in svd (default: the largest of the adapters)"
    )
    parser.add_argument(
        "--density", type=float, help="share of values that ties, dare and magnitude_prune keep, such as 0.5"
    )
    parser.add_argument("--seed", type=int, help="of dare (default: 0)")
    parser.add_argument("--model-id", help="default: the base that the adapter names")


def _mix(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.models.hub import check_found
    from asrlora.record.run_dir import check_free

    output: Path = args.output_dir
    if output.exists():
        raise UserError(f"--output-dir {output} exists; give a new folder")
    check_free(output)
    if args.average is not None:
        run, steps, config = _check_average(args)
        check_found(args.model_id, None if args.model_id else run / "adapter_best")
        from asrlora.engine.mixing import average_run

        told = average_run(run, steps, output, config, args.model_id)
    else:
        _check_weights(args)
        _check_method(args)
        for folder in args.sources:
            check_found(args.model_id, folder)
        _check_same_base(args.sources, args.model_id)
        from asrlora.engine.mixing import mix_adapters
        from asrlora.models.mixing import Method

        method = Method(args.method or "cat", args.rank, args.density, args.seed or 0)
        told = mix_adapters(args.sources, args.weights, output, method, args.model_id)
    console.print(f"{output}: {told}")
    return 0


def _check_weights(args: argparse.Namespace) -> None:
    sources, weights = len(args.sources), args.weights
    if sources < 2:
        raise UserError("one adapter is no mix; give two or more, or --average for the checkpoints of a run")
    if weights is None or len(weights) != sources or not all(map(math.isfinite, weights)):
        given = "none" if weights is None else " ".join(f"{weight:g}" for weight in weights)
        raise UserError(f"--weights: give {sources} finite numbers, one for each adapter, not {given}")


def _check_method(args: argparse.Namespace) -> None:
    """Raises UserError for what the method needs and lacks, or would ignore."""
    method = args.method or "cat"
    if args.rank is not None and not method.endswith("svd"):
        raise UserError(f"--rank is of methods that end in svd, not of {method}; leave it out")
    if args.seed is not None and not method.startswith("dare"):
        raise UserError(f"--seed is of dare, not of {method}; leave it out")
    prunes = method.removesuffix("_svd") in FACTORS
    if args.density is not None and not prunes:
        raise UserError(f"--density is of {', '.join(FACTORS)}, not of {method}; leave it out")
    if prunes and not (args.density is not None and 0 < args.density <= 1):
        raise UserError(f"--method {method} needs a --density above 0 and up to 1, such as 0.5")


def _check_same_base(folders: Sequence[Path], model_id: str | None) -> None:
    """Raises UserError where two adapters were trained on different bases, or on one loaded otherwise, or by
    different audio paths."""
    from asrlora.models.hub import base_of, trained_on

    first, *others = folders
    one: dict[str, Any] = trained_on(first)
    for folder in others:
        other = trained_on(folder)
        for name in ("sha256", "weights", "matmul_precision", "audio"):
            if name in one and name in other and one[name] != other[name]:
                raise UserError(
                    f"{first} and {folder} were trained with different bases or audio: {name} of base.json is"
                    f" {one[name]} and {other[name]}; only adapters of one base are mixed"
                )
        recorded = "sha256" in one and "sha256" in other
        if model_id is None and not recorded and base_of(first) != base_of(folder):
            raise UserError(
                f"{first} names {base_of(first)} as its base, and {folder} names {base_of(folder)}; if both"
                " are the same model, give it by --model-id"
            )


def _check_average(args: argparse.Namespace) -> tuple[Path, list[int], Any]:
    """The run directory, the steps to average, and the settings of the run. Raises UserError."""
    from asrlora.config import validate
    from asrlora.record import run_dir

    for name in FOR_ADAPTERS:
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is of adapters that are mixed, not of --average; leave it out")
    if len(args.sources) != 1:
        raise UserError(f"--average takes the checkpoints of one run; {len(args.sources)} folders are given")
    match = re.fullmatch(r"(last|best):([1-9]\d*)", args.average)
    if match is None:
        raise UserError(f"--average {args.average}: give last:N or best:N, such as last:5")
    (run,) = args.sources
    metric, scores = run_dir.read_run(run).metric, run_dir.read_scores(run)
    there = sorted(int(path.parent.name[5:]) for path in run.glob("checkpoints/step-*/state.json"))
    kind, number = match[1], int(match[2])
    usable = there if kind == "last" else [step for step in there if step in scores]
    if len(usable) < number:
        listed = ", ".join(map(str, usable)) or "none"
        raise UserError(
            f"--average {args.average}: of {run} {len(usable)} checkpoints are there ({listed}); average"
            " fewer, or train with a larger --keep-checkpoints"
        )
    if kind == "best":  # under no guardrail: what is averaged is evaluated again
        usable.sort(key=lambda step: _rate(scores[step].sets, metric))
    steps = usable[:number] if kind == "best" else usable[-number:]
    return run, sorted(steps), validate(str(run / "config.yaml"), {})


def _rate(sets: Mapping[str, Any], metric: Metric) -> float:
    """Of the domain utterances that may choose a step: a fraction."""
    return float(sets.get(CHOSEN_ON, sets["domain"]).rate(metric))
