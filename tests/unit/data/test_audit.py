"""Each finding: planted faults make it red, sound data leaves it silent."""

import itertools
import json
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special

from asrlora import cli
from asrlora.config import RunConfig
from asrlora.data import plan
from asrlora.data.audit import checks, leakage, manifest_check
from asrlora.data.audit.checks import quick
from asrlora.data.audit.findings import Audit, Finding
from asrlora.data.audit.transcript_style import MARKS, compare_styles, restyle, style
from asrlora.data.decoding.decode import Fault
from asrlora.data.manifest import BadLine, read_manifest
from asrlora.errors import UserError
from asrlora.score import bootstrap, power
from asrlora.score.metric import Metric
from asrlora.score.wer import Tally
from conftest import BASE, Speech


@dataclass(frozen=True)
class Said:
    """A sample of a shard, or an utterance without a file."""

    id: str
    text: str
    duration: float = 2.0
    speaker: str | None = None
    sha256: str = ""
    level: float = 0.05
    clipped: float = 0.0
    rate: int = 16_000
    channels: int = 1
    dc: float = 0.0
    still: float = 0.0
    faults: int = 0


@dataclass(frozen=True)
class Decoded:
    samples: list[Said]
    rejected: dict[str, int] = field(default_factory=dict)


def said(name: str, count: int = 40, **changes: Any) -> list[Said]:
    """Sound utterances: their own ids, sentences, speakers and audio, 2 to 3 s in random order."""
    random = Random(name)
    return [
        Said(
            f"{name}-{i}", f"{name} number {i} is a sentence", 2 + random.random(), f"{name}-{i % 5}",
            f"{name}{i}", 0.05 + 0.01 * random.random(), **changes,
        )
        for i in range(count)
    ]  # fmt: skip


def config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"dataset_path": "t", "manifest_path": "d", "output_dir": "o", "max_steps": 10, **settings}
    )


def look(train: Sequence[Any], domain: Sequence[Any], heldout: Sequence[Any] = (), **settings: Any) -> Audit:
    evaluation = {"domain": domain, **({"heldout": heldout} if heldout else {})}
    return quick(train, evaluation, config(**settings))


def listen(train: list[Said], domain: list[Said], silent: int = 0) -> Audit:
    rejected = {"silent": silent} if silent else {}
    return checks.deep(Audit({}, []), {"train": Decoded(train), "domain": Decoded(domain, rejected)})


def of(found: Audit | Sequence[Finding], kind: str, what: str | None = None) -> list[Finding]:
    findings = found.findings if isinstance(found, Audit) else found
    return [f for f in findings if f.kind == kind and what in (None, f.numbers.get("what"))]


TRAIN, DOMAIN, HELDOUT = said("train"), said("domain"), said("heldout")


def test_sound_data_is_silent_but_for_what_it_is_too_small_to_prove() -> None:
    assert {f.kind for f in look(TRAIN, DOMAIN, HELDOUT).findings} == {"detectable effect"}
    assert listen(TRAIN, DOMAIN).findings == []


# --- brackets


def test_words_in_brackets_that_the_normaliser_drops_are_named() -> None:
    asides = ["it was dated (which was odd)", "it was [he said] dated", "um (um) it was", "it {was it} dated"]
    heldout = [replace(one, text=written) for one, written in zip(HELDOUT, asides, strict=False)]
    heldout += HELDOUT[4:]
    (finding,) = of(look(TRAIN, DOMAIN, heldout), "brackets", "words")
    assert not finding.stops
    assert finding.numbers == {
        "what": "words", "sets": ["heldout"], "utterances": 2, "share": 0.05, "words": 5,
        "examples": ["heldout-0", "heldout-1"],
    }  # fmt: skip
    assert "heldout: 2 of 40 references (5.0%)" in finding.message
    assert "'heldout-0', '(which was odd)'" in finding.message
    assert "--text-normaliser whisper-english-keep-brackets" in finding.message
    for keeps in ("whisper-english-keep-brackets", "none"):
        assert of(look(TRAIN, DOMAIN, heldout, text_normaliser=keeps), "brackets", "words") == []
    (basic,) = of(look(TRAIN, DOMAIN, heldout, language="de"), "brackets", "words")
    assert "--text-normaliser basic drops" in basic.message
    assert "keep-brackets" not in basic.message.split("spoken")[1]
    # what is trained on is no reference
    assert of(look(heldout, DOMAIN, HELDOUT), "brackets") == []


def test_tags_are_named() -> None:
    written = ["so [unk] {laughter} （noise）", "[unk] so"]
    tagged = [replace(one, text=text) for one, text in zip(said("tagged", 2), written, strict=True)]
    for found, name, fix in (
        (look([*TRAIN, *tagged], DOMAIN), "the training set", "learns to write them"),
        (look(TRAIN, [*DOMAIN, *tagged]), "domain", "write what was said"),
    ):
        (finding,) = of(found, "brackets")
        assert finding.message.startswith(f"{name}: tags, which are no speech, in 2 of 42 texts (4.8%)")
        assert "such as 'tagged-0': [unk] (2), {laughter} (1), (noise) (1); " in finding.message
        assert fix in finding.message


# --- leakage


def with_first(items: list[Said], **changes: Any) -> list[Said]:
    return [replace(items[0], **changes), *items[1:]]


def test_the_same_id_stops() -> None:
    (finding,) = look(TRAIN, with_first(DOMAIN, id="train-3")).stops
    assert (finding.kind, finding.numbers["what"], finding.numbers["sets"]) == (
        "leakage", "id", ["train", "domain"],
    )  # fmt: skip
    assert finding.numbers["utterances"] == 1


@pytest.mark.parametrize(("speaker", "stops"), [("train-3", True), ("someone else", False), (None, False)])
def test_the_same_sentence_stops_by_the_same_speaker_only(speaker: str | None, stops: bool) -> None:
    style_differs = "Train number 3, is a SENTENCE."
    found = look(TRAIN, with_first(DOMAIN, text=style_differs, speaker=speaker))
    assert bool(found.stops) == stops
    (told,) = of(found, "leakage", "sentences")
    assert (told.stops, told.numbers["share"]) == (False, 1 / 40)


def test_unknown_speakers_and_empty_texts_are_not_the_same_ones() -> None:
    nobody = {"speaker": None, "text": "yes"}
    found = look(with_first(TRAIN, **nobody), with_first(DOMAIN, **nobody))
    assert [f.numbers["what"] for f in of(found, "leakage")] == ["sentences"]
    silent = {"speaker": "x", "text": ""}
    found = look(with_first(TRAIN, **silent), with_first(DOMAIN, **silent))
    assert [f.numbers["what"] for f in of(found, "leakage")] == ["speakers"]


def test_shared_speakers_are_told_with_their_share() -> None:
    found = look(TRAIN, [replace(item, speaker="train-0") for item in DOMAIN[:10]] + DOMAIN[10:])
    assert not found.stops
    assert of(found, "leakage", "speakers")[0].numbers["share"] == 0.25


def test_domain_against_heldout_counts_as_well() -> None:
    (finding,) = look(TRAIN, DOMAIN, with_first(HELDOUT, id="domain-1")).stops
    assert finding.numbers["sets"] == ["domain", "heldout"]


def test_the_same_audio_stops_across_sets_and_is_told_within_one() -> None:
    assert [f.numbers["what"] for f in listen(TRAIN, with_first(DOMAIN, sha256="train3")).stops] == ["audio"]
    twice = listen(TRAIN, with_first(DOMAIN, sha256="domain3"))
    assert not twice.stops
    (told,) = of(twice, "leakage")
    assert told.numbers == {
        "what": "audio", "sets": ["domain"], "utterances": 1, "contradicting": 1, "examples": ["domain-3"],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", noise.normal(0, 0.1, 160_000), 16_000)
    return tmp_path


def write(folder: Path, name: str, *lines: dict[str, Any] | str) -> Path:
    path = folder / f"{name}.jsonl"
    text = (
        json.dumps({"text": f"{name} {i}", **x}) if isinstance(x, dict) else x for i, x in enumerate(lines)
    )
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.mark.parametrize(
    ("offset", "duration", "leaks"),
    [
        (5.0, 2.0, False),  # end to end with the training segment
        (4.6, 2.0, False),  # the padding of a segmenter
        (4.4, 2.0, True),
        (4.8, 0.3, True),  # more than half of the shorter one
        (0.0, 5.0, True),
    ],
)
def test_overlapping_segments_of_one_file_are_the_same_audio(
    folder: Path, offset: float, duration: float, leaks: bool
) -> None:
    (folder / "link.wav").symlink_to(folder / "a.wav")
    train = read_manifest(write(folder, "t", {"audio": "a.wav", "offset": 0.0, "duration": 5.0}))
    segment = {"audio": "link.wav", "offset": offset, "duration": duration}
    domain = read_manifest(write(folder, "d", {"audio": "b.wav"}, segment))
    leakage = of(look(train, domain, gradient_accumulation_steps=1), "leakage", "audio")
    assert [f.stops for f in leakage] == [True] * leaks
    again = look([read_manifest(write(folder, "u", {"audio": "c.wav"}))[0]], [*train, *domain])
    assert [f.stops for f in of(again, "leakage", "audio")] == [False] * leaks


def test_which_of_several_is_the_repeat_does_not_depend_on_the_order(folder: Path) -> None:
    lines = [
        {"audio": "a.wav", "id": name, "text": text} for name, text in (("x", "no"), ("y", "no"), ("z", "?"))
    ]
    for order in itertools.permutations(lines):
        found = look(TRAIN, read_manifest(write(folder, "d", *order)))
        (told,) = of(found, "leakage", "audio")
        assert (told.numbers["examples"], told.numbers["contradicting"]) == (["y", "z"], 1)


def test_deep_finds_copies_beyond_what_the_files_showed_and_tells_it_once() -> None:
    known = Audit({}, list(leakage.leak("audio", "train", "domain", {"domain-0"}, 40)))
    both = [replace(s, sha256=f"train{i}") if i < 2 else s for i, s in enumerate(DOMAIN)]
    for domain, count in ((with_first(DOMAIN, sha256="train0"), 1), (both, 2), (DOMAIN, 1)):
        found = checks.deep(known, {"train": Decoded(TRAIN), "domain": Decoded(domain)})
        assert [f.numbers["utterances"] for f in of(found, "leakage")] == [count]


# --- starvation


@pytest.mark.parametrize(
    "recipe",
    [
        {"batch_size": 41, "gradient_accumulation_steps": 1},
        {"batch_size": 4, "gradient_accumulation_steps": 11},
        {"batch_seconds": 120, "gradient_accumulation_steps": 2},
        {"max_seconds": 1},
    ],
)
def test_fewer_utterances_than_one_step_needs_stops(recipe: dict[str, Any]) -> None:
    assert [f.kind for f in look(TRAIN, DOMAIN, **recipe).stops] == ["starvation"]


@pytest.mark.parametrize(
    "recipe",
    [
        {"batch_size": 40, "gradient_accumulation_steps": 1},
        {"batch_size": 4, "gradient_accumulation_steps": 10},
        {"batch_seconds": 49, "gradient_accumulation_steps": 2},  # 100 s of speech
        {"batch_seconds": 60, "gradient_accumulation_steps": 2},  # 120 s are more, but two batches are cut
    ],
)
def test_enough_for_one_step_does_not_stop(recipe: dict[str, Any]) -> None:
    assert not look(TRAIN, DOMAIN, **recipe).stops


@given(
    st.lists(st.floats(0.2, 20), max_size=30), st.integers(1, 6),
    st.one_of(st.builds(dict, batch_size=st.integers(1, 4)), st.builds(dict, batch_seconds=st.floats(1, 30))),
)  # fmt: skip
@example([20.0], 4, {"batch_seconds": 1.0})  # one long utterance is one microbatch
@settings(deadline=None)
def test_a_run_starves_exactly_where_the_plan_has_no_step(
    seconds: list[float], microbatches: int, microbatch: dict[str, Any]
) -> None:
    recipe = config(gradient_accumulation_steps=microbatches, **microbatch)
    planned = plan.plan_epoch(
        seconds, seed=42, epoch=0, microbatches_per_step=microbatches, **recipe.microbatch
    )
    assert math.isfinite(checks._epochs(seconds, recipe)) == bool(len(planned))


def test_epochs_and_what_each_filter_keeps() -> None:
    train = [*TRAIN, *(replace(s, id=f"long {s.id}", duration=25.0) for s in TRAIN)]
    found = look(train, DOMAIN, max_steps=10, gradient_accumulation_steps=8)
    assert found.sets["train"]["epochs"] == 2.0
    assert found.sets["train"]["kept_by_max_seconds"] == {
        "5": 40, "8": 40, "10": 40, "15": 40, "20": 40, "30": 80,
    }  # fmt: skip
    (told,) = of(found, "starvation")
    assert (told.stops, told.numbers["what"], told.numbers["kept"]) == (False, "filter", 40)
    many = of(look(TRAIN, DOMAIN, max_steps=200, gradient_accumulation_steps=8), "starvation", "steps")
    assert [(f.stops, f.numbers["epochs"]) for f in many] == [(False, 40.0)]


# --- forgetting


def test_training_on_the_domain_alone_is_likely_to_forget() -> None:
    def speaking(name: str, texts: list[str]) -> list[Said]:
        return [replace(one, text=text) for one, text in zip(said(name), itertools.cycle(texts))]

    ours = ["turn to port", "let go the anchor"]
    train, domain = speaking("t", ours), speaking("d", [*ours, "turn the anchor"])
    general = ["the weather is fine", "turn to page nine"]
    heldout = speaking("h", general)
    (told,) = of(look(train, domain, heldout), "forgetting")
    assert not told.stops
    assert told.numbers["covered"] == {"train": 1.0, "domain": 1.0, "heldout": 3 / 8}
    assert "100% of the running words of domain and 38% of those of heldout" in told.message
    mixed = [*train, *speaking("g", general)]
    assert not of(look(mixed, domain, heldout), "forgetting")
    assert not of(look(train, domain, heldout, replay_path="r"), "forgetting")
    assert not of(look(train, domain), "forgetting")


# --- label style

PROSE = ["Turn to port.", "The anchor is up, I think.", "Did Anna see it?", "It was I who said so."]
SHOUTED = ["TURN TO PORT", "THE ANCHOR IS UP I THINK", "DID ANNA SEE IT", "IT WAS I WHO SAID SO"]
PLAIN = [text.lower() for text in SHOUTED]


@pytest.mark.parametrize(
    ("labels", "model", "case", "punctuation"),
    [
        (SHOUTED, PROSE, "sentence", "full-stop"),
        (PLAIN, PROSE, "sentence", "full-stop"),
        (PROSE, PLAIN, "lower", "strip"),
        (SHOUTED, PLAIN, "lower", None),
        (PLAIN, SHOUTED, "upper", None),
        (PROSE, PROSE, None, None),
        (PLAIN, PLAIN, None, None),
    ],
)  # fmt: skip
def test_a_foreign_style_is_told_with_a_mend_that_silences_it(
    labels: list[str], model: list[str], case: str | None, punctuation: str | None
) -> None:
    found = compare_styles(style(labels), style(model))
    mends = [f.message.split("--label-")[1] for f in found]
    expected = [f"case {case}"] * bool(case) + [f"punctuation {punctuation}"] * bool(punctuation)
    assert mends == expected
    assert not any(f.stops for f in found)
    mended = [restyle(text, case or "keep", punctuation or "keep") for text in labels]
    assert compare_styles(style(mended), style(model)) == []


def test_digits_and_symbols_are_told() -> None:
    odd = ["it costs 12 $", *PLAIN]
    assert [f.numbers["what"] for f in compare_styles(style(odd), style(PLAIN))] == ["digits", "symbols"]
    assert "($)" in compare_styles(style(odd), style(PLAIN))[1].message
    assert [f.numbers["what"] for f in compare_styles(style(PLAIN), style(odd))] == ["digits", "symbols"]


def test_style_counts_shares() -> None:
    found = style(["Don't go.", "half-past 3", "", "A & B"])
    assert (found.texts, found.punctuation, found.digits, found.symbols) == (3, 1 / 3, 1 / 3, 1 / 3)
    assert found.capitals == 3 / (6 + 8 + 2)
    assert style([]).texts == 0


@pytest.mark.parametrize(
    ("text", "case", "punctuation", "expected"),
    [
        ("TURN TO PORT", "sentence", "full-stop", "Turn to port."),
        ("I'M HERE. AM I? YES", "sentence", "keep", "I'm here. Am I? Yes"),
        ('"so," he said: "3.5 o\'clock!"', "keep", "strip", "so he said 3.5 o'clock"),
        ("is it?", "keep", "full-stop", "is it?"),
        ('he said "go."', "keep", "full-stop", 'he said "go."'),
        ("wait, ", "keep", "full-stop", "wait."),
        ("ÉTÉ", "lower", "keep", "été"),
        ("", "sentence", "full-stop", ""),
        ("Kept, as it is", "keep", "keep", "Kept, as it is"),
    ],
)
def test_restyle(text: str, case: Any, punctuation: Any, expected: str) -> None:
    assert restyle(text, case, punctuation) == expected


@given(
    st.text(string.printable + MARKS + "éÉüßñ", max_size=60),
    st.sampled_from(["keep", "lower", "upper", "sentence"]),
    st.sampled_from(["keep", "strip", "full-stop"]),
)
@settings(deadline=None)
def test_restyling_keeps_the_words_and_a_second_time_changes_nothing(
    text: str, case: Any, punctuation: Any
) -> None:
    once = restyle(text, case, punctuation)
    if (case, punctuation) != ("sentence", "strip"):  # the marks that told where sentences start are gone
        assert restyle(once, case, punctuation) == once
    if text.isascii():
        assert "".join(filter(str.isalnum, once.lower())) == "".join(filter(str.isalnum, text.lower()))


# --- tokens


@pytest.mark.parametrize(
    ("text", "seconds", "why"),
    [
        ("turn to port", 2.0, None),
        ("Turn to port", 2.0, None),  # the base's vocabulary is lower case, and so are its labels
        ("turn to port.", 2.0, "whose vocabulary lacks ."),
        ("port " * 60, 2.0, "writes at most"),
    ],
)
def test_texts_the_model_cannot_write_stop_the_run(text: str, seconds: float, why: str | None) -> None:
    from asrlora.models import objective, registry

    base = registry.load_base(str(BASE))
    labels, found = objective.label(base, {"a": "a cab", "b": text}, {1.0: [2.0, seconds]})
    assert set(labels) == ({"a"} if why else {"a", "b"})
    assert [(f.kind, f.stops, f.numbers["utterances"]) for f in found] == [("tokens", True, 1)] * bool(why)
    assert all(why in f.message and "'b'" in f.message for f in found if why)


# --- detectable effect


def simulate(seed: int, utterances: int, wer: float, shared: float, clumped: bool) -> tuple[Any, Any]:
    """Counts of two systems with the same WER, whose errors agree with probability `shared`."""
    rng = np.random.default_rng(seed)
    words = rng.integers(5, 25, utterances)
    rate = rng.beta(2, 2 / wer - 2, utterances) if clumped else np.full(utterances, wer)
    systems: tuple[dict[str, Tally], dict[str, Tally]] = ({}, {})
    for i, (n, p) in enumerate(zip(words, rate, strict=True)):
        old = rng.random(n) < p
        new = np.where(rng.random(n) < shared, old, rng.random(n) < p)
        for system, wrong in zip(systems, (old, new), strict=True):
            system[str(i)] = Tally(int(wrong.sum()), int(n))
    return systems


@pytest.mark.parametrize("seed", range(3))
def test_the_margin_is_the_verdicts_own_interval(seed: int) -> None:
    """The oracle is the bootstrap that judges runs, on systems that share half of their errors."""
    old, new = simulate(seed, 600, 0.1, 0.5, clumped=False)
    low, high = bootstrap.compare(old, new).change_interval
    assert power.measured_margin(list(old.values())) == pytest.approx((high - low) / 2, rel=0.12)
    low, high = bootstrap.compare(old, new).baseline_interval
    words = sum(counts.length for counts in old.values())
    independent = power.assumed_margin(words) / math.sqrt(power.CLUMPING)
    assert independent == pytest.approx((high - low) / 2, rel=0.12)


def test_the_margin_covers_no_change_in_19_of_20() -> None:
    outside = 0
    for seed in range(400):
        old, new = simulate(seed, 100, 0.1, 0.5, clumped=False)
        words = sum(c.length for c in old.values())
        change = sum(c.errors for c in new.values()) - sum(c.errors for c in old.values())
        outside += abs(change / words) > power.measured_margin(list(old.values()))
    assert 8 <= outside <= 34  # 20 are expected; 4 standard deviations of a binomial are 17


def test_errors_that_clump_are_seen_in_the_baseline() -> None:
    old, _ = simulate(1, 600, 0.1, 0.5, clumped=True)
    low, high = bootstrap.compare(old, old).baseline_interval
    measured = power.measured_margin(list(old.values()))
    assert measured == pytest.approx((high - low) / 2, rel=0.05)
    words = sum(counts.length for counts in old.values())
    assert measured > 1.15 * power.assumed_margin(words) / math.sqrt(power.CLUMPING)


def test_the_number_said_to_be_enough_is_enough() -> None:
    old, _ = simulate(2, 300, 0.1, 0.5, clumped=True)
    needed = power.enough(300, power.measured_margin(list(old.values())), 0.01)
    assert needed is not None
    more, _ = simulate(3, needed, 0.1, 0.5, clumped=True)
    assert power.measured_margin(list(more.values())) == pytest.approx(0.01, rel=0.15)


def test_nothing_proves_nothing() -> None:
    assert power.assumed_margin(0) == math.inf
    assert power.measured_margin([Tally(1, 5)]) == math.inf
    assert power.enough(0, math.inf, 0.01) is None
    assert power.measured_margin([Tally(0, 10)] * 10) == pytest.approx(0.02, rel=0.1)  # one error of 100


def test_small_sets_are_told_and_large_ones_are_silent() -> None:
    (told,) = of(look(TRAIN, DOMAIN), "detectable effect")
    assert (told.stops, told.numbers["criterion"]) == (False, 0.01)
    assert told.numbers["enough"] == math.ceil(40 * (told.numbers["margin"] / 0.01) ** 2)
    assert of(look(TRAIN, said("domain", told.numbers["enough"])), "detectable effect") == []
    assert of(look(TRAIN, said("domain", told.numbers["enough"] - 20)), "detectable effect") != []
    (heldout,) = of(look(TRAIN, said("domain", 3000), said("heldout", 3000)), "detectable effect")
    assert heldout.numbers["criterion"] == 0.002


@dataclass(frozen=True)
class Scored:
    hypothesis_raw: str
    counts: Tally
    id: str = "u"
    speaker: str | None = None

    def tally(self, metric: Metric) -> Tally:
        return self.counts


def test_the_baseline_replaces_assumptions_and_shows_the_style() -> None:
    found = look(TRAIN, DOMAIN, HELDOUT)
    perfect = [Scored("Yes, it is.", Tally(0, 1000))] * 40
    after = checks.baseline(found, ["YES IT IS"] * 3, {"domain": perfect, "heldout": perfect}, "wer")
    assert [f.numbers["what"] for f in after.findings] == ["case", "punctuation"]
    assert after.sets["domain"]["margin"] < 0.001 < found.sets["domain"]["margin"]
    poor = [Scored("yes it is", Tally(i % 3, 3)) for i in range(40)]
    again = checks.baseline(found, ["yes it is"], {"domain": poor, "heldout": perfect}, "wer")
    assert [f.kind for f in again.findings] == ["detectable effect"]
    assert "measured on the baseline)" in again.findings[0].message


def test_the_baseline_shows_how_speakers_differ() -> None:
    """Of 25 with 8 utterances each, every fifth is never understood: they tell less than 200 utterances."""
    found = look(TRAIN, DOMAIN, HELDOUT)
    said = [Scored("it is", Tally(3 * (i // 8 % 5 == 0), 3), f"u{i}", f"s{i // 8}") for i in range(200)]

    def margin(by: str) -> tuple[float, str]:
        after = checks.baseline(found, ["it is"], {"domain": said, "heldout": said}, "wer", resample_by=by)
        return after.sets["domain"]["margin"], of(after, "detectable effect")[0].message

    (speakers, told), (utterances, told_of_utterances) = margin("auto"), margin("utterance")
    assert speakers / utterances == pytest.approx(math.sqrt(8 * 199 / 200 * 25 / 24), rel=0.01)
    assert "(measured on the baseline, 25 speakers)" in told
    assert "(measured on the baseline)" in told_of_utterances


# --- heterogeneity


def test_a_prefix_that_misleads_is_told() -> None:
    """The predecessor's set: the last 50 of 200 were longer."""
    random = Random(1)
    lengths = [3 + random.random() for _ in range(150)] + [6 + random.random() for _ in range(50)]
    pairs = zip(said("d", 200), lengths, strict=True)
    order = [replace(s, duration=t, text="x" * round(12 * t)) for s, t in pairs]
    (told,) = of(look(TRAIN, order), "heterogeneity")
    assert (told.stops, told.numbers["what"]) == (False, "length")
    assert 140 <= told.numbers["cut"] <= 150
    assert "--samples" in told.message
    Random(3).shuffle(order)
    assert of(look(TRAIN, order), "heterogeneity") == []


def test_speaking_rate_and_level_count_as_well() -> None:
    slow = [
        replace(s, text="x" * (40 if i < 100 else 20), duration=2.0) for i, s in enumerate(said("d", 200))
    ]
    assert [f.numbers["what"] for f in of(look(TRAIN, slow), "heterogeneity")] == ["speaking rate"]
    quiet = [replace(s, level=0.1 if i < 100 else 0.05) for i, s in enumerate(said("d", 200))]
    assert [f.numbers["what"] for f in of(listen(TRAIN, quiet), "heterogeneity")] == ["level"]


def test_chance_is_told_once_in_a_thousand() -> None:
    """The critical value against scipy's, and the test against a shuffled null."""
    assert special.kolmogorov(checks.DRIFT) == pytest.approx(0.001, rel=0.01)
    rng = np.random.default_rng(0)
    values = rng.lognormal(1, 1, 300)
    alarms = sum(
        bool(list(checks._heterogeneity("domain", "length", rng.permutation(values)))) for _ in range(2000)
    )
    assert alarms <= 8  # 2 are expected


# --- audio

FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("clipped", {"clipped": 0.01}), ("faint", {"level": 0.0005}), ("rate", {"rate": 8000}),
    ("channels", {"channels": 2}), ("dc offset", {"dc": 0.02}), ("digital silence", {"still": 1.0}),
    ("opposite phase", {"faults": Fault.OPPOSITE}), ("dead channel", {"faults": Fault.DEAD}),
    ("head", {"faults": Fault.HEAD}), ("tracks", {"faults": Fault.TRACKS}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change"), FAULTS)
@pytest.mark.parametrize("name", ["train", "domain"])
def test_what_the_source_was_is_told(what: str, change: dict[str, Any], name: str) -> None:
    sets = {"train": TRAIN, "domain": DOMAIN}
    sets[name] = with_first(sets[name], **change)
    (told,) = listen(**sets).findings
    assert (told.kind, told.numbers["what"], told.numbers["sets"]) == ("audio", what, [name])
    assert (told.stops, told.numbers["utterances"], told.numbers["share"]) == (False, 1, 1 / 40)


def test_what_shards_leave_out_is_told() -> None:
    (told,) = listen(TRAIN, DOMAIN, silent=10).findings
    assert (told.numbers["what"], told.numbers["utterances"], told.numbers["share"]) == ("silent", 10, 0.2)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"duration": 0.02}, ["length"]),
        ({"text": "x" * 100}, ["speaking rate"]),
        ({"text": "a", "duration": 4.0}, ["speaking rate"]),
        ({"text": "", "duration": 4.0}, []),
        ({"text": "yes", "duration": 4.0}, []),
        ({"text": "a sentence said very very fast but still by a man", "duration": 2.0}, []),
    ],
)
def test_lengths_and_rates_that_no_speech_has(change: dict[str, Any], what: list[str]) -> None:
    found = of(look(TRAIN, with_first(DOMAIN, **change)), "audio")
    assert [f.numbers["what"] for f in found] == what


# --- properties

utterances = st.lists(
    st.builds(
        Said, id=st.uuids().map(str), text=st.sampled_from(["", "yes", "Yes!", "no", "a b"]),
        duration=st.floats(0.01, 40), speaker=st.sampled_from([None, "x", "y"]),
        sha256=st.sampled_from("abcdefgh"), level=st.floats(0.0001, 0.5), rate=st.sampled_from([8000, 16000]),
        channels=st.sampled_from([1, 2]),
    ),
    max_size=12, unique_by=lambda s: s.id,
)  # fmt: skip


@settings(deadline=None)
@given(utterances, utterances, utterances, st.randoms(use_true_random=False))
def test_no_finding_but_heterogeneity_depends_on_the_order(
    train: list[Said], domain: list[Said], heldout: list[Said], random: Random
) -> None:
    def findings(sets: list[list[Said]]) -> list[str]:
        named = dict(zip(("train", "domain", "heldout"), sets, strict=True))
        found = quick(named["train"], {name: named[name] for name in ("domain", "heldout")}, config())
        found = checks.deep(found, {name: Decoded(samples) for name, samples in named.items()})
        json.dumps(found.as_json(), allow_nan=False)
        return [repr(f) for f in found.findings if f.kind != "heterogeneity"]

    sets = [train, domain, heldout]
    assert findings([random.sample(s, len(s)) for s in sets]) == findings(sets)


@settings(deadline=None)
@given(utterances, utterances)
def test_counts_and_shares_add_up(train: list[Said], domain: list[Said]) -> None:
    found = listen(train, domain)
    sizes = {"train": len(train), "domain": len(domain)}
    for finding in found.findings:
        count = sizes[finding.numbers["sets"][-1]]
        assert 0 < finding.numbers["utterances"] <= count
        if "share" in finding.numbers:
            assert finding.numbers["share"] == finding.numbers["utterances"] / count
    shared = {s.id for s in domain if s.sha256 in {t.sha256 for t in train}}
    assert [f.numbers["utterances"] for f in found.stops] == [len(shared)] * bool(shared)


# --- the command, over real files


def wav(folder: Path, name: str, wave: np.ndarray, rate: int = 16_000) -> dict[str, Any]:
    soundfile.write(folder / f"{name}.wav", wave, rate, subtype="FLOAT")
    return {"audio": f"{name}.wav", "id": name, "text": f"the words of {name}"}


def noise(name: str, samples: int = 32_000, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng([*name.encode()]).normal(0, level, samples).clip(-1, 1).astype(np.float32)


@pytest.fixture
def faulty(folder: Path) -> dict[str, Path]:
    """Every fault that a file can have, planted in the domain manifest."""
    holed = noise("holed")
    holed[100] = np.nan
    (folder / "text.wav").write_text("no audio")
    domain = write(
        folder, "domain",
        wav(folder, "sound", noise("sound")),
        wav(folder, "nan", holed),
        "{broken",
        wav(folder, "silent", np.zeros(16_000, np.float32)),
        wav(folder, "empty", np.zeros(0, np.float32)),
        wav(folder, "loud", noise("loud", level=2.0)),
        wav(folder, "telephone", noise("telephone", 16_000), 8_000),
        wav(folder, "stereo", noise("stereo").reshape(-1, 2)),
        "",
        {"audio": "text.wav"}, {"audio": "[/red].wav"}, {"audio": "a.wav", "text": 3},
        {"audio": "a.wav", "id": "sound"}, {"audio": "a.wav", "offset": 11.0},
        wav(folder, "copy", noise("leak")),
    )  # fmt: skip
    return {"train": write(folder, "train", wav(folder, "leak", noise("leak"))), "domain": domain}


def test_bad_lines_are_collected_with_their_numbers(faulty: dict[str, Path]) -> None:
    found, opened = manifest_check.check(faulty, config(gradient_accumulation_steps=1), decode=False)
    assert not opened
    bad = {f.numbers["what"]: list(f.numbers["lines"]) for f in found.stops}
    assert bad == {
        "not JSON": [3], "audio empty": [5], "audio unreadable": [10], "audio missing": [11],
        "field wrong": [12], "id taken": [13], "segment outside": [14],
    }  # fmt: skip
    assert found.sets["domain"]["lines"] == 14
    with pytest.raises(UserError, match="line 3: not valid JSON"):
        read_manifest(faulty["domain"])


def test_what_decoding_shows(faulty: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found, opened = manifest_check.check(faulty, config(gradient_accumulation_steps=1))
    assert [s.id for s in opened["domain"].samples] == ["sound", "loud", "telephone", "stereo", "copy"]
    (nan,) = of(found, "audio", "audio holds NaN or infinite samples")
    assert (nan.stops, list(nan.numbers["lines"])) == (True, [2])
    told = {
        f.numbers["what"]: f.numbers.get("examples", f.numbers["utterances"])
        for f in of(found, "audio") if not f.stops
    }  # fmt: skip
    assert told == {
        "silent": 1, "clipped": ["loud"], "rate": ["telephone"], "channels": ["stereo"],
    }  # fmt: skip
    (leak,) = of(found, "leakage", "audio")
    assert (leak.stops, leak.numbers["examples"]) == (True, ["copy"])
    domain = found.sets["domain"]
    assert domain["lines"] == domain["kept"] + sum(domain["rejected"].values()) == 14
    assert domain["rejected"]["silent"] == domain["rejected"]["audio holds NaN or infinite samples"] == 1


def test_many_bad_lines_are_counted_and_the_first_are_shown() -> None:
    bad = {number: BadLine("not JSON", f"fault {number}") for number in range(1, 31)}
    (finding,) = checks.bad_lines("domain", bad)
    assert "line 5: fault 5; and 25 more" in finding.message
    assert "fault 6" not in finding.message
    assert len(finding.numbers["lines"]) == 30


def test_the_command_tells_writes_and_exits_with_3(
    faulty: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["manifest", "check", str(faulty["train"]), "--domain", str(faulty["domain"]), "--quick",
             "--gradient-accumulation-steps", "1", "--max-steps", "5",
             "--output", str(tmp_path / "found.json")]  # fmt: skip
    assert cli.main(words) == 3
    assert "STOP: manifest: domain: 1 lines cannot be used (not JSON): line 3" in capsys.readouterr().out
    written = json.loads((tmp_path / "found.json").read_text())
    assert {"manifest", "audio", "detectable effect"} == {f["kind"] for f in written["findings"]}
    assert cli.main([*words, "--batch-size", "0"]) == 2
    assert "--batch-size" in capsys.readouterr().err


def test_the_model_shows_what_it_cannot_and_does_not_write(
    speech: Speech, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sound speech of the shipped base's own style, but for the capitals asked for here."""
    words = ["manifest", "check", str(speech.train), "--domain", str(speech.domain), "--heldout",
             str(speech.heldout), "--model-id", str(BASE), "--max-steps", "20",
             "--label-case", "upper", "--label-punctuation", "full-stop"]  # fmt: skip
    assert cli.main(words) == 3
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("STOP", "note"))]
    assert [line for line in told if line.startswith("STOP")] == [
        line for line in told if "160 of 160 training utterances cannot be learned" in line
    ]
    style_told = [line for line in told if "label style" in line]
    assert any("in CAPITALS and the model writes lower case" in line for line in style_told)
    assert any(line.endswith("--label-case lower") for line in style_told)
