from pathlib import Path

from asrlora.demo import corpus, grammar
from written import files


def test_the_base_never_heard_a_domain_word() -> None:
    general = set(grammar.GENERAL_WORDS) | set(grammar.DIGITS) | set(grammar.TEENS) | set(grammar.TENS)
    assert len(grammar.DOMAIN_WORDS) >= 40
    assert not general & set(grammar.DOMAIN_WORDS)
    spoken = {
        word
        for line in corpus.draw_lines("base-train", 3000, corpus.PRETRAINING, False, 1)
        for word in line.text.split()
    }
    assert not spoken & set(grammar.DOMAIN_WORDS)
    numbers = set(grammar.DIGITS) | set(grammar.TEENS) | set(grammar.TENS)
    assert numbers <= spoken
    assert corpus.PRETRAINING.voices == corpus.GENERAL.voices
    assert not set(corpus.GENERAL.voices) & set(corpus.DOMAIN.voices)


def test_training_and_evaluation_share_no_sentence() -> None:
    train = {line.text for line in corpus.draw_lines("a", 1500, corpus.GENERAL, False, 1)}
    held = {line.text for line in corpus.draw_lines("b", 1500, corpus.GENERAL, True, 2)}
    assert len(train) == len(held) == 1500
    assert not train & held


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "1", tmp_path / "2"):
        lines = corpus.draw_lines("x", 30, corpus.DOMAIN, False, 3)
        list(corpus.write_set(lines, folder, workers=1))
    assert files(tmp_path / "1") == files(tmp_path / "2")
