"""What kind of file it is, by its first bytes: names are often wrong.

Sources: the magic numbers are those of each format's specification; FFmpeg's names are its demuxers'.
"""

import codecs
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HEAD = 4096  # bytes that `recognise` wants to see
CUT = (  # what to do with a file that is cut off
    "; get the whole file, or, if that is all there is, write it anew (`ffmpeg -i IN -c copy OUT`) and"
    " correct its text"
)


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading; `path` may be a link to one. Raises OSError on any other file.

    Decoders get the open file and not its name, from which they would guess: to libsndfile "-" is standard
    input, ".raw" needs a rate, and an .sd2 file has a second one beside it. Unbuffered, since they move the
    descriptor's place.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


class AudioError(ValueError):
    """The audio cannot be used; the message says why, in words that follow the file's name."""


@dataclass(frozen=True)
class FileType:
    """A kind of audio file."""

    name: str  # as messages write it
    demuxer: str  # FFmpeg's name of it
    suffix: str  # of a file that holds it, without the dot
    sound: bool = False  # libsndfile opens it, if not all codecs in it


MPEG = FileType("MP3", "mp3", "mp3")
FLAC = FileType("FLAC", "flac", "flac", True)
OGG = FileType("Ogg", "ogg", "ogg", True)
WAV = FileType("WAV", "wav", "wav", True)
AIFF = FileType("AIFF", "aiff", "aiff", True)
AU = FileType("AU", "au", "au", True)
CAF = FileType("CAF", "caf", "caf", True)

_AUDIO: Sequence[tuple[int, bytes, FileType]] = (  # offset, bytes there
    (0, b"fLaC", FLAC),
    (0, b"OggS", OGG),
    (0, b".snd", AU),
    (0, b"caff", CAF),
    (0, b"riff\x2e\x91\xcf\x11", FileType("Wave64", "w64", "w64", True)),
    (0, b"NIST_1A", FileType("NIST SPHERE", "nistsphere", "sph", True)),
    (0, b"Creative Voice File", FileType("VOC", "voc", "voc", True)),
    (4, b"ftyp3g", FileType("3GP", "mov", "3gp")),
    (4, b"ftypqt", FileType("QuickTime", "mov", "mov")),
    (4, b"ftyp", FileType("M4A/MP4", "mov", "m4a")),
    (4, b"moov", FileType("QuickTime", "mov", "mov")),
    (4, b"mdat", FileType("QuickTime", "mov", "mov")),
    (0, b"#!AMR", FileType("AMR", "amr", "amr")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", FileType("WMA/ASF", "asf", "wma")),
    (0, b"\x0b\x77", FileType("AC-3", "ac3", "ac3")),
    (0, b"wvpk", FileType("WavPack", "wv", "wv")),
    (0, b"MAC ", FileType("Monkey's Audio", "ape", "ape")),
    (0, b"TTA1", FileType("TTA", "tta", "tta")),
    (0, b"MPCK", FileType("Musepack", "mpc8", "mpc")),
    (0, b"MP+", FileType("Musepack", "mpc", "mpc")),
    (0, b"DSD ", FileType("DSF", "dsf", "dsf")),
    (0, b"FLV\x01", FileType("FLV", "flv", "flv")),
    (0, b".RMF", FileType("RealMedia", "rm", "rm")),
    (0, b"\x00\x00\x01\xba", FileType("MPEG video", "mpeg", "mpg")),
)
_RIFF = {b"WAVE": WAV, b"AVI ": FileType("AVI", "avi", "avi")}

_OTHER: Sequence[tuple[int, bytes, str]] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the audio itself; fetch it with `git lfs pull`"),
    (0, b"PK\x03\x04", "a zip archive; unpack it first"),
    (0, b"\x1f\x8b", "gzip data; unpack it first"),
    (0, b"BZh", "bzip2 data; unpack it first"),
    (0, b"\xfd7zXZ", "xz data; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (0, b"Rar!", "a rar archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0, b"%PDF", "a PDF document, not audio"),
    (0, b"\x89PNG", "a PNG image, not audio"),
    (0, b"\xff\xd8\xff\xe0", "a JPEG image, not audio"),
    (0, b"\xff\xd8\xff\xe1", "a JPEG image, not audio"),
    (0, b"GIF8", "a GIF image, not audio"),
    (0, b"MThd", "a MIDI file, which holds notes and no sound"),
    (0, b"\x93NUMPY", "a NumPy array; write it as audio first"),
    (0, b"ajkg", "Shorten data; convert it with `ffmpeg -i IN OUT.flac`"),
)


def recognise(head: bytes) -> FileType | None:
    """The type of a file that begins with `head` (up to HEAD bytes, behind any ID3 tag); None: not known,
    which an MP3 with something before its first frame is too.

    Raises AudioError that says what it is where it is known to be no audio.
    """
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        found = _RIFF.get(head[8:12])
        if found is None:
            raise AudioError(f"is a RIFF file without audio (of type {head[8:12]!r})")
        return found
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return AIFF
    if head[:4] == b"\x1a\x45\xdf\xa3":
        webm = b"webm" in head[:64]
        return FileType("WebM" if webm else "Matroska", "matroska", "webm" if webm else "mka")
    for offset, magic, found in _AUDIO:
        if head.startswith(magic, offset):
            return found
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return FileType("MPEG transport stream", "mpegts", "mts")
    if len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return FileType("AAC (ADTS)", "aac", "aac")
    for offset, magic, what in _OTHER:
        if head.startswith(magic, offset):
            raise AudioError(f"is {what}")
    _refuse_text(head)
    return None


def _refuse_text(head: bytes) -> None:
    """Raises AudioError on text, which downloads leave in an audio file's place when they fail."""
    if not head:
        raise AudioError("is empty (0 bytes)")
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head).removeprefix("\ufeff").strip()
    except UnicodeDecodeError:
        return
    if not text or not all(c.isprintable() or c.isspace() for c in text):
        return
    if "annex/objects/" in text[:200]:
        raise AudioError("is a git-annex pointer, not the audio itself; fetch it with `git annex get`")
    if "<html" in text[:1000].lower() or "<!doctype html" in text[:1000].lower():
        raise AudioError("is an HTML page, not audio (a download that failed?)")
    raise AudioError("is text, not audio")


def unknown(head: bytes) -> AudioError:
    """For a file that nobody recognises."""
    if not head.strip(b"\0"):
        return AudioError("begins with zero bytes and has no head (a copy or a download that failed?)")
    return AudioError(
        "is in no known audio format; samples without a head must be written as WAV or FLAC first"
    )
