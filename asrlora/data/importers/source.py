"""What an importer reads from, and what it finds there."""

from dataclasses import dataclass
from pathlib import Path

from asrlora.data.importers.fields import Record
from asrlora.data.manifest import AllowedRoot
from asrlora.errors import UserError

# what recordings are called in a folder; data/decoding/filetypes.py finds out by their bytes what they are
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        "wav wave flac mp3 mp2 ogg oga opus spx aiff aif aifc au snd caf w64 rf64 sph nist voc m4a m4b mp4"
        " m4v mov qt 3gp 3g2 3gpp aac adts webm mkv mka amr awb wma wmv asf avi flv mpg mpeg mts ac3 eac3"
        " wv ape tta mpc dsf rm ra"
    ).split()
)
# what a folder of a data set may hold beside its audio: one of these describes all of it
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")


@dataclass(frozen=True)
class Found:
    """One record of a source, before anyone has looked whether it is of use."""

    where: str  # "train.tsv, line 7"
    record: Record
    sound: bytes | None = None  # a whole audio file that the source itself holds
    # where duration alone is given: whether it cuts the file (NeMo) or only says how long it is
    cuts: bool = False


class LeftOut(Exception):
    """A record cannot become an utterance; the reason is counted, and the detail is about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Source:
    """What to read, and how."""

    place: str  # file, folder, or hf:NAME:CONFIG:SPLIT
    texts: AllowedRoot  # of its text files
    text_field: str | None = None  # that holds the text, where the user says which

    def inside(self, path: Path) -> Path:
        """A text file of a source folder. Raises UserError where a link leads out of it."""
        try:
            return self.texts.find(str(path.absolute()), "text file")
        except ValueError as error:
            raise UserError(str(error)) from None
