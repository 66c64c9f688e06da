"""What the texts of a set show: characters, encodings, scripts, languages, brackets. Needs no torch."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from asrlora.config import RunConfig
from asrlora.data.audit.findings import EXAMPLES, Finding, Item, of_set
from asrlora.data.importers import fields
from asrlora.score import brackets, characters, metric, text

# full-width ones, too, which scoring makes plain
_BRACKET = re.compile("[]\\[<>(){}\uff08\uff09\uff1c\uff1e\uff3b\uff3d\uff5b\uff5d]")
_NO_TAGS = (
    f"take them out of the texts, or write what was said (--text-normaliser {text.KEEP_BRACKETS} scores"
    " English texts without tags)"
)
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


def in_brackets(name: str, items: Sequence[Item], config: RunConfig) -> Iterator[Finding]:
    """Tags such as [unk], which are no speech, and words in brackets that the normaliser drops."""
    plain = ((item.id, characters.for_scoring(item.text)) for item in items if _BRACKET.search(item.text))
    found = {i: brackets.pairs(written) for i, written in plain}
    tags = {i: kept for i, pairs in found.items() if (kept := [pair for pair, is_tag in pairs if is_tag])}
    if tags:
        counts = Counter(tag for held in tags.values() for tag in held)
        first = next(iter(tags))
        fix = "the model learns to write them; take them out of the texts" if name == "train" else _NO_TAGS
        message = (
            f"tags, which are no speech, in {len(tags):,} of {len(items):,} texts"
            f" ({len(tags) / len(items):.1%}), such as {first!r}: {_shown(counts)}; {fix}"
        )
        numbers = {"utterances": len(tags), "share": len(tags) / len(items), "tags": dict(counts)}
        yield of_set("brackets", name, "tags", message, {**numbers, "examples": list(tags)[:EXAMPLES]})
    if name != "train" and any(not is_tag for pairs in found.values() for _, is_tag in pairs):
        yield from _dropped_words(name, items, found, config)


def _dropped_words(
    name: str, items: Sequence[Item], found: Mapping[str, Sequence[tuple[str, bool]]], config: RunConfig
) -> Iterator[Finding]:
    """Words are dropped where a text, tags apart, has fewer after normalisation than without its brackets."""
    normaliser = text.normaliser(config.text_normaliser, config.language)
    dropped: dict[str, int] = {}
    for item in items:
        if item.id in found:
            said = brackets.without_tags(characters.for_scoring(item.text))
            less = len(normaliser(brackets.keep_words(said)).split()) - len(normaliser(said).split())
            dropped |= {item.id: less} if less > 0 else {}
    if dropped:
        first, words = next(iter(dropped)), sum(dropped.values())
        shown = next(pair for pair, is_tag in found[first] if not is_tag)
        keeping = f"score them by --text-normaliser {text.KEEP_BRACKETS}, or "
        message = (
            f"{len(dropped):,} of {len(items):,} references ({len(dropped) / len(items):.1%}) hold words in"
            f" brackets ({words:,} in all) which --text-normaliser {normaliser.fingerprint['name']} drops,"
            f" such as {first!r}, {_shortened(shown)!r}; a model that writes them without brackets is charged"
            f" with insertions: where they were spoken, {keeping if config.language == 'en' else ''}take the"
            " brackets out of the texts"
        )
        numbers = {"utterances": len(dropped), "share": len(dropped) / len(items), "words": words}
        yield of_set("brackets", name, "words", message, {**numbers, "examples": list(dropped)[:EXAMPLES]})


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
