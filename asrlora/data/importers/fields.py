"""What other projects call our fields, and which of their fields change what a record means.

One table for all formats. Names are compared without case, spaces and marks: `Start Time (ms)`,
`start_time_ms` and `startTimeMs` are one name. A field that changes the meaning (where a segment lies, which
channel, at what speed, ...) is read or refused by name; all others are kept as they are.
"""

import functools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["start", "end", "duration"]
OURS = frozenset(("id", "audio", "text", "duration", "offset", "speaker"))  # a manifest's own
SAME = 0.1  # seconds within which two statements of one time agree: rounding of whoever wrote them

# What others call a field; of several that are there the first is read.
AUDIO = """audio path audio_filepath file_name file wav_filename audio_path audio_file file_path wav wav_path
wav_file sound sound_file clip clip_path recording_path media_path mp3 flac""".split()
TEXT = "text sentence transcript transcription transcribed_text txt wrd".split()
# looked at where none of TEXT is there
OTHER_TEXT = """normalized_text raw_text raw_transcription normalized_transcription reference ref label target
phrase caption words content utterance_text""".split()
NAMES = {
    "audio": AUDIO,
    "text": [*TEXT, *OTHER_TEXT],
    "id": "id utt_id utterance_id utt".split(),
    "speaker": "speaker speaker_id client_id spk spk_id speaker_name talker".split(),
    "channel": "channel audio_channel channel_id channel_index channel_selector channel_number chan".split(),
    "language": "language lang locale language_code lang_code source_lang src_lang source_language".split(),
    "target language": "target_lang target_language tgt_lang".split(),
    "task": "task task_name".split(),
    "speed": "speed speed_factor speed_perturb playback_rate playback_speed tempo".split(),
    "rate": "sampling_rate sample_rate sr sampling_frequency".split(),
    "split": "split subset partition set".split(),
    "tar": ["shard_id"],
}

# A time's name: of what, its role, its unit. PART in front of `length` or a unit behind it makes it a time.
PART = """segment seg utterance utt sentence phrase turn speech clip audio chunk interval cut cue subtitle
caption region window event annotation line item media file wav timestamp time offset t""".split()
# tmin and xmin are Praat's; the last words of each are German, French, Spanish and Italian
ROLES: dict[Role, list[str]] = {
    "start": """start begin beginning onset offset from tmin xmin
    beginn anfang début debut inicio inizio""".split(),
    "end": "end ending stop finish until to tmax xmax ende fin fine".split(),
    "duration": "duration dur length len dauer durée duree duración duracion durata".split(),
}
UNITS: dict[str, float | str] = {
    **dict.fromkeys("s sec secs second seconds".split(), 1.0),
    **dict.fromkeys("ms msec msecs millis millisecond milliseconds".split(), 1e-3),
    **dict.fromkeys("min mins minute minutes".split(), 60.0),
    **dict.fromkeys("sample samples".split(), "samples"),
    **dict.fromkeys("frame frames".split(), "frames"),
}
TIME = re.compile(
    rf"(?P<part>(?:{'|'.join(PART)})*)"
    rf"(?P<role>{'|'.join(word for words in ROLES.values() for word in words)})"
    rf"(?:time|timestamp|offset|position|at|in|zeit)*(?P<unit>{'|'.join(UNITS)})?"
)
COUNTED: dict[str, tuple[Role, str]] = {
    **dict.fromkeys("numsamples nsamples samplecount".split(), ("duration", "samples")),
    **dict.fromkeys("numframes nframes framecount".split(), ("duration", "frames")),
    **dict.fromkeys("sampleoffset samplestart".split(), ("start", "samples")),
    "sampleend": ("end", "samples"),
    **dict.fromkeys("frameoffset framestart".split(), ("start", "frames")),
    "frameend": ("end", "frames"),
}
# times where they hold [start, end]
PAIRS = frozenset(("timestamp", "timestamps", "span", "interval", "segment"))

NUMBER = re.compile(r"\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+")
COMMA_NUMBER = re.compile(r"\d+,\d+")
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{2}(?:[.,]\d+)?)")  # 1:02:03.5 or 02:03.5
LETTERS = {"a": 0, "b": 1, "l": 0, "r": 1, "left": 0, "right": 1}  # of channels
TRANSLATION = re.compile(r"translat|^ast$|^st$|^s2tt$")
# the two letters that --language takes, and other spellings of them
LANGUAGES = {
    name: code
    for code, *names in map(
        str.split,
        """ar arabic ara
cs czech ces cze
cy welsh cym
de german deutsch deu ger
en english eng
es spanish spa
fr french fra fre
hi hindi hin
it italian ita
ja japanese jpn
ko korean kor
nl dutch nld
pl polish pol
pt portuguese por
ru russian rus
sv swedish swe
th thai tha
tr turkish tur
uk ukrainian ukr
vi vietnamese vie
zh chinese mandarin zho chi cmn""".splitlines(),
    )
    for name in names
}


@dataclass(frozen=True)
class Time:
    """A time as a record gives it."""

    name: str  # of the field, as written
    role: Role
    value: float
    unit: Literal["s", "samples"] = "s"

    def seconds(self, rate: int) -> float:
        """The time in seconds, in audio of `rate` Hz."""
        return round(self.value / rate, 6) if self.unit == "samples" else self.value


@dataclass(frozen=True)
class Record:
    """A record of any format, in our terms."""

    audio: Any = None  # a path; or what JSON holds in its place: samples, or {"path", "bytes", "array"}
    text: str | None = None
    id: str | None = None
    speaker: str | None = None
    times: tuple[Time, ...] = ()
    channels: tuple[int, ...] | None = None  # counted from 0; None: the file as it is
    rate: int | None = None  # Hz, as the record says
    language: str | None = None
    split: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # our field -> what it was read from
    extra: dict[str, Any] = field(default_factory=dict)


CHANGING = ("channel", "language", "split", "rate")


def fold(name: str) -> str:
    """A name without case, spaces and marks."""
    return re.sub(r"[\W_]+", "", name).casefold()


FOLDED = {fold(name): (ours, rank) for ours, names in NAMES.items() for rank, name in enumerate(names)}


@functools.lru_cache(maxsize=4096)
def time_of(name: str) -> tuple[Role, float | str] | None:
    """(role, unit) of a field that holds a time: seconds in one of the unit, "samples" or "frames"."""
    folded = fold(name)
    if folded in COUNTED:
        return COUNTED[folded]
    match = TIME.fullmatch(folded)
    if match is None or (match["role"] in ("length", "len") and not match["part"] and not match["unit"]):
        return None
    role = next(role for role, words in ROLES.items() if match["role"] in words)
    return role, UNITS[match["unit"]] if match["unit"] else 1.0


@functools.lru_cache(maxsize=4096)
def meaning(name: str) -> str | None:
    """Which of NAMES, or "time"; None: a further key, which is kept."""
    if found := FOLDED.get(fold(name)):
        return found[0]
    return "time" if time_of(name) else None


def understand(
    record: Mapping[str, Any], text_field: str | None = None, *, decimal_comma: bool = False
) -> Record:
    """The record in our terms. Raises ValueError that names the field that cannot be read.

    `text_field` is the field that holds the text, where names alone do not say it.
    """
    filled = {name: value for name, value in record.items() if value is not None and value != ""}
    found: dict[str, list[Any]] = {}
    for name in filled:
        found.setdefault(meaning(name) or "", []).append(name)
    for alike in found.values():
        alike.sort(key=lambda name: FOLDED.get(fold(name), ("", 0))[1])
    refuse_unread(filled)
    times = read_times(filled, decimal_comma)
    names = {
        "audio": _audio(filled, found.get("audio", [])),
        "text": _text(filled, found.get("text", []), text_field),
        **{ours: found.get(ours, [None])[0] for ours in ("id", "speaker", *CHANGING)},
    }
    used = {name for ours, name in names.items() if name and ours in (*OURS, "channel")}
    used |= {time.name for time in times}
    read = {ours: name for ours, name in names.items() if name}
    read |= {{"start": "offset"}.get(time.role, time.role): time.name for time in times}
    get = {ours: filled[name] if name else None for ours, name in names.items()}
    return Record(
        get["audio"],
        _string(names["text"], get["text"]),
        _string(names["id"], get["id"], number=True),
        _string(names["speaker"], get["speaker"], number=True),
        times,
        _channels(names["channel"], get["channel"]),
        _rate(get["rate"]),
        get["language"] if isinstance(get["language"], str) else None,
        get["split"] if isinstance(get["split"], str) else None,
        read,
        {_kept_as(name): value for name, value in record.items() if name not in used},
    )


def _kept_as(name: str) -> str:
    """What a further key is called in a manifest, where some names mean something."""
    return f"source_{name}" if name in OURS or meaning(name) in ("time", "channel") else name


def _audio(filled: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The field that names the audio. Raises ValueError where two name different files."""
    if not names:
        return None
    files = {name: re.split(r"[\\/]", value)[-1] for name in names if isinstance(value := filled[name], str)}
    if (
        isinstance(filled[names[0]], str)
        and len({file.rpartition(".")[0] or file for file in files.values()}) > 1
    ):
        shown = " and ".join(f"{name} ({filled[name][:60]})" for name in files)
        raise ValueError(f"{shown} name different audio; take the one out that is not meant")
    return names[0]


def _text(filled: Mapping[str, Any], names: Sequence[str], wanted: str | None) -> str | None:
    """The field that holds the text. Raises ValueError where several hold different texts."""
    if wanted is not None:
        return next((name for name in filled if fold(name) == fold(wanted)), None)
    first = [name for name in names if FOLDED[fold(name)][1] < len(TEXT)]
    names = first or [name for name in names if isinstance(filled[name], str)]
    if len({filled[name].strip() for name in names if isinstance(filled[name], str)}) > 1:
        raise ValueError(
            f"{' and '.join(names)} hold different texts; choose one with --text-field {names[0]}"
        )
    return names[0] if names else None


def _string(name: str | None, value: Any, number: bool = False) -> str | None:
    if number and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the field {name} must be a string, not {_shown(value)}")
    return value


def read_times(filled: Mapping[str, Any], decimal_comma: bool = False) -> tuple[Time, ...]:
    """All fields that hold times. Raises ValueError where one holds none, or frames of unknown length."""
    times: list[Time] = []
    frames: list[tuple[str, Role]] = []
    for name, value in filled.items():
        if fold(name) in PAIRS and isinstance(value, list | tuple) and len(value) == 2:
            start, end = (_number(name, part, 1.0) for part in value)
            times += [Time(name, "start", start), Time(name, "end", end)]
        elif (FOLDED.get(fold(name)) is None) and (found := time_of(name)):
            role, unit = found
            if unit == "frames":
                frames.append((name, role))
                continue
            number = _number(name, value, unit, decimal_comma)
            times.append(Time(name, role, number, "samples" if unit == "samples" else "s"))
    placed = [frame for frame in frames if frame[1] != "duration"]
    if placed or (frames and any(time.role == "start" for time in times)):
        raise ValueError(
            f"{(placed or frames)[0][0]} counts frames, of a length that nobody says; write seconds, in the"
            " fields offset and duration"
        )
    return tuple(times)


def _number(name: str, value: Any, unit: float | str, decimal_comma: bool = False) -> float:
    """A number in seconds or samples. Raises ValueError where it is none."""
    number = value
    if isinstance(value, str):
        word = value.strip()
        clock = CLOCK.fullmatch(word)
        if NUMBER.fullmatch(word):
            number = float(word)
        elif unit == 1.0 and decimal_comma and COMMA_NUMBER.fullmatch(word):
            number = float(word.replace(",", "."))
        elif unit == 1.0 and clock:
            hours, minutes, seconds = clock.groups()
            number = 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", "."))
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or not 0 <= number <= sys.float_info.max
    ):
        example = (
            "seconds from the beginning of the audio, such as 2.37"
            if unit == 1.0
            else "a number, such as 2370"
        )
        raise ValueError(
            f"the field {name} must be {example}, not {_shown(value)}; if it is something else, give it"
            " another name"
        )
    return round(float(number) * unit, 6) if isinstance(unit, float) and unit != 1.0 else float(number)


def segment(times: Sequence[Time], rate: int) -> tuple[float | None, float | None]:
    """Start and duration in seconds, as far as given; `rate` is the file's, in Hz.

    Raises ValueError where the fields contradict each other.
    """
    given: dict[str, tuple[str, float]] = {}
    for time in times:
        seconds = time.seconds(rate)
        name, known = given.setdefault(time.role, (time.name, seconds))
        if abs(known - seconds) > SAME:
            raise ValueError(f"{name} ({known:g} s) and {time.name} ({seconds:g} s) contradict each other")
    start, end, duration = (given.get(role) for role in ROLES)
    if end is None:
        return start[1] if start else None, duration[1] if duration else None
    if start is None:
        raise ValueError(f"{end[0]} ends a segment whose start is not given; write it too, as offset")
    if end[1] <= start[1]:
        raise ValueError(f"{end[0]} ({end[1]:g} s) is not behind {start[0]} ({start[1]:g} s)")
    if duration and abs(end[1] - start[1] - duration[1]) > SAME:
        raise ValueError(
            f"{start[0]} and {end[0]} ({start[1]:g} to {end[1]:g} s) contradict {duration[0]}"
            f" ({duration[1]:g} s)"
        )
    return start[1], round(end[1] - start[1], 6)


def refuse_unread(filled: Mapping[str, Any]) -> None:
    """Raises ValueError for a field that says that the text is not what is said in the file as it is."""
    known: dict[str, tuple[str, Any]] = {}
    for name, value in filled.items():
        if (what := meaning(name)) in ("task", "speed", "tar", "language", "target language"):
            known.setdefault(what, (name, value))
    name, value = known.get("task", ("", ""))
    if TRANSLATION.search(fold(str(value))):
        raise ValueError(
            f"{name} is {_shown(value)}: the text is a translation, and not what is said; take the line out"
        )
    target = known.get("target language")
    source = known.get("language")
    if target and source and language_code(str(target[1])) != language_code(str(source[1])):
        raise ValueError(
            f"{target[0]} is {_shown(target[1])} and {source[0]} {_shown(source[1])}: the text is a"
            " translation, and not what is said; take the line out"
        )
    name, value = known.get("speed", ("", 1))
    try:
        plain = float(value) == 1
    except (TypeError, ValueError):
        plain = False
    if not plain:
        raise ValueError(
            f"{name} is {_shown(value)}: a file is read at its own speed; write the audio as it is meant to"
            f" a file, and take {name} out"
        )
    if "tar" in known:
        raise ValueError(
            f"{known['tar'][0]} says that the audio lies in a tar; unpack the tars, and take"
            f" {known['tar'][0]} out"
        )


def refuse_in_manifest(record: Mapping[str, Any], count_channels: Callable[[], int]) -> None:
    """Raises ValueError for a further key of a manifest's line that would change what the line means.

    `count_channels` gives the number of channels of the audio file. Keys that repeat what `offset` and
    `duration` say are kept.
    """
    further = {name: v for name, v in record.items() if name not in OURS and v is not None and v != ""}
    if not any(meaning(name) or fold(name) in PAIRS for name in further):
        return
    refuse_unread(further)
    times = read_times(further)
    offset, duration = record.get("offset"), record.get("duration")
    at: dict[str, float] = {"start": offset} if offset is not None else {}
    if offset is not None and duration is not None:
        at |= {"duration": duration, "end": offset + duration}
    for time in times:
        if time.role == "duration" and (offset is None or time.unit == "samples"):
            continue  # a note, as `duration` itself is without offset
        if offset is None:
            shown = ", ".join(dict.fromkeys(other.name for other in times))
            raise ValueError(
                f"{shown}: no fields of a manifest, whose segments are offset and duration, in seconds;"
                " write those, or have asrlora manifest import convert the file"
            )
        if time.unit == "samples" or time.role not in at or abs(at[time.role] - time.value) > SAME:
            raise ValueError(
                f"{time.name} ({time.value:g}) contradicts offset and duration; take out what is wrong"
            )
    for name, value in further.items():
        if meaning(name) == "channel" and (wanted := _channels(name, value)) is not None:
            count = count_channels()
            if set(wanted) != set(range(count)):
                raise ValueError(
                    f"{name} is {_shown(value)}, and the file has {count}: a manifest's audio is all"
                    " channels of its file; asrlora manifest import writes a channel to a file of its own"
                )


def _channels(name: str | None, value: Any) -> tuple[int, ...] | None:
    """Channels counted from 0; None for the file as it is."""
    if value is None or (isinstance(value, str) and fold(value) in ("", "mono", "mix", "mixed", "all")):
        return None
    channels = []
    for part in value if isinstance(value, list | tuple) else [value]:
        number = LETTERS.get(fold(part)) if isinstance(part, str) else part
        if number is None and re.fullmatch(r"\d+(\.0)?", str(part).strip()):
            number = int(float(part))
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(
                f"the field {name} must be a channel counted from 0, or A or B, not {_shown(value)}"
            )
        channels.append(number)
    return tuple(channels)


def _rate(value: Any) -> int | None:
    text = str(value).strip()
    return int(float(text)) if re.fullmatch(r"\d+(\.0*)?", text) else None


def language_code(name: str) -> str:
    """ "de" of "de-AT", "de_AT", "deu" and "German"; of what is not known the first part."""
    word = re.split(r"[-_ ]", name.strip().casefold())[0]
    return LANGUAGES.get(word, word)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]
