"""What durations and decoded audio show of a set's recordings. Needs no torch."""

from collections.abc import Iterator, Mapping, Sequence

from asrlora.data import audio
from asrlora.data.audit.findings import EXAMPLES, Finding, Item, of_set
from asrlora.data.decoding.decode import Fault
from asrlora.data.shards.index import Sample

FRAME = 0.025  # seconds, of every family's front-end
# Letters and digits in a second. The fastest talkers reach 25; a word said into a long pause, 0.5.
SPEAKING = (0.5, 30.0)
CLIPPED = 0.001  # share of an utterance's samples at full scale that is audible
FAINT = 0.001  # RMS, full scale 1.0 (-60 dBFS); below it is mostly the recorder's own noise
OFFSET = 0.001  # DC, full scale 1.0; speech's own mean is below it
OFFSET_MATTERS = 0.05  # of the level
STILL = 0.5  # seconds of one and the same value; a microphone that is open never gives that
HARMLESS = ("rate", "channels")  # faults that only the audit of a set reports

# fault: what it is called in JSON, what its utterances are, the fix
_FAULTS = {
    Fault.OPPOSITE: (
        "opposite phase",
        "of channels in opposite phase, whose mean would cancel the speech: the loudest"
        " channel is taken alone",
        "check that it holds all speakers, and how the microphone is wired",
    ),
    Fault.DEAD: (
        "dead channel",
        "of a dead channel beside a live one (40 dB below it), which is left out",
        "nothing to fix, unless another speaker should be there",
    ),
    Fault.HEAD: (
        "head",
        "longer than the head of the file says (joined, or a head out of date), and read whole",
        "check that the text is that of all; `ffmpeg -i IN OUT.flac` writes a right head",
    ),
    Fault.JUNK: (
        "junk",
        "of files with other bytes between the audio, which are passed over",
        "check that nothing is lost there",
    ),
    Fault.TRACKS: (
        "tracks",
        "of files with several audio tracks, of which the default one is taken",
        "extract another one with `ffmpeg -i IN -map 0:a:1 OUT.flac` where that is meant",
    ),
    Fault.GAPS: (
        "gaps",
        "of files whose times have gaps, which are left out",
        "check offsets behind them, or fill them (`ffmpeg -i IN -af aresample=async=1 OUT.flac`)",
    ),
    Fault.UNENDED: (
        "end",
        "of Ogg files without a mark of their end, which may be cut off",
        "listen to the end",
    ),
    Fault.FLOATING: (
        "beyond full scale",
        "of floating-point samples beyond full scale, which the audio path scales down",
        "nothing to fix here; other programs clip them",
    ),
}


def check_durations(name: str, items: Sequence[Item]) -> Iterator[Finding]:
    """Lengths that no speech has: below one frame, or with too many or too few letters for it."""
    short = {item.id for item in items if item.duration < FRAME}
    how = f"shorter than one frame ({1000 * FRAME:g} ms)"
    yield from _finding(name, "length", short, len(items), how, "take them out")
    slowest, fastest = SPEAKING
    rates = {item.id: speaking_rate(item) for item in items if item.text.strip() and item.id not in short}
    unlikely = {identity for identity, rate in rates.items() if not slowest <= rate <= fastest}
    how = f"spoken at less than {slowest:g} or more than {fastest:g} letters a second, as nobody speaks"
    yield from _finding(name, "speaking rate", unlikely, len(items), how, "check their texts and times")


def speaking_rate(item: Item) -> float:
    """Letters and digits in a second."""
    return sum(map(str.isalnum, item.text)) / max(item.duration, FRAME)


def check_sound(name: str, samples: Sequence[Sample], without: Sequence[str] = ()) -> Iterator[Finding]:
    """What is unusual about the decoded recordings of a set; `without` leaves kinds of faults out."""
    for what, ids, how, fix in faults({sample.id: sample for sample in samples}):
        if what not in without:
            yield from _finding(name, what, ids, len(samples), how, fix)


def faults(
    recordings: Mapping[str, Sample] | Mapping[str, audio.Source],
) -> Iterator[tuple[str, set[str], str, str]]:
    """Kinds of faults: a word, which recordings have it (by id), what these are, and the fix."""
    of = recordings.items()
    ids = {i for i, one in of if one.clipped > CLIPPED}
    how = f"clipped (more than {CLIPPED:.1%} of the samples at full scale)"
    yield "clipped", ids, how, "record at a lower gain"
    ids = {i for i, one in of if one.level < FAINT}
    yield "faint", ids, "below -60 dBFS, mostly noise", "check that there is speech"
    ids = {i for i, one in of if one.dc > max(OFFSET, OFFSET_MATTERS * one.level)}
    largest = max((recordings[i].dc for i in ids), default=0.0)
    how = f"recorded with a DC offset (of up to {largest:.1%} of full scale), which is taken out"
    fix = "nothing to fix here, but the recorder is faulty, and other programs keep the offset"
    yield "dc offset", ids, how, fix
    ids = {i for i, one in of if one.still > STILL}
    longest = max((recordings[i].still for i in ids), default=0.0)
    how = f"of digital silence for more than {STILL:g} s on end (up to {longest:.1f} s)"
    yield "digital silence", ids, how, "check that nothing was lost or muted there"
    ids = {i for i, one in of if one.rate != audio.SAMPLE_RATE}
    rates = ", ".join(f"{rate:,} Hz" for rate in sorted({recordings[i].rate for i in ids}))
    yield "rate", ids, f"recorded at {rates} and resampled to 16,000 Hz", "nothing to fix"
    ids = {i for i, one in of if one.channels > 1}
    fix = "choose a channel where each holds another speaker"
    yield "channels", ids, "of several channels and mixed to one", fix
    for fault, (what, how, fix) in _FAULTS.items():
        yield what, {i for i, one in of if one.faults & fault}, how, fix


def _finding(name: str, what: str, ids: set[str], count: int, how: str, fix: str) -> Iterator[Finding]:
    if ids:
        shown = sorted(ids)[:EXAMPLES]
        message = f"{len(ids):,} of {count:,} utterances are {how}, such as {shown[0]!r}; {fix}"
        numbers = {"utterances": len(ids), "share": len(ids) / count, "examples": shown}
        yield of_set("audio", name, what, message, numbers)
