"""Texts as people have them: each is scored rightly, or a finding names what is wrong with it."""

import json
import unicodedata
from pathlib import Path

import jiwer
import numpy as np
import pytest
import regex
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlora import cli
from asrlora.data.audit.transcript_style import restyle
from asrlora.score import characters, metric, text, wer
from asrlora.score.scoring import score

ENGLISH = [name for name in text.NAMES if not name.startswith("basic-")]

# --- characters nobody sees, and look-alikes: what was typed, and the same in plain ASCII or NFC
LOOK_ALIKES = {
    "zero width space": ("turn to\u200b port", "turn to port"),
    "zero width non-joiner in Latin": ("star\u200cboard", "starboard"),
    "zero width joiner in Latin": ("star\u200dboard", "starboard"),
    "soft hyphen": ("star\u00adboard", "starboard"),
    "byte order mark": ("\ufeffturn to port", "turn to port"),
    "direction marks": ("\u200fturn\u200e \u202ato\u202c \u2066port\u2069", "turn to port"),
    "word joiner": ("turn\u2060 to port", "turn to port"),
    "variation selector": ("turn to port\ufe0f", "turn to port"),
    "Hangul filler": ("turn\u3164 to port", "turn to port"),
    "tag characters": ("turn to port\U000e0067\U000e007f", "turn to port"),
    "NUL and escape": ("turn\x00 to\x1b port", "turn to port"),
    "no-break spaces": ("turn\u00a0to\u202fport", "turn to port"),
    "figure, em and hair space": ("turn\u2007to\u2003the\u200aport", "turn to the port"),
    "ideographic and Braille space": ("turn\u3000to\u2800port", "turn to port"),
    "line and paragraph separators": ("turn\u2028to\u2029port", "turn to port"),
    "tabs and line ends": ("turn\tto\r\nport", "turn to port"),
    "curly apostrophe": ("don\u2019t", "don't"),
    "left quote for an apostrophe": ("don\u2018t", "don't"),
    "modifier apostrophe": ("don\u02bct", "don't"),
    "prime": ("don\u2032t", "don't"),
    "acute accent alone": ("don\u00b4t", "don't"),
    "full-width apostrophe": ("don\uff07t", "don't"),
    "Windows-1252 read as Latin-1": ("don\x92t", "don't"),
    "curly quotes": ("\u201cport\u201d \u201estarboard\u201f", '"port" "starboard"'),
    "dashes": ("half\u2010past \u2013 x \u2014 \u2212 twenty\u2011one", "half-past - x - - twenty-one"),
    "ellipsis": ("port\u2026", "port..."),
    "full-width letters and digits": ("ｐｏｒｔ　４２", "port 42"),
    "full-width numbers with a comma": ("１，０００ ｍｅｎ", "1,000 men"),
    "ligatures": ("the \ufb01rst o\ufb03ce", "the first office"),
    "long s": ("\u017ftarboard", "starboard"),
    "mathematical letters": ("𝐩𝐨𝐫𝐭 𝟜𝟚", "port 42"),
    "decomposed letters": ("cafe\u0301 nai\u0308ve", "café naïve"),
    "decomposed Hangul": (unicodedata.normalize("NFD", "한국어"), "한국어"),
    "half-width Katakana": ("ｶﾞｲﾄﾞ", "ガイド"),
    "Kelvin and Angstrom": ("300 \u212a, 2 \u212b", "300 K, 2 Å"),
    "Kangxi radicals": ("⼀⼈", "一人"),
    "Arabic presentation forms": ("ﻛﺘﺎﺏ", "كتاب"),
    "Cyrillic letters in a Latin word": ("st\u0430rb\u043eard", "starboard"),
    "Greek letters in a Latin word": ("st\u03bfrm", "storm"),
    "Latin letter in a Cyrillic word": ("M\u043eсква", "Москва"),
    "Thai vowels typed in parts": ("เเน\u0e4d\u0e49\u0e32", "แน้ำ"),
    "Lao vowels typed in parts": ("ເເນ\u0ecd\u0eb2", "ແນຳ"),
    "Malayalam chillu of older texts": ("അവന\u0d4d\u200d", "അവൻ"),
    "Bengali khanda ta of older texts": ("হঠাত\u09cd\u200d", "হঠাৎ"),
    "Persian joiner left out": ("می\u200cخواهم", "میخواهم"),
    "Hebrew's own marks": ("צה\u05f4ל ג\u05f3ירפה", "צה\"ל ג'ירפה"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOOK_ALIKES)
@pytest.mark.parametrize("chosen", ENGLISH)
def test_texts_that_look_alike_have_no_error(kind: str, chosen: str) -> None:
    typed, plain = LOOK_ALIKES[kind]
    scored = score("u", typed, plain, text.normaliser(chosen, "en"), None, 1.0)
    assert scored.counts.errors == scored.character_errors == scored.mixed_errors == 0, scored
    assert scored.reference == text.normaliser(chosen, "en")(plain) != ""
    assert (scored.reference_raw, scored.hypothesis_raw) == (typed, plain)


@pytest.mark.parametrize(
    ("typed", "other"),
    [
        ("x²", "x2"), ("½", "1/2"), ("naïve", "naive"), ("kΩ", "kO"), ("TNFα", "TNFa"), ("резать", "pe3atb"),
        ("Straße", "Strasse"), ("don`t", "don't"), ("l'eau", "leau"), ("ー", "-"), ("œuvre", "oeuvre"),
    ],
)  # fmt: skip
def test_texts_that_look_different_stay_different(typed: str, other: str) -> None:
    assert characters.for_scoring(typed) != characters.for_scoring(other)


@pytest.mark.parametrize(
    "spelled",
    [
        "می\u200cخواهم بروم", "क्\u200dष", "ശ്രീ\u200dമാൻ", "ក្រុង\u200bភ្នំពេញ", "צה\u05f4ל",
        "今日は、晴れ！　「はい」", "他说：“好……”", "안녕, ‘친구’", "café", "Москва", "kΩ", "don't",
    ],
)  # fmt: skip
def test_labels_keep_what_their_script_needs(spelled: str) -> None:
    spelled = unicodedata.normalize("NFC", spelled)
    assert restyle(spelled, characters="plain") == spelled
    assert characters.replaced(spelled) == (set(), set())


@pytest.mark.parametrize(
    "kind", sorted(LOOK_ALIKES.keys() - {"Persian joiner left out", "Hebrew's own marks"})
)
def test_labels_lose_what_is_no_spelling(kind: str) -> None:
    typed, plain = LOOK_ALIKES[kind]
    assert restyle(typed, characters="plain") == plain
    assert restyle(typed) == typed
    assert any(characters.replaced(typed))


odd_texts = st.text() | st.text(
    st.sampled_from(
        "aeo аеоΟ’“–…ﬁｆ１\u0301\u0308\u200b\u200c\u200d\u00ad\ufeff\u00a0\u3000"
        "กเ\u0e4d\u0e32\u0e49ന\u0d4dکमि漢、。'\"-. \n\x92"
    )
)


@settings(max_examples=400)
@given(odd_texts)
def test_making_alike_twice_changes_nothing(typed: str) -> None:
    for make in (characters.for_scoring, characters.for_labels):
        once = make(typed)
        assert make(once) == once
        seen = [c for c in typed if "!" <= c <= "~"]
        rest = iter(once)
        assert all(c in rest for c in seen) or not typed.isascii()  # visible ASCII stays, in its order
    assert characters.replaced(characters.for_labels(typed)) == (set(), set())


@given(st.text(st.sampled_from([chr(c) for c in range(32, 127)])))
def test_visible_ascii_is_never_changed(typed: str) -> None:
    assert characters.for_scoring(typed) == characters.for_labels(typed) == typed


@settings(max_examples=200)
@given(odd_texts, st.sampled_from(ENGLISH))
def test_a_text_and_its_plain_form_have_no_error(typed: str, chosen: str) -> None:
    scored = score("u", typed, characters.for_scoring(typed), text.normaliser(chosen, "en"), None, 1.0)
    assert scored.counts.errors == scored.character_errors == scored.mixed_errors == 0


# --- findings and their fix, by the commands


def manifest(folder: Path, name: str, texts: list[str]) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for number, said in enumerate(texts):
        audio = folder / f"{name}{number}.wav"
        soundfile.write(audio, 0.1 * rng.standard_normal(24_000), 16_000)
        lines.append(
            json.dumps({"id": f"{name}{number}", "audio": audio.name, "text": said}, ensure_ascii=False)
        )
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


TELLING = ["turn to port now", "what is the depth", "the radar is dirty", "we leave at ten"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("turn\u200b to port", "U+200B ZERO WIDTH SPACE"),
        ("star\u00adboard side", "U+00AD SOFT HYPHEN"),
        ("\ufeffturn to port", "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        ("turn\u00a0to port", "U+00A0 NO-BREAK SPACE"),
        ("we don\u2019t know", "U+2019 RIGHT SINGLE QUOTATION MARK"),
        ("the cafe\u0301 is here", "U+0301 COMBINING ACUTE ACCENT"),
        ("turn to p\u043ert", "U+043E CYRILLIC SMALL LETTER O"),
        ("ｔurn to port", "U+FF54 FULLWIDTH LATIN SMALL LETTER T"),
        ("turn\x07 to port", "U+0007 CONTROL CHARACTER"),
    ],
)  # fmt: skip
def test_a_finding_names_the_character_and_restyle_takes_it_out(
    said: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, domain = manifest(tmp_path, "t", [said, *TELLING]), manifest(tmp_path, "d", [said + " twice"])
    check = ["manifest", "check", str(train), "--domain", str(domain), "--quick", "--max-steps", "1"]
    check += ["--gradient-accumulation-steps", "1", "--output", str(tmp_path / "found.json")]
    cli.main(check)
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    named = {f["numbers"]["sets"][0]: f for f in found if f["kind"] == "characters"}
    assert set(named) == {"train", "domain"}
    assert named["train"]["message"].count(told) == named["domain"]["message"].count(told) == 1
    assert not any(f["stops"] for f in named.values())
    assert "--label-characters plain" in named["train"]["message"]
    cli.main([*check, "--label-characters", "plain"])
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert [f["numbers"]["sets"] for f in found if f["kind"] == "characters"] == [["domain"]]
    fixed = tmp_path / "fixed.jsonl"
    style = ["--label-characters", "plain"]
    assert cli.main(["manifest", "restyle", str(domain), "--output", str(fixed), *style]) == 0
    assert "1 texts changed" in capsys.readouterr().out
    assert json.loads(fixed.read_text())["text"] == characters.for_labels(said) + " twice"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("we donâ€™t know", "'we donâ€™t know' for 'we don’t know'"),
        ("le cafÃ© noir", "for 'le café noir'"),
        ("Ð¼Ð¸Ñ€".encode().decode(), "for 'мир'"),
        ("we don\ufffdt know", "U+FFFD REPLACEMENT CHARACTER"),
        ("le café noir — Ã", None),
    ],
)
def test_a_text_of_another_encoding_is_a_finding(said: str, told: str | None, tmp_path: Path) -> None:
    train, domain = manifest(tmp_path, "t", TELLING), manifest(tmp_path, "d", [said, "turn to port"])
    cli.main(
        ["manifest", "check", str(train), "--domain", str(domain), "--quick", "--output",
         str(tmp_path / "found.json")]
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    messages = [f["message"] for f in found if f["numbers"].get("what") in ("encoding", "lost")]
    assert [told in message for message in messages] == ([True] if told else [])


def test_statistics_name_what_cannot_be_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, "d", ["turn\u200b to port", "don\u2019t"])
    assert cli.main(["manifest", "stats", str(path)]) == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "U+200B ZERO WIDTH SPACE" in printed
    assert "RIGHT SINGLE QUOTATION MARK" in printed


def test_restyle_wants_to_know_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domain = manifest(tmp_path, "d", ["HELLO"])
    restyled = ["manifest", "restyle", str(domain), "--output", str(tmp_path / "new.jsonl")]
    assert cli.main(restyled) == 2
    assert "nothing to restyle; give --label-case" in capsys.readouterr().err
    assert cli.main([*restyled, "--label-case", "lower"]) == 0
    assert json.loads((tmp_path / "new.jsonl").read_text())["text"] == "hello"
    assert cli.main([*restyled, "--label-case", "small"]) == 2


# --- scripts without spaces: (reference, hypothesis, CER counts, MER counts)
SPACELESS = {
    "Chinese": ("左舷的灯还没有打开", "左舷的灯还没有大开", (1, 9), (1, 9)),
    "Chinese, words parted": ("左舷 的 灯", "左舷的灯", (0, 4), (0, 4)),
    "Japanese": ("船長は静かです", "船長は静かでした", (2, 7), (2, 7)),
    "Thai with its marks": ("น้ำใส", "นำใส", (1, 3), (1, 3)),
    "Lao": ("ສະບາຍດີ", "ສະບາຍດ", (1, 6), (1, 6)),
    "code-switching": ("我喜欢 machine learning", "我喜欢machine burning", (3, 19), (1, 5)),
    "English": ("turn to port", "turn to fort", (1, 12), (1, 3)),
    "Korean, which has spaces": ("나는 학생", "나는 학샘", (1, 5), (1, 2)),
    "composed and decomposed": ("が", unicodedata.normalize("NFD", "が"), (0, 1), (0, 1)),
    "no reference": ("", "左舷", (2, 0), (2, 0)),
    "no hypothesis": ("左舷", "", (2, 2), (2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPACELESS)
def test_characters_and_mixed_units_are_counted(kind: str) -> None:
    reference, hypothesis, cer, mer = SPACELESS[kind]
    scored = score("u", reference, hypothesis, text.normaliser("none", "zh"), None, 1.0)
    assert scored.tally("cer") == wer.Tally(*cer)
    assert scored.tally("mer") == wer.Tally(*mer)


graphemes = st.lists(
    st.sampled_from(["你", "好", "กำ", "น้ำ", "ほ", "ガ", "ក្រុ", "မြ", "漢", "ー"]), max_size=12
).map("".join)


@given(graphemes, graphemes)
def test_characters_are_counted_as_jiwer_counts_parted_graphemes(reference: str, hypothesis: str) -> None:
    """The oracle has words where we have characters; the same holds for mixed units of such scripts."""
    parted = [" ".join(regex.findall(r"\X", one)) for one in (reference, hypothesis)]
    scored = score("u", reference, hypothesis, text.normaliser("none", "zh"), None, 1.0)
    if reference:
        oracle = jiwer.process_words(*parted)
        errors = oracle.substitutions + oracle.deletions + oracle.insertions
        assert scored.tally("cer") == scored.tally("mer") == wer.Tally(errors, len(parted[0].split()))


latin = st.lists(st.sampled_from("a bb ccc".split()), max_size=6).map(" ".join)


@given(latin.filter(bool), latin)
def test_without_such_scripts_cer_is_jiwers_and_mer_is_wer(reference: str, hypothesis: str) -> None:
    scored = score("u", reference, hypothesis, text.normaliser("none", "en"), None, 1.0)
    assert scored.tally("cer").rate == pytest.approx(jiwer.cer(reference, hypothesis))
    assert scored.tally("mer").rate == pytest.approx(jiwer.wer(reference, hypothesis))


@pytest.mark.parametrize(
    ("asked", "language", "name", "why"),
    [
        (None, "zh", "cer", "metric: cer, as --language zh is written without spaces between words"),
        (None, "yue", "cer", "as --language yue"),
        (None, "ja", "cer", "as --language ja"),
        (None, "th", "cer", "as --language th"),
        (None, "my", "cer", "as --language my"),
        (None, "ko", "wer", "metric: wer, as --language ko puts spaces between words"),
        (None, "en", "wer", "as --language en"),
        ("wer", "zh", "wer", "metric: wer, by --metric wer"),
        ("mer", "en", "mer", "by --metric mer"),
    ],
)
def test_the_language_chooses_the_metric_and_says_so(
    asked: metric.Metric | None, language: str, name: str, why: str
) -> None:
    chosen = metric.choose(asked, language)
    assert chosen.name == name
    assert why in str(chosen)


@pytest.mark.parametrize(
    ("flags", "shown", "noted"),
    [
        (["--language", "zh"], "CER 5.13% (2 errors in 39 characters)", False),
        (["--language", "ja", "--metric", "mer"], "MER 5.13% (2 errors in 39 mixed units)", False),
        ([], "WER 50.00% (2 substitutions", True),
        (["--language", "zh", "--metric", "wer"], "WER 50.00% (2 substitutions", True),
    ],
)
def test_chinese_is_scored_by_characters_or_a_note_says_why_not(
    flags: list[str], shown: str, noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["左舷的灯还没有打开", "我们星期三十点出发", "雷达在厨房旁边的房间里", "船长不喜欢安静的晚餐"]
    written = [said[0].replace("打", "大"), said[1], said[2].replace("里", "理"), said[3]]
    path, theirs = manifest(tmp_path, "d", said), tmp_path / "theirs.jsonl"
    theirs.write_text("".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(written)))
    output = tmp_path / "scores"
    command = ["eval", "--hypotheses", str(theirs), "--manifest-path", str(path), "--output-dir", str(output)]
    assert cli.main([*command, *flags]) == 0
    printed = capsys.readouterr().out.replace("\n", " ")
    assert shown in printed
    assert ("puts no spaces between words" in printed) == noted
    scores = json.loads((output / "scores.json").read_text())
    assert scores["metric"] == scores["fingerprint"]["metric"] == shown[:3].lower()
    assert (scores["wer"], round(scores["cer"], 4), round(scores["mer"], 4)) == (0.5, 0.0513, 0.0513)
    assert scores["metric"] in scores["by_speaker"]["unknown"]


@pytest.mark.parametrize(
    ("texts", "flags", "told"),
    [
        (["左舷的灯还没有打开"], [], "--metric cer"),
        (["ราคา ห้าร้อย บาท"], [], "--metric cer"),
        (["我喜欢 machine learning 和 deep learning"], ["--language", "zh"], "--metric mer"),
        (["左舷的灯还没有打开"], ["--language", "zh"], None),
        (["left light is off", "나는 학생"], [], None),
        (["Москва слезам не верит"], ["--language", "ru"], None),
    ],
)
def test_the_audit_says_where_the_metric_does_not_fit(
    texts: list[str], flags: list[str], told: str | None, tmp_path: Path
) -> None:
    train, domain = manifest(tmp_path, "t", TELLING), manifest(tmp_path, "d", texts)
    cli.main(
        ["manifest", "check", str(train), "--domain", str(domain), "--quick", "--output",
         str(tmp_path / "found.json"), *flags]
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    messages = [f["message"] for f in found if f["kind"] == "metric"]
    assert [told in message for message in messages] == ([True] if told else [])


# --- normalisers


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("Uh, um, ah aha hm huh uhuh: the ship, eh?", "the ship"),
        ("the B. B. C. and 5 G", "the bbc and 5g"),
        ("a big cat, and I", "a big cat and i"),
        ("i a e a said so", "iaea said so"),
        ("It's John's, what's that", "it is john s what is that"),
        ("'cause I kinda dunno", "cause i kinda dunno"),
        ("Wi-Fi, e-mail, et cetera, O.K.", "wifi email etc okay"),
        ("at 5 p.m. all right", "at 5 pm alright"),
        ("we don’t know twenty-one colours", "we do not know 21 colors"),
        ("mmm the flyer", "the flier"),
    ],
)
def test_the_leaderboards_normaliser(raw: str, normal: str) -> None:
    """Outputs of huggingface/open_asr_leaderboard's own at d1e99b2, but for its table of first names (and
    the curly apostrophe, which it makes to a space)."""
    assert text.normaliser("open-asr-leaderboard", "en")(raw) == normal


@pytest.mark.parametrize(
    ("language", "raw", "normal"),
    [
        ("hi", "हिन्दी में!", "हिन्दी में"),
        ("th", "น้ำใส ๆ.", unicodedata.normalize("NFKC", "น้ำใส ๆ")),
        ("ta", "தமிழ், நன்று", "தமிழ் நன்று"),
        ("de", "Schöne Grüße!", "schöne grüße"),
        ("vi", "Tiếng Việt.", "tiếng việt"),
    ],
)
def test_marks_of_other_languages_are_kept(language: str, raw: str, normal: str) -> None:
    assert text.normaliser(None, language)(raw) == unicodedata.normalize("NFC", normal)


def test_the_leaderboards_normaliser_is_for_english(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--hypotheses", "h", "--manifest-path", "m", "--output-dir", "o", "--language", "de"]
    assert cli.main([*command, "--text-normaliser", "open-asr-leaderboard"]) == 2
    assert "for English, not for --language de" in capsys.readouterr().err.replace("\n", " ")
