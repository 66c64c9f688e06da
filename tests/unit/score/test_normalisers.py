from pathlib import Path

import pytest

from asrlora.errors import UserError
from asrlora.score import text
from asrlora.score.scoring import score


@pytest.mark.parametrize(
    ("chosen", "language", "raw", "normal"),
    [
        (None, "en", "HELLO, World!", "hello world"),
        (None, "en", "Twenty-one", "21"),
        (None, "en", "the colour", "the color"),
        (None, "en", "don't", "do not"),
        (None, "en", "", ""),
        (None, "de", "Das Büro, schön!", "das büro schön"),
        (None, "de", "um Gottes Willen (hm)", "um gottes willen"),
        ("basic", "en", "Twenty-one colours", "twenty one colours"),
        ("none", "en", "  HELLO,  World!\n", "HELLO, World!"),
    ],
)
def test_the_normaliser_is_whispers(chosen: str | None, language: str, raw: str, normal: str) -> None:
    assert text.normaliser(chosen, language)(raw) == normal


@pytest.mark.parametrize("chosen", text.NAMES)
def test_reference_and_hypothesis_are_normalised_alike(chosen: str) -> None:
    """The predecessor's mistake within one score: whatever the normaliser, equal texts have no error."""
    written = "Twenty-one COLOURS, (hm) don't!"
    scored = score("u", written, written, text.normaliser(chosen, "en"), None, 1.0)
    assert scored.counts.errors == scored.character_errors == 0
    assert scored.reference == scored.hypothesis != ""


def test_name_and_versions_are_in_the_fingerprint() -> None:
    """Runs of other fingerprints are not compared, so none of these changes without a reason."""
    assert text.normaliser(None, "en").fingerprint == {
        "name": "whisper-english", "version": "0.1.15", "characters": "1",
    }  # fmt: skip
    assert text.normaliser("basic", "en").fingerprint["name"] == "basic"
    assert text.normaliser("whisper-english-keep-brackets", "en").fingerprint == {
        "name": "whisper-english-keep-brackets", "version": "0.1.15, 1", "characters": "1",
    }  # fmt: skip
    leaderboard = text.normaliser("open-asr-leaderboard", "en").fingerprint
    assert leaderboard["version"] == "0.1.15, d1e99b2"


def rules(folder: Path, content: str) -> text.Normaliser:
    (folder / "rules.yaml").write_text(content)
    return text.normaliser(str(folder / "rules.yaml"), "en")


COLOUR = "base: basic\nrules:\n  - match: '\\bcolou?r(s?)\\b'\n    replace: 'hue\\1'\n"


def test_rules_follow_their_base_in_order(tmp_path: Path) -> None:
    assert rules(tmp_path, COLOUR)("COLOURS, color; Twenty") == "hues hue twenty"
    swapped = "rules: [{match: a, replace: b}, {match: b, replace: ' c '}]"
    assert rules(tmp_path, swapped)("ab A") == "c c A"


def test_rules_are_known_by_what_they_say(tmp_path: Path) -> None:
    first = rules(tmp_path, COLOUR).fingerprint
    assert rules(tmp_path, "# a comment\n" + COLOUR).fingerprint == first
    assert rules(tmp_path, COLOUR.replace("hue", "tint")).fingerprint != first
    assert rules(tmp_path, COLOUR.replace("basic", "none")).fingerprint != first


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("base: basic", "rules: field required"),
        ("rules: []", "rules: list should have at least 1 item"),
        ("base: mine\nrules: [{match: a, replace: b}]", "base: string should match pattern"),
        ("rules: [{match: a, replace: b}, {match: a}]", r"rules\.2\.replace: field required"),
        ("rules: [{match: '(', replace: b}]", "rule 1: no regular expression"),
        ("rules: [{match: a, replace: '\\2'}]", "rule 1: no regular expression"),
        ("rules: [", "no readable YAML"),
        ("", "the file: "),
    ],
)
def test_a_faulty_file_of_rules_is_named(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"--text-normaliser .*rules\.yaml: {told}"):
        rules(tmp_path, content)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(
        UserError,
        match="--text-normaliser wisper: neither whisper-english, whisper-english-keep-brackets, open-",
    ):
        text.normaliser("wisper", "en")
