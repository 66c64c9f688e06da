"""Properties of sets: nothing lost, nothing twice, no speaker shared, every stratum with its share."""

import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asrlora import cli
from asrlora.data import subsets
from asrlora.data.manifest import Utterance, read_manifest
from asrlora.errors import UserError


@st.composite
def utterances(draw: st.DrawFn) -> list[Utterance]:
    lines = draw(
        st.lists(
            st.tuples(st.sampled_from([0.5, 1.0, 1.5, 3.0, 9.0]), st.sampled_from("abcdefg")), min_size=1
        )
    )
    return [
        Utterance(f"u{i}", Path(f"{i}.wav"), "some words", seconds, speaker=speaker)
        for i, (seconds, speaker) in enumerate(lines)
    ]


seeds = st.integers(0, 2**32)


@given(utterances(), st.integers(1, 120), seeds)
def test_every_stratum_of_a_sample_has_its_share_within_one(
    items: list[Utterance], count: int, seed: int
) -> None:
    drawn = subsets.sample(items, count, seed)
    assert len(drawn) == min(count, len(items))
    assert len({u.id for u in drawn}) == len(drawn)
    bins = subsets.duration_bins(items)
    for stratum in (lambda u: bins[u.id], lambda u: (bins[u.id], u.speaker)):
        whole, there = Counter(map(stratum, items)), Counter(map(stratum, drawn))
        for name, size in whole.items():
            assert abs(there[name] - size * len(drawn) / len(items)) < 1


@given(utterances(), st.integers(1, 50), seeds, st.randoms(use_true_random=False))
def test_a_sample_depends_on_the_seed_and_not_on_the_order(
    items: list[Utterance], count: int, seed: int, shuffler: random.Random
) -> None:
    again = list(items)
    shuffler.shuffle(again)
    assert subsets.sample(items, count, seed) == subsets.sample(again, count, seed)


def test_another_seed_draws_another_sample_in_another_order() -> None:
    items = [Utterance(f"u{i:03d}", Path("a.wav"), "x", i / 10 + 1, speaker=f"s{i % 7}") for i in range(200)]
    first, second = subsets.sample(items, 50, 1), subsets.sample(items, 50, 2)
    assert {u.id for u in first} != {u.id for u in second}
    whole = subsets.sample(items, 500, 1)
    assert sorted(u.id for u in whole) == [u.id for u in items]
    assert [u.id for u in whole] != [u.id for u in items]


def test_a_prefix_of_a_sample_is_a_fair_sample() -> None:
    """The last utterances of a corpus are longer and easier; a shuffled half must not be."""
    items = [Utterance(f"u{i:04d}", Path("a.wav"), "x", 1 + i / 100, speaker="s") for i in range(1000)]
    drawn = [u.duration for u in subsets.sample(items, 400, 3)]
    assert abs(np.mean(drawn[:200]) - np.mean(drawn)) < 0.6  # 3 standard errors; in order it were 2.5
    assert abs(np.mean(drawn) - np.mean([u.duration for u in items])) < 0.05


shares = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
    lambda weights: {f"part{i}": weight / sum(weights) for i, weight in enumerate(weights)}
)


@given(utterances(), shares, seeds, st.booleans())
def test_parts_are_disjoint_and_together_the_whole(
    items: list[Utterance], parts: dict[str, float], seed: int, by_speaker: bool
) -> None:
    try:
        divided = subsets.split(items, parts, seed, by_speaker)
    except UserError:  # a part would be empty: right where there is not enough to go round, and only there
        limit = len({u.speaker for u in items}) if by_speaker else min(parts.values()) * len(items) / 2
        assert limit < len(parts)
        return
    assert list(divided) == list(parts)
    assert Counter(u.id for part in divided.values() for u in part) == Counter(u.id for u in items)
    for name, part in divided.items():
        assert part
        assert part == [u for u in items if u in part]
        if not by_speaker:
            assert abs(len(part) - parts[name] * len(items)) <= 1
    if by_speaker:
        speakers = [{u.speaker for u in part} for part in divided.values()]
        assert sum(map(len, speakers)) == len(set().union(*speakers))


@settings(max_examples=30)
@given(utterances(), seeds, st.randoms(use_true_random=False), st.booleans())
def test_a_split_depends_on_the_seed_and_not_on_the_order(
    items: list[Utterance], seed: int, shuffler: random.Random, by_speaker: bool
) -> None:
    assume(len({u.speaker for u in items}) > 1)
    again = list(items)
    shuffler.shuffle(again)
    parts = {"a": 0.5, "b": 0.5}
    first, second = (subsets.split(order, parts, seed, by_speaker) for order in (items, again))
    assert {u.id for u in first["a"]} == {u.id for u in second["a"]}


def test_a_split_by_speaker_keeps_near_its_shares() -> None:
    items = [Utterance(f"u{i}", Path("a.wav"), "x", 1.0, speaker=f"s{i % 50}") for i in range(1000)]
    for seed in range(5):
        divided = subsets.split(items, {"train": 0.9, "domain": 0.1}, seed, by_speaker=True)
        assert abs(len(divided["domain"]) - 100) <= 20  # one speaker's


@pytest.mark.parametrize(
    "parts",
    ["", "train", "train=", "train=0.5", "a=0.5,a=0.5", "a=0,b=1", "../x=1", "a=0.9,b=0.2", ".=1", "a=nan"],
)
def test_bad_parts_are_refused(parts: str) -> None:
    with pytest.raises(UserError, match="--parts"):
        subsets.parse_parts(parts)


@given(
    utterances(), st.floats(0, 5), st.floats(0, 10), st.integers(0, 3), st.integers(0, 3),
    st.sampled_from([None, "ab", "h"]),
)  # fmt: skip
def test_a_filter_accounts_for_every_utterance(
    items: list[Utterance], low: float, high: float, few: int, many: int, speakers: str | None
) -> None:
    kept, left_out = subsets.apply_filter(items, subsets.Filter(low, high, few, many, None, speakers))
    assert len(kept) + left_out.total() == len(items)
    expected = [
        u for u in items
        if low <= u.duration <= high and few <= 2 <= many and (speakers is None or u.speaker in speakers)
    ]  # fmt: skip
    assert kept == expected


def test_a_filter_by_text() -> None:
    items = [Utterance(text, Path("a.wav"), text, 1.0) for text in ("hello there", "Hello", "bye")]
    kept, left_out = subsets.apply_filter(items, subsets.Filter(match=re.compile("(?i)hello")))
    assert [u.id for u in kept] == ["hello there", "Hello"]
    assert left_out == {"without a match of (?i)hello": 1}
    assert subsets.Filter() == subsets.Filter(max_words=math.inf)


# --- the commands -------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """a/m.jsonl with 12 utterances of three speakers and 1 to 6 s; b/n.jsonl with two segments."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    lines = []
    for i in range(12):
        seconds = 1 + i % 6
        soundfile.write(tmp_path / f"a/{i}.wav", np.full(8000 * seconds, 0.1), 8000)
        lines.append(
            {"audio": f"{i}.wav", "text": f"line {i}", "id": f"a{i}", "speaker": f"s{i % 3}", "n": i}
        )
    (tmp_path / "a/m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    soundfile.write(tmp_path / "b/long.wav", np.full(80_000, 0.1), 8000)
    lines = [
        {"audio": "long.wav", "text": "one", "offset": 0, "duration": 2.5, "id": "b0"},
        {"audio": "long.wav", "text": "two \u2028 three", "offset": 2.5, "id": "b1"},
    ]
    (tmp_path / "b/n.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    )
    return tmp_path


def run(*words: object) -> int:
    return cli.main(["manifest", *map(str, words)])


def test_merge_rewrites_paths_and_keeps_everything(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("merge", corpus / "a/m.jsonl", corpus / "b/n.jsonl", "--output", corpus / "all.jsonl") == 0
    assert "14 utterances" in capsys.readouterr().out
    before = read_manifest(corpus / "a/m.jsonl") + read_manifest(corpus / "b/n.jsonl")
    assert read_manifest(corpus / "all.jsonl") == before
    assert json.loads((corpus / "all.jsonl").read_text().split("\n")[12])["audio"] == "b/long.wav"


def test_merge_names_both_manifests_of_a_clash(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "a/again.jsonl").write_text((corpus / "a/m.jsonl").read_text())
    assert run("merge", corpus / "a/m.jsonl", corpus / "a/again.jsonl", "--output", corpus / "x.jsonl") == 2
    told = capsys.readouterr().err
    assert "m.jsonl" in told
    assert "again.jsonl" in told
    assert "'a0'" in told
    assert not (corpus / "x.jsonl").exists()


def test_a_manifest_below_its_audio_names_it_absolutely_and_says_so(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("filter", corpus / "a/m.jsonl", "--output", corpus / "c/x.jsonl", "--max-seconds", 3) == 0
    told = capsys.readouterr().out
    assert "6 utterances kept; left out: 6 longer than 3 s" in told
    assert "--allow-outside" in told
    with pytest.raises(UserError, match=r"line 1.*lies outside"):
        read_manifest(corpus / "c/x.jsonl")
    assert [u.id for u in read_manifest(corpus / "c/x.jsonl", True)] == ["a0", "a1", "a2", "a6", "a7", "a8"]


def test_split_writes_parts_without_shared_speakers(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("split", corpus / "a/m.jsonl", "--output-dir", corpus, "--parts", "train=0.7,domain=0.3")
    assert run(*words, "--by-speaker", "--seed", 3) == 0
    told = capsys.readouterr().out
    assert "8 utterances" in told
    assert "4 utterances" in told
    train, domain = (read_manifest(corpus / f"{name}.jsonl") for name in ("train", "domain"))
    assert not {u.speaker for u in train} & {u.speaker for u in domain}
    assert run(*words) == 2  # nothing is written over
    assert "train.jsonl exists" in capsys.readouterr().err


def test_filter_by_speakers_of_a_file(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "keep.txt").write_text("s1\n\ns2\n")
    words = ("filter", corpus / "a/m.jsonl", "--output", corpus / "f.jsonl")
    assert run(*words, "--speakers", corpus / "keep.txt", "--match", "1") == 0
    assert [u.id for u in read_manifest(corpus / "f.jsonl")] == ["a1", "a10", "a11"]
    for flags, told in (
        (["--match", "("], "--match"),
        (["--min-seconds", "99"], "0 utterances kept; left out: 12 shorter than 99 s"),
        (["--speakers", str(corpus / "gone.txt")], "gone.txt"),
    ):
        capsys.readouterr()
        assert (
            cli.main(["manifest", "filter", str(words[1]), "--output", str(corpus / "g.jsonl"), *flags]) == 2
        )
        assert told in capsys.readouterr().err
        assert not (corpus / "g.jsonl").exists()


def test_stats_show_what_is_there(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stats", corpus / "a/m.jsonl") == 0
    told = capsys.readouterr().out
    for wanted in (
        "utterances",
        "12",
        "0.012",
        "1.00 / 1.00 / 2.00 / 3.50",
        "24, 13 different",
        "0123456789eiln",
    ):
        assert wanted in told
    assert subsets.statistics(read_manifest(corpus / "b/n.jsonl"))["speakers"] == "0 (2 utterances name none)"
