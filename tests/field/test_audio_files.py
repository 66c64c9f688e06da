"""Audio files as people have them: each is read whole, or refused or reported by name."""

import io
import json
import struct
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from asrlora import cli
from asrlora.data import audio, manifest
from asrlora.data.audit.recordings import HARMLESS, check_sound
from asrlora.data.decoding import decode
from asrlora.data.decoding.decode import Fault
from asrlora.data.shards import writer
from asrlora.errors import UserError

RATE = 16_000
SECONDS = 3.0


def speech(seconds: float = SECONDS, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Noise that rises and falls as syllables do, (T,) float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    return (0.1 * rng.normal(size=len(time)) * (1.1 + np.sin(2 * np.pi * 4 * time))).astype(np.float32) / 2


def sound(form: str, wave: np.ndarray | None = None, subtype: str | None = None, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, speech(rate=rate) if wave is None else wave, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def wav(wave: np.ndarray | None = None, subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    return sound("WAV", wave, subtype, rate)


def patched(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    for at, value in changes:
        data = data[:at] + value + data[at + len(value) :]
    return data


def sizes(data: bytes, whole: int, samples: int) -> bytes:
    """A WAV with other sizes in its head."""
    return patched(data, (4, struct.pack("<I", whole)), (40, struct.pack("<I", samples)))


def total(data: bytes, samples: int) -> bytes:
    """A FLAC with another number of samples in its head."""
    return patched(data, (21, bytes([data[21] & 0xF0])), (22, struct.pack(">I", samples)))


def without_tag(mp3: bytes) -> bytes:
    """An MP3 without its first frame, which holds the count of the others."""
    assert b"Xing" in mp3[:60]
    return mp3[mp3.index(mp3[:2], 4) :]


def tagged(mp3: bytes, frames: int) -> bytes:
    """An MP3 whose head says so many frames."""
    return patched(mp3, (mp3.index(b"Xing") + 8, struct.pack(">I", frames)))


def container(
    form: str, codec: str, *, rate: int = RATE, tracks: int = 1, picture: bool = False, sound: bool = True,
    options: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    """What a phone or a camera writes, by FFmpeg's muxers and encoders."""
    with (
        tempfile.NamedTemporaryFile() as buffer,
        av.open(buffer.name, "w", format=form, options=options or {}) as file,
    ):
        film = file.add_stream("mpeg4", rate=5) if picture else None
        if film:
            film.width = film.height = 16
            film.pix_fmt = "yuv420p"
        streams = [file.add_stream(codec, rate=rate) for _ in range(tracks if sound else 0)]
        for stream in streams:
            stream.layout = "mono"
            stream.bit_rate = 12_200 if codec == "libopencore_amrnb" else 64_000
        if film:
            for number in range(int(5 * SECONDS)):
                frame = av.VideoFrame.from_ndarray(
                    np.full((16, 16, 3), 17 * number, np.uint8), format="rgb24"
                )
                frame.pts, frame.time_base = number, Fraction(1, 5)
                file.mux(film.encode(frame))
            file.mux(film.encode(None))
        for number, stream in enumerate(streams):
            pcm = np.round(32767 * speech(rate=rate, seed=number)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            fitted = av.AudioResampler(stream.format, "mono", rate, stream.frame_size or None).resample(frame)
            for piece in fitted:
                file.mux(stream.encode(piece))
            file.mux(stream.encode(None))
        file.close()
        return Path(buffer.name).read_bytes()


WAV, FLAC, MP3 = wav(), sound("FLAC"), sound("MP3")
VORBIS, OPUS = sound("OGG", subtype="VORBIS"), sound("OGG", subtype="OPUS")
FRAME = int(FLAC.rindex(b"\xff\xf8"))  # the last frame of the FLAC file
ID3 = b"ID3\x04\0\0" + bytes([0, 0, 8, 0]) + b"\xff\xfb\x90\x64" * 256  # 1,024 bytes that look like frames

# name of the file, its bytes, the seconds that must be read, and what must be reported
WHOLE: dict[str, tuple[str, Callable[[], bytes], float, Fault]] = {
    "wav": ("a.wav", lambda: WAV, 3, Fault(0)),
    "wav from a pipe, sizes 0": ("a.wav", lambda: sizes(WAV, 0, 0), 3, Fault(0)),
    "wav from a pipe that starts silent": (
        "a.wav", lambda: sizes(wav(np.r_[np.zeros(16_000), speech()]), 0, 0), 4, Fault(0)),
    "wav from ffmpeg's pipe": ("a.wav", lambda: sizes(WAV, 2**32 - 1, 2**32 - 1), 3, Fault(0)),
    "wav from sox's pipe": ("a.wav", lambda: sizes(WAV, 0x7FFFF024, 0x7FFFF000), 3, Fault(0)),
    "wav from arecord": ("a.wav", lambda: sizes(WAV, 2**31 + 36, 2**31), 3, Fault(0)),
    "wav whose recorder crashed": ("a.wav", lambda: sizes(WAV, 36 + 32_000, 32_000), 3, Fault.HEAD),
    "wavs joined by cat": ("a.wav", lambda: WAV + WAV, 6, Fault.HEAD),
    "wav with chunks behind": (
        "a.wav", lambda: WAV + b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf58.29.100\0", 3, Fault(0)),
    "wav with an ID3 tag behind": ("a.wav", lambda: WAV + b"TAG" + b"x" * 125, 3, Fault(0)),
    "wav padded by a file system": ("a.wav", lambda: WAV + bytes(40_000), 3, Fault(0)),
    "wav of 8 bits": ("a.wav", lambda: wav(subtype="PCM_U8"), 3, Fault(0)),
    "wav of 24 bits": ("a.wav", lambda: wav(subtype="PCM_24"), 3, Fault(0)),
    "wav of a telephone": ("a.wav", lambda: wav(subtype="ULAW", rate=8_000), 3, Fault(0)),
    "wav of floats beyond full scale": ("a.wav", lambda: wav(40 * speech(), "FLOAT"), 3, Fault.FLOATING),
    "wav of an odd rate": ("a.wav", lambda: wav(rate=44_099), 3, Fault(0)),
    "wav of ADPCM": ("a.wav", lambda: wav(subtype="MS_ADPCM"), 3, Fault(0)),
    "wav with MP3 in it": ("a.wav", lambda: container("wav", "libmp3lame"), 3.1, Fault(0)),
    "rf64": ("a.wav", lambda: sound("RF64", subtype="PCM_16"), 3, Fault(0)),
    "w64": ("a.w64", lambda: sound("W64", subtype="PCM_16"), 3, Fault(0)),
    "aiff": ("a.aiff", lambda: sound("AIFF", subtype="PCM_16"), 3, Fault(0)),
    "au": ("a.au", lambda: sound("AU", subtype="PCM_16"), 3, Fault(0)),
    "caf": ("a.caf", lambda: sound("CAF", subtype="PCM_16"), 3, Fault(0)),
    "sphere": ("a.sph", lambda: sound("NIST", subtype="PCM_16"), 3, Fault(0)),
    "flac": ("a.flac", lambda: FLAC, 3, Fault(0)),
    "flac of 24 bits": ("a.flac", lambda: sound("FLAC", subtype="PCM_24"), 3, Fault(0)),
    "flac from a pipe": ("a.flac", lambda: total(FLAC, 0), 3, Fault(0)),
    "flac whose head says less": ("a.flac", lambda: total(FLAC, 16_000), 3, Fault.HEAD),
    "flacs joined by cat": ("a.flac", lambda: FLAC + sound("FLAC", speech(1)), 4, Fault.HEAD),
    "flac with an ID3 tag in front": ("a.flac", lambda: ID3 + FLAC, 3, Fault(0)),
    "ogg vorbis": ("a.ogg", lambda: VORBIS, 3, Fault(0)),
    "ogg opus": ("a.opus", lambda: OPUS, 3, Fault(0)),
    "ogg chained": ("a.ogg", lambda: VORBIS + VORBIS, 6, Fault(0)),
    "opus chained": ("a.opus", lambda: OPUS + OPUS, 6, Fault(0)),
    "mp3": ("a.mp3", lambda: MP3, 3, Fault(0)),
    "mp3 without Xing head": ("a.mp3", lambda: without_tag(MP3), 3.1, Fault(0)),
    "mp3s joined by cat": ("a.mp3", lambda: MP3 + MP3, 6, Fault.HEAD),
    "mp3s joined, one without Xing head": ("a.mp3", lambda: MP3 + without_tag(MP3), 6.1, Fault.HEAD),
    "mp3 whose Xing head counts too few": ("a.mp3", lambda: tagged(MP3, 20), 3.1, Fault.HEAD),
    "mp3 with an ID3 tag that looks like frames": ("a.mp3", lambda: ID3 + MP3, 3, Fault(0)),
    "mp3 with ID3 tags in front, between and behind": (
        "a.mp3", lambda: ID3 + MP3 + b"TAG" + b"x" * 125 + ID3 + MP3 + b"TAG" + b"x" * 125, 6, Fault.HEAD),
    "mp3 with an ID3 tag of a wrong size": (
        "a.mp3", lambda: patched(ID3, (6, b"\x7f\x7f\x7f\x7f")) + MP3, 3, Fault(0)),
    "mp3 with bytes before its first frame": ("a.mp3", lambda: b"\0" * 700 + MP3, 3, Fault(0)),
    "mp3 with a hole": ("a.mp3", lambda: MP3[:9_000] + b"?" * 4_000 + MP3[9_000:], 3, Fault.JUNK),
    "mp2": ("a.mp2", lambda: container("mp2", "mp2"), 3, Fault(0)),
    "m4a": ("a.m4a", lambda: container("mp4", "aac"), 3, Fault(0)),
    "m4a of a phone, 48 kHz": ("a.m4a", lambda: container("ipod", "aac", rate=48_000), 3, Fault(0)),
    "alac": ("a.m4a", lambda: container("ipod", "alac"), 3, Fault(0)),
    "3gp": ("a.3gp", lambda: container("3gp", "libopencore_amrnb", rate=8_000), 3, Fault(0)),
    "amr": ("a.amr", lambda: container("amr", "libopencore_amrnb", rate=8_000), 3, Fault(0)),
    "aac of Android": ("a.aac", lambda: container("adts", "aac"), 3, Fault(0)),
    "webm of a browser": ("a.webm", lambda: container("webm", "libopus", rate=48_000), 3, Fault(0)),
    "webm that was streamed": (
        "a.webm", lambda: container("webm", "libopus", rate=48_000, options={"live": "1"}), 3, Fault(0)),
    "mka": ("a.mka", lambda: container("matroska", "aac"), 3, Fault(0)),
    "wma": ("a.wma", lambda: container("asf", "wmav2", rate=44_100), 3, Fault(0)),
    "ac3": ("a.ac3", lambda: container("ac3", "ac3", rate=48_000), 3, Fault(0)),
    "film": ("a.mp4", lambda: container("mp4", "aac", picture=True), 3, Fault(0)),
    "avi": ("a.avi", lambda: container("avi", "ac3", rate=48_000, picture=True), 3, Fault(0)),
    "two tracks": ("a.mka", lambda: container("matroska", "aac", tracks=2), 3, Fault.TRACKS),
    "m4a named .wav": ("a.wav", lambda: container("mp4", "aac"), 3, Fault(0)),
    "wav named .mp3": ("a.mp3", lambda: WAV, 3, Fault(0)),
    "mp3 named .wav": ("a.wav", lambda: MP3, 3, Fault(0)),
}  # fmt: skip

REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "wav cut off": ("a.wav", lambda: WAV[:50_000], r"cut off: 1\.56 s are there, and its head says 3\.00 s"),
    "wav cut off in its head": ("a.wav", lambda: WAV[:30], "cut off"),
    "wav without samples": ("a.wav", lambda: wav(np.zeros(0)), "no samples"),
    "aiff cut off": ("a.aiff", lambda: sound("AIFF", subtype="PCM_16")[:50_000], r"cut off: 1\.56 s"),
    "au cut off": ("a.au", lambda: sound("AU", subtype="PCM_16")[:50_000], r"cut off: 1\.56 s"),
    "caf cut off": ("a.caf", lambda: sound("CAF", subtype="PCM_16")[:50_000], r"cut off: 1\.4\d s"),
    "flac cut off": ("a.flac", lambda: FLAC[: len(FLAC) // 2], r"cut off: 1\.\d\d s"),
    "flac cut off in its last frame": ("a.flac", lambda: FLAC[: FRAME + 200], r"cut off"),
    "flac cut off in its head": ("a.flac", lambda: FLAC[:20], "cut off"),
    "flac whose head says more": ("a.flac", lambda: total(FLAC, 160_000), r"its head says 10\.00 s"),
    "vorbis cut off": ("a.ogg", lambda: VORBIS[: len(VORBIS) // 2], "cut off"),
    "opus cut off": ("a.opus", lambda: OPUS[:-100], "cut off"),
    "mp3 cut off": ("a.mp3", lambda: MP3[: len(MP3) // 2], r"cut off: 1\.\d\d s .* says 3\.\d\d s"),
    "mp3 without head cut off": ("a.mp3", lambda: without_tag(MP3)[:-50], "cut off"),
    "second of joined mp3s cut off": ("a.mp3", lambda: MP3 + MP3[:5_000], "s of part 2 are there"),
    "mp3s of two rates joined": ("a.mp3", lambda: MP3 + sound("MP3", rate=8_000), "different sample rates"),
    "m4a cut off": ("a.m4a", lambda: container("mp4", "aac")[:9_000], "M4A/MP4 .*cut off"),
    "m4a for the web cut off": (
        "a.m4a", lambda: container("mp4", "aac", options={"movflags": "faststart"})[:9_000], "cut off"),
    "webm cut off": ("a.webm", lambda: container("webm", "libopus", rate=48_000)[:9_000], "cut off"),
    "amr cut off": ("a.amr", lambda: container("amr", "libopencore_amrnb", rate=8_000)[:-7], "AMR .*cut off"),
    "film without sound": (
        "a.mp4", lambda: container("mp4", "aac", picture=True, sound=False), "video alone"),
    "page of a failed download": ("a.wav", lambda: b"<!DOCTYPE html><html><body>404", "HTML page"),
    "git-lfs pointer": (
        "a.flac", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "git-annex pointer": ("a.wav", lambda: b"/annex/objects/SHA256E-s12--00.wav\n", "git annex get"),
    "empty": ("a.wav", lambda: b"", r"empty \(0 bytes\)"),
    "zeros": ("a.wav", lambda: bytes(50_000), "zero bytes"),
    "json": ("a.wav", lambda: b'{"error": "not found"}', "text, not audio"),
    "zip": ("a.wav", lambda: b"PK\x03\x04" + bytes(100), "zip archive"),
    "gzip": ("a.wav", lambda: b"\x1f\x8b\x08" + bytes(100), "gzip"),
    "jpeg": ("a.mp3", lambda: b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(100), "JPEG image"),
    "midi": ("a.mid", lambda: b"MThd\0\0\0\x06", "MIDI"),
    "wav with a damaged rate": ("a.wav", lambda: patched(WAV, (24, b"\x03\0\0\0")), "sample rate of 3 Hz"),
    "raw samples": ("a.wav", lambda: WAV[44:], "no known audio format"),
    "shorten": ("a.shn", lambda: b"ajkg\x02" + bytes(100), "Shorten"),
    "NaN": ("a.wav", lambda: wav(np.r_[speech(), np.float32(np.nan)], "FLOAT"), "NaN"),
}  # fmt: skip


ONLY_DECODING_FINDS = ("NaN", "flac cut off in its last frame")


def lay(folder: Path, name: str, data: bytes, **fields: object) -> Path:
    (folder / name).write_bytes(data)
    (folder / "m.jsonl").write_text(
        "\n" + json.dumps({"audio": name, "text": "x", "id": "x", **fields}) + "\n"
    )
    return folder / "m.jsonl"


@pytest.mark.parametrize("what", WHOLE)
def test_read_whole(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, data, seconds, faults = WHOLE[what]
    (utterance,) = manifest.read_manifest(lay(tmp_path, name, data()))
    # encoders of phones begin and end with some silence of their own
    assert utterance.duration == pytest.approx(seconds, abs=0.1)
    pcm, source = writer.read_utterance(utterance)
    assert len(pcm) / RATE == pytest.approx(seconds, abs=0.1)
    assert Fault(source.faults) == faults
    middle = audio.read_audio(utterance.audio, 1.0, 1.0)  # the samples of a segment are those of the whole
    assert len(middle) == pytest.approx(RATE, abs=2)
    low = audio.to_float(pcm[RATE : 2 * RATE])
    assert np.corrcoef(low, audio.to_float(np.resize(middle, RATE)))[0, 1] > 0.99
    assert capfd.readouterr() == ("", ""), "decoders must not write to the terminal"


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_file_and_line(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, data, message = REFUSED[what]
    path = lay(tmp_path, name, data())

    def use() -> None:
        writer.build(manifest.read_manifest(path), tmp_path / "out")

    with pytest.raises(UserError, match=rf"line 2\b.*\b{name}\b.*{message}"):
        use()
    assert capfd.readouterr() == ("", ""), "decoders must not write to the terminal"
    if what not in ONLY_DECODING_FINDS:  # for transcribe loads the model before it
        assert cli.main(["transcribe", str(tmp_path / name)]) == 2
        assert name in capfd.readouterr().err
    assert cli.main(["manifest", "check", str(path), "--domain", str(path)]) == 3
    assert name in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
@pytest.mark.parametrize("duration", [2.0, 5.0])
def test_a_duration_that_contradicts_the_file(name: str, duration: float, tmp_path: Path) -> None:
    data = {"a.wav": WAV, "a.flac": FLAC, "a.mp3": MP3, "a.ogg": VORBIS}[name]
    path = lay(tmp_path, name, data, duration=duration)
    with pytest.raises(UserError, match=rf"line 2: .*duration says {duration:g} s, and .*{name} holds 3"):
        manifest.read_manifest(path)
    assert manifest.read_manifest(lay(tmp_path, name, data, duration=3.02))[0].duration == pytest.approx(3)


def test_segments_of_long_files_are_those_of_the_samples(tmp_path: Path) -> None:
    """Decoders jump where they can, and land on the right sample."""
    wave = np.concatenate([speech(seed=number) for number in range(5)])
    coded = {
        "a.wav": wav(wave), "a.flac": sound("FLAC", wave), "a.ogg": sound("OGG", wave, "VORBIS"),
        "a.mp3": sound("MP3", wave), "b.mp3": sound("MP3", wave[: 7 * RATE]) + sound("MP3", wave[7 * RATE :]),
    }  # fmt: skip
    buffer = io.BytesIO()
    with av.open(io.BytesIO(coded["a.wav"])) as source, av.open(buffer, "w", format="mp4") as target:
        stream = target.add_stream("aac", rate=RATE)
        stream.layout = "mono"
        for frame in source.decode(audio=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    coded["a.m4a"] = buffer.getvalue()
    for name, data in coded.items():
        (tmp_path / name).write_bytes(data)
        part = audio.to_float(audio.read_audio(tmp_path / name, 11.3, 1.5))
        assert len(part) == 1.5 * RATE
        around = [wave[round(11.3 * RATE) + shift :][: len(part)] for shift in range(-40, 41)]
        best = int(np.argmax([np.corrcoef(part, there)[0, 1] for there in around])) - 40
        assert abs(best) <= 1, f"{name} is {best} samples off"


# --- faults of the signal

LEFT = speech()
SIGNALS: dict[str, tuple[np.ndarray, str, np.ndarray]] = {  # samples, the finding, what must come out
    "DC offset": (LEFT + 0.02, "dc offset", LEFT),
    "DC offset that drifts": (LEFT + np.linspace(0, 0.04, len(LEFT)), "dc offset", LEFT),
    "DC offset of one channel": (np.stack([LEFT + 0.3, LEFT], 1), "dc offset", LEFT),
    "opposite phase": (np.stack([LEFT, -LEFT], 1), "opposite phase", LEFT),
    "opposite phase, one quieter": (np.stack([0.5 * LEFT, -LEFT], 1), "opposite phase", -LEFT),
    "opposite phase with noise": (
        np.stack([LEFT, -LEFT + 0.01 * speech(seed=1)], 1), "opposite phase", LEFT),
    "dead channel": (np.stack([np.zeros_like(LEFT), LEFT], 1), "dead channel", LEFT),
    "dead channel with an offset": (np.stack([np.full_like(LEFT, 0.1), LEFT], 1), "dead channel", LEFT),
    "clipped": (np.clip(20 * LEFT, -1, 1), "clipped", np.clip(20 * LEFT, -1, 1)),
    "faint": (0.01 * LEFT, "faint", LEFT),
    "muted in the middle": (
        LEFT * (np.abs(np.arange(len(LEFT)) - 24_000) > 8_000), "digital silence",
        LEFT * (np.abs(np.arange(len(LEFT)) - 24_000) > 8_000)),
    "silence in front": (np.r_[np.zeros(20_000), LEFT], "digital silence", np.r_[np.zeros(20_000), LEFT]),
}  # fmt: skip


@pytest.mark.parametrize("what", SIGNALS)
def test_faults_of_the_signal_are_reported_and_taken_out(what: str, tmp_path: Path) -> None:
    samples, finding, right = SIGNALS[what]
    (utterance,) = manifest.read_manifest(lay(tmp_path, "a.wav", wav(samples, "FLOAT")))
    built = writer.build([utterance], tmp_path / "out")
    found = list(check_sound("domain", list(built.samples), HARMLESS))
    assert finding in [one.numbers["what"] for one in found]
    assert all("'x'" in one.message and not one.stops for one in found)
    heard = audio.to_float(built.read(0))
    assert abs(np.corrcoef(heard, right)[0, 1]) > 0.999
    assert abs(float(heard.mean())) < 1e-3


def test_silence_under_an_offset_is_silence(tmp_path: Path) -> None:
    path = lay(tmp_path, "a.wav", wav(np.full(16_000, 0.1)))
    assert writer.build(manifest.read_manifest(path), tmp_path / "out").rejected == {"silent": 1}


def test_sound_recordings_give_no_finding(tmp_path: Path) -> None:
    wave = np.stack([LEFT, 0.7 * LEFT + 0.3 * speech(seed=1)], 1)
    built = writer.build(manifest.read_manifest(lay(tmp_path, "a.wav", wav(wave))), tmp_path / "out")
    assert not list(check_sound("domain", list(built.samples), HARMLESS))


# --- folders of recordings, with PyAV and without


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in {
        "a.m4a": container("mp4", "aac"), "b.amr": container("amr", "libopencore_amrnb", rate=8_000),
        "c.webm": container("webm", "libopus", rate=48_000), "d.wav": WAV,
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("hello")
    return folder


def test_a_folder_of_phones_recordings_is_imported(recordings: Path, tmp_path: Path) -> None:
    assert cli.main(["manifest", "import", str(recordings), "--output", str(tmp_path / "m.jsonl")]) == 0
    assert [u.id for u in manifest.read_manifest(tmp_path / "m.jsonl")] == ["a", "b", "c", "d"]


def test_without_pyav_the_extra_and_the_files_are_named(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    decode._measured.cache_clear()
    assert cli.main(["manifest", "import", str(recordings), "--output", str(tmp_path / "m.jsonl")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for suffix in (".m4a", ".amr", ".webm"):
        assert f"1 whose audio ({suffix}) needs PyAV (uv sync --extra av)" in said
    assert cli.main(["transcribe", str(recordings / "a.m4a")]) == 2
    said = capsys.readouterr().err
    assert "a.m4a" in said
    assert "uv sync --extra av" in said
