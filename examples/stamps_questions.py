"""Questions about scenes of stamps: one function a task, each giving a question, its answer and the scenes it is about.

Tasks that need a stamp's name show seen stamps only, in training and in testing. Kind and count need no name: their
twins "kind-new" and "count-new" show held-out stamps, and only testing has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from stamps_scenes import (
    COLUMN,
    CORNERS,
    ROW,
    Cell,
    Scene,
    is_for_test,
    place_alone,
    place_anywhere,
    place_in_cells,
)
from stamps_source import Stamp

from linmu.errors import InputError

NUMBERS = ("one", "two", "three", "four")
ORDINALS = ("first", "second", "third")
SIDES: dict[str, tuple[tuple[Cell, ...], tuple[str, ...]]] = {
    "left-right": (ROW, ("on the left", "on the right")),
    "top-bottom": (COLUMN, ("at the top", "at the bottom")),
    "corner": (CORNERS, ("at the top left", "at the top right", "at the bottom left", "at the bottom right")),
}
MIXED = "mixed"  # category of a question about no stamp in particular
MIN_KIND = 5  # seen stamps a kind needs to be asked for: with fewer it would be learned by heart
# Words for nearly the same thing: a picture of one is no good "no" to a question about the other.
RELATED = {
    "bunny": "rabbit",
    "cep": "mushroom",
    "chick": "chicken",
    "jacket": "shirt",
    "lantern": "pumpkin",
    "santa": "christmas",
    "sailboat": "ship",
    "shipwreck": "ship",
}

_BOTH = (
    ["name"] * 4
    + ["left-right"] * 3
    + ["top-bottom"] * 3
    + ["corner"] * 2
    + ["kind"] * 2
    + ["count"] * 2
    + ["presence-yes", "presence-no"]
    + ["image"] * 2
)
# One round of questions; names come most often because everything else builds on them.
ROUNDS = {"train": tuple(_BOTH), "test": (*_BOTH, "kind-new", "count-new", "presence-yes", "presence-no")}
GIVE_UP = 10_000


@dataclass(frozen=True)
class Question:
    """task: "stamps/<task>/<category of the stamp asked for>"; prompt; answer; the scenes, an image each, in order."""

    task: str
    prompt: str
    answer: str
    scenes: tuple[Scene, ...]


class Pool:
    """Stamps to draw from, evenly by name: a name with ten pictures comes as often as one with a single picture.

    kinds: the kinds that may be asked for.
    """

    def __init__(self, stamps: Sequence[Stamp], kinds: Sequence[str]):
        self.kinds = tuple(kinds)
        self._names: dict[str, list[Stamp]] = {}
        for stamp in stamps:
            self._names.setdefault(stamp.name, []).append(stamp)

    def draw(self, rng: Random, count: int, fits: Callable[[Stamp], bool] = lambda stamp: True) -> list[Stamp]:
        """Stamps of different names, all of which fit; raises InputError when there are too few."""
        found: list[Stamp] = []
        for name in rng.sample(list(self._names), len(self._names)):
            if fitting := [stamp for stamp in self._names[name] if fits(stamp)]:
                found.append(rng.choice(fitting))
            if len(found) == count:
                return found
        raise InputError("too few stamps with different names", got=len(found), expected=f"at least {count}")

    def draw_of_kinds(self, rng: Random, count: int) -> list[Stamp]:
        """Stamps of different kinds, evenly by kind; raises InputError when there are too few kinds."""
        if len(self.kinds) < count:
            raise InputError("too few kinds of stamps", got=len(self.kinds), expected=f"at least {count}")
        return [self._of_kind(rng, kind) for kind in rng.sample(self.kinds, count)]

    def _of_kind(self, rng: Random, kind: str) -> Stamp:
        return self.draw(rng, 1, lambda stamp: stamp.kind == kind)[0]


def pools(stamps: Sequence[Stamp]) -> tuple[Pool, Pool]:
    """The pool of seen and the pool of held-out stamps; kinds are asked for that are frequent enough in the first."""
    seen, held_out = ([stamp for stamp in stamps if stamp.held_out is side] for side in (False, True))
    counts = Counter(stamp.kind for stamp in seen if stamp.kind is not None)
    kinds = sorted(kind for kind, count in counts.items() if count >= MIN_KIND)
    new = {stamp.kind for stamp in held_out}
    return Pool(seen, kinds), Pool(held_out, [kind for kind in kinds if kind in new])


def ask(both: tuple[Pool, Pool], split: str, seed: int, index: int) -> tuple[Question, Random]:
    """Question number `index` of a split ("train" or "test"), and the generator to draw its scenes with.

    It depends on these numbers alone, not on how many questions there are. Raises InputError with too few stamps.
    """
    rng = Random(f"stamps {seed} {split} {index}")
    task = ROUNDS[split][index % len(ROUNDS[split])]
    pool = both[task.endswith("-new")]
    for _ in range(GIVE_UP):
        question = TASKS[task.removesuffix("-new")](rng, pool, task)
        if is_for_test(question.scenes) == (split == "test"):
            return question, rng
    raise InputError(f"found no scene for {task} in {GIVE_UP} tries", fix="more stamps are needed")


def _name(rng: Random, pool: Pool, task: str) -> Question:
    (stamp,) = pool.draw(rng, 1)
    return _question(task, stamp.category, "What is this?", stamp.name, place_alone(rng, stamp))


def _side(rng: Random, pool: Pool, task: str) -> Question:
    """What stands at one of the places of a layout; two to all of them are taken."""
    cells, places = SIDES[task]
    taken = sorted(rng.sample(range(len(cells)), rng.randint(2, len(cells))))
    stamps = pool.draw(rng, len(taken))
    asked = rng.randrange(len(taken))
    scene = place_in_cells(rng, stamps, [cells[place] for place in taken])
    return _question(task, stamps[asked].category, f"What is {places[taken[asked]]}?", stamps[asked].name, scene)


def _kind(rng: Random, pool: Pool, task: str) -> Question:
    """What kind of thing a stamp is, alone or as one of two of different kinds."""
    layout = rng.choice((None, "left-right", "top-bottom"))
    if layout is None:
        (stamp,) = pool.draw_of_kinds(rng, 1)
        prompt, scene = "What kind of thing is this?", place_alone(rng, stamp)
    else:
        stamps, asked = pool.draw_of_kinds(rng, 2), rng.randrange(2)
        cells, places = SIDES[layout]
        prompt, scene = f"What kind of thing is {places[asked]}?", place_in_cells(rng, stamps, cells)
        stamp = stamps[asked]
    assert stamp.kind is not None
    return _question(task, stamp.category, prompt, stamp.kind, scene)


def _count(rng: Random, pool: Pool, task: str) -> Question:
    count = rng.randrange(len(NUMBERS))
    scene = place_anywhere(rng, pool.draw(rng, count + 1))
    return _question(task, MIXED, "How many pictures are there?", NUMBERS[count], scene)


def _presence(rng: Random, pool: Pool, task: str) -> Question:
    """Whether a stamp is there: the one asked for is drawn alike for yes and no, so that its name says nothing."""
    (asked,) = pool.draw(rng, 1, lambda stamp: stamp.asked is not None)
    yes = task == "presence-yes"
    others = pool.draw(rng, rng.randint(1, 3) + (not yes), lambda stamp: not related(stamp, asked))
    stamps = [*others, asked] if yes else others
    rng.shuffle(stamps)
    scene = place_anywhere(rng, stamps)
    return _question("presence", asked.category, f"Is there {asked.asked}?", "yes" if yes else "no", scene)


def _image(rng: Random, pool: Pool, task: str) -> Question:
    """What one of two or three images shows."""
    stamps = pool.draw(rng, rng.randint(2, 3))
    asked = rng.randrange(len(stamps))
    prompt = f"What is in the {ORDINALS[asked]} image?"
    return _question(task, stamps[asked].category, prompt, stamps[asked].name, *(place_alone(rng, s) for s in stamps))


def related(one: Stamp, two: Stamp) -> bool:
    """Whether a picture of one might be taken for the other: a word in common, or from the same folder."""
    words = [{RELATED.get(word, word) for word in stamp.name.split()} for stamp in (one, two)]
    return one.group == two.group or bool(words[0] & words[1])


def _question(task: str, category: str, prompt: str, answer: str, *scenes: Scene) -> Question:
    return Question(f"stamps/{task}/{category}", prompt, answer, scenes)


TASKS: dict[str, Callable[[Random, Pool, str], Question]] = {
    "name": _name,
    "left-right": _side,
    "top-bottom": _side,
    "corner": _side,
    "kind": _kind,
    "count": _count,
    "presence-yes": _presence,
    "presence-no": _presence,
    "image": _image,
}
