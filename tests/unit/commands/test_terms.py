"""`asrlora terms` on the demo's speech and base."""

import json
from pathlib import Path

import pytest

from asrlora import cli
from asrlora.demo import grammar
from asrlora.models import key_terms
from asrlora.score import selection
from conftest import BASE, Speech


@pytest.fixture(scope="module")
def manifest(speech: Speech) -> Path:
    """24 utterances of the domain."""
    path = speech.domain.with_name("of_terms.jsonl")
    path.write_text("".join(speech.domain.read_text().splitlines(keepends=True)[:24]))
    return path


def test_what_is_extracted_is_a_list_of_words_that_are_mostly_wrong(manifest: Path, tmp_path: Path) -> None:
    """From the texts of an evaluation, here of another system that mishears two words."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    wrong = ("compass", "gale")
    with open(tmp_path / "theirs.jsonl", "w") as file:
        for line in lines:
            text = " ".join("banker" if word in wrong else word for word in line["text"].split())
            file.write(json.dumps({"id": line["id"], "hypothesis": text}) + "\n")
    said = {word: sum(line["text"].split().count(word) for line in lines) for word in wrong}
    words = ["terms", "extract", str(manifest), "--hypotheses", str(tmp_path / "theirs.jsonl")]
    assert cli.main([*words, "--output", str(tmp_path / "list.txt")]) == 0
    found = key_terms.read(tmp_path / "list.txt")
    assert {term.text for term in found.terms} == {word for word in wrong if said[word]} != set()
    notes = (tmp_path / "list.txt").read_text()
    assert all(f"{w}\t1\t# wrong {n} of {n}\n" in notes for w, n in said.items() if n)
    assert cli.main([*words, "--output", str(tmp_path / "list.txt")]) == 2


def test_tuning_chooses_on_one_half_and_judges_on_the_other(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = manifest.read_text()
    terms = [word for word in dict.fromkeys(grammar.DOMAIN_WORDS) if word in text]
    (tmp_path / "terms.txt").write_text("# boost: 9\n# mine\n" + "".join(f"{term}\n" for term in terms))
    words = ["terms", "tune", str(manifest), "--model-id", str(BASE), "--boosts", "5"]
    words += ["--key-terms", str(tmp_path / "terms.txt"), "--max-other-regression", "0.2"]
    code = cli.main([*words, "--output", str(tmp_path / "tuned.txt")])
    printed = capsys.readouterr().out
    ids = [json.loads(line)["id"] for line in text.splitlines()]
    second = selection.second_half(ids)
    assert f"chosen on {len(ids) - len(second)} utterances" in printed
    assert f"judged on {len(second)} others" in printed
    assert ("--key-terms-boost 5 holds on the other half" in printed) == (code == 0)
    assert (tmp_path / "tuned.txt").read_text() == "# boost: 5\n# mine\n" + "".join(f"{t}\n" for t in terms)
    assert key_terms.read(tmp_path / "tuned.txt").boost == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["extract", "--output", "new.txt"], "give --model-id or --adapter-dir"),
        (["tune", "--key-terms", "t.txt"], "give --model-id or --adapter-dir"),
        (["tune", "--key-terms", "none.txt", "--model-id", "m"], "--key-terms none.txt: cannot be read"),
        (["tune", "--key-terms", "t.txt", "--model-id", "m", "--boosts", "-1"], "--boosts must be a number"),
        (["tune", "--key-terms", "t.txt", "--model-id", "m", "--boosts", "0"], "--boosts: give one above 0"),
        (
            ["tune", "--key-terms", "t.txt", "--model-id", "m"],
            "none of its terms is said in one of the halves",
        ),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    manifest: Path,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("xylophonist\n")
    assert cli.main(["terms", words[0], str(manifest), *words[1:]]) == 2
    assert message in capsys.readouterr().err
