"""`asrlora eval`: hypotheses and error rates of a model, or of a file of hypotheses, on a manifest."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlora.arguments import Parser, add_allow_outside, add_decoding, add_key_terms, add_metric, add_scoring
from asrlora.errors import UserError

if TYPE_CHECKING:
    from asrlora.data.manifest import Utterance
    from asrlora.models.key_terms import TermList
    from asrlora.record.schema import EvalScores
    from asrlora.score.metric import Chosen, Metric

SPEAKERS_SHOWN = 10


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `eval`."""
    parser.set_defaults(run=_eval)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model-id")
    source.add_argument(
        "--hypotheses",
        type=Path,
        metavar="FILE",
        help="score these instead of a model's: JSON lines or a table, with id (or audio and times, as NeMo"
        " writes them) and one of hypothesis_raw, pred_text, prediction, hypothesis, text",
    )
    parser.add_argument("--adapter-dir", type=Path)
    parser.add_argument("--manifest-path", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--eval-batch-seconds", type=float, default=160.0)
    add_scoring(parser)
    add_metric(parser, "error rate of the tables (default: by --language, as in a run)")
    base = parser.add_argument_group(
        "how the base is loaded", "with an adapter: as in its training; anything else is refused"
    )
    base.add_argument(
        "--load-in-4bit", action=argparse.BooleanOptionalAction, help="as QLoRA's base (default: no)"
    )
    base.add_argument(
        "--matmul-precision", choices=("highest", "high"), help="of fp32 products on a GPU (default: highest)"
    )
    add_decoding(parser)
    add_key_terms(parser)
    add_allow_outside(parser)


def _eval(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.data import manifest
    from asrlora.data.audit.texts import other_languages, spaces
    from asrlora.models import key_terms
    from asrlora.score import keyword_recall, metric, text

    if args.hypotheses and args.adapter_dir:
        raise UserError("--hypotheses and --adapter-dir exclude each other; nothing is decoded")
    if args.domain_words and args.general_text:
        raise UserError("--domain-words and --general-text exclude each other; give one")
    if args.hypotheses and (args.key_terms or args.key_terms_boost is not None):
        raise UserError("--hypotheses and --key-terms exclude each other; nothing is decoded")
    terms = key_terms.chosen(args.key_terms, args.key_terms_boost)
    normaliser = text.normaliser(args.text_normaliser, args.language)
    keyword_recall.normalised([term.text for term in terms.terms] if terms else [], normaliser)
    chosen = metric.choose(args.metric, args.language)
    utterances = manifest.read_manifest(args.manifest_path, args.allow_outside)
    if others := other_languages(utterances, args.language):
        console.print(f"note: {others}")
    texts = (utterance.text for utterance in utterances)
    words = keyword_recall.choose(
        args.domain_words, args.general_text, texts, None, normaliser, args.language
    )
    if (args.output_dir / "scores.json").exists():
        raise UserError(f"--output-dir {args.output_dir} holds another evaluation; give a new folder")
    if args.hypotheses:
        scores = _score(args, utterances, normaliser, chosen.name, words)
        source = f"the field {scores.hypothesis_field}"
    else:
        decoded = _decode(args, utterances, chosen.name, words, terms)
        if decoded is None:
            return 0  # one of several processes; the first one prints
        scores, source = decoded, f"{decoded.rtfx:,.0f} audio-s/s"
    console.print(str(chosen))
    for finding in spaces(str(args.manifest_path), utterances, chosen):
        console.print(f"note: {finding.message}")
    _print_scores(scores, chosen, source)
    return 0


def _score(
    args: argparse.Namespace,
    utterances: "list[Utterance]",
    normaliser: Any,
    metric: "Metric",
    words: frozenset[str],
) -> "EvalScores":
    """Scores the file of hypotheses."""
    from asrlora.console import console
    from asrlora.data.importers.fields import fold
    from asrlora.record.hypothesis_file import PLAIN
    from asrlora.record.scores import score_file

    file, output, folder = args.hypotheses, args.output_dir, args.manifest_path.parent
    scores = score_file(file, utterances, output, normaliser, metric, words, folder=folder)
    field = str(scores.hypothesis_field)
    if scores.wer == 0 and fold(field) in PLAIN:
        console.print(f"note: no error at all; is {field} the reference in {args.hypotheses}?")
    return scores


def _decode(
    args: argparse.Namespace,
    utterances: "list[Utterance]",
    metric: "Metric",
    words: frozenset[str],
    terms: "TermList | None",
) -> "EvalScores | None":
    """Has the model write hypotheses, and scores them; None in other processes than the first."""
    from asrlora.engine.launcher import check_processes
    from asrlora.models.hub import check_found

    check_processes()
    check_found(args.model_id, args.adapter_dir)
    from asrlora.engine.inference import evaluate_manifest
    from asrlora.models.registry import Decoding

    return evaluate_manifest(
        args.model_id,
        args.adapter_dir,
        utterances,
        args.output_dir,
        args.eval_batch_seconds,
        Decoding.of(args),
        args.text_normaliser,
        metric,
        words,
        args.load_in_4bit,
        args.matmul_precision,
        terms,
    )


def _print_scores(scores: "EvalScores", chosen: "Chosen", source: str) -> None:
    """Error rates with their counts; `source` says where the hypotheses came from, or how fast."""
    from asrlora.console import console
    from asrlora.data import windows
    from asrlora.score import degenerate, metric

    console.print(
        f"WER {scores.wer:.2%} ({scores.substitutions} substitutions, {scores.deletions}"
        f" deletions, {scores.insertions} insertions in {scores.words} words,"
        f" {scores.utterances} utterances, {source}), CER {scores.cer:.2%}"
    )
    if chosen.name != "wer":
        of = metric.tally(scores.as_json(), chosen.name)
        what = metric.KEYS[chosen.name][1].replace("_", " ")
        console.print(f"{chosen.name.upper()} {of.rate:.2%} ({of.errors} errors in {of.length} {what})")
    if scores.windowed:
        limit = scores.fingerprint["decode"]["windows"]["seconds"]
        console.print(f"{scores.windowed:,} utterances are {windows.describe(scores.as_json(), limit)}")
    if strange := degenerate.describe(scores.as_json()):
        console.print(f"of the hypotheses {strange}")
    _print_breakdown(scores)


def _print_breakdown(scores: "EvalScores") -> None:
    """Recall of domain words, and error rates by duration and by speaker, those with most errors first."""
    from rich.table import Table

    from asrlora.console import console
    from asrlora.score import keyword_recall
    from asrlora.score.metric import KEYS

    if found := scores.domain_words:
        share = "not said once" if found.recall is None else f"recall {found.recall:.2%}"
        console.print(
            f"domain words: {share} ({found.hits} of {found.occurrences} times, {found.words} words)"
        )
    if scores.key_terms:
        console.print(f"key terms: {keyword_recall.describe(scores.key_terms)}")
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
