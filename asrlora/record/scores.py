"""`asrlora eval`: its files, and hypotheses that somebody else's system has written. Needs no torch."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asrlora.data.manifest import Utterance
from asrlora.errors import UserError
from asrlora.record.hypothesis_file import read_hypotheses
from asrlora.record.run_dir import to_lines, write_atomic
from asrlora.record.schema import EvalScores
from asrlora.score import breakdown, keyword_recall
from asrlora.score.metric import Metric
from asrlora.score.scoring import Hypothesis, score, summary
from asrlora.score.text import Normaliser
from asrlora.storage import write_json


def write_scores(
    output: Path, hypotheses: Sequence[Hypothesis], domain_words: frozenset[str], metric: Metric, **more: Any
) -> EvalScores:
    """Writes hypotheses.jsonl, scores.json and the domain words into `output`; returns the scores."""
    lines = [h.line() for h in hypotheses]
    scores = EvalScores.model_validate(
        {
            "metric": metric,
            **summary(hypotheses),
            **keyword_recall.summary(hypotheses, domain_words),
            "by_duration": breakdown.by_duration(lines, metric),
            "by_speaker": breakdown.by_speaker(lines, metric),
            **more,
        }
    )
    write_atomic(output / "hypotheses.jsonl", to_lines(lines))
    if domain_words:
        write_atomic(output / "domain_words.txt", keyword_recall.to_list(domain_words))
    write_json(output / "scores.json", scores.as_json())
    return scores


def score_file(
    path: Path,
    utterances: Sequence[Utterance],
    output: Path,
    normaliser: Normaliser,
    metric: Metric,
    domain_words: frozenset[str] = frozenset(),
    *,
    folder: Path,
) -> EvalScores:
    """Scores a file of hypotheses by the rules that hold for models; writes what `write_scores` does.

    Each line holds its hypothesis, and `id`, or the audio and times of its utterance; `folder` is the
    manifest's. Raises UserError unless every utterance of the manifest is there once, and nothing else.
    Every utterance counts, silent recordings too: those are left out where a model is evaluated, since
    shards do not hold them.
    """
    hypotheses, field = read_scored(path, utterances, normaliser, folder)
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    references = json.dumps([(u.id, u.text) for u in ordered], ensure_ascii=False)
    fingerprint = {
        "text": dict(normaliser.fingerprint),
        "metric": metric,
        "hypotheses": hashlib.sha256(path.read_bytes()).hexdigest(),
        "references": hashlib.sha256(references.encode()).hexdigest(),
    }
    return write_scores(
        output, hypotheses, domain_words, metric, hypothesis_field=field, fingerprint=fingerprint
    )


def read_scored(
    path: Path, utterances: Sequence[Utterance], normaliser: Normaliser, folder: Path
) -> tuple[list[Hypothesis], str]:
    """A file of hypotheses, scored and in the order of ids, and the field they were in; see `score_file`."""
    texts, field = read_hypotheses(path, utterances, folder)
    wanted = {utterance.id for utterance in utterances}
    missing, foreign = sorted(wanted - texts.keys()), sorted(texts.keys() - wanted)
    if missing:
        raise UserError(
            f"--hypotheses {path}: {len(missing)} of the manifest's {len(wanted)} utterances are missing,"
            f" such as {missing[0]!r}; every utterance counts, so give an empty text where there"
            " is none"
        )
    if foreign:
        raise UserError(
            f"--hypotheses {path}: {len(foreign)} ids are not in the manifest, such as {foreign[0]!r}; is it"
            " the manifest that was transcribed?"
        )
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    return [score(u.id, u.text, texts[u.id], normaliser, u.speaker, u.duration) for u in ordered], field
