"""MPEG audio (MP3, MP2, MP1), frame by frame: its length is the frames that are there.

An MP3 has no length. Its first frame may hold a Xing, Info or VBRI tag with a count of frames, which is
missing, or counts the first of several joined files, or what an editor has cut away; without one, decoders
guess from the size of the first frames and stop too early. So the frames are walked from head to head, which
takes no decoding, and a decoder gets the frames alone, without those tags.

Sources: ISO/IEC 11172-3 and 13818-3 (heads of frames); the LAME project's description of the Info tag.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from asrlora.data.decoding.filetypes import CUT, AudioError

WARM_UP = 24  # frames before a segment that are decoded with it: a frame may use the bits of earlier ones
DECODER_DELAY = 529  # samples of layer III that a decoder adds in front, on top of the encoder's own
LOST = 0.25  # seconds at the start of a stream cut out of another one, whose first frames cannot be decoded
JUNK = 2000  # bytes between frames that are neither a tag nor sound; more are reported

_KILOBITS = {  # by (MPEG 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version's bits


class NoFrames(AudioError):
    """It is no MPEG audio."""


@dataclass(frozen=True)
class Frame:
    """What the four bytes at the head of a frame say."""

    bytes: int
    samples: int
    rate: int
    channels: int
    kind: tuple[int, int, int, int]  # version, layer, rate, channels: the same in all frames of a stream
    side: int  # bytes from the frame's start to where a Xing or Info tag would stand


@dataclass
class Part:
    """One stream: what an encoder wrote in one go."""

    frame: Frame  # the first
    starts: list[int] = field(default_factory=list)  # where its frames begin in the file
    ends: list[int] = field(default_factory=list)
    declared: int | None = None  # frames, by its tag
    delay: int = 0  # samples that the encoder put in front, by its tag
    padding: int = 0  # and behind

    @property
    def trim(self) -> tuple[int, int]:
        """Samples of silence that encoder and decoder add in front and behind, where the tag says so."""
        if not self.delay or self.frame.kind[1] != 3 or self.declared != len(self.starts):
            return 0, 0
        return self.delay + DECODER_DELAY, max(0, self.padding - DECODER_DELAY)

    @property
    def samples(self) -> int:
        """Of each channel, without what encoder and decoder have added."""
        return max(0, len(self.starts) * self.frame.samples - sum(self.trim))


@dataclass(frozen=True)
class Layout:
    """The MPEG frames of a file."""

    parts: list[Part]
    junk: int  # bytes between frames that are neither a tag nor sound

    @property
    def rate(self) -> int:
        """Hz, of all parts."""
        return self.parts[0].frame.rate

    @property
    def samples(self) -> int:
        """Of each channel, of all parts."""
        return sum(part.samples for part in self.parts)

    @property
    def declared(self) -> float | None:
        """Seconds by the tag of the first part, which is all that players and decoders look at."""
        first = self.parts[0]
        return None if first.declared is None else first.declared * first.frame.samples / first.frame.rate


@functools.lru_cache(maxsize=4096)
def _frame(head: bytes) -> Frame | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3 or head[3] & 3 == 2:
        return None
    first = version == 3
    hertz = _RATES[version][rate]
    bits = 1000 * _KILOBITS[first, layer][bitrate]
    padding = head[2] >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and not first else 1152
    size = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
    channels = 1 if head[3] >> 6 == 3 else 2
    side = {(True, 2): 32, (True, 1): 17, (False, 2): 17, (False, 1): 9}[first, channels]
    return Frame(size, samples, hertz, channels, (version, layer, hertz, channels), 4 + side)


def find_first(data: bytes, at: int = 0, kind: object = None) -> int | None:
    """Where frames begin at or behind `at`: the first place from which four follow each other, or fewer
    that end with the data. With `kind`, frames of another kind do not count."""
    while (at := data.find(b"\xff", at)) >= 0:
        place, first = at, None
        for count in itertools.count():
            frame = _frame(data[place : place + 4])
            first = first or frame
            if count == 4 or (count and place == len(data)):
                return at
            if frame is None or first is None or frame.kind != first.kind or (kind and frame.kind != kind):
                break
            place += frame.bytes
        at += 1
    return None


def walk(data: bytes) -> Layout:
    """Finds every frame of a whole file. Raises AudioError where there is none, or where the file is cut
    off: in the middle of its last frame, or before the frames that its tag counts."""
    at = find_first(data, id3_size(data))
    if at is None:
        at = find_first(data)  # the ID3 tag gives its own size wrongly
    if at is None:
        raise NoFrames("holds no MPEG audio frame")
    tags = _tag_places(data)
    parts: list[Part] = []
    part: Part | None = None
    junk, size, partial = 0, len(data), False
    while at < size:
        frame = _frame(data[at : at + 4])
        if frame is None:
            following = find_first(data, at + 1, kind=part.frame.kind if part else None)
            following = find_first(data, at + 1) if following is None else following
            skipped = size if following is None else following
            junk += 0 if _is_tag(data, at) else skipped - at
            at = skipped
            continue
        if at + frame.bytes > size:
            partial = not _is_tag(data, at)
            break
        if at in tags or part is None or frame.kind != part.frame.kind:
            part = Part(frame)
            parts.append(part)
        if at in tags:
            _read_tag(part, data[at : at + frame.bytes], frame)
        else:
            part.starts.append(at)
            part.ends.append(at + frame.bytes)
        at += frame.bytes
    parts = [part for part in parts if part.starts or part.declared]
    _refuse_cut(parts, partial)
    return Layout(parts, junk)


def _refuse_cut(parts: list[Part], partial: bool) -> None:
    for number, part in enumerate(parts, 1):
        there, wanted = len(part.starts), part.declared
        missing = partial and part is parts[-1] and (wanted is None or there < wanted)
        if missing or (wanted is not None and there < wanted - 1):  # some encoders count the tag's own frame
            each = part.frame.samples / part.frame.rate
            what = f"{there * each:.2f} s" + (f" of part {number}" if len(parts) > 1 else "")
            says = f", and its head says {wanted * each:.2f} s" if wanted else ""
            raise AudioError(f"is cut off: {what} are there{says}{CUT}")
    if len({part.frame.rate for part in parts}) > 1:
        rates = ", ".join(f"{part.frame.rate:,} Hz" for part in parts)
        raise AudioError(f"is joined of parts with different sample rates ({rates}); convert it to one rate")


def id3_size(data: bytes) -> int:
    """Where the ID3v2 tags end that the data begins with; 0 where there is none."""
    at = 0
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = functools.reduce(lambda total, byte: total << 7 | byte & 0x7F, data[at + 6 : at + 10], 0)
        at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
    return at


def _is_tag(data: bytes, at: int) -> bool:
    known = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN", b"3DI")
    return data.startswith(known, at) or not data[at : at + 4096].strip(b"\0")


def _tag_places(data: bytes) -> set[int]:
    """Where frames would begin that hold a tag in place of sound."""
    places = set()
    for name in (b"Xing", b"Info", b"VBRI"):
        at = -1
        while (at := data.find(name, at + 1)) >= 0:
            for side in (36,) if name == b"VBRI" else (36, 21, 13):
                frame = _frame(data[at - side : at - side + 4]) if at >= side else None
                if frame and (name == b"VBRI" or frame.side == side):
                    places.add(at - side)
    return places


def _read_tag(part: Part, frame: bytes, head: Frame) -> None:
    if frame[36:40] == b"VBRI":
        part.declared = int.from_bytes(frame[50:54]) or None
        return
    at = head.side + 8
    flags = int.from_bytes(frame[at - 4 : at])
    if flags & 1:
        part.declared = int.from_bytes(frame[at : at + 4]) or None
    lame = at + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    if frame[lame : lame + 4] in (b"LAME", b"Lavf", b"Lavc", b"GOGO", b"L3.9"):
        both = int.from_bytes(frame[lame + 21 : lame + 24])
        part.delay, part.padding = both >> 12, both & 0xFFF


def decode(data: bytes, layout: Layout, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Samples `start` to `stop` of the whole file, (T, channels). Raises AudioError where a frame cannot be
    decoded."""
    pieces, first = [], 0
    for part in layout.parts:
        low, high = max(start - first, 0), min(stop - first, part.samples)
        if low < high:
            pieces.append(_decode_part(data, part, low + part.trim[0], high + part.trim[0]))
        first += part.samples
    if not pieces:
        return np.zeros((0, 1), np.float32)
    return join(pieces)


def join(pieces: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Pieces (T, channels) end to end, those of one channel in all channels. Raises AudioError where their
    channels cannot be matched."""
    wide = max(piece.shape[1] for piece in pieces)
    if any(wide % piece.shape[1] for piece in pieces):
        raise AudioError("is joined of parts with different numbers of channels")
    return np.concatenate([np.repeat(piece, wide // piece.shape[1], axis=1) for piece in pieces])


def _decode_part(data: bytes, part: Part, start: int, stop: int) -> npt.NDArray[np.float32]:
    import miniaudio

    each = part.frame.samples
    first = max(0, start // each - WARM_UP)
    last = min(len(part.starts), -(-stop // each) + 1)
    frames = [data[a:b] for a, b in zip(part.starts[first:last], part.ends[first:last], strict=True)]
    try:
        found = miniaudio.mp3_read_f32(b"".join(frames))
    except miniaudio.DecodeError as error:
        raise AudioError(f"cannot be decoded ({error})") from None
    samples = np.frombuffer(found.samples, np.float32).reshape(-1, found.nchannels)
    # the first frames are left out where they use bits of frames before them, which are not there; so
    # places are counted from the end
    wanted = last * each - start
    if len(samples) < wanted - LOST * part.frame.rate:
        raise AudioError(
            f"is damaged: {len(samples) / part.frame.rate:.2f} s decode of"
            f" {len(frames) * each / part.frame.rate:.2f} s{CUT}"
        )
    samples = np.pad(samples, ((max(0, wanted - len(samples)), 0), (0, 0)))
    return samples[len(samples) - wanted :][: stop - start]
