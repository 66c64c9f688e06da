"""Where the audio of WAV, AIFF, CAF, AU, FLAC and Ogg files ends, by their own structure.

libsndfile trusts a head that is wrong: a WAV from a pipe (size 0) is empty to it, one whose head was not
brought up to date ends early, one that is cut off is taken for a shorter one, and of joined files only the
first is read. So the structure is followed to the end of the file, a few reads for sound files, before
anything is decoded.

Sources: RIFF/WAVE (Microsoft, 1991), EBU Tech 3306 (RF64), AIFF-C (Apple), RFC 9639 (FLAC), RFC 3533 (Ogg).
"""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

from asrlora.data.decoding.filetypes import CUT, AudioError, FileType
from asrlora.data.decoding.mpeg import id3_size

STREAMED = 0x7FFF0000  # sizes from here on are written by who cannot go back: pipes, arecord, sox
STRAY = 0.02  # seconds of bytes behind the audio that are no sound that anyone would miss
TAIL = 65536  # bytes in which the last frame of a FLAC file is looked for


@dataclass(frozen=True)
class Structure:
    """What stands in the way of reading the file as it is; without any, libsndfile may read it."""

    # files to decode in this one's place, one behind the other
    parts: tuple[bytes, ...] | None = None
    declared: float | None = None  # seconds that the head says, where the file holds more


def check_chunks(file: BinaryIO, size: int) -> Structure:
    """WAV (RIFF, RIFX, RF64, BW64) and AIFF. Raises AudioError where less is there than the head says."""
    head = _at(file, 0, 12)
    big = head[:4] in (b"RIFX", b"FORM")
    number = ">I" if big else "<I"
    wanted = b"SSND" if head[:4] == b"FORM" else b"data"
    place, form, large = 12, b"", None
    while True:
        chunk = _at(file, place, 8)
        if len(chunk) < 8:
            raise AudioError(f"is cut off: it ends before its samples begin{CUT}")
        length = struct.unpack_from(number, chunk, 4)[0]
        if chunk[:4] == wanted:
            break
        if chunk[:4] in (b"fmt ", b"COMM"):
            form = _at(file, place + 8, min(length, 64))
        elif chunk[:4] == b"ds64":
            large = struct.unpack_from("<Q", _at(file, place + 16, 8).ljust(8, b"\0"))[0]
        place += 8 + length + length % 2
    if length == 0xFFFFFFFF and large:
        length = large
    start = place + 8
    block, second = _bytes_of(form, head[:4], big)
    left = size - start
    if length < left:
        return _behind(file, size, place, length, number, block, second)
    if length - left >= block:
        if large is None and length >= STREAMED:
            return Structure()  # libsndfile reads to the end
        raise cut_off(left / second, length / second)
    return Structure()


def holds_mpeg(head: bytes) -> bool:
    """Whether a WAV that begins so has MPEG frames for samples, whose length no chunk gives rightly."""
    at = head.find(b"fmt ", 12, 512)
    return at > 0 and head[at + 8 : at + 10] in (b"\x50\0", b"\x55\0")


def _bytes_of(form: bytes, kind: bytes, big: bool) -> tuple[int, float]:
    """Bytes of a sample of all channels, and about how many make a second."""
    if kind == b"FORM" and len(form) >= 18:
        channels, _, bits, exponent, mantissa = struct.unpack_from(">HIHHQ", form)
        block = channels * -(-bits // 8)
        return max(1, block), max(1.0, block * mantissa * 2.0 ** ((exponent & 0x7FFF) - 16383 - 63))
    if kind != b"FORM" and len(form) >= 14:
        _, _, _, second, block = struct.unpack_from(">HHIIH" if big else "<HHIIH", form)
        return max(1, block), float(max(1, second))
    raise AudioError("has no format chunk before its samples; it is damaged")


def _behind(
    file: BinaryIO, size: int, place: int, length: int, number: str, block: int, second: float
) -> Structure:
    """What follows the samples of which the head knows: other chunks, further files, or more samples."""
    start = place + 8
    at = start + length + length % 2
    while at < size:
        chunk = _at(file, at, 12)
        if chunk[:4] in (b"RIFF", b"RIFX", b"RF64") and chunk[8:] == b"WAVE":
            rest = _at(file, at, size - at)
            found = check_chunks(io.BytesIO(rest), len(rest))
            return Structure((_at(file, 0, at), *(found.parts or (rest,))), length / second)
        name, following = chunk[:4], struct.unpack_from(number, chunk.ljust(12, b"\0"), 4)[0]
        if len(chunk) < 8 or not all(32 <= byte < 127 for byte in name) or at + 8 + following > size + 1:
            rest = _at(file, at, size - at)
            if rest.startswith((b"ID3", b"TAG")) or not rest.strip(b"\0"):
                return Structure()
            break
        at += 8 + following + following % 2
    else:
        return Structure()
    if size - start - length < max(block, STRAY * second):
        return Structure()
    left = (size - start) // block * block
    whole = _at(file, 0, size)
    # the size of all, which libsndfile compares with the file's, and that of the samples
    fixed = bytearray(whole[: start + left])
    struct.pack_into(number, fixed, place + 4, min(left, 0xFFFFFFFF))
    struct.pack_into(number, fixed, 4, min(len(fixed) - 8, 0xFFFFFFFF))
    return Structure((bytes(fixed),), length / second if length else None)


def check_au(file: BinaryIO, size: int) -> Structure:
    """Raises AudioError where less is there than the head says."""
    start, length, encoding, rate, channels = struct.unpack(">IIIII", _at(file, 4, 20).ljust(20, b"\0"))
    width = {1: 1, 27: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8}.get(encoding, 1) * max(1, channels)
    if length != 0xFFFFFFFF and start + length > size:
        raise cut_off((size - start) / width / max(1, rate), length / width / max(1, rate))
    return Structure()


def check_caf(file: BinaryIO, size: int) -> Structure:
    """Raises AudioError where less is there than a chunk says."""
    place, second = 8, 0.0
    while len(chunk := _at(file, place, 12)) == 12:
        length = struct.unpack_from(">q", chunk, 4)[0]
        if chunk[:4] == b"desc":
            rate, _, _, packet, frames = struct.unpack(">d4sIII", _at(file, place + 12, 24).ljust(24, b"\0"))
            second = rate * packet / frames if packet and frames else 0.0
        if length > size - place - 12:
            if chunk[:4] == b"data" and second:
                raise cut_off((size - place - 12) / second, length / second)
            raise AudioError(f"is cut off: {size - place - 12:,} of {length:,} bytes are there{CUT}")
        if length < 0:
            break  # to the end of the file
        place += 12 + length
    return Structure()


@dataclass(frozen=True)
class FlacHead:
    """What a FLAC file says of itself."""

    start: int  # of "fLaC" in the file, behind an ID3 tag
    block: int  # samples of a frame where all are equally long
    rate: int
    channels: int
    total: int  # samples; 0: not known

    @property
    def seconds(self) -> float:
        """By the head's number of samples."""
        return self.total / self.rate


def flac_head(file: BinaryIO) -> FlacHead:
    """What STREAMINFO says. Raises AudioError where there is none."""
    head = _at(file, 0, 10)
    start = id3_size(head.ljust(10, b"\0"))
    info = _at(file, start, 42)
    if len(info) < 42 or info[:4] != b"fLaC" or info[4] & 0x7F:
        raise AudioError(f"is cut off: it ends before its samples begin{CUT}")
    bits = int.from_bytes(info[18:26])
    rate, channels, total = bits >> 44, (bits >> 41 & 7) + 1, bits & (1 << 36) - 1
    if not rate:
        raise AudioError("has a sample rate of 0 Hz in its head; it is damaged")
    return FlacHead(start, int.from_bytes(info[8:10]), rate, channels, total)


def flac_agrees(file: BinaryIO, size: int, head: FlacHead) -> bool:
    """Whether the last frame in the file ends where its head says that all ends.

    Only the head of that frame is looked at: whether it is whole, decoding shows.
    """
    tail = _at(file, max(0, size - TAIL), TAIL)
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        found = _flac_frame(tail[at : at + 16], head)
        if found is not None:
            return found == head.total
    return False


def _flac_frame(data: bytes, head: FlacHead) -> int | None:
    """The sample behind the frame whose head `data` begins with; None where it is none."""
    if len(data) < 6 or data[1] & 0xFE != 0xF8 or data[3] & 1:
        return None
    ones = 8 - (data[4] ^ 0xFF).bit_length()  # of the number in UTF-8's way, up to 7 bytes
    if ones in (1, 8):
        return None
    length = max(1, ones)
    number = data[4] & (0x7F >> ones if ones else 0x7F)
    for byte in data[5 : 4 + length]:
        if byte >> 6 != 2:
            return None
        number = number << 6 | byte & 0x3F
    code, place = data[2] >> 4, 4 + length
    if code == 6:
        block, place = data[place] + 1, place + 1
    elif code == 7:
        block, place = int.from_bytes(data[place : place + 2]) + 1, place + 2
    elif code >= 8:
        block = 256 << code - 8
    else:
        block = {0: 0, 1: 192}.get(code, 576 << max(0, code - 2))
    place += {12: 1, 13: 2, 14: 2}.get(data[2] & 15, 0)
    if not block or place >= len(data) or _crc8(data[:place]) != data[place]:
        return None
    return (number if data[1] & 1 else number * head.block) + block


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value << 1 ^ (0x107 if value & 0x80 else 0)
    return value


@dataclass(frozen=True)
class Ogg:
    """The pages of an Ogg file."""

    parts: list[tuple[int, int]]  # bytes from, to: streams that follow each other, each a file of its own
    ended: bool  # the last page says that it is the last
    junk: int  # bytes that belong to no page


def walk_ogg(data: bytes) -> Ogg:
    """Goes from page to page. Raises AudioError where the last one is not whole."""
    at, size = data.find(b"OggS"), len(data)
    starts: list[int] = []
    begun = ended = False
    junk = max(at, 0)
    while 0 <= at < size:
        if data[at : at + 4] != b"OggS":
            following = data.find(b"OggS", at)
            junk += (size if following < 0 else following) - at
            at = size if following < 0 else following
            continue
        count = data[at + 26] if at + 26 < size else 0
        end = at + 27 + count + sum(data[at + 27 : at + 27 + count])
        if at + 27 + count > size or end > size:
            raise AudioError(f"is cut off: it ends in the middle of a page, {end - size:,} bytes early{CUT}")
        flags = data[at + 5]
        if flags & 2:
            if begun or not starts:
                starts.append(at)
            begun = False
        else:
            begun = True
        ended = bool(flags & 4)
        at = end
    if not starts:
        raise AudioError("has no first Ogg page; it is cut off in front or damaged")
    return Ogg(list(zip(starts, [*starts[1:], size], strict=True)), ended, junk)


def cut_off(there: float, declared: float) -> AudioError:
    """For a file that holds `there` of `declared` seconds."""
    return AudioError(f"is cut off: {there:.2f} s are there, and its head says {declared:.2f} s{CUT}")


def check(file: BinaryIO, size: int, kind: FileType) -> Structure:
    """Follows the structure of a sound file of `size` bytes. Raises AudioError where it is cut off."""
    checks = {"wav": check_chunks, "aiff": check_chunks, "au": check_au, "caf": check_caf}
    found = checks.get(kind.demuxer or "")
    return found(file, size) if found else Structure()


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)
