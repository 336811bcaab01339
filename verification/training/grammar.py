"""A small English whose right explanation is known, because the sentences are built from it.

An explanation of a language model can only be called right or wrong where the evidence is known.
The grammar below writes two kinds of text and remembers, for each, which words settle the next one:

*Agreement.*  `the keys to the cabinet are on the table .`
The verb agrees with its subject, so the subject noun is the evidence; every other noun before the
verb is a distractor. Numbers are drawn independently of each other, so no distractor says anything
about the verb. Openings (with or without a noun of their own) and adjectives move the subject
about, so no fixed position holds it.

*Questions.*  `mary has the ball . john has the cup . who has the ball ? mary .`
The person's name in the fact that is asked about is the evidence; the thing, in that fact and in
the question, only leads there. The fact is drawn at random among two to four, and may also read
`the ball is with mary .`.

**The held-out split** is one of combinations of words, decided by `is_reserved`: a hash of the two
words reserves about one pair in eight. Three sorts of pair count: (subject, other noun before the
verb), (subject, its adjective) and (person, thing). Two other nouns before the verb count as well,
the earlier one first, since the later may belong to it: `the boy who saw the keys to the cabinet`.

* A *training* text holds no reserved pair at all. Of persons and things any two in one text count
  as a pair, even from different facts: otherwise a person could be ruled out as the owner of a
  thing by never owning it.
* A *held-out* sentence has a reserved *leading* pair (the first of `Sentence.pairs`): the subject
  with the noun nearest to the verb, or with its adjective where there is no other noun; for a
  question, the person and the thing asked about, which no training text so much as mentions
  together. Its other pairs may be reserved or not.

Nouns after the verb count for nothing: they come too late to mislead.

Numbers do not count (if key and cabinet are reserved, then so are keys and cabinets), and all words
of a held-out sentence are known from training, so no held-out prefix can begin a training text. The
pairs which come to mind first, key with cabinet and mary with ball, are reserved: `SALT` was chosen
for that.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

SALT = "231"
RESERVED_SHARE = 8
"""One pair in this many is reserved for the held-out sentences."""


@dataclass(frozen=True)
class Noun:
    """A noun in both numbers; beings and things take different verbs,
    adjectives and prepositions.
    """

    singular: str
    plural: str
    being: bool

    def form(self, plural: bool) -> str:
        return self.plural if plural else self.singular


@dataclass(frozen=True)
class Verb:
    """A verb in both numbers, with what may follow it."""

    singular: str
    plural: str
    frame: str

    def form(self, plural: bool) -> str:
        return self.plural if plural else self.singular


@dataclass(frozen=True)
class Sentence:
    """A text with the word to explain and the words that a faithful explanation must point at.

    Positions count the words of `text` (which are separated by single spaces) from 0. `evidence`
    settles the target; `support` leads to it or says it again: the thing in the fact and in the
    question, or a verb inside a relative clause that agrees with the same subject.
    """

    task: str
    construction: str
    text: str
    prefix: str
    target: str
    foil: str
    evidence: tuple[int, ...]
    support: tuple[int, ...]
    distractors: int
    misleading: int
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Document:
    """A training text, with the positions of those words which
    what stands before them determines.
    """

    words: tuple[str, ...]
    determined: tuple[int, ...]


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split())


def _nouns(being: bool, words: str) -> tuple[Noun, ...]:
    pairs = (word.split("/") for word in words.split())
    return tuple(Noun(singular, plural, being) for singular, plural in pairs)


def _verbs(frame: str, words: str) -> tuple[Verb, ...]:
    pairs = (word.split("/") for word in words.split())
    return tuple(Verb(singular, plural, frame) for singular, plural in pairs)


BEINGS = _nouns(
    True,
    "boy/boys girl/girls man/men woman/women child/children teacher/teachers farmer/farmers "
    "doctor/doctors dog/dogs cat/cats horse/horses bird/birds",
)
THINGS = _nouns(
    False,
    "key/keys cabinet/cabinets table/tables box/boxes book/books cup/cups ball/balls "
    "lamp/lamps door/doors "
    "car/cars house/houses tree/trees chair/chairs picture/pictures hat/hats ring/rings "
    "bottle/bottles "
    "letter/letters garden/gardens gate/gates",
)
NOUNS = BEINGS + THINGS
PEOPLE = _list("mary john anna peter lucy tom emma paul sara david kate mark nina oscar rosa henry")
OBJECTS = _list(
    "ball cup book key hat ring box lamp bottle letter picture chair coin spoon flute map"
)

PRESENT, PAST, PERFECT = _verbs("be", "is/are was/were") + _verbs("have", "has/have")
BEING_VERBS = _verbs("alone", "runs/run sleeps/sleep sings/sing waits/wait smiles/smile")
THING_VERBS = _verbs("alone", "falls/fall shines/shine breaks/break stays/stay moves/move")
MAIN_VERBS = (PRESENT, PAST, PERFECT, *BEING_VERBS, *THING_VERBS)
SINGULAR_VERBS = frozenset(verb.singular for verb in MAIN_VERBS)
PLURAL_VERBS = frozenset(verb.plural for verb in MAIN_VERBS)

LIKE_VERBS = _verbs("anything", "likes/like sees/see")
HELP_VERBS = _verbs("beings", "knows/know helps/help follows/follow")
CLAUSE_PASTS = {"anything": ("liked", "saw"), "beings": ("knew", "helped", "followed")}

ADJECTIVES = {
    True: _list("old young happy tired tall kind quiet small"),
    False: _list("old new red blue small heavy clean dark"),
}
PARTICIPLES = {
    True: _list("seen found helped called"),
    False: _list("seen found sold painted"),
}
ADVERBS = _list("here there today again often now")
OPENINGS = _list("today now often again")
OPENERS = frozenset(_list("key door gate"))
ON_PLACES = tuple(noun for noun in THINGS if noun.singular in _list("table chair box cabinet book"))
IN_PLACES = tuple(noun for noun in THINGS if noun.singular in _list("house garden car box cabinet"))

CONSTRUCTIONS = {
    "simple": 50,
    "pp": 14,
    "pp_pp": 9,
    "rel_present": 6,
    "rel_past": 6,
    "rel_pp": 5,
    "rel_object": 8,
    "fronted": 8,
    "fronted_pp": 6,
}
"""Constructions of the agreement sentences with their weights in the training text.

The weights leave a verb the likeliest word wherever one may come, so that the model's first choice
(and not just its preference among two verbs) says which number it believes in.
"""

BEING_ONLY = frozenset({"rel_present", "rel_past", "rel_pp"})
VERB_WEIGHTS = {"present": 55, "past": 15, "perfect": 12, "alone": 18}
FACT_COUNTS = (2, 3, 4)


@cache
def is_reserved(first: str, second: str) -> bool:
    """Whether the pair of words (nouns in the singular) is kept out of all training text."""
    return hashlib.sha256(f"{SALT} {first} {second}".encode()).digest()[0] % RESERVED_SHARE == 0


def in_training(sentence: Sentence) -> bool:
    """Whether the training text may hold the sentence: none of its pairs is reserved."""
    return not any(is_reserved(*pair) for pair in sentence.pairs)


def is_held_out(sentence: Sentence) -> bool:
    """Whether the sentence tests an unseen combination: its leading pair is reserved."""
    return bool(sentence.pairs) and is_reserved(*sentence.pairs[0])


@dataclass(frozen=True)
class Part:
    """A run of words with the nouns in it and the positions that matter;
    parts are joined with ``+``.
    """

    words: tuple[str, ...]
    nouns: tuple[tuple[Noun, bool], ...] = ()
    evidence: tuple[int, ...] = ()
    support: tuple[int, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Part) -> Part:
        shift = len(self.words)
        return Part(
            self.words + other.words,
            self.nouns + other.nouns,
            self.evidence + tuple(position + shift for position in other.evidence),
            self.support + tuple(position + shift for position in other.support),
            self.pairs + other.pairs,
        )


def _words(text: str) -> Part:
    return Part(tuple(text.split()))


def _join(parts: Iterable[Part]) -> Part:
    return sum(parts, Part(()))


def _coin(rng: random.Random, chance: float = 0.5) -> bool:
    return rng.random() < chance


# --- Agreement ------------------------------------------------------------------------------------


@dataclass
class _Cast:
    """The subject of one sentence and a supply of other nouns, none used twice."""

    rng: random.Random
    subject: Noun
    plural: bool
    used: set[str]

    def other(self, pool: tuple[Noun, ...] = NOUNS) -> tuple[Noun, bool]:
        noun = self.rng.choice([noun for noun in pool if noun.singular not in self.used])
        self.used.add(noun.singular)
        return noun, _coin(self.rng)


def _noun_phrase(noun: Noun, plural: bool) -> Part:
    return Part(("the", noun.form(plural)), nouns=((noun, plural),))


def _preposition(rng: random.Random, head: Noun, inner: Noun) -> str:
    """A preposition that makes passable sense:
    ``the keys to the cabinet``, ``the girls with the dog``.
    """
    if head.singular in OPENERS and not inner.being and _coin(rng):
        return "to"
    special = "with" if head.being else "near" if inner.being else rng.choice(("on", "under"))
    return rng.choice(("near", "behind", "beside", special))


def _prepositional(cast: _Cast, head: Noun) -> Part:
    inner, plural = cast.other()
    return _words(_preposition(cast.rng, head, inner)) + _noun_phrase(inner, plural)


def _two_prepositional(cast: _Cast, head: Noun) -> Part:
    first = _prepositional(cast, head)
    return first + _prepositional(cast, first.nouns[0][0])


def _clause_verb(rng: random.Random, noun: Noun) -> Verb:
    """Anything may be liked or seen; only beings are known, helped and followed."""
    return rng.choice((*LIKE_VERBS, *HELP_VERBS) if noun.being else LIKE_VERBS)


def _relative_present(cast: _Cast, _head: Noun) -> Part:
    """The inner verb shows the subject's number too, and so counts as support."""
    inner, plural = cast.other()
    verb = _clause_verb(cast.rng, inner).form(cast.plural)
    return Part(("who", verb), support=(1,)) + _noun_phrase(inner, plural)


def _relative_past(cast: _Cast, _head: Noun) -> Part:
    """The inner verb is in the past tense, the same for both numbers:
    the subject is all there is.
    """
    inner, plural = cast.other()
    past = cast.rng.choice(CLAUSE_PASTS[_clause_verb(cast.rng, inner).frame])
    return _words(f"who {past}") + _noun_phrase(inner, plural)


def _relative_prepositional(cast: _Cast, head: Noun) -> Part:
    clause = _relative_past(cast, head)
    return clause + _prepositional(cast, clause.nouns[0][0])


def _relative_object(cast: _Cast, _head: Noun) -> Part:
    """The hardest distractor: a noun with a verb of its own that agrees with it."""
    inner, plural = cast.other(BEINGS)
    verb = _clause_verb(cast.rng, cast.subject).form(plural)
    return _words("that") + _noun_phrase(inner, plural) + _words(verb)


def _nothing(_cast: _Cast, _head: Noun) -> Part:
    return Part(())


_MODIFIERS: dict[str, Callable[[_Cast, Noun], Part]] = {
    "simple": _nothing,
    "pp": _prepositional,
    "pp_pp": _two_prepositional,
    "rel_present": _relative_present,
    "rel_past": _relative_past,
    "rel_pp": _relative_prepositional,
    "rel_object": _relative_object,
    "fronted": _nothing,
    "fronted_pp": _prepositional,
}


def _opening(cast: _Cast, construction: str) -> Part:
    """What stands before the subject, so that its position gives nothing away."""
    if construction.startswith("fronted"):
        preposition = cast.rng.choice(("near", "behind", "beside"))
        return _words(preposition) + _noun_phrase(*cast.other()) + _words(",")
    return _words(cast.rng.choice(OPENINGS)) if _coin(cast.rng, 0.25) else Part(())


def _subject(cast: _Cast) -> Part:
    """The subject with or without an adjective; its noun is the evidence."""
    noun = Part((cast.subject.form(cast.plural),), evidence=(0,))
    if _coin(cast.rng, 0.6):
        return _words("the") + noun
    adjective = cast.rng.choice(ADJECTIVES[cast.subject.being])
    return Part(("the", adjective), pairs=((cast.subject.singular, adjective),)) + noun


def _place(cast: _Cast) -> Part:
    """Where the subject is; the noun comes after the verb and so distracts from nothing."""
    places = (("on", ON_PLACES), ("in", IN_PLACES), ("near", NOUNS), ("behind", THINGS))
    preposition, pool = cast.rng.choice(places)
    noun, _ = cast.other(pool)
    return _words(preposition) + _noun_phrase(noun, _coin(cast.rng, 0.3))


def _after_be(cast: _Cast) -> Part:
    draw = cast.rng.random()
    if draw < 0.5:
        return _words(cast.rng.choice(ADJECTIVES[cast.subject.being]))
    return _place(cast) if draw < 0.9 else _words(cast.rng.choice(("here", "there")))


def _predicate(cast: _Cast, verb: Verb) -> Part:
    """What follows the verb, with the full stop."""
    if verb.frame == "be":
        rest = _after_be(cast)
    elif verb.frame == "have":
        rest = _words(f"been {cast.rng.choice(PARTICIPLES[cast.subject.being])}")
    else:
        rest = _words(cast.rng.choice(ADVERBS)) if _coin(cast.rng) else Part(())
    return rest + _words(".")


def _main_verb(rng: random.Random, subject: Noun) -> Verb:
    kind = rng.choices(list(VERB_WEIGHTS), list(VERB_WEIGHTS.values()))[0]
    common = {"present": PRESENT, "past": PAST, "perfect": PERFECT}
    return common.get(kind) or rng.choice(BEING_VERBS if subject.being else THING_VERBS)


def _any_construction(rng: random.Random, subject: Noun) -> str:
    allowed = [name for name in CONSTRUCTIONS if subject.being or name not in BEING_ONLY]
    return rng.choices(allowed, [CONSTRUCTIONS[name] for name in allowed])[0]


def _before_verb(cast: _Cast, construction: str) -> Part:
    """All words before the verb; the leading pair holds the noun nearest to the verb."""
    opening, subject = _opening(cast, construction), _subject(cast)
    whole = opening + subject + _MODIFIERS[construction](cast, cast.subject)
    others = [noun.singular for noun, _ in whole.nouns]
    with_subject = tuple((cast.subject.singular, other) for other in reversed(others))
    return replace(
        whole, pairs=with_subject + whole.pairs + tuple(itertools.combinations(others, 2))
    )


def _draw_agreement(rng: random.Random, wanted: str | None) -> Sentence:
    subject = rng.choice(BEINGS if wanted in BEING_ONLY else NOUNS)
    construction = wanted or _any_construction(rng, subject)
    cast = _Cast(rng, subject, _coin(rng), {subject.singular})
    before, verb = _before_verb(cast, construction), _main_verb(rng, subject)
    target, foil = verb.form(cast.plural), verb.form(not cast.plural)
    after = _words(target) + _predicate(cast, verb)
    return Sentence(
        task="agreement",
        construction=construction,
        text=" ".join((before + after).words),
        prefix=" ".join(before.words),
        target=target,
        foil=foil,
        evidence=before.evidence,
        support=before.support,
        distractors=len(before.nouns),
        misleading=sum(plural != cast.plural for _, plural in before.nouns),
        pairs=before.pairs,
    )


def agreement(
    rng: random.Random, held_out: bool = False, construction: str | None = None
) -> Sentence:
    """An agreement sentence of the asked side of the split,
    of one construction or (as in training) any.
    """
    wanted = is_held_out if held_out else in_training
    while True:
        sentence = _draw_agreement(rng, construction)
        if wanted(sentence):
            return sentence


# --- Questions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """Who has what, and in which of two orders it is told."""

    person: str
    thing: str
    person_first: bool

    @property
    def order(self) -> str:
        return "person_first" if self.person_first else "thing_first"

    def part(self, asked: bool) -> Part:
        """The words of the fact; the one that is asked about holds the evidence."""
        person_first, thing_first = "{} has the {} .", "the {1} is with {0} ."
        words = _list(
            (person_first if self.person_first else thing_first).format(self.person, self.thing)
        )
        whole = Part(
            words, evidence=(words.index(self.person),), support=(words.index(self.thing),)
        )
        return whole if asked else Part(words)


def _draw_facts(rng: random.Random, count: int) -> tuple[Fact, ...]:
    pairs = zip(rng.sample(PEOPLE, count), rng.sample(OBJECTS, count), strict=True)
    return tuple(Fact(person, thing, _coin(rng, 0.65)) for person, thing in pairs)


def _crossed(facts: Iterable[Fact]) -> tuple[tuple[str, str], ...]:
    """Every person with every thing, the first person with the first thing leading."""
    facts = tuple(facts)
    return tuple((one.person, other.thing) for one in facts for other in facts)


def _question(thing: str) -> Part:
    return Part(("who", "has", "the", thing, "?"), support=(3,))


def _ask(rng: random.Random, facts: tuple[Fact, ...]) -> Sentence:
    asked = rng.choice(facts)
    others = [fact for fact in facts if fact is not asked]
    before = _join(fact.part(fact is asked) for fact in facts) + _question(asked.thing)
    prefix = " ".join(before.words)
    return Sentence(
        task="question",
        construction=asked.order,
        text=f"{prefix} {asked.person} .",
        prefix=prefix,
        target=asked.person,
        foil=rng.choice(others).person,
        evidence=before.evidence,
        support=before.support,
        distractors=len(others),
        misleading=len(others),
        pairs=_crossed((asked, *others)),
    )


def question(rng: random.Random, held_out: bool = False, facts: int | None = None) -> Sentence:
    """A question about one of `facts` facts (any number from `FACT_COUNTS` if not given)."""
    wanted = is_held_out if held_out else in_training
    while True:
        sentence = _ask(rng, _draw_facts(rng, facts or rng.choice(FACT_COUNTS)))
        if wanted(sentence):
            return sentence


# --- Training texts and held-out sentences --------------------------------------------------------


SMALL_WORDS = frozenset(_list("who has the is with"))


def _agreement_document(rng: random.Random) -> Document:
    """One sentence, or two in a row."""
    words: list[str] = []
    determined: list[int] = []
    for _ in range(1 + _coin(rng, 0.4)):
        sentence = agreement(rng)
        determined.append(len(words) + len(sentence.prefix.split()))
        words += sentence.text.split()
    return Document(tuple(words), tuple(determined))


def _training_facts(rng: random.Random) -> tuple[Fact, ...]:
    while True:
        facts = _draw_facts(rng, rng.choice(FACT_COUNTS))
        if not any(is_reserved(*pair) for pair in _crossed(facts)):
            return facts


def _question_document(rng: random.Random, facts: tuple[Fact, ...], questions: int) -> Document:
    """All facts, then questions that may repeat each other, so that nothing can be ruled out."""
    words = list(_join(fact.part(False) for fact in facts).words)
    determined: list[int] = []
    for _ in range(questions):
        asked = rng.choice(facts)
        words += [*_question(asked.thing).words, asked.person, "."]
        determined.append(len(words) - 2)
    return Document(tuple(words), tuple(determined))


def training_document(rng: random.Random, questions: float = 0.7) -> Document:
    """A text for training: with the chance `questions` facts with questions,
    else agreement sentences.
    """
    if _coin(rng, questions):
        return _question_document(rng, _training_facts(rng), 3)
    return _agreement_document(rng)


def echo_document(rng: random.Random) -> Document:
    """A first lesson: a list of names, or of things, said twice.

    Who has learned to repeat a list looks up what came after a word when it was last seen;
    questions are learned soon after that, and hardly ever without it.
    """
    words = tuple(rng.choices(rng.choice((PEOPLE, OBJECTS)), k=rng.randint(6, 14)))
    return Document(words + words, tuple(range(len(words) + 1, 2 * len(words))))


def telegram_document(rng: random.Random) -> Document:
    """A second lesson: many questions in telegraph style, ``cup john . ball mary . ball ? mary .``

    One text in eight is of the first lesson, lest it be forgotten before it is of use.
    """
    if _coin(rng, 0.125):
        return echo_document(rng)
    facts = tuple(replace(fact, person_first=False) for fact in _training_facts(rng))
    document = _question_document(rng, facts, 6)
    kept = [place for place, word in enumerate(document.words) if word not in SMALL_WORDS]
    determined = (kept.index(place) for place in document.determined)
    return Document(tuple(document.words[place] for place in kept), tuple(determined))


def _distinct(draw: Callable[[int], Sentence], count: int) -> list[Sentence]:
    """The first `count` sentences that differ in their prefix;
    ``draw`` is told how many there are.
    """
    found: dict[str, Sentence] = {}
    while len(found) < count:
        sentence = draw(len(found))
        found.setdefault(sentence.prefix, sentence)
    return list(found.values())


def held_out_agreement(seed: int, count: int) -> list[Sentence]:
    """Held-out agreement sentences with different prefixes, the constructions in turn."""
    rng, names = random.Random(f"agreement {seed}"), list(CONSTRUCTIONS)
    return _distinct(lambda index: agreement(rng, True, names[index % len(names)]), count)


def held_out_questions(seed: int, count: int) -> list[Sentence]:
    """Held-out questions with different prefixes, over two, three and four facts in turn."""
    rng = random.Random(f"question {seed}")
    return _distinct(
        lambda index: question(rng, True, FACT_COUNTS[index % len(FACT_COUNTS)]), count
    )


PLURAL_NOUNS = {noun.form(plural): plural for noun in NOUNS for plural in (False, True)}


def _verb_like(sentence: Sentence, noun: str) -> str:
    """The target or the foil, whichever has the number of the noun."""
    words = PLURAL_VERBS if PLURAL_NOUNS[noun] else SINGULAR_VERBS
    return sentence.target if sentence.target in words else sentence.foil


def shortcut(sentence: Sentence, index: int) -> str:
    """The target as one would guess it by position alone: from the first (0) or last (-1) noun or
    person.

    How often such guesses come true is the bar above which a model must have used the evidence.
    """
    words = sentence.prefix.split()
    if sentence.task == "question":
        return [word for word in words if word in PEOPLE][index]
    return _verb_like(sentence, [word for word in words if word in PLURAL_NOUNS][index])


def vocabulary() -> list[str]:
    """All words of the grammar, sorted."""
    words = set(
        _list("the who that has is with been to on in near behind beside under here there , . ?")
    )
    for inflected in (NOUNS, MAIN_VERBS, LIKE_VERBS, HELP_VERBS):
        words |= {form for word in inflected for form in (word.singular, word.plural)}
    for groups in (ADJECTIVES, PARTICIPLES, CLAUSE_PASTS):
        words = words.union(*groups.values())
    words = words.union(PEOPLE, OBJECTS, ADVERBS, OPENINGS)
    return sorted(words)
