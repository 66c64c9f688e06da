"""`asrlora terms`: propose key terms, and choose how strongly decoding is drawn to them."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asrlora.arguments import TEXT_NORMALISER, Parser, add_allow_outside, add_decoding
from asrlora.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from asrlora.data.manifest import Utterance
    from asrlora.engine.inference import Write
    from asrlora.models.key_terms import TermList
    from asrlora.score.keyword_recall import TermCounts
    from asrlora.score.scoring import Hypothesis
    from asrlora.score.text import Normaliser

BOOSTS = (1.0, 2.0, 3.0, 4.0, 6.0)
LIMIT = 0.003  # by which the WER of other words may rise, a fraction
MISSED = 3  # exit code: what was chosen on one half does not hold on the other


def add_arguments(parser: Parser) -> None:
    """Adds the steps of `terms`."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    steps.add_parser("extract", help="propose words that a model gets wrong", add=_add_extract)
    steps.add_parser("tune", help="choose the boost on one half, judge it on the other", add=_add_tune)


def _add_extract(parser: Parser) -> None:
    parser.set_defaults(run=_extract)
    _add_model(parser)
    parser.add_argument(
        "--hypotheses",
        type=Path,
        metavar="FILE",
        help="hypotheses.jsonl of an evaluation, or another system's texts; without it the model writes them",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the list; a new file")


def _add_tune(parser: Parser) -> None:
    parser.set_defaults(run=_tune)
    _add_model(parser)
    parser.add_argument("--key-terms", type=Path, required=True, metavar="FILE", help="the list")
    parser.add_argument(
        "--boosts", type=float, nargs="+", default=BOOSTS, metavar="X", help="to try (default: 1 2 3 4 6)"
    )
    parser.add_argument(
        "--max-other-regression",
        type=float,
        default=LIMIT,
        metavar="X",
        help="by which other words' WER may rise, a fraction (default: 0.003, that is 0.3 points)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the list with the boost that was chosen; a new file"
    )


def _add_model(parser: Parser) -> None:
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model-id")
    parser.add_argument("--adapter-dir", type=Path)
    parser.add_argument("--text-normaliser", metavar="TEXT", help=TEXT_NORMALISER)
    parser.add_argument("--eval-batch-seconds", type=float, default=160.0)
    add_decoding(parser)
    add_allow_outside(parser)


def _extract(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.score import keyword_recall, text
    from asrlora.storage import write_atomic

    if args.hypotheses is None and args.model_id is None and args.adapter_dir is None:
        raise UserError("give --model-id or --adapter-dir, whose errors are looked for, or --hypotheses")
    normaliser = text.normaliser(args.text_normaliser, args.language)
    utterances = _read(args)
    scored = _hypotheses(args, utterances, normaliser)
    found = keyword_recall.propose(scored, normaliser)
    if not found:
        console.print("no word is wrong at least half of the times that it is said; nothing was written")
        return 0
    lines = [f"{one.text}\t1\t# wrong {one.wrong} of {one.said}\n" for one in found]
    write_atomic(args.output, "".join(lines))
    times = sum(one.wrong for one in found)
    console.print(
        f"{len(found):,} words that are wrong {times:,} times: {args.output}; take out what is no name"
    )
    return 0


def _hypotheses(
    args: argparse.Namespace, utterances: "list[Utterance]", normaliser: "Normaliser"
) -> "Sequence[Hypothesis]":
    if args.hypotheses is not None:
        from asrlora.record.scores import read_scored

        return read_scored(args.hypotheses, utterances, normaliser, args.manifest.parent)[0]
    return _writer(args, utterances, normaliser)({u.id for u in utterances}, None)


def _tune(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.models import key_terms
    from asrlora.score import keyword_recall, selection, text

    boosts = sorted({key_terms.check_boost(boost, "--boosts") for boost in args.boosts} - {0.0})
    lists = {boost: key_terms.read(args.key_terms, boost) for boost in boosts}
    if not lists:
        raise UserError("--boosts: give one above 0")
    if args.model_id is None and args.adapter_dir is None:
        raise UserError("give --model-id or --adapter-dir")
    normaliser = text.normaliser(args.text_normaliser, args.language)
    terms = next(iter(lists.values()))
    listed = keyword_recall.normalised([term.text for term in terms.terms], normaliser)
    utterances = _read(args)
    judged_on = selection.second_half([utterance.id for utterance in utterances])
    chosen_on = {utterance.id for utterance in utterances} - judged_on
    for part in (chosen_on, judged_on):
        texts = [normaliser(utterance.text) for utterance in utterances if utterance.id in part]
        if not any(keyword_recall.count_terms(one, one, listed).occurrences for one in texts):
            raise UserError(
                f"--key-terms {args.key_terms}: none of its terms is said in one of the halves of"
                f" {args.manifest} ({len(chosen_on)} and {len(judged_on)} utterances); give a longer manifest"
            )
    write = _writer(args, utterances, normaliser, terms)

    def count(part: Collection[str], terms: "TermList | None") -> "dict[str, TermCounts]":
        return {
            one.id: keyword_recall.count_terms(one.reference, one.hypothesis, listed)
            for one in write(part, terms)
        }

    tried = {0.0: count(chosen_on, None), **{b: count(chosen_on, one) for b, one in lists.items()}}
    totals = {boost: keyword_recall.total(counts.values()) for boost, counts in tried.items()}
    boost = keyword_recall.best_boost(totals, args.max_other_regression)
    console.print(_table(f"chosen on {len(chosen_on)} utterances", totals))
    if not boost:
        console.print("no boost has fewer errors of listed terms within the limit; leave --key-terms out")
        return MISSED
    before, after = count(judged_on, None), count(judged_on, lists[boost])
    sides = {0.0: keyword_recall.total(before.values()), boost: keyword_recall.total(after.values())}
    console.print(_table(f"judged on {len(judged_on)} others", sides))
    return _conclude(args, boost, before, after)


def _conclude(
    args: argparse.Namespace,
    boost: float,
    before: "Mapping[str, TermCounts]",
    after: "Mapping[str, TermCounts]",
) -> int:
    """Says what the other half shows, and writes the list."""
    from asrlora.console import console
    from asrlora.models import key_terms
    from asrlora.score import bootstrap
    from asrlora.storage import write_atomic

    misses = bootstrap.compare(
        {i: one.term_tally for i, one in before.items()}, {i: one.term_tally for i, one in after.items()}
    )
    others = bootstrap.compare(
        {i: one.other_tally for i, one in before.items()}, {i: one.other_tally for i, one in after.items()}
    )
    for what, one in (("listed terms' errors", misses), ("other words' WER", others)):
        low, high = one.change_interval
        console.print(
            f"{what} {one.baseline:.2%} -> {one.tuned:.2%}: {100 * one.change:+.2f} points, 95 % interval"
            f" {100 * low:+.2f} to {100 * high:+.2f}"
        )
    holds = misses.change < 0 and others.change <= args.max_other_regression
    console.print(
        f"--key-terms-boost {boost:g} " + ("holds" if holds else "does not hold") + " on the other half"
    )
    if args.output:
        kept = args.key_terms.read_text(encoding="utf-8-sig").splitlines()
        lines = [f"{key_terms.BOOST_LINE} {boost:g}", *kept]
        lines = [lines[0], *(line for line in lines[1:] if not line.startswith(key_terms.BOOST_LINE))]
        write_atomic(args.output, "".join(f"{line}\n" for line in lines))
        console.print(f"{args.output} holds the list with this boost")
    return 0 if holds else MISSED


def _table(title: str, totals: "Mapping[float, TermCounts]") -> "Table":
    from rich.table import Table

    table = Table("boost", "terms said", "errors", "recall", "precision", "other words' WER", title=title)
    for boost, one in totals.items():
        precision = f"{one.hits / one.written:.1%}" if one.written else "-"
        recall = f"{one.hits / one.occurrences:.1%}" if one.occurrences else "-"
        counts = (f"{one.occurrences:,}", f"{one.misses:,}")
        table.add_row(f"{boost:g}" if boost else "none", *counts, recall, precision, f"{one.other_wer:.2%}")
    return table


def _read(args: argparse.Namespace) -> "list[Utterance]":
    from asrlora.data.manifest import read_manifest

    if args.output and args.output.exists():
        raise UserError(f"--output {args.output} exists; give a new file")
    return read_manifest(args.manifest, args.allow_outside)


def _writer(
    args: argparse.Namespace,
    utterances: "list[Utterance]",
    normaliser: "Normaliser",
    terms: "TermList | None" = None,
) -> "Write":
    from asrlora.models.hub import check_found

    check_found(args.model_id, args.adapter_dir)
    from asrlora.engine.inference import writer
    from asrlora.models.registry import Decoding

    return writer(
        args.model_id,
        args.adapter_dir,
        Decoding.of(args),
        utterances,
        args.eval_batch_seconds,
        normaliser,
        terms,
    )
