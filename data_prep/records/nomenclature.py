"""Tell what a text names by its form: a species, a hybrid, a genus, nobody, or nothing known."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, NamedTuple

Form = Literal[
    "species", "aggregate", "hybrid", "uncertain", "higher", "nothing", "unread", "empty"
]

_EXACT = re.compile(
    r"([A-Z][\w-]*[a-z][\w-]*)\s+(?:\([A-Z][\w-]+\)\s+)?(?:×\s*|x\s+)?([a-z][\w-]*[a-z])(?=$|[\s,])"
)
_ANY_CASE = re.compile(
    r"([a-z][a-z-]+[a-z])\s+(?:\([a-z-]+\)\s+)?([a-z][a-z-]*[a-z])(?=$|[\s,])", re.IGNORECASE
)
_AGGREGATE = re.compile(
    r"\bagg\b|\baggregate\b|\bs\.?\s?l(?:at)?\b\.?|\bsensu lat\w+|\b(?:group|complex)$|\S/\S|\s/\s",
    re.IGNORECASE,
)
_HYBRID = re.compile(
    # One of several parents; a sign before the epithet alone is a name of its own.
    r"(?:[^\W\d_]{2,}|[.)\d])\s+[×xX]\s+[^\W\d_]\S*\s+\S|"
    r"[^\W\d_]{2,}\s+[^\W\d_]\S*\s+(?:×\s*|[xX]\s+)[^\W\d_]|\bhybrids?\b|^[×xX]\s+\S"
)
_UNCERTAIN = re.compile(
    r"(?:^|\s)(?:cf|aff|nr|near|poss|possibly|prob|probably|affin)(?:\.|\s)|\?", re.IGNORECASE
)
_GENUS_ONLY = re.compile(
    r"(?:^|\s)(?:spp?|species|indet|gen|undet)(?:\.|\s|$)|\b(?:unidentified|unknown|undetermined|"
    r"indeterminate|unspecified)\b",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    r"(?:none|nil|nothing|nobody|zero|no one|0|empty|blank visit|no|not any)"
    r"(?: (?:butterfl(?:y|ies)|moths?|insects?|species|sightings?|records?|observations?|"
    r"lepidoptera|taxa|individuals|birds?|animals?|seen|found|recorded|observed|sighted|"
    r"detected|to report|at all|today|count|here|present))*",
    re.IGNORECASE,
)
_ABSENT = re.compile(
    r"\b(?:none|not|no|never)\b(?: \w+)? (?:seen|found|recorded|observed|present|sighted)\b|"
    r"\babsent\b|\b(?:none|nil|zero)\W*$",
    re.IGNORECASE,
)
_AND = re.compile(r"(?:[,;&+/]|(?:and|or|et|und|en|y|ou|oder)\s)\s*")
_TAGS = re.compile(r"</?(?:i|em|b|u|strong|span|sup|sub)\b[^>]*>", re.IGNORECASE)
_LATIN = re.compile(r"[\w-]*(?:[aeiou]|[aeiou]s|um|[ae]ns|or|er|ar|[aeioy]x|on|ops|bs)")
_AFTER = re.compile(  # author, year, note in brackets, rank of what follows, sex or stage
    r"[,;:(\[{&\d\"'“A-ZÀ-Þ–-]|[x×]\s*\d|(?:et|and|in|ex|de|von|van|den|der|du|la|le|d|ssp|subsp|var|"
    r"agg|aggregate|group|complex|f|fo|fa|form|forma|ab|aberr|race|morph|"
    r"subvar|cv|sensu|sens|s|str|auct|nom|comb|stat|sp|nov|"
    r"male|female|males|females|adult|adults|larva|larvae|egg|eggs|ova|ovum|pupa|pupae|imago|"
    r"caterpillar|caterpillars|worker|queen|juvenile)(?:[.,;:]|$)"
)
_NOT_EPITHETS = frozenset(
    "sp spp indet cf aff agg nr ssp subsp var ex in de von van et and species".split()
)
_AUTHORS = frozenset(
    "linnaeus fabricius linne linné schrank esper scopoli rottemburg hübner hubner poda knoch "
    "pallas haworth boisduval latreille felder butler moore meigen godart cramer drury hufnagel "
    "kirby staudinger leach swainson gmelin lamarck bates hewitson".split()
)
_COMMON = frozenset(
    """
    small large great greater lesser common little dark light pale bright dingy dull silver
    golden white black red green blue yellow orange brown grey gray purple pink violet scarlet
    azure rusty silvery pearl-bordered silver-washed silver-studded silver-spotted green-veined
    green-underside dark-green wood wooded clouded speckled painted marbled spotted striped
    banded barred bordered broad narrow short long high meadow mountain scotch northern southern
    eastern western european american british irish english chequered checkered grizzled holly
    chalk chalkhill camberwell bath berger's berger glanville heath marsh bog queen duke
    burgundy swallowtail swallow hairstreak fritillary skipper copper admiral emperor lady
    tortoiseshell peacock brimstone ringlet grayling gatekeeper hedge wall monarch butterfly
    butterflies moth moths damselfly damselflies dragonfly dragonflies hawker darter chaser
    skimmer demoiselle emerald hawk-moth hawkmoth burnet cinnabar forester tiger footman carpet
    pug rustic underwing tussock ermine hoverfly bee bumblebee bumble honey wasp beetle ladybird
    bug fly grasshopper cricket spider ant bird tit sparrow finch thrush warbler owl hawk gull
    duck goose swan heron kite buzzard house barn tawny field garden song carrion collared mute
    toad frog newt snake lizard fox deer hare rabbit squirrel mouse vole shrew bat otter badger
    hedgehog tree tail tip spot six-spot five-spot six-spotted five-spotted real's mazarine
    mallow tailed long-tailed short-tailed white-letter straw map brush-tailed blues whites
    skippers browns the a an of and or with unidentified kleiner kleine kleines klein großer
    grosser große grosse groot groote grote gemeiner gemeine bruin bruine oranje bont bonte
    geelwitje koolwitje zandoogje vlinder falter bläuling petit petite grand vulcain azuré azure
    piéride mariposa blanquita wildlife seen found several many few one two three some other not
    old-world
    """.split()
)
"""Words of common names that are in no scientific name."""


class Text(NamedTuple):
    """What a text is, and the species it names (``""`` for none)."""

    form: Form
    name: str = ""


def tidy(text: str) -> str:
    """
    Return a text with plain spaces: no underscores, no runs, no hidden signs.

    >>> tidy(" Pieris_rapae ")
    'Pieris rapae'
    """
    composed = unicodedata.normalize("NFC", text)
    plain = composed.replace("_", " ").replace("\ufeff", "").replace("\u200b", "")
    if "<" in plain:
        plain = _TAGS.sub("", plain)
    plain = re.sub(r"(?<=\w)[\u2010-\u2013](?=\w)", "-", plain)
    plain = " ".join(plain.strip(" \"'").split()).rstrip(" ♂♀☿†*¹²³")
    if re.fullmatch(r"[A-Z][a-z]{2,}\.[a-z-]{3,}", plain):  # as R writes headers
        plain = plain.replace(".", " ")
    return re.sub(r"(?<=[a-z]{4})\.$", "", plain)


def binomial(text: str, *, below: bool = False) -> str:
    """
    Return genus and species of a name, ``""`` if it has no species or is no scientific name.

    Parameters
    ----------
    below
        Whether a third name is known to be a subspecies.

    >>> binomial("Polyommatus (Lysandra) bellargus (Rottemburg, 1775)")
    'Polyommatus bellargus'
    >>> binomial("PIERIS RAPAE")
    'Pieris rapae'
    >>> binomial("Common blue damselfly")
    ''
    """
    text = tidy(text)
    found = _EXACT.match(text)
    if found is None:
        return _odd_case(text)
    words = [found[1].lower(), found[2]]
    if found[2] in _NOT_EPITHETS or _COMMON & set(words):
        return ""
    if not _tail_fits(text[found.end() :].strip(), found[2], below=below):
        return ""
    return f"{found[1]} {found[2]}"


def looks_latin(word: str) -> bool:
    """
    Tell whether a word can be part of a scientific name, by its end.

    >>> looks_latin("rapae"), looks_latin("damselfly")
    (True, False)
    """
    return bool(_LATIN.fullmatch(word.lower())) and word.lower() not in _COMMON


def _odd_case(text: str) -> str:
    """Return the binomial of a text in capitals, small letters or with a capital epithet."""
    found = _ANY_CASE.match(text)
    if found is None:
        return ""
    genus, epithet = found[1].lower(), found[2].lower()
    if _COMMON & {genus, epithet} or epithet in _NOT_EPITHETS | _AUTHORS:
        return ""
    if not (_LATIN.fullmatch(genus) and _LATIN.fullmatch(epithet)):
        return ""
    rest = text[found.end() :].strip()
    capital = found[2][0].isupper() and not found[2].isupper() and "-" not in found[2]
    if capital and re.match(r",?\s*(?:\d|&|et\b|in\b)", rest):  # a genus and its author
        return ""
    tail = rest.lower() if rest.isupper() or not found[2].isupper() else rest
    if not _tail_fits(tail, epithet, below=False):
        return ""
    return f"{genus.capitalize()} {epithet}"


def _tail_fits(rest: str, epithet: str, *, below: bool) -> bool:
    """
    Tell whether what follows a binomial can follow one: a subspecies, an author, a note.

    In a longer common name, such as "Azure damselfly pair", it cannot.
    """
    if _names_another(rest):
        return False
    if not rest or _AFTER.match(rest):
        return True
    third, _, after = rest.partition(" ")
    word = third.rstrip(",;")
    if not (below or word == epithet or (_LATIN.fullmatch(word) and word not in _COMMON)):
        return False
    return word != third or not after or bool(_AFTER.match(after)) or after.split()[0] in _AUTHORS


def _names_another(rest: str) -> bool:
    """Tell whether what follows a binomial is another species: ", Pieris napi"."""
    found = _AND.match(rest)
    second = _EXACT.match(rest[found.end() :]) if found else None
    return second is not None and looks_latin(second[1]) and looks_latin(second[2])


def read_text(text: str, *, below: bool = False) -> Text:
    """
    Tell what a text names by its form alone.

    >>> read_text("Colias hyale x crocea").form, read_text("No butterflies").form
    ('hybrid', 'nothing')
    >>> read_text("Dark green fritillary").form, read_text("Pieris sp.").form
    ('unread', 'higher')
    """
    text = tidy(text)
    if not text:
        return Text("empty")
    if _NOTHING.fullmatch(text.rstrip(".! ")):
        return Text("nothing")
    if _HYBRID.search(text):
        return Text("hybrid")
    if _UNCERTAIN.search(text):
        return Text("uncertain")
    if _ABSENT.search(text):
        return Text("unread")
    found = binomial(text, below=below)
    if _AGGREGATE.search(text):
        return Text("aggregate", found or text)
    if found:
        return Text("species", found)
    return Text("higher" if _is_above(text) else "unread")


def _is_above(text: str) -> bool:
    """Tell whether a text is a genus or higher, alone or with its author."""
    if _GENUS_ONLY.search(text):
        return True
    first, _, rest = text.partition(" ")
    word = first.rstrip(",").lower()
    if word in _COMMON | {"comma"} or not word.isalpha() or not _LATIN.fullmatch(word):
        return False
    if not rest:
        return True
    author = bool(re.match(r"[(\[,&\d]|[A-ZÀ-Þ]", rest))
    return author and not _COMMON & set(re.findall(r"[\w'-]+", rest.lower()))
