"""The sentences of the demo: everyday English for *general*, a ship's radio for *domain*.

General sentences come as templates, as free strings of words, and as numbers. The free strings
matter: a model trained on templates alone learns the templates and cannot spell a new word.
"""

import hashlib
from random import Random

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

NAMES = "anna peter maria john sarah thomas emma david lucy robert julia henry martin helen".split()
PEOPLE = """man woman boy girl teacher doctor driver farmer baker nurse friend brother sister mother
father uncle student singer painter writer cook soldier lawyer child visitor stranger""".split()
THINGS = """book table chair window letter bottle basket camera carpet candle pencil paper bread
butter cheese apple orange lemon potato tomato coffee sugar dinner breakfast supper cake ticket
guitar piano radio picture mirror hammer ladder bucket blanket pillow jacket shirt button pocket
wallet money coin key lamp clock phone computer engine bicycle train car bus truck horse dog cat
rabbit chicken bird fish garden flower tree stone box bag ball hat shoe glass plate knife spoon
cup door roof wall map gift song story question answer""".split()
PLACES = """house kitchen school office market church station village city street bridge river
forest mountain valley farm field library museum hospital hotel theatre park corner island beach
shop factory castle""".split()
PAST = """found bought sold carried dropped opened closed painted cleaned wanted needed liked lost
noticed watched moved borrowed returned fixed hid kept left made took brought saw used wrapped
counted described remembered""".split()
BASE = """find sell carry drop open close paint clean want need like lose watch move borrow return
fix hide keep leave make take bring use wrap count describe remember visit choose""".split()
ADJECTIVES = """old young big small green yellow brown black white purple heavy light happy sad
quiet loud warm cold dry wet clean dirty empty full cheap dear pretty ugly strong gentle broken
simple strange famous round narrow wide deep soft hard sweet bitter fresh early late quick slow
wooden golden silver""".split()
ADVERBS = """quickly slowly quietly carefully suddenly often never always again together yesterday
today tomorrow tonight outside inside nearby finally perhaps certainly""".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = """january february march april may june july august september october november
december""".split()
LINKS = """before after behind under near beside without because although while until when about
above against across through between""".split()

GENERAL_WORDS = NAMES + PEOPLE + THINGS + PLACES + PAST + BASE + ADJECTIVES + ADVERBS + DAYS + MONTHS + LINKS

DOMAIN_WORDS = """mayday starboard rudder trawler lighthouse anchor buoy keel bowline mooring
windlass bilge galley hatch dinghy gale fathom squall stern tiller jetty halyard spinnaker ketch
leeward capstan bosun quay reef shoal sextant bulkhead propeller hull mast helm cargo tanker
beacon compass radar harbour""".split()

_GENERAL_TEMPLATES = """
the {adjective} {person} {past} the {thing} {adverb}
{name} {past} a {adjective} {thing} near the {place}
did {name} {base} the {thing} in the {place}
please {base} the {adjective} {thing} before {day}
we will {base} the {thing} and the {thing} {adverb}
there are {number} {adjective} rooms in the {place}
my {person} lives in a {adjective} {place} behind the {place}
the {person} and the {person} {past} {number} letters
on {day} {name} {past} the {thing} for the {person}
it was a {adjective} {day} in {month}
the {thing} is under the {adjective} {thing}
{name} said that the {place} was {adjective} and {adjective}
can you {base} this {thing} without the {thing}
they {past} the {thing} because it was {adjective}
i do not {base} the {adjective} {thing} any more
the train leaves at {number} on {day}
""".strip().splitlines()

_DOMAIN_TEMPLATES = """
the {domain} is {adjective} and the {domain} is {adjective}
please {base} the {domain} before {day}
{name} {past} the {domain} near the {place}
we will {base} the {domain} and the {thing} {adverb}
the {person} {past} the {adjective} {domain} {adverb}
did the {person} {base} the {domain} in the {place}
there are {number} people near the {domain}
the {domain} is under the {adjective} {thing}
{domain} {domain} this is {name} at the {place}
they {past} the {domain} because the {domain} was {adjective}
""".strip().splitlines()

_SLOTS = {
    "name": NAMES,
    "person": PEOPLE,
    "thing": THINGS,
    "place": PLACES,
    "past": PAST,
    "base": BASE,
    "adjective": ADJECTIVES,
    "adverb": ADVERBS,
    "day": DAYS,
    "month": MONTHS,
    "domain": DOMAIN_WORDS,
}


def number(random: Random) -> str:
    """Zero to ninety-nine, in words."""
    value = random.randrange(100)
    if value < 20:
        return (DIGITS + TEENS)[value]
    tens, ones = TENS[value // 10 - 2], value % 10
    return f"{tens} {DIGITS[ones]}" if ones else tens


def _fill(template: str, random: Random) -> str:
    words = []
    for word in template.split():
        if word == "{number}":
            words.append(number(random))
        elif word.startswith("{"):
            words.append(random.choice(_SLOTS[word.strip("{}")]))
        else:
            words.append(word)
    return " ".join(words)


def general_sentence(random: Random, free: float = 0.17) -> str:
    """Everyday English: mostly sentences, some free strings of words, digits and numbers.

    `free` is the share of free strings.
    """
    kind = random.random()
    if kind < 0.85 - free:
        return _fill(random.choice(_GENERAL_TEMPLATES), random)
    if kind < 0.85:
        return " ".join(random.choices(GENERAL_WORDS, k=random.randint(3, 7)))
    if kind < 0.93:
        return " ".join(random.choices(DIGITS, k=random.randint(3, 8)))
    return " ".join(number(random) for _ in range(random.randint(1, 4)))


def pretraining_sentence(random: Random) -> str:
    """What the base model is trained on: the same, with twice as many free strings."""
    return general_sentence(random, free=0.35)


def domain_sentence(random: Random) -> str:
    """A ship's radio: mostly with words of the domain, some everyday English."""
    if random.random() < 0.4:
        return _fill(random.choice(_GENERAL_TEMPLATES), random)
    return _fill(random.choice(_DOMAIN_TEMPLATES), random)


def is_heldback(sentence: str) -> bool:
    """Whether a sentence belongs to evaluation (two of ten) or to training.

    A function of the sentence alone, so no sentence can be in both, whatever the seeds.
    """
    return hashlib.sha256(sentence.encode()).digest()[0] % 10 < 2
