import pytest

from asrlora.report import figures


@pytest.mark.parametrize("label", ["WER", "CER"])
def test_the_running_rate_is_described_by_its_name(label: str) -> None:
    """The text alternative named it "after", like the last curve."""
    before, after = ({f"u{n}": {"errors": errors, "length": 10} for n in range(30)} for errors in (4, 1))
    drawn = figures.running("domain", before, after, label)
    described = f"Running domain {label} against the number of utterances; of all 30:"
    assert f"{described} before 40.00 % plus or minus" in drawn
    assert "after 10.00 % plus or minus" in drawn
