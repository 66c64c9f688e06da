"""Key terms: lists, the trie against its definition, and searches against all texts of a tiny vocabulary."""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapting import SECONDS, tones
from asrlora import cli
from asrlora.data import loader
from asrlora.data.manifest import read_manifest
from asrlora.data.shards import cache, reader
from asrlora.demo import grammar
from asrlora.errors import UserError
from asrlora.models import ctc, decode, key_terms, moonshine, registry, seq2seq, whisper
from asrlora.models.family import Base
from asrlora.models.key_terms import START, Trie
from conftest import BASE, Speech

A, B, SPACE, SPACE_A, DOT = range(5)
OPENS = np.array([False, False, True, True, True])
CLOSES = np.array([False, False, True, False, True])


def trie(*terms: Sequence[int], nats: float = 2.0) -> Trie:
    made = Trie(OPENS, CLOSES)
    for pieces in terms:
        made.add(pieces, nats)
    return made.finish()


def attached(base: Base, tmp_path: Path, terms: str, boost: float) -> Base:
    (tmp_path / "terms.txt").write_text("".join(f"{term}\n" for term in terms.split()))
    return key_terms.attach(base, key_terms.read(tmp_path / "terms.txt", boost))


@pytest.fixture(scope="module")
def demo_base() -> Base:
    return registry.load_base(str(BASE))


@pytest.fixture(scope="module")
def heldout(speech: Speech) -> reader.Shards:
    return cache.cached(read_manifest(speech.heldout)[:12])


# --- the trie


def words_of(tokens: Iterable[int]) -> list[tuple[int, ...]]:
    """By the definition: a word begins with a letter after an end, and ends before what opens."""
    words: list[list[int]] = [[]]
    for token in tokens:
        if OPENS[token]:
            words.append([])
        if not CLOSES[token] or token == SPACE_A:
            words[-1].append(token)
    return [tuple(word) for word in words if word]


def test_the_bonus_is_that_of_whole_words() -> None:
    """Of all texts of up to five tokens. Red where a beginning keeps its bonus, or the middle of a word
    counts."""
    terms = [(A, B), (SPACE_A, B), (A, B, B), (B, A)]
    worth = {term: sum(2.0 * (1 + math.log(d)) for d in range(1, len(term) + 1)) for term in terms}
    made = trie(*terms)
    for length in range(6):
        for tokens in itertools.product(range(5), repeat=length):
            expected = sum(worth.get(word, 0.0) for word in words_of(tokens))
            assert made.bonus(tokens) == pytest.approx(expected), tokens


def test_terms_of_several_words_and_terms_inside_others() -> None:
    one, two, three = (2.0 * sum(1 + math.log(d) for d in range(1, n + 1)) for n in (1, 2, 3))
    made = trie((SPACE_A,), (SPACE_A, SPACE_A), (SPACE_A, SPACE_A, SPACE_A, SPACE_A))
    assert made.bonus([SPACE_A]) == pytest.approx(one)
    assert made.bonus([SPACE_A, SPACE_A]) == pytest.approx(two), "the longer one counts once"
    # the term of four words comes to nothing, and the one of two stays
    assert made.bonus([SPACE_A, SPACE_A, SPACE_A, SPACE]) == pytest.approx(two)
    overlapping = trie((SPACE_A, SPACE, B), (B, SPACE, A))
    assert overlapping.bonus([SPACE, B, SPACE, A]) == pytest.approx(three)
    # the first is not completed; the second begins inside it
    assert overlapping.bonus([SPACE_A, SPACE, B, B]) == 0


def test_the_gains_of_all_tokens_are_those_of_each() -> None:
    made = trie((A, B), (A,), (SPACE_A, SPACE, B), (B, SPACE, A), (SPACE_A, B))
    for tokens in itertools.product(range(5), repeat=4):
        state = START
        for token in tokens:
            each = [made.step(state, other).gain for other in range(5)]
            assert made.gains(state) == pytest.approx(each, abs=1e-6)
            state = made.step(state, token).state


def test_greedy_preference_is_the_published_bonus() -> None:
    made = trie((A, B, B), nats=2.0)
    state = made.step(START, A).state
    assert made.preference(START, 0, ()).tolist() == [2, 0, 0, 0, 0]
    assert made.preference(state, 1, ())[B] == pytest.approx(2 * (1 + math.log(2)))
    assert made.preference(START, 0, {0}).tolist() == [0] * 5
    assert not made.preference(made.step(START, B).state, 1, ()).any(), "the middle of a word"


@pytest.mark.parametrize(
    ("tokens", "swayed", "place"),
    [
        ([A, B, SPACE], [True, False, False], None),
        ([A, B], [True, True], None),
        ([A, B, A], [True, True, False], 0),
        ([A, SPACE, A, A], [False, False, True, False], 2),
        ([A, SPACE, A, A], [True, False, True, False], 0),
        ([A, A], [False, False], None),
    ],
)
def test_what_the_bonus_began_and_nobody_finished_is_found(
    tokens: list[int], swayed: list[bool], place: int | None
) -> None:
    assert trie((A, B)).unfinished(tokens, swayed, ()) == place


# --- searches


@torch.inference_mode()
def test_ctc_search_finds_the_best_of_all_texts() -> None:
    """With beams for every prefix, against the loss of every text (torch's own sum over alignments)."""
    made, changed = trie((A, B), (SPACE_A, A), nats=1.5), 0
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        nats = torch.log_softmax(2 * torch.randn(4, 6, generator=generator), -1)  # 5 is the blank
        texts = [list(t) for n in range(5) for t in itertools.product(range(5), repeat=n)]
        wide = nats[:, None]
        probability = {
            tuple(text): -float(
                torch.nn.functional.ctc_loss(wide, torch.tensor([text]), [4], [len(text)], 5, "sum")
            )
            for text in texts
        }
        total = {text: p + made.bonus(text) for text, p in probability.items()}
        best = max(total, key=lambda text: total[text])
        wide_trie = Trie(np.append(OPENS, True), np.append(CLOSES, True))
        for pieces in ((A, B), (SPACE_A, A)):
            wide_trie.add(pieces, 1.5)
        found = ctc.search(nats.numpy(), 5, wide_trie.finish(), width=10_000, tokens=6)
        assert tuple(found[0].tokens) == best
        assert found[0].nats == pytest.approx(total[best], abs=1e-4)
        changed += best != max(probability, key=lambda text: probability[text])
    assert changed, "the bonus has decided nothing"


@torch.inference_mode()
def test_beams_find_the_best_of_all_texts(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of up to two tokens and the end, at a width for all first tokens."""
    monkeypatch.setattr(moonshine, "_TOKENS_PER_SECOND", {"characters": 0.0})
    monkeypatch.setattr(moonshine, "_EXTRA_TOKENS", 2)
    plain = registry.load_base(folders["moonshine"], registry.Decoding(num_beams=48))
    waves, mask, _ = tones(plain, slice(0, 1))
    features = plain.family.features(plain, waves, mask)
    end, changed = plain.model.config.eos_token_id, 0
    texts = [(end,), *((a, end) for a in range(32)), *itertools.product(range(32), repeat=2)]
    texts = [text for text in texts if end not in text[:-1]]
    labels = torch.tensor([[*text, end][:2] for text in texts])
    many = {name: one.expand(len(texts), *one.shape[1:]) for name, one in features.items()}
    nats = torch.log_softmax(seq2seq.logits(plain.model, plain, many, labels), -1)
    each = nats.gather(2, labels[..., None])[..., 0].double()
    for term in ("bc", "d", "e"):
        base = attached(plain, tmp_path, term, 45.0)
        assert base.key_terms is not None
        total = {}
        for text, steps in zip(texts, each.tolist(), strict=True):
            forced = end not in text  # the limit writes the end, for nothing
            written = [token for token in text if token != end]
            score = sum(steps[: len(text)]) + base.key_terms.bonus(written)
            total[text] = score / (len(text) + forced)
        best = max(total, key=lambda text: total[text])
        (found,) = seq2seq.transcribe(base.model, base, features, SECONDS[:1])
        assert found.text == base.tokenizer.decode(best, skip_special_tokens=True).strip()
        changed += found != seq2seq.transcribe(plain.model, plain, features, SECONDS[:1])[0]
    assert changed, "the bonus has decided nothing"


@pytest.mark.parametrize("kind", ["moonshine", "moonshine_streaming", "whisper", "wav2vec2", "parakeet"])
@torch.inference_mode()
def test_a_boost_of_zero_changes_nothing(kind: str, folders: dict[str, str], tmp_path: Path) -> None:
    for beams in (1, 3) if kind not in ("wav2vec2", "parakeet") else (1,):
        plain = registry.load_base(folders[kind], registry.Decoding(num_beams=beams))
        base = attached(plain, tmp_path, "a be hello x", 0.0)
        waves, mask, _ = tones(plain)
        without = decode.transcribe(plain.model, plain, waves, mask, SECONDS)
        assert [one.text for one in decode.transcribe(base.model, base, waves, mask, SECONDS)] == [
            one.text for one in without
        ]


@pytest.mark.parametrize("kind", ["moonshine", "whisper", "wav2vec2"])
@torch.inference_mode()
def test_texts_with_terms_are_the_same_in_any_batch(
    kind: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short ones: a random model begins a term with every other token, and each is decoded once more."""
    monkeypatch.setattr(moonshine, "_TOKENS_PER_SECOND", {"characters": 4.0})
    monkeypatch.setattr(whisper, "_TOKENS_PER_SECOND", 4.0)
    monkeypatch.setattr(moonshine, "_EXTRA_TOKENS", 2)
    monkeypatch.setattr(whisper, "_EXTRA_TOKENS", 2)
    plain = registry.load_base(folders[kind])
    base = attached(plain, tmp_path, "a b c d e f g h i j k l m n o p ab cd ef gh ij qu xy th", 25.0)
    rng = np.random.default_rng(0)
    pcms = [(2_000 * rng.standard_normal(n)).astype(np.int16) for n in (16_037, 24_000, 20_123, 8_001)]

    def texts(base: Base, rows: Sequence[int]) -> dict[int, str]:
        waves, mask = loader.pad([pcms[row] for row in rows])
        written = decode.transcribe(base.model, base, waves, mask, [len(pcms[r]) / 16_000 for r in rows])
        return {row: one.text for row, one in zip(rows, written, strict=True)}

    alone = {row: texts(base, [row])[row] for row in range(4)}
    assert alone != texts(plain, range(4)), "the bonus has decided nothing"
    for rows in ([0, 1, 2, 3], [3, 1, 0], [2, 0]):
        assert texts(base, rows) == {row: alone[row] for row in rows}


def test_speech_is_changed_only_where_a_term_is_written(
    demo_base: Base, heldout: reader.Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terms that nobody says, and that begin as many words do. Red where a beginning stays."""
    terms = "thaxter annaberg bookington whistledown foundling saidwick carpathia"
    pcms = [heldout.read(number) for number in range(12)]
    seconds = [sample.duration for sample in heldout.samples]

    def texts(base: Base) -> list[str]:
        return [one.text for one in decode.transcribe(base.model, base, *loader.pad(pcms), seconds)]

    plain, base = texts(demo_base), attached(demo_base, tmp_path, terms, 4.0)

    def stray(written: Sequence[str]) -> int:
        return sum(
            one != before and not set(terms.split()) & set(one.split())
            for before, one in zip(plain, written, strict=True)
        )

    assert stray(texts(base)) == 0
    monkeypatch.setattr(Trie, "unfinished", lambda *_: None)
    assert stray(texts(base)) > 0, "no beginning of a term was ever written"


# --- lists


def test_a_list_holds_terms_weights_and_its_boost(tmp_path: Path) -> None:
    path = tmp_path / "terms.txt"
    path.write_text("# boost: 3.5\nMarquand\n\nNew  York\t2\n# a comment\nBodoni\t1\t# wrong 3 of 4\n")
    found = key_terms.read(path)
    assert [(t.text, t.weight, t.line) for t in found.terms] == [
        ("Marquand", 1, 2), ("New York", 2, 4), ("Bodoni", 1, 6),
    ]  # fmt: skip
    assert (found.boost, key_terms.read(path, 1.0).boost) == (3.5, 1.0)
    path.write_text("Bodoni\nNew York\t2\nMarquand\n")
    other = key_terms.read(path)
    assert other.boost == key_terms.BOOST
    assert other.fingerprint()["sha256"] == found.fingerprint()["sha256"]
    path.write_text("Bodoni\nNew York\t3\nMarquand\n")
    assert key_terms.read(path).fingerprint()["sha256"] != found.fingerprint()["sha256"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n\t2\n", "line 2: '' is no term"),
        ("--\n", "line 1: '--' is no term"),
        ("a\tmuch\n", "line 1: the weight must be a number from 0 to 10, not 'much'"),
        ("a\tnan\n", "line 1: the weight must be"),
        ("a\t-1\n", "line 1: the weight must be"),
        ("a\t0\n", "line 1: the weight must be above 0"),
        ("a\t1\t2\n", "line 1: holds more than"),
        ("Ann\nb\nANN\n", "line 3: 'ANN' stands in line 1 already"),
        ("# boost: high\na\n", "line 1: the boost must be a number from 0 to 50, not 'high'"),
        ("\n# nothing\n", "holds no term"),
        ("".join(f"a{n}\n" for n in range(5_001)), "line 5001: more than 5,000 terms"),
    ],
)
def test_a_faulty_list_is_refused_by_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "terms.txt").write_text(content)
    with pytest.raises(UserError) as error:
        key_terms.read(tmp_path / "terms.txt")
    assert str(error.value).startswith(f"--key-terms {tmp_path / 'terms.txt'}")
    assert message in str(error.value)


def test_a_list_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        key_terms.read(tmp_path / "none.txt")
    (tmp_path / "terms.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        key_terms.read(tmp_path / "terms.txt")
    for boost in (-1.0, math.nan, 51.0):
        with pytest.raises(UserError, match="--key-terms-boost must be a number from 0 to 50"):
            key_terms.chosen(tmp_path / "terms.txt", boost)
    with pytest.raises(UserError, match="give both"):
        key_terms.chosen(None, 1.0)


@pytest.mark.parametrize("kind", ["moonshine", "wav2vec2", "parakeet"])
def test_a_term_that_the_model_cannot_write_is_named(
    kind: str, folders: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"terms.txt, line 2: '7up' cannot be written by this model"):
        attached(registry.load_base(folders[kind]), tmp_path, "hello 7up", 1.0)


def test_spellings_are_of_every_case_with_and_without_a_space(
    folders: dict[str, str], tmp_path: Path
) -> None:
    base = attached(registry.load_base(folders["whisper"]), tmp_path, "hAt", 1.0)
    made, tokenizer = base.key_terms, base.tokenizer
    assert made is not None
    for text in ("hAt", "hat", "Hat", "HAT", " hAt", " hat", "so hat", "(Hat)", " HAT."):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert made.bonus(ids) > 0, text
    for text in ("hats", "what", "ha", "hA", "", "h at"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert made.bonus(ids) == 0, text


# --- the commands


def test_eval_scores_terms_and_fingerprints_them(speech: Speech, tmp_path: Path) -> None:
    lines = speech.domain.read_text().splitlines(keepends=True)[:12]
    manifest = speech.domain.with_name("for_terms.jsonl")
    manifest.write_text("".join(lines))
    (tmp_path / "terms.txt").write_text("\n".join(dict.fromkeys(grammar.DOMAIN_WORDS)))
    words = ["eval", "--model-id", str(BASE), "--manifest-path", str(manifest), "--output-dir"]
    listed = ["--key-terms", str(tmp_path / "terms.txt")]
    assert cli.main([*words, str(tmp_path / "plain")]) == 0
    assert cli.main([*words, str(tmp_path / "zero"), *listed, "--key-terms-boost", "0"]) == 0
    assert cli.main([*words, str(tmp_path / "listed"), *listed, "--key-terms-boost", "5"]) == 0
    scores = {
        name: json.loads((tmp_path / name / "scores.json").read_text())
        for name in ("plain", "zero", "listed")
    }
    assert "key_terms" not in scores["plain"]
    assert "key_terms" not in scores["plain"]["fingerprint"]["decode"]
    decoding = scores["listed"]["fingerprint"]["decode"]
    assert decoding["key_terms"]["boost"] == 5.0
    assert decoding == {**scores["plain"]["fingerprint"]["decode"], "key_terms": decoding["key_terms"]}
    plain, zero = ((tmp_path / name / "hypotheses.jsonl").read_bytes() for name in ("plain", "zero"))
    assert plain == zero
    before, after = scores["zero"]["key_terms"], scores["listed"]["key_terms"]
    assert before["occurrences"] == after["occurrences"] > 5
    assert after["recall"] > before["recall"]
    low, high = after["recall_interval"]
    assert low <= after["recall"] <= high


def test_mistakes_are_found_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["transcribe", "none.wav", "--key-terms-boost", "2"], "none.wav does not exist"),
        (["eval", "--model-id", "m", "--key-terms-boost", "2"], "give both"),
        (["eval", "--hypotheses", "h", "--key-terms", "t"], "exclude each other"),
        (["eval", "--model-id", "m", "--key-terms", "t"], "--key-terms t: cannot be read"),
    ):
        more = ["--manifest-path", "none", "--output-dir", "out"] if words[0] == "eval" else []
        assert cli.main([*words, *more]) == 2
        assert message in capsys.readouterr().err


def test_the_fingerprint_is_of_the_list_and_the_boost(demo_base: Base, tmp_path: Path) -> None:
    plain = decode.fingerprint(demo_base)
    two, three = (decode.fingerprint(attached(demo_base, tmp_path, "hull", boost)) for boost in (2.0, 3.0))
    assert "key_terms" not in plain
    assert two != three
    assert {**two, "key_terms": None} == {**plain, "key_terms": None}
    assert replace(demo_base).key_terms is None
