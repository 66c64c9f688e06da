"""Speaks a manifest of names with the demo's voices, for trials of key terms (docs/log/key_terms.md).

`uv run python tools/names_corpus.py FOLDER [COUNT]` writes names.jsonl, its audio and names.txt there."""

import dataclasses
import sys
from pathlib import Path
from random import Random

from asrlora.demo import corpus, grammar

NAMES = """whitaker carmichael thornton blackwell hargreaves pemberton stratford winchester kensington
lancaster drummond fairbanks gallagher hathaway ironside jamieson kirkwood lockhart merriweather
northcote oglethorpe prendergast ravenscroft somerset""".split()
TEMPLATES = """{name} {past} the {thing} near the {place}
the {person} and {name} {past} the {adjective} {thing}
{name} said that the {place} was {adjective}
on {day} {name} {past} the {thing} for {other}
did {name} {base} the {thing} in the {place}
please {base} the {thing} before {name} leaves""".splitlines()


def sentence(random: Random) -> str:
    """Everyday words around one or two names."""
    words = {
        "past": grammar.PAST, "thing": grammar.THINGS, "place": grammar.PLACES, "person": grammar.PEOPLE,
        "adjective": grammar.ADJECTIVES, "day": grammar.DAYS, "base": grammar.BASE, "name": NAMES,
        "other": NAMES,
    }  # fmt: skip
    return random.choice(TEMPLATES).format(**{key: random.choice(some) for key, some in words.items()})


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int((sys.argv[2:] or ["120"])[0])
    style = dataclasses.replace(corpus.PRETRAINING, sentence=sentence)
    lines = corpus.draw_lines("names", count, style, heldback=False, seed=1)
    corpus.write_manifest(folder / "names.jsonl", list(corpus.write_set(lines, folder / "names", workers=1)))
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
