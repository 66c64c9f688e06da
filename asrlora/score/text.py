"""How text is normalised before it is scored: by a normaliser of NAMES, or a file of rules.

A file of rules is YAML. Its rules are regular expressions of Python's `re`, applied in order to what
the base has made of a text; `base` is one of the names above, and `none` where it is left out:

    base: whisper-english
    rules:
      - match: '\\bok\\b'
        replace: okay

Whatever the normaliser, characters that look the same are made the same first (characters.py), and
white space around words is taken away and words are parted by one space.
"""

import functools
import hashlib
import importlib.metadata
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic
import yaml

from asrlora.errors import UserError
from asrlora.score import brackets, characters

KEEP_BRACKETS = "whisper-english-keep-brackets"
NAMES = ("whisper-english", KEEP_BRACKETS, "open-asr-leaderboard", "basic", "basic-keep-marks", "none")
LIBRARY_VERSION = importlib.metadata.version("whisper-normalizer")
# What we make of `none`, of brackets and of rules ourselves; a change of it is a change of scores.
OUR_VERSION = "1"
LEADERBOARD = "d1e99b2"  # the commit of huggingface/open_asr_leaderboard that ours follows
# Their scripts write vowels and tones with combining marks, which `basic` makes to spaces as Whisper does.
MARKED = frozenset("as bn bo dv dz gu hi km kn lo ml mr my ne or pa sa si ta te th".split())


@dataclass(frozen=True)
class Normaliser:
    """A function of texts, and what identifies it."""

    fingerprint: Mapping[str, str]
    rewrite: Callable[[str], str]

    def __call__(self, text: str) -> str:
        return " ".join(self.rewrite(characters.for_scoring(text)).split())


class _Rule(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    match: str
    replace: str


class _Rules(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    base: str = pydantic.Field("none", pattern=f"^({'|'.join(NAMES)})$")
    rules: list[_Rule] = pydantic.Field(min_length=1)


def normaliser(chosen: str | None, language: str) -> Normaliser:
    """`chosen` is a name, or the path of a file of rules; without it the language decides.

    English texts get Whisper's English normaliser, all others Whisper's basic one, with combining marks kept
    where their scripts need them. Raises UserError that names the file and the rule at fault.
    """
    if chosen is None:
        chosen = "whisper-english" if language == "en" else "basic"
        chosen += "-keep-marks" if language in MARKED else ""
    if chosen == "open-asr-leaderboard" and language != "en":
        raise UserError(
            f"--text-normaliser open-asr-leaderboard is the leaderboard's for English, not for --language"
            f" {language}; leave it out, or give basic"
        )
    if chosen in NAMES:
        return Normaliser(_described(name=chosen, version=_version(chosen)), _named(chosen))
    path = Path(chosen)
    if not path.is_file():
        raise UserError(
            f"--text-normaliser {chosen}: neither {', '.join(NAMES)} nor a file of rules that exists"
        )
    return _from_file(path)


def _from_file(path: Path) -> Normaliser:
    where = f"--text-normaliser {path}"
    try:
        rules = _Rules.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{where}: no readable YAML ({' '.join(str(error).split())})") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        raise UserError(
            f"{where}: {at or 'the file'}: {first['msg'][0].lower()}{first['msg'][1:]}; it must hold base and"
            " rules, each rule with match and replace"
        ) from None
    steps = []
    for number, rule in enumerate(rules.rules, 1):
        try:
            pattern = re.compile(rule.match)
            pattern.sub(rule.replace, "")  # names a group that is not there
        except (re.error, IndexError) as error:
            raise UserError(f"{where}: rule {number}: no regular expression ({error})") from None
        steps.append((pattern, rule.replace))
    start = _named(rules.base)

    def rewrite(text: str) -> str:
        text = Normaliser({}, start)(text)
        for pattern, replacement in steps:
            text = pattern.sub(replacement, text)
        return text

    # of what the rules say, so that a comment or another path changes nothing
    content = json.dumps(rules.model_dump(), sort_keys=True, ensure_ascii=False)
    fingerprint = _described(
        name="rules",
        version=OUR_VERSION,
        base=rules.base,
        base_version=_version(rules.base),
        sha256=hashlib.sha256(content.encode()).hexdigest(),
    )
    return Normaliser(fingerprint, rewrite)


def _described(**fields: str) -> dict[str, str]:
    return {**fields, "characters": characters.VERSION}


def _version(name: str) -> str:
    if name == "none":
        return OUR_VERSION
    ours = {"open-asr-leaderboard": f", {LEADERBOARD}", KEEP_BRACKETS: f", {OUR_VERSION}"}
    return LIBRARY_VERSION + ours.get(name, "")


@functools.cache
def _named(name: str) -> Callable[[str], str]:
    if name == "none":
        return str
    if name == "open-asr-leaderboard":
        return _leaderboard()
    if name.startswith("basic"):
        from whisper_normalizer.basic import BasicTextNormalizer

        basic: Callable[[str], str] = BasicTextNormalizer(preserve_marks=name == "basic-keep-marks")
        return basic
    from whisper_normalizer.english import EnglishTextNormalizer

    english: Callable[[str], str] = EnglishTextNormalizer()
    if name == KEEP_BRACKETS:
        return lambda text: english(brackets.keep_words(text))
    return english


# --- the Open ASR leaderboard's, where it differs from Whisper's

_FILLERS = "hmm mm mhm mmm uh um ah aha ahh ahm eh ehehe em hm huh hum mhum uhm umm uhuh".split()
_NOT_EXPANDED = ("kinda", "sorta", "dunno", "cause")  # Whisper's later versions do
_IS = "it he she what that who here there how when where why this".split()  # others own what follows


def _table(rows: str) -> dict[str, str]:
    """ "wi fi: wifi, ok: okay" """
    return dict(row.strip().split(": ") for row in rows.split(","))


_COMPOUNDS = _table(
    """et cetera: etc, al right: alright, all right: alright, how ever: however, wi fi: wifi, hi fi: hifi,
    lo fi: lofi, sci fi: scifi, e mail: email, e book: ebook, e commerce: ecommerce, x ray: xray,
    t shirt: tshirt, a m: am, p m: pm, o k: okay"""
)
_SPELLINGS = _table(
    """ok: okay, kay: okay, etcetera: etc, flyer: flier, snowploughs: snowplows, pummelled: pummeled,
    pummelling: pummeling, archaeology: archeology, archaeological: archeological,
    archeological: archeological, cancellation: cancelation, cancelation: cancelation,
    cancellations: cancelations, cancelations: cancelations, travelogue: travelog, travelog: travelog,
    travelogues: travelogs, travelogs: travelogs"""
)


def _leaderboard() -> Callable[[str], str]:
    """normalizer/normalizer.py of huggingface/open_asr_leaderboard at LEADERBOARD (21 August 2026), made of
    Whisper's: further fillers go, letters spoken one by one are joined, "'s" is "is" after few words only,
    and some spellings and compounds differ. Its table of spellings of 152 first names is left out."""
    from whisper_normalizer.english import EnglishTextNormalizer

    english = EnglishTextNormalizer()
    english.ignore_patterns = _any_of(_FILLERS)
    for word in _NOT_EXPANDED:
        del english.replacers[rf"\b{word}\b"]
    short_is = {r"'s\b": (_any_of(_IS) + r"'s\b", r"\1 is")}
    english.replacers = dict(
        short_is.get(pattern, (pattern, to)) for pattern, to in english.replacers.items()
    )
    compounds = re.compile(_any_of(_COMPOUNDS).replace(" ", r"\s+"))
    numbers, spellings = english.standardize_numbers, english.standardize_spellings
    spellings.mapping.update(_SPELLINGS)
    english.standardize_numbers = lambda text: numbers(
        compounds.sub(lambda found: _COMPOUNDS[" ".join(found[0].split())], text)
    )
    english.standardize_spellings = lambda text: _join_letters(spellings(text))
    made: Callable[[str], str] = english
    return made


def _any_of(words: Iterable[str]) -> str:
    return rf"\b({'|'.join(words)})\b"


def _join_letters(text: str) -> str:
    """ "b b c" becomes "bbc" and "5 g" "5g"; "a" and "i" are words, unless three such stand together."""
    joined: list[str] = []
    for single, group in itertools.groupby(text.split(), lambda word: len(word) == 1 and word.isalnum()):
        words = list(group)
        enough = 3 if {"a", "i"} & set(words) else 2
        joined += ["".join(words)] if single and len(words) >= enough else words
    return " ".join(joined)
