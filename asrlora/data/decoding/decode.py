"""Opening and decoding audio files of every kind: what is in them, not what their names and heads say.

`open_audio` finds out by the first bytes what a file is, follows its structure to its end (mpeg.py,
containers.py), and refuses what is cut off. libsndfile decodes sound files, miniaudio MP3 and whole FLAC
files (it goes on until the data ends), PyAV what phones and video write, where it is installed.

PyAV and not torchcodec: its wheels carry FFmpeg, so that nothing is asked of the system, and it needs no
torch; torchcodec looks for FFmpeg's libraries on the system, and each of its versions is for one of torch.
"""

import contextlib
import enum
import functools
import io
import operator
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from asrlora.data.decoding import containers, filetypes, mpeg
from asrlora.data.decoding.containers import FlacHead
from asrlora.data.decoding.filetypes import AudioError, FileType, open_regular

TOLERANCE = 0.1  # seconds by which two ways to say where audio ends may differ: encoders pad, people round
RATES = (1_000, 768_000)  # Hz; others are those of damaged heads
RAW = ("amr", "aac", "ac3")  # frames without a head or times: only decoding finds their end
SEEK = 5.0  # seconds into a file from which FFmpeg is asked to jump, and not to decode all before

Samples = npt.NDArray[np.float32]  # (T, channels), full scale 1.0


class NeedsPyAV(AudioError):
    """A format that only PyAV reads, and it is not installed."""


class Fault(enum.IntFlag):
    """What is unusual about a recording, and was dealt with. Bits are kept in shards: never renumber."""

    HEAD = 1  # its head says that it is shorter than it is; all of it is read
    JUNK = 2  # bytes between its frames or pages that are no audio
    TRACKS = 4  # several audio tracks; the first, or the one marked as default, is taken
    GAPS = 8  # its times have gaps; what is there is read without them
    UNENDED = 16  # an Ogg file whose last page does not say that it is the last
    OPPOSITE = 32  # channels in opposite phase; the loudest is taken (audio.py)
    DEAD = 64  # a dead channel beside a live one; the live ones are taken (audio.py)
    FLOATING = 128  # samples beyond full scale that a float format keeps: nothing is clipped


class Opened(Protocol):
    """A file whose structure is known."""

    seconds: float
    channels: int
    rate: int  # Hz
    faults: Fault

    def read(self, offset: float, duration: float | None) -> tuple[Samples, int]:
        """Decoded samples and their rate. All that decodes where no segment is asked for, be it more or
        less than `seconds`."""


@contextlib.contextmanager
def open_audio(source: Path | bytes) -> Iterator[Opened]:
    """Raises AudioError where it is no audio, is cut off, or needs a library that is not there."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
            opened = _open(file, source)
            if not RATES[0] <= opened.rate <= RATES[1]:
                raise AudioError(f"has a sample rate of {opened.rate:,} Hz in its head, which is damaged")
            yield opened
    except (OSError, RuntimeError) as error:
        raise AudioError(f"cannot be opened ({error})") from error


def measure(source: Path | bytes) -> float:
    """Seconds that decode, by the file's structure. Raises AudioError as `open_audio` does."""
    if isinstance(source, bytes):
        with open_audio(source) as opened:
            return opened.seconds
    return _measured(source, *_version(source))


def shape(source: Path | bytes) -> tuple[int, int]:
    """Channels and sample rate. Raises AudioError as `open_audio` does."""
    with open_audio(source) as opened:
        return opened.channels, opened.rate


def suffix(data: bytes) -> str:
    """What a file of these bytes should be called, with the dot. Raises AudioError on what is no audio."""
    kind = filetypes.recognise(_head(io.BytesIO(data))) or filetypes.MPEG
    return f".{kind.suffix}"


@functools.lru_cache(maxsize=256)
def _measured(path: Path, size: int, changed: int) -> float:
    """Kept, for the segments of one file follow each other in a manifest."""
    with open_audio(path) as opened:
        return opened.seconds


def _version(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from None
    return status.st_size, status.st_mtime_ns


def _open(file: BinaryIO, source: Path | bytes) -> Opened:
    head = _head(file)
    kind = filetypes.recognise(head)
    size = file.seek(0, os.SEEK_END)
    if kind is None or (kind is filetypes.WAV and containers.holds_mpeg(head)):
        return _open_mpeg(file, source, head)
    if kind is filetypes.FLAC:
        return _open_flac(file, size)
    if kind is filetypes.OGG:
        return _open_ogg(file, kind)
    if not kind.sound:
        return _FFmpeg(file, kind)
    found = containers.check(file, size, kind)
    try:
        if found.parts is None:
            return _Sound(file)
        return _join(map(io.BytesIO, found.parts), Fault(0) if found.declared is None else Fault.HEAD)
    except soundfile.LibsndfileError as error:
        if found.parts:
            raise AudioError(f"cannot be decoded as {kind.name} ({error.error_string})") from None
        return _FFmpeg(file, kind)  # a codec that libsndfile does not have, such as MP3 in WAV


def _head(file: BinaryIO) -> bytes:
    """The first bytes behind any ID3 tag, or from it where its size leads to nothing."""
    file.seek(0)
    head = file.read(filetypes.HEAD)
    behind = mpeg.id3_size(head)
    if not behind:
        return head
    file.seek(behind)
    found = file.read(filetypes.HEAD)
    return found if found.startswith((b"fLaC", b"OggS", b"RIFF")) or _is_adts(found) else head


def _is_adts(head: bytes) -> bool:
    return len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


# --- libsndfile


class _Sound:
    """Any format that libsndfile reads, with a head that is right."""

    def __init__(self, file: BinaryIO, faults: Fault = Fault(0)) -> None:
        file.seek(0)
        # by its number where it has one, since libsndfile calls Python for each block where it gets an
        # object; and never by its name, from which it would guess
        self._file = soundfile.SoundFile(_number(file), closefd=False)
        self.rate, self.channels = self._file.samplerate, self._file.channels
        self.frames = self._file.frames
        self.seconds = self.frames / self.rate
        self.faults = faults
        self.floats = self._file.subtype in ("FLOAT", "DOUBLE")

    def read(self, offset: float, duration: float | None) -> tuple[Samples, int]:
        try:
            self._file.seek(min(round(offset * self.rate), self.frames))
            count = -1 if duration is None else round(duration * self.rate)
            samples = self._file.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"cannot be decoded ({error.error_string})") from None
        if self.floats and len(samples) and float(np.abs(samples).max()) > 1.0:
            self.faults |= Fault.FLOATING
        return samples, self.rate


def _number(file: BinaryIO) -> Any:
    try:
        return file.fileno()
    except io.UnsupportedOperation:
        return file


class _Whole:
    """A file that had to be decoded to know its length."""

    def __init__(self, samples: Samples, rate: int, faults: Fault) -> None:
        self._samples, self.rate, self.faults = samples, rate, faults
        self.seconds, self.channels = len(samples) / rate, samples.shape[1]

    def read(self, offset: float, duration: float | None) -> tuple[Samples, int]:
        start = round(offset * self.rate)
        stop = None if duration is None else start + round(duration * self.rate)
        return self._samples[start:stop], self.rate


def _join(streams: Iterable[BinaryIO], faults: Fault) -> Opened:
    """Streams that follow each other in one file. Raises LibsndfileError where it reads not all of them."""
    parts = [_Sound(stream, faults) for stream in streams]
    if len(parts) == 1:
        return parts[0]
    rates = {part.rate for part in parts}
    if len(rates) > 1:
        raise AudioError(f"is joined of parts with different sample rates ({sorted(rates)} Hz)")
    samples = mpeg.join([part.read(0.0, None)[0] for part in parts])
    return _Whole(samples, rates.pop(), functools.reduce(operator.or_, (p.faults for p in parts)))


# --- FLAC


class _Flac:
    """Read to its end by dr_flac, which does not mind what the head says; segments by libsndfile."""

    def __init__(self, file: BinaryIO, head: FlacHead) -> None:
        self._file, self._head = file, head
        self.seconds, self.channels, self.rate = head.seconds, head.channels, head.rate
        self.faults = Fault(0)

    def read(self, offset: float, duration: float | None) -> tuple[Samples, int]:
        if offset or duration is not None:
            try:
                return _Sound(self._file).read(offset, duration)
            except soundfile.LibsndfileError as error:
                raise AudioError(f"cannot be decoded as FLAC ({error.error_string})") from None
        samples, rate = _decode_flac(self._file)
        if len(samples) / rate > self.seconds + TOLERANCE:
            self.faults |= Fault.HEAD
        return samples, rate


def _open_flac(file: BinaryIO, size: int) -> Opened:
    head = containers.flac_head(file)
    if head.total and containers.flac_agrees(file, size, head):
        return _Flac(file, head)
    samples, rate = _decode_flac(file)
    if len(samples) < head.total - TOLERANCE * rate:
        raise containers.cut_off(len(samples) / rate, head.seconds)
    return _Whole(samples, rate, Fault.HEAD if head.total and len(samples) > head.total else Fault(0))


def _decode_flac(file: BinaryIO) -> tuple[Samples, int]:
    import miniaudio

    file.seek(0)
    try:
        found = miniaudio.flac_read_f32(file.read())
    except miniaudio.DecodeError as error:
        raise AudioError(f"cannot be decoded as FLAC ({error})") from None
    return np.frombuffer(found.samples, np.float32).reshape(-1, found.nchannels), found.sample_rate


# --- Ogg


def _open_ogg(file: BinaryIO, kind: FileType) -> Opened:
    file.seek(0)
    data = file.read()
    found = containers.walk_ogg(data)
    faults = Fault.UNENDED if not found.ended else Fault(0)
    if found.junk > mpeg.JUNK:
        faults |= Fault.JUNK
    try:
        if len(found.parts) == 1:
            return _Sound(file, faults)
        return _join((io.BytesIO(data[start:stop]) for start, stop in found.parts), faults)
    except soundfile.LibsndfileError:
        return _FFmpeg(file, kind)  # Speex, or a film


# --- MPEG audio


class _Mpeg:
    def __init__(self, file: BinaryIO, layout: mpeg.Layout) -> None:
        self._file, self._layout = file, layout
        self.seconds, self.rate = layout.samples / layout.rate, layout.rate
        self.channels = max(part.frame.channels for part in layout.parts)
        self.faults = Fault.JUNK if layout.junk > mpeg.JUNK else Fault(0)
        if layout.declared is not None and self.seconds > layout.declared + TOLERANCE:
            self.faults |= Fault.HEAD

    def read(self, offset: float, duration: float | None) -> tuple[Samples, int]:
        rate, total = self._layout.rate, self._layout.samples
        start = min(round(offset * rate), total)
        stop = total if duration is None else min(start + round(duration * rate), total)
        self._file.seek(0)
        return mpeg.decode(self._file.read(), self._layout, start, stop), rate


def _open_mpeg(file: BinaryIO, source: Path | bytes, head: bytes) -> Opened:
    try:
        layout = mpeg.walk(source) if isinstance(source, bytes) else _walked(source, *_version(source))
    except mpeg.NoFrames:
        raise filetypes.unknown(head) from None
    return _Mpeg(file, layout)


@functools.lru_cache(maxsize=8)
def _walked(path: Path, size: int, changed: int) -> mpeg.Layout:
    with open_regular(path) as file:
        return mpeg.walk(file.read())


# --- PyAV


class _FFmpeg:
    """What FFmpeg reads: phones' recordings, films, and sound files with rare codecs."""

    def __init__(self, file: BinaryIO, kind: FileType) -> None:
        self._file, self._kind = file, kind
        self.faults = Fault(0)
        self.channels = self.rate = 1
        if kind.demuxer in RAW:
            samples, rate = self.read(0.0, None)
            self.seconds = len(samples) / rate
        else:
            with self._opened() as (container, stream):
                self.seconds = self._walk(container, stream)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its stream. The format is given, so that no other reader of FFmpeg's, some of
        which open further files and addresses that they find in a file, can be tried."""
        try:
            import av
        except ImportError:
            raise NeedsPyAV(
                f"is {self._kind.name}, which needs PyAV; install asrlora[av] (uv sync --extra av)"
            ) from None
        self._file.seek(0)
        try:
            with av.open(self._file, format=self._kind.demuxer, metadata_errors="replace") as container:
                streams = container.streams.audio
                if not streams:
                    films = " (video alone)" if container.streams.video else ""
                    raise AudioError(f"is {self._kind.name} without an audio track{films}")
                if len(streams) > 1:
                    self.faults |= Fault.TRACKS
                marked = [s for s in streams if s.disposition & av.stream.Disposition.default]
                stream = (marked or streams)[0]
                if stream.codec_context is None:
                    raise AudioError(f"is {self._kind.name} of a codec that is not known, or encrypted")
                stream.codec_context.thread_count = 1  # one of many of ours: they share the cores out
                self.channels, self.rate = stream.codec_context.channels, stream.codec_context.sample_rate
                yield container, stream
        except av.error.FFmpegError as error:
            raise AudioError(
                f"is {self._kind.name} that cannot be decoded: cut off or damaged ({error.strerror})"
            ) from None

    def _walk(self, container: Any, stream: Any) -> float:
        """Seconds by the packets that are there, of which none is decoded."""
        first = last = total = 0
        for number, packet in enumerate(container.demux(stream)):
            if packet.pts is None:
                continue
            if packet.is_corrupt:
                raise AudioError(f"is {self._kind.name} that is cut off or damaged{filetypes.CUT}")
            first = packet.pts if number == 0 else first
            last = max(last, packet.pts + (packet.duration or 0))
            total += packet.duration or 0
        step = float(stream.time_base)
        begun = max(0, first) * step
        seconds = min(total, last) * step
        declared = container.duration / 1e6 if container.duration else None
        if stream.duration:
            declared = float(stream.duration * stream.time_base)
        if declared is not None and last * step < declared - max(TOLERANCE, 0.01 * declared) - begun:
            raise containers.cut_off(last * step, declared)
        if last * step - begun > total * step + 0.5:
            self.faults |= Fault.GAPS
        return seconds

    def read(self, offset: float, duration: float | None) -> tuple[Samples, int]:
        with self._opened() as (container, stream):
            jumps = self._kind.demuxer in ("mov", "matroska")
            return _decode_frames(container, stream, jumps, offset, duration)


def _decode_frames(
    container: Any, stream: Any, jumps: bool, offset: float, duration: float | None
) -> tuple[Samples, int]:
    import av

    base = float(stream.time_base or 0)
    begun = float((stream.start_time or 0) * base)
    jumped = jumps and offset > SEEK
    if jumped:
        container.seek(int((begun + offset - 1.0) / base), stream=stream)
    resampler = None
    pieces: list[Samples] = []
    rate, start = 0, 0
    stop: int | None = None
    for frame in container.decode(stream):
        if resampler is None:
            rate = frame.sample_rate
            resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
            at = round(((frame.pts or 0) * base - begun) * rate) if jumped else 0
            start = max(0, round(offset * rate) - at)
            stop = None if duration is None else start + round(duration * rate)
        if (frame.sample_rate, frame.layout.nb_channels) != (rate, resampler.layout.nb_channels):
            raise AudioError("changes its sample rate or channels in the middle; convert it to one of each")
        pieces += [np.asarray(piece.to_ndarray().T, np.float32) for piece in resampler.resample(frame)]
        if stop is not None and sum(map(len, pieces)) >= stop:
            break
    if not pieces:
        return np.zeros((0, 1), np.float32), 16_000
    samples = np.concatenate(pieces)
    return np.ascontiguousarray(samples[start:stop]), rate
