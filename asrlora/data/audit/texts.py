"""What the texts of a set show: characters, encodings, scripts, languages. Needs no torch."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from asrlora.config import RunConfig
from asrlora.data.audit.findings import EXAMPLES, Finding, Item, of_set
from asrlora.data.importers import fields
from asrlora.score import characters, metric

MANY_LETTERS = 0.2  # share of the letters that makes a script matter to the metric


def spaces(name: str, items: Sequence[Item], chosen: metric.Chosen) -> Iterator[Finding]:
    """Whether the metric counts what the script of these texts separates."""
    spaceless, latin = metric.shares(item.text for item in items)
    if chosen.name == "wer" and spaceless > MANY_LETTERS:
        message = (
            f"{spaceless:.0%} of the letters are of a script that puts no spaces between words, so that a"
            f" whole utterance may count as one word ({chosen}); score characters by --metric cer, or by"
            " --metric mer where words of other scripts are mixed in"
        )
    elif chosen.name == "cer" and spaceless and latin > MANY_LETTERS:
        message = (
            f"{latin:.0%} of the letters are Latin and {spaceless:.0%} of a script that puts no spaces"
            f" between words ({chosen}); --metric mer counts words of the one and characters of the other"
        )
    else:
        return
    yield of_set("metric", name, "spaces", message, {"spaceless": spaceless, "latin": latin})


def other_languages(items: Iterable[Any], language: str) -> str:
    """What to report of utterances that name another language than --language; empty where none does."""
    others: Counter[str] = Counter()
    for value, count in _values(items, "language").items():
        if fields.language_code(value) != fields.language_code(language):
            others[value] += count
    if not others:
        return ""
    return f"{others.total():,} utterances name another language than --language {language}: {_shown(others)}"


def unusual_characters(name: str, items: Sequence[Item], config: RunConfig) -> Iterator[Finding]:
    """Characters that cannot be seen, and look-alikes; in training labels unless a setting takes them out.

    Scoring takes both out of references and hypotheses, so in an evaluation set they cost nothing.
    """
    fix = (
        "scoring ignores them, and `manifest restyle --label-characters plain` takes them out"
        if name != "train"
        else "train without them by --label-characters plain"
    )
    if name == "train" and config.label_characters == "plain":
        return
    found: dict[str, Counter[str]] = {"cannot be seen": Counter(), "look like others": Counter()}
    holding: dict[str, list[str]] = {what: [] for what in found}
    for item in items:
        for what, unusual in zip(found, characters.replaced(item.text), strict=True):
            found[what].update(unusual)
            holding[what] += [item.id] if unusual else []
    for what, counts in found.items():
        if counts:
            ids = holding[what]
            most = counts.most_common(EXAMPLES)
            shown = ", ".join(f"{characters.name(c)} in {n:,}" for c, n in most)
            more = f" and {len(counts) - len(most):,} others" if len(counts) > len(most) else ""
            message = (
                f"characters that {what} in {len(ids):,} of {len(items):,} utterances, such as {ids[0]!r}:"
                f" {shown}{more}; {fix}"
            )
            named = {characters.name(c): n for c, n in counts.most_common()}
            numbers = {"utterances": len(ids), "characters": named, "examples": ids[:EXAMPLES]}
            yield of_set("characters", name, what, message, numbers)


def encoding(name: str, items: Sequence[Item]) -> Iterator[Finding]:
    """Texts that were read in another encoding than they were written in: repairable ones, and lost ones."""
    misread = {
        item.id: (item.text, right) for item in items if (right := characters.undo_mojibake(item.text))
    }
    lost = [item.id for item in items if "\ufffd" in item.text]
    if misread:
        first, (text, right) = next(iter(misread.items()))
        message = (
            f"{len(misread):,} of {len(items):,} texts are UTF-8 that was read as Windows-1252, such as"
            f" {first!r}, {_shortened(text)!r} for {_shortened(right)!r}; import them again as UTF-8"
        )
        numbers = {"utterances": len(misread), "examples": list(misread)[:EXAMPLES]}
        yield of_set("characters", name, "encoding", message, numbers)
    if lost:
        message = (
            f"{len(lost):,} of {len(items):,} texts hold {characters.name(chr(0xFFFD))}, which stands for a"
            f" character that was lost in another encoding, such as {lost[0]!r}; import them again in their"
            " own"
        )
        numbers = {"utterances": len(lost), "examples": lost[:EXAMPLES]}
        yield of_set("characters", name, "lost", message, numbers)


def stated(name: str, items: Sequence[Item], config: RunConfig) -> Iterator[Finding]:
    """What further keys of the lines say, against what the run does."""
    if others := other_languages(items, config.language):
        yield of_set("language", name, "language", others, {})
    splits = _values(items, "split")
    if len(splits) > 1:
        message = (
            f"its lines are of several splits: {_shown(splits)}; no line to train on should be one that"
            " another set tests (asrlora manifest import --split NAME)"
        )
        yield of_set("split", name, "split", message, {"splits": dict(splits)})


def _values(items: Iterable[Any], what: str) -> Counter[str]:
    """Values of a further key by any of its names -> utterances; shards keep no further keys."""
    return Counter(
        value
        for item in items
        for key, value in getattr(item, "extra", {}).items()
        if fields.meaning(key) == what and isinstance(value, str) and value
    )


def _shown(values: Counter[str]) -> str:
    return ", ".join(f"{value} ({count:,})" for value, count in values.most_common(EXAMPLES))


def _shortened(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[:most] + "…"
