"""Compares train, domain and heldout before any step is run. Needs no torch.

Three stages, each as early as it can be: `quick` reads manifests and audio headers only, `deep`
wants decoded audio, and `tokens` and `baseline` want the base model. docs/guide/audit.md lists what each
finds and what of it stops a run.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from asrlora.config import RunConfig
from asrlora.data import audio, plan
from asrlora.data.audit import leakage
from asrlora.data.audit.findings import EXAMPLES, Audit, Finding, Item, spoken
from asrlora.data.audit.transcript_style import Style, style
from asrlora.data.decoding.decode import Fault
from asrlora.data.importers import fields
from asrlora.data.manifest import BadLine, filter_for_training
from asrlora.score import characters, metric, power, selection
from asrlora.score.metric import Metric
from asrlora.score.verdict import Criteria
from asrlora.score.wer import Tally

FILTERS = (5.0, 8.0, 10.0, 15.0, 20.0, 30.0)  # seconds; what each would keep is told
MANY_EPOCHS = 20  # past this many an adapter has heard each sentence too often to learn from it
FRAME = 0.025  # seconds, of every family's front-end
# Letters and digits in a second. The fastest talkers reach 25; a word said into a long pause, 0.5.
SPEAKING = (0.5, 30.0)
CLIPPED = 0.001  # share of an utterance's samples at full scale that can be heard
FAINT = 0.001  # RMS, full scale 1.0 (-60 dBFS); below it is mostly the recorder's own noise
OFFSET = 0.001  # DC, full scale 1.0; speech's own mean is below it
OFFSET_MATTERS = 0.05  # of the level
STILL = 0.5  # seconds of one and the same value; a microphone that is open never gives that
DRIFT = 1.95  # Kolmogorov's distribution passes this once in 1,000
DRIFT_MATTERS = 0.1  # relative difference between a prefix and the rest
MANY_LETTERS = 0.2  # share of the letters that makes a script matter to the metric


class Recorded(Protocol):
    """What a recording was before the audio path (audio.Source)."""

    @property
    def level(self) -> float: ...  # RMS, full scale 1.0
    @property
    def clipped(self) -> float: ...  # share of samples at full scale
    @property
    def rate(self) -> int: ...  # Hz
    @property
    def channels(self) -> int: ...
    @property
    def dc(self) -> float: ...  # full scale 1.0
    @property
    def still(self) -> float: ...  # seconds of the longest stretch of one value
    @property
    def faults(self) -> int: ...  # of decoding.Fault


class Heard(Item, Recorded, Protocol):
    """A sample of a shard."""

    @property
    def sha256(self) -> str: ...  # of the audio after the audio path


class Decoded(Protocol):
    """A set of shards."""

    @property
    def samples(self) -> Sequence[Heard]: ...
    @property
    def rejected(self) -> Mapping[str, int]: ...  # reason -> utterances left out


class Scored(Protocol):
    """One utterance of the baseline."""

    @property
    def hypothesis_raw(self) -> str: ...
    def tally(self, metric: Metric) -> Tally: ...


# --- quick: manifests and headers


def quick(
    train: Sequence[Item],
    evaluation: Mapping[str, Sequence[Item]],
    config: RunConfig,
    cost: plan.Cost = plan.by_length,
) -> Audit:
    """What manifests and headers show. `evaluation` maps domain and heldout to their utterances."""
    sets = {name: list(items) for name, items in {"train": train, **evaluation}.items()}
    kept, _ = filter_for_training(train, config.min_seconds, config.max_seconds)
    described = {name: _describe(items) for name, items in sets.items()}
    epochs = _epochs([item.duration for item in kept], config, cost)
    described["train"]["epochs"] = round(epochs, 2) if math.isfinite(epochs) else None
    findings = [
        *leakage.shared(sets),
        *leakage.same_place(sets),
        *_starvation(sets["train"], kept, config, cost),
        *(finding for name, items in sets.items() for finding in _durations(name, items)),
        *(finding for name, items in sets.items() for finding in _characters(name, items, config)),
        *(finding for name, items in sets.items() for finding in _stated(name, items, config)),
        *(finding for name, items in sets.items() for finding in _encoding(name, items)),
    ]
    criteria = Criteria.of(config)
    chosen = metric.choose(config.metric, config.language)
    for name, items in itertools.islice(sets.items(), 1, None):
        words = sum(len(item.text.split()) for item in items)
        length = sum(len(metric.units(item.text, chosen.name).split()) for item in items)
        margin = power.assumed_margin(length)
        described[name] |= {"words": words, "margin": margin if math.isfinite(margin) else None}
        assumed = f"assuming {power.ASSUMED_WER:.0%} {chosen.name.upper()}"
        findings += _effect(name, len(items), margin, chosen.name, assumed, criteria)
        findings += spaces(name, items, chosen)
        findings += _heterogeneity(name, "length", [item.duration for item in items])
        findings += _heterogeneity(name, "speaking rate", [_rate(item) for item in items])
    return Audit(described, findings)


def _describe(items: Sequence[Item]) -> dict[str, Any]:
    seconds = [item.duration for item in items]
    return {
        "utterances": len(items),
        "hours": round(sum(seconds) / 3600, 4),
        "speakers": len({item.speaker for item in items if item.speaker}),
        "kept_by_max_seconds": {f"{limit:g}": sum(s <= limit for s in seconds) for limit in FILTERS},
    }


def bad_lines(name: str, bad: Mapping[int, BadLine]) -> Iterator[Finding]:
    """Lines of a manifest that hold no utterance, by reason; a run would stop at the first."""
    for reason in sorted({line.reason for line in bad.values()}):
        lines = {number: line.message for number, line in sorted(bad.items()) if line.reason == reason}
        shown = [f"line {number}: {message}" for number, message in lines.items()][:EXAMPLES]
        more = [f"and {len(lines) - EXAMPLES:,} more"] if len(lines) > EXAMPLES else []
        yield Finding(
            "audio" if reason.startswith("audio") else "manifest", True,
            f"{spoken(name)}: {len(lines):,} lines cannot be used ({reason}): {'; '.join(shown + more)}",
            {"what": reason, "sets": [name], "utterances": len(lines), "lines": lines},
        )  # fmt: skip


def _starvation(
    train: Sequence[Item], kept: Sequence[Item], config: RunConfig, cost: plan.Cost
) -> Iterator[Finding]:
    limits = f"the filter {config.min_seconds:g} to {config.max_seconds:g} s"
    seconds = [item.duration for item in kept]
    epochs = _epochs(seconds, config, cost)
    numbers = {"what": "steps", "kept": len(kept), "utterances": len(train), "epochs": epochs}
    if not math.isfinite(epochs):
        yield Finding(
            "starvation", True,
            f"{limits} keeps {len(kept):,} of {len(train):,} training utterances, fewer than one step"
            " needs; raise --max-seconds, or lower --batch-size, --batch-seconds or"
            " --gradient-accumulation-steps",
            {**numbers, "epochs": None},
        )  # fmt: skip
    elif epochs > MANY_EPOCHS:
        yield Finding(
            "starvation", False,
            f"{config.max_steps:,} steps make {epochs:,.0f} epochs of {len(kept):,} training utterances;"
            " past some 20 an adapter learns them by heart: find more speech or lower --max-steps",
            numbers,
        )  # fmt: skip
    share = 1 - len(kept) / len(train) if train else 0.0
    if share > 0.1:
        yield Finding(
            "starvation", False,
            f"{limits} and the need of a text leave out {share:.1%} of the training utterances; cut long"
            " recordings into segments, or raise --max-seconds",
            {"what": "filter", "kept": len(kept), "utterances": len(train)},
        )  # fmt: skip


def _epochs(seconds: Sequence[float], config: RunConfig, cost: plan.Cost = plan.by_length) -> float:
    """How often the planned steps go through the set; infinity where it does not make one step.

    A microbatch of --batch-seconds holds no more than that of speech, or one longer utterance, so a
    set with enough for a step needs no planning to know it.
    """
    microbatches = config.gradient_accumulation_steps
    if config.batch_seconds is None:
        needed = microbatches * (config.batch_size or 1)
        return config.max_steps * needed / len(seconds) if len(seconds) >= needed else math.inf
    costs = cost(np.asarray(seconds, np.float64)).tolist()
    steps = sum(min(one, config.batch_seconds) for one in costs) / config.batch_seconds / microbatches
    if steps < 1:
        planned = plan.plan_epoch(
            seconds,
            seed=config.seed,
            epoch=0,
            microbatches_per_step=microbatches,
            cost=cost,
            **config.microbatch,
        )
        steps = len(planned)
    return config.max_steps / steps if steps else math.inf


def _durations(name: str, items: Sequence[Item]) -> Iterator[Finding]:
    """Lengths that no speech has: below one frame, or with too many or too few letters for it."""
    short = {item.id for item in items if item.duration < FRAME}
    yield from _odd(
        name, "length", short, len(items), f"shorter than one frame ({1000 * FRAME:g} ms)", "take them out"
    )
    slowest, fastest = SPEAKING
    rates = {item.id: _rate(item) for item in items if item.text.strip() and item.id not in short}
    yield from _odd(
        name, "speaking rate", {i for i, rate in rates.items() if not slowest <= rate <= fastest}, len(items),
        f"spoken at less than {slowest:g} or more than {fastest:g} letters a second, as nobody speaks",
        "check their texts and times",
    )  # fmt: skip


def _characters(name: str, items: Sequence[Item], config: RunConfig) -> Iterator[Finding]:
    """Characters that cannot be seen, and look-alikes; in training labels unless a setting takes them out.

    Scoring takes both out of references and hypotheses, so in an evaluation set they cost nothing.
    """
    is_train = name == "train"
    if is_train and config.label_characters == "plain":
        return
    found: dict[str, Counter[str]] = {"cannot be seen": Counter(), "look like others": Counter()}
    holding: dict[str, list[str]] = {what: [] for what in found}
    for item in items:
        for what, odd in zip(found, characters.replaced(item.text), strict=True):
            found[what].update(odd)
            holding[what] += [item.id] if odd else []
    mend = (
        "train without them by --label-characters plain" if is_train
        else "scoring is blind to them, and `manifest restyle --label-characters plain` takes them out"
    )  # fmt: skip
    for what, counts in found.items():
        if counts:
            most = counts.most_common(EXAMPLES)
            shown = ", ".join(f"{characters.name(c)} in {n:,}" for c, n in most)
            more = f" and {len(counts) - len(most):,} others" if len(counts) > len(most) else ""
            yield Finding(
                "characters", False,
                f"{spoken(name)}: characters that {what} in {len(holding[what]):,} of {len(items):,}"
                f" utterances, such as {holding[what][0]!r}: {shown}{more}; {mend}",
                {"what": what, "sets": [name], "utterances": len(holding[what]),
                 "characters": {characters.name(c): n for c, n in counts.most_common()},
                 "examples": holding[what][:EXAMPLES]},
            )  # fmt: skip


def _encoding(name: str, items: Sequence[Item]) -> Iterator[Finding]:
    """Texts that were read in another encoding than they were written in: what is lost, and what is not."""
    misread = {
        item.id: (item.text, right) for item in items if (right := characters.undo_mojibake(item.text))
    }
    lost = [item.id for item in items if "\ufffd" in item.text]
    if misread:
        first, (text, right) = next(iter(misread.items()))
        yield Finding(
            "characters", False,
            f"{spoken(name)}: {len(misread):,} of {len(items):,} texts are UTF-8 that was read as"
            f" Windows-1252, such as {first!r}, {_shortened(text)!r} for {_shortened(right)!r}; import them"
            " again as UTF-8",
            {"what": "encoding", "sets": [name], "utterances": len(misread),
             "examples": list(misread)[:EXAMPLES]},
        )  # fmt: skip
    if lost:
        yield Finding(
            "characters", False,
            f"{spoken(name)}: {len(lost):,} of {len(items):,} texts hold {characters.name(chr(0xFFFD))},"
            f" which stands for a character that was lost in another encoding, such as {lost[0]!r}; import"
            " them again in their own",
            {"what": "lost", "sets": [name], "utterances": len(lost), "examples": lost[:EXAMPLES]},
        )  # fmt: skip


def _shortened(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[:most] + "…"


def spaces(name: str, items: Sequence[Item], chosen: metric.Chosen) -> Iterator[Finding]:
    """Whether the metric counts what the script of these texts parts."""
    spaceless, latin = metric.shares(item.text for item in items)
    if chosen.name == "wer" and spaceless > MANY_LETTERS:
        yield Finding(
            "metric", False,
            f"{spoken(name)}: {spaceless:.0%} of the letters are of a script that puts no spaces between"
            f" words, so that a whole utterance may count as one word ({chosen}); score characters by"
            " --metric cer, or by --metric mer where words of other scripts are mixed in",
            {"what": "spaces", "sets": [name], "spaceless": spaceless, "latin": latin},
        )  # fmt: skip
    elif chosen.name == "cer" and spaceless and latin > MANY_LETTERS:
        yield Finding(
            "metric", False,
            f"{spoken(name)}: {latin:.0%} of the letters are Latin and {spaceless:.0%} of a script that puts"
            f" no spaces between words ({chosen}); --metric mer counts words of the one and characters of the"
            " other",
            {"what": "spaces", "sets": [name], "spaceless": spaceless, "latin": latin},
        )  # fmt: skip


def _stated(name: str, items: Sequence[Item], config: RunConfig) -> Iterator[Finding]:
    """What further keys of the lines say, against what the run does."""
    if others := other_languages(items, config.language):
        yield Finding("language", False, f"{spoken(name)}: {others}", {"what": "language", "sets": [name]})
    splits = _values(items, "split")
    if len(splits) > 1:
        shown = ", ".join(f"{value} ({count:,})" for value, count in splits.most_common(EXAMPLES))
        yield Finding(
            "split", False,
            f"{spoken(name)}: its lines are of several splits: {shown}; no line to train on should be"
            " one that another set tests (asrlora manifest import --split NAME)",
            {"what": "split", "sets": [name], "splits": dict(splits)},
        )  # fmt: skip


def other_languages(items: Iterable[Any], language: str) -> str:
    """What to report of utterances that name another language than --language; empty where none does."""
    others: Counter[str] = Counter()
    for value, count in _values(items, "language").items():
        if fields.language_code(value) != fields.language_code(language):
            others[value] += count
    if not others:
        return ""
    shown = ", ".join(f"{value} ({count:,})" for value, count in others.most_common(EXAMPLES))
    return f"{others.total():,} utterances name another language than --language {language}: {shown}"


def _values(items: Iterable[Any], what: str) -> Counter[str]:
    """Values of a further key by any of its names -> utterances; shards keep no further keys."""
    return Counter(
        value
        for item in items
        for key, value in getattr(item, "extra", {}).items()
        if fields.meaning(key) == what and isinstance(value, str) and value
    )


def _odd(name: str, what: str, ids: set[str], count: int, how: str, mend: str) -> Iterator[Finding]:
    if ids:
        shown = sorted(ids)[:EXAMPLES]
        yield Finding(
            "audio", False,
            f"{spoken(name)}: {len(ids):,} of {count:,} utterances are {how}, such as {shown[0]!r}; {mend}",
            {"what": what, "sets": [name], "utterances": len(ids), "share": len(ids) / count,
             "examples": shown},
        )  # fmt: skip


def _effect(
    name: str, utterances: int, margin: float, metric: Metric, how: str, criteria: Criteria
) -> Iterator[Finding]:  # fmt: skip
    of_domain = name in ("domain", selection.REPORT)
    needed = criteria.min_domain_reduction if of_domain else criteria.max_heldout_regression
    if margin > needed:
        enough = power.enough(utterances, margin, needed)
        yield Finding(
            "detectable effect", False,
            f"the {utterances:,} utterances of {spoken(name)} cannot tell a {metric.upper()} change below"
            f" {_points(margin)} points from none ({how}); the criterion is {_points(needed)} points"
            + (f", for which about {enough:,} would be enough" if enough else ""),
            {"sets": [name], "margin": margin if math.isfinite(margin) else None, "criterion": needed,
             "utterances": utterances, "enough": enough},
        )  # fmt: skip


def _heterogeneity(name: str, what: str, values: Sequence[float]) -> Iterator[Finding]:
    """Whether a prefix of the set is like the whole.

    The running sum of the ranks about their mean, scaled, is a Brownian bridge where the order is
    chance (Billingsley, Convergence of Probability Measures, 1968, section 24), and the largest
    excursion of that follows Kolmogorov's distribution. Ranks, so that one outlier decides nothing.
    """
    if len(values) < 2 * EXAMPLES:
        return
    x = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    if len(counts) == 1:
        return
    walk = np.abs(np.cumsum(ranks - ranks.mean())[:-1]) / (ranks.std() * math.sqrt(len(x)))
    cut = int(walk.argmax()) + 1
    prefix, rest, whole = float(x[:cut].mean()), float(x[cut:].mean()), float(x.mean())
    if walk.max() > DRIFT and abs(prefix - rest) > DRIFT_MATTERS * whole:
        yield Finding(
            "heterogeneity", False,
            f"the {what} in {spoken(name)} depends on the order: the first {cut / len(x):.0%} average"
            f" {prefix / rest:.0%} of the rest, so that a part of it misleads; draw it again with"
            " `manifest import --samples`, which shuffles",
            {"what": what, "sets": [name], "statistic": float(walk.max()), "cut": cut, "prefix": prefix,
             "rest": rest},
        )  # fmt: skip


# --- deep: decoded audio


def deep(found: Audit, sets: Mapping[str, Decoded]) -> Audit:
    """Adds what only decoded audio shows. `sets` maps train, domain and heldout to their shards."""
    findings: list[Finding] = []
    first: dict[str, dict[str, Heard]] = {}  # set -> audio -> the sample of it with the least id
    for name, decoded in sets.items():
        samples = list(decoded.samples)  # an index makes each sample anew when asked for it
        known: dict[str, Heard] = {}
        for sample in samples:
            if sample.sha256 not in known or sample.id < known[sample.sha256].id:
                known[sample.sha256] = sample
        repeats = [s for s in samples if known[s.sha256].id != s.id]
        odd = sum(leakage.words(s.text) != leakage.words(known[s.sha256].text) for s in repeats)
        findings += leakage.repeated(name, {s.id for s in repeats}, odd)
        for before, theirs in first.items():
            shared = {s.id for s in samples if s.sha256 in theirs}
            findings += leakage.leak("audio", before, name, shared, len(samples))
        first[name] = known
        findings += sound(name, samples)
        for reason, count in sorted(decoded.rejected.items()):
            total = len(samples) + sum(decoded.rejected.values())
            findings.append(
                Finding(
                    "audio", False,
                    f"{spoken(name)}: {count:,} of {total:,} utterances are {reason} and left out",
                    {"what": reason, "sets": [name], "utterances": count, "share": count / total},
                )
            )  # fmt: skip
        if name != "train":
            findings += _heterogeneity(name, "level", [s.level for s in samples])
    return found.plus(f for f in findings if not _known_better(f, found))


def _known_better(finding: Finding, found: Audit) -> bool:
    """Equal audio in copies of a file, against overlaps in one file: the larger count is told."""
    same = [known for known in found.findings if known.about == finding.about]
    return any(known.numbers.get("utterances", 0) > finding.numbers.get("utterances", 0) for known in same)


HARMLESS = ("rate", "channels")  # findings of `faults` that only the audit of a set reports


def sound(name: str, samples: Sequence[Heard], without: Sequence[str] = ()) -> Iterator[Finding]:
    """What is odd about the recordings of a set; `without` leaves findings out."""
    for what, ids, how, fix in faults({sample.id: sample for sample in samples}):
        if what not in without:
            yield from _odd(name, what, ids, len(samples), how, fix)


def faults(recordings: Mapping[str, Recorded]) -> Iterator[tuple[str, set[str], str, str]]:
    """Kinds of odd recordings: a word, which of them (by id), what they are, and the fix."""

    def which(test: Callable[[Recorded], bool]) -> set[str]:
        return {identity for identity, one in recordings.items() if test(one)}

    clipped = f"clipped (more than {CLIPPED:.1%} of the samples at full scale)"
    yield "clipped", which(lambda s: s.clipped > CLIPPED), clipped, "record at a lower gain"
    faint = "below -60 dBFS, mostly noise"
    yield "faint", which(lambda s: s.level < FAINT), faint, "check that there is speech"
    offset = which(lambda s: s.dc > max(OFFSET, OFFSET_MATTERS * s.level))
    largest = max((recordings[identity].dc for identity in offset), default=0.0)
    yield (
        "dc offset", offset,
        f"recorded with a DC offset (of up to {largest:.1%} of full scale), which is taken out",
        "nothing to fix here, but the recorder is faulty, and other programs keep the offset",
    )  # fmt: skip
    still = which(lambda s: s.still > STILL)
    longest = max((recordings[identity].still for identity in still), default=0.0)
    yield (
        "digital silence", still,
        f"of digital silence for more than {STILL:g} s on end (up to {longest:.1f} s)",
        "check that nothing was lost or muted there",
    )  # fmt: skip
    other = which(lambda s: s.rate != audio.SAMPLE_RATE)
    rates = ", ".join(f"{rate:,} Hz" for rate in sorted({recordings[identity].rate for identity in other}))
    yield "rate", other, f"recorded at {rates} and resampled to 16,000 Hz", "nothing to fix"
    yield (
        "channels", which(lambda s: s.channels > 1), "of several channels and mixed to one",
        "choose a channel where each holds another speaker",
    )  # fmt: skip
    for fault, (what, how, fix) in _FAULTS.items():
        yield what, {i for i, one in recordings.items() if one.faults & fault}, how, fix


_FAULTS = {
    Fault.OPPOSITE: (
        "opposite phase", "of channels in opposite phase, whose mean would cancel the speech: the loudest"
        " channel is taken alone", "check that it holds all speakers, and how the microphone is wired",
    ),
    Fault.DEAD: (
        "dead channel", "of a dead channel beside a live one (40 dB below it), which is left out",
        "nothing to fix, unless another speaker should be there",
    ),
    Fault.HEAD: (
        "head", "longer than the head of the file says (joined, or a head out of date), and read whole",
        "check that the text is that of all; `ffmpeg -i IN OUT.flac` writes a right head",
    ),
    Fault.JUNK: (
        "junk", "of files with other bytes between the audio, which are passed over",
        "check that nothing is lost there",
    ),
    Fault.TRACKS: (
        "tracks", "of files with several audio tracks, of which the default one is taken",
        "extract another one with `ffmpeg -i IN -map 0:a:1 OUT.flac` where that is meant",
    ),
    Fault.GAPS: (
        "gaps", "of files whose times have gaps, which are left out",
        "check offsets behind them, or fill them (`ffmpeg -i IN -af aresample=async=1 OUT.flac`)",
    ),
    Fault.UNENDED: (
        "end", "of Ogg files without a mark of their end, which may be cut off", "listen to the end",
    ),
    Fault.FLOATING: (
        "beyond full scale", "of floating-point samples beyond full scale, which the audio path scales down",
        "nothing to fix here; other programs clip them",
    ),
}  # fmt: skip


# --- with the base model: tokens before the baseline, style and effect after it


def tokens(refused: Mapping[str, str], of: int) -> list[Finding]:
    """`refused` says of some of `of` training utterances, by id, why the model cannot learn their text."""
    if not refused:
        return []
    first = min(refused)
    return [
        Finding(
            "tokens", True,
            f"{len(refused):,} of {of:,} training utterances cannot be learned, such as {first!r}, which"
            f" {refused[first]}; fix them or take them out, or try --label-case, --label-punctuation and"
            " --label-characters",
            {"utterances": len(refused), "examples": dict(sorted(refused.items())[:EXAMPLES])},
        )
    ]  # fmt: skip


def baseline(
    found: Audit, labels: Iterable[str], scored: Mapping[str, Sequence[Scored]], metric: Metric,
    criteria: Criteria = Criteria(),
) -> Audit:  # fmt: skip
    """Adds what the baseline shows: measured effects in place of assumed ones, and the style.

    `labels` are the training texts as trained on; `scored` maps domain and heldout to their
    baselines.
    """
    findings = [finding for finding in found.findings if finding.kind != "detectable effect"]
    sets = dict(found.sets)
    for name, hypotheses in scored.items():
        margin = power.measured_margin([one.tally(metric) for one in hypotheses])
        sets[name] = {**sets[name], "margin": margin if math.isfinite(margin) else None}
        findings += _effect(name, len(hypotheses), margin, metric, "measured on the baseline", criteria)
    findings += label_style(style(labels), style(one.hypothesis_raw for one in scored["domain"]))
    return Audit(sets, findings)


_CASE = {"lower": "lower case", "upper": "CAPITALS", "mixed": "prose with capitals"}
_CASE_MEND = {"lower": "lower", "upper": "upper", "mixed": "sentence"}


def label_style(labels: Style, model: Style) -> list[Finding]:
    """Told, loudly: WER is blind to style, so a run is not worthless, only worse than it could be."""
    told: list[tuple[str, str]] = []
    if not labels.texts or not model.texts:
        return []
    if labels.case != model.case:
        told.append((
            "case",
            f"the training texts are in {_CASE[labels.case]} and the model writes {_CASE[model.case]};"
            f" train on the model's own style with --label-case {_CASE_MEND[model.case]}",
        ))  # fmt: skip
    if abs(labels.punctuation - model.punctuation) > 0.5:
        mend = "full-stop" if model.punctuation > labels.punctuation else "strip"
        told.append((
            "punctuation",
            f"{labels.punctuation:.0%} of the training texts and {model.punctuation:.0%} of what the model"
            f" writes has punctuation; train on the model's own style with --label-punctuation {mend}",
        ))  # fmt: skip
    for what, ours, theirs in (
        ("digits", labels.digits, model.digits),
        ("symbols", labels.symbols, model.symbols),
    ):
        if max(ours, theirs) > 0.05 and min(ours, theirs) < max(ours, theirs) / 10:
            names = characters.names((labels if ours > theirs else model).seen)
            seen = f" ({names})" if what == "symbols" else ""
            told.append((
                what,
                f"{ours:.1%} of the training texts and {theirs:.1%} of what the model writes has"
                f" {what}{seen}; write the texts as the model does",
            ))  # fmt: skip
    numbers = {"labels": asdict(labels), "model": asdict(model)}
    return [Finding("label style", False, message, {"what": what, **numbers}) for what, message in told]


# --- small things


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f}" if math.isfinite(fraction) else "any number of"


def _rate(item: Item) -> float:
    """Letters and digits in a second."""
    return sum(map(str.isalnum, item.text)) / max(item.duration, FRAME)
