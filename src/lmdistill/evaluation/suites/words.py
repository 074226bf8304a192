"""Small word lists of our own: what must not be edited, what may stand for what, and sentences that say nothing."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEGATIONS = _words(
    "no not none never neither nor nobody nothing nowhere without hardly barely scarcely rarely seldom few little "
    "lack lacks lacked lacking fail fails failed cannot cant wont dont doesnt didnt isnt arent wasnt werent hasnt "
    "havent hadnt wouldnt couldnt shouldnt mustnt except unless "
)
QUANTITIES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen twenty thirty forty fifty sixty "
    "seventy eighty ninety hundred thousand million billion half quarter third first second last once twice all "
    "every each some any most many both only more less least fewer always often sometimes before after until "
    "since true false yes maybe if but however although though because "
)
FEELINGS = _words(
    "good bad great best better worst worse excellent awful terrible horrible wonderful amazing awesome fantastic "
    "poor poorly nice love loved loves hate hated hates like liked likes dislike enjoy enjoyed enjoyable boring "
    "bored dull brilliant superb perfect perfectly disappointing disappointed disappointment waste wasted stupid "
    "funny hilarious beautiful ugly annoying weak strong positive negative neutral recommend recommended avoid "
    "happy sad angry fun cheap useless useful broken defective favorite favourite masterpiece mess ridiculous "
    "pathetic memorable charming clever predictable original cliche overrated underrated decent mediocre fine "
    "solid lame crap garbage trash gem touching moving gripping tedious flawed satisfied unsatisfied problem "
    "problems "
)

_PAIRS = (
    "big large; quick fast; begin start; begins starts; began started; end finish; ends finishes; "
    "buy purchase; bought purchased; help assist; helps assists; show display; shows displays; shown displayed; "
    "movie film; movies films; car automobile; house home; street road; picture image; pictures images; job work; "
    "child kid; children kids; woman lady; doctor physician; doctors physicians; "
    "student pupil; students pupils; teacher instructor; teachers instructors; town village; country nation; "
    "countries nations; area region; areas regions; part portion; parts portions; kind sort; kinds sorts; "
    "type variety; story tale; stories tales; answer reply; answers replies; ask inquire; think believe; "
    "thinks believes; thought believed; say state; says states; said stated; tell inform; "
    "make create; makes creates; made created; build construct; built constructed; use employ; used employed; "
    "uses employs; give provide; gives provides; gave provided; keep retain; "
    "keeps retains; kept retained; need require; needs requires; needed required; happen occur; happens occurs; "
    "happened occurred; seem appear; seems appears; seemed appeared; live reside; lives resides; lived resided; "
    "main principal; whole entire; near close; often frequently; usually normally; quickly rapidly; nearly almost; "
    "also additionally; perhaps possibly; while whereas; important significant; famous "
    "renowned; difficult hard; easy simple; rich wealthy; sick ill; old aged; new recent; clear plain; total "
    "overall; several various; huge enormous; tiny minute; center middle; shop store; shops stores; trip journey; "
    "gift present; error mistake; errors mistakes; goal aim; goals aims; method way; methods ways; actor performer; "
    "actors performers; author writer; authors writers; scene sequence; scenes sequences; company firm; companies "
    "firms; law statute; laws statutes; sea ocean; stone rock; forest woods; choose select; chose "
    "selected; collect gather; collected gathered; explain describe; explained described; received got; large sizable"
)
SYNONYMS: dict[str, tuple[str, ...]] = {}
for _pair in _PAIRS.split("; "):
    _first, _second = _pair.split()
    SYNONYMS[_first] = (*SYNONYMS.get(_first, ()), _second)
    SYNONYMS[_second] = (*SYNONYMS.get(_second, ()), _first)

DISTRACTORS = (
    "The notes above were typed on a Tuesday.",
    "This text has been copied from another page.",
    "A printed version is kept in the archive.",
    "The page was last opened in the afternoon.",
    "Water is wet and the sky is above us.",
    "This line was added by the editor of the page.",
    "The letters are printed in black on white paper.",
    "See the table of contents for further pages.",
)
"""Neutral sentences that bear on no question."""

NEIGHBOURS = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl",
    "p": "ol", "a": "qsz", "s": "awdx", "d": "sefc", "f": "drgv", "g": "fthb", "h": "gyjn", "j": "hukm", "k": "jil",
    "l": "kop", "z": "asx", "x": "zsdc", "c": "xdfv", "v": "cfgb", "b": "vghn", "n": "bhjm", "m": "njk",
}  # fmt: skip
"""Keys beside each key of a QWERTY keyboard."""
HOMOGLYPHS = {"a": "а", "c": "с", "e": "е", "i": "і", "o": "о", "p": "р", "s": "ѕ", "x": "х", "y": "у"}
"""Cyrillic letters that look like Latin ones."""
