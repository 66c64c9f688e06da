"""How text is normalised before it is scored: whisper-english, basic, none, or a file of rules.

A file of rules is YAML. Its rules are regular expressions of Python's `re`, applied in order to what
the base has made of a text; `base` is one of the names above, and `none` where it is left out:

    base: whisper-english
    rules:
      - match: '\\bok\\b'
        replace: okay

Whatever the normaliser, white space around words is taken away and words are parted by one space.
"""

import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic
import yaml

from asrlora.errors import UserError

NAMES = ("whisper-english", "basic", "none")
LIBRARY_VERSION = importlib.metadata.version("whisper-normalizer")
# What we make of `none` and of rules ourselves; a change of it is a change of scores.
OUR_VERSION = "1"


@dataclass(frozen=True)
class Normaliser:
    fingerprint: Mapping[str, str]
    rewrite: Callable[[str], str]

    def __call__(self, text: str) -> str:
        return " ".join(self.rewrite(text).split())


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

    English texts get the normaliser of the Open ASR leaderboard, which is Whisper's English one; all
    others Whisper's basic one. Raises UserError that names the file and the rule at fault.
    """
    if chosen is None:
        chosen = "whisper-english" if language == "en" else "basic"
    if chosen in NAMES:
        version = OUR_VERSION if chosen == "none" else LIBRARY_VERSION
        return Normaliser({"name": chosen, "version": version}, _named(chosen))
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
    fingerprint = {
        "name": "rules",
        "version": OUR_VERSION,
        "base": rules.base,
        "base_version": OUR_VERSION if rules.base == "none" else LIBRARY_VERSION,
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
    }
    return Normaliser(fingerprint, rewrite)


@functools.cache
def _named(name: str) -> Callable[[str], str]:
    if name == "none":
        return str
    if name == "basic":
        from whisper_normalizer.basic import BasicTextNormalizer

        basic: Callable[[str], str] = BasicTextNormalizer()
        return basic
    from whisper_normalizer.english import EnglishTextNormalizer

    english: Callable[[str], str] = EnglishTextNormalizer()
    return english
