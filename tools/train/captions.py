# SPDX-License-Identifier: Apache-2.0
"""Captions of scenes in a closed vocabulary, written and read back."""
import random

from tools.train.clips import DIAGONALS, DIRECTIONS, DULL_COLOURS, OBJECT_COLOURS, Scene, SceneObject

MAX_WORDS = 24

# The first entry of every list is the main phrasing, the one of `canonical_caption`.
_SIZE_WORDS = {"small": ("small", "tiny", "little"), "big": ("big", "large", "huge", "giant")}
_COLOUR_WORDS = {
    **{name: (name,) for name in (*OBJECT_COLOURS, *DULL_COLOURS)},
    "purple": ("purple", "violet"), "gray": ("gray", "grey"),
}
_SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"), "square": ("square", "box"), "triangle": ("triangle",),
    "ring": ("ring", "hoop"), "star": ("star",), "cross": ("cross", "plus"),
}
_SPEED_WORDS = {"slow": ("slowly", "gently"), "normal": ("",), "fast": ("quickly", "rapidly")}
_MOVE = ("moves", "slides", "travels", "drifts", "goes", "flies", "glides")
_MOVING = ("moving", "sliding", "traveling", "drifting", "going", "flying", "gliding")
# Other motions as (finite form, -ing form).
_MOTION_WORDS = {
    "bounces": (("bounces", "bouncing"), ("bounces up and down", "bouncing up and down")),
    "rotates": (("rotates", "rotating"), ("spins", "spinning"), ("turns", "turning")),
    "grows": (("grows", "growing"), ("gets bigger", "getting bigger"), ("expands", "expanding")),
    "shrinks": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"),
                ("contracts", "contracting")),
    "circles": (("circles around", "circling around"), ("orbits", "orbiting"),
                ("goes around", "going around")),
    "still": (("stays still", "staying still"), ("does not move", "not moving"),
              ("stands still", "standing still"), ("rests", "resting")),
}
_BACKGROUND_WORDS = {  # as an adjective, as a noun
    "plain": (("plain", "solid"), ()),
    "stripes": (("striped",), ("stripes", "lines")),
    "checker": (("checkered",), ("checks", "tiles")),
    "clouds": (("cloudy",), ("clouds", "smoke")),
    "texture": (("textured", "rough"), ("texture", "noise")),
}
_OVER = ("over", "on", "against")
_GROUND = ("background", "backdrop")
_PAN_WORDS = ("the camera pans {}", "camera pans {}", "the camera moves {}", "the camera pans to the {}",
              "the view pans {}")
_STILL_CAMERA = ("static camera", "the camera stays still", "fixed camera")
_LIGHT_WORDS = {
    "fades": ("the light fades", "it gets darker", "the light dims", "the scene darkens"),
    "brightens": ("the light brightens", "it gets brighter", "the light rises", "the scene lightens"),
}
_LEADS = ("", "a video of", "a clip of", "this is", "there is", "we see")
FILLERS = (
    "beautiful", "nice", "simple", "cinematic", "smooth", "colorful", "detailed", "clear", "short",
    "animated", "pretty", "lovely", "quality", "render", "please", "very",
)


def _article(noun: str) -> str:
    """The noun phrase with its indefinite article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _direction(motion: str, pick) -> str:
    """Words of a straight motion after its verb."""
    if motion in DIAGONALS:
        vertical, side = motion.split("-")
        return pick((f"{vertical} and to the {side}", f"{vertical} and {side}", f"diagonally {vertical} {side}"))
    if motion in ("left", "right"):
        return pick((motion, f"to the {motion}", f"towards the {motion}"))
    return pick((motion, {"up": "upwards", "down": "downwards"}[motion]))


def _action(o: SceneObject, pick, ing: bool) -> str:
    """What the object does, as a finite form or an -ing form, with its speed word."""
    adverb = pick(_SPEED_WORDS[o.speed])
    if o.motion in DIRECTIONS:
        words = f"{pick(_MOVING if ing else _MOVE)} {_direction(o.motion, pick)}"
    else:
        words = pick(_MOTION_WORDS[o.motion])[ing]
    return f"{adverb} {words}" if adverb else words


def _thing(o: SceneObject, pick, drop: set) -> str:
    """Size, colour and shape of the object, with an article."""
    words = [] if "size" in drop else [pick(_SIZE_WORDS[o.size])]
    return _article(" ".join(words + [pick(_COLOUR_WORDS[o.colour]), pick(_SHAPE_WORDS[o.shape])]))


def _objects_text(scene: Scene, pick, drop: set, ing: bool) -> str:
    """The objects and what they do, the first of the scene first; only it can be a full sentence."""
    parts = [f"{_thing(o, pick, drop)} {_action(o, pick, ing or k > 0)}" for k, o in enumerate(scene.objects)]
    return f" {'in front of' if scene.front == 0 else 'behind'} ".join(parts)


def _background_text(scene: Scene, pick, drop: set, brief: bool) -> str:
    """Background after its preposition; `brief` is the noun form, two words shorter."""
    adjectives, nouns = _BACKGROUND_WORDS[scene.background]
    colours = [pick(_COLOUR_WORDS[c]) for c in scene.colours[:1 if scene.background == "plain" else 2]]
    names = "" if "colours" in drop else " and ".join(colours)
    if brief and nouns:
        return f"{names} {pick(nouns)}".strip()
    return _article(" ".join(w for w in (pick(adjectives), names, pick(_GROUND)) if w))


def _compose(scene: Scene, pick, drop: set, lead: str, brief: bool, still_camera: str) -> str:
    """The sentence of a scene; `pick` chooses among phrasings and `drop` names what to omit."""
    text = _objects_text(scene, pick, drop, bool(lead))
    if lead:
        text = f"{lead} {text}"
    if "background" not in drop:
        text += f" {pick(_OVER)} {_background_text(scene, pick, drop, brief)}"
    if scene.pan != "none" and "pan" not in drop:
        text += ", " + pick(_PAN_WORDS[1:] if len(scene.objects) == 2 else _PAN_WORDS).format(scene.pan)
    elif still_camera and scene.pan == "none":
        text += ", " + still_camera
    if scene.light != "none":
        text += ", " + pick(_LIGHT_WORDS[scene.light])
    return text


def canonical_caption(scene: Scene) -> str:
    """The full caption in the main phrasing, nothing dropped; at most `MAX_WORDS` words."""
    return _compose(scene, lambda options: options[0], set(), "", len(scene.objects) == 2, "")


def _with_fillers(text: str, rng: random.Random) -> str:
    """The caption with one or two meaningless words put before a word."""
    words = text.split()
    for _ in range(rng.randint(1, 2)):
        words.insert(rng.randrange(len(words) + 1), rng.choice(FILLERS))
    return " ".join(words)


def caption(scene: Scene, rng: random.Random, drop_attributes: bool = True) -> str:
    """A random caption of the scene, at most `MAX_WORDS` words.

    With `drop_attributes` one in ten captions leaves something out (sizes, background, its
    colours or the pan) and one in twenty has filler words in it.
    """
    drop = set()
    if drop_attributes and rng.random() < 0.1:
        drop.add(rng.choice(("size", "background", "colours") + (("pan",) if scene.pan != "none" else ())))
    filler = drop_attributes and rng.random() < 0.05
    while True:
        lead = rng.choice(_LEADS) if rng.random() < 0.4 else ""
        brief = len(scene.objects) == 2 or rng.random() < 0.35
        still_camera = rng.choice(_STILL_CAMERA) if rng.random() < 0.1 else ""
        # A third of the choices fall on the main phrasing before the others get their share.
        text = _compose(scene, lambda options: options[0] if rng.random() < 0.33 else rng.choice(options),
                        drop, lead, brief, still_camera)
        text = _with_fillers(text, rng) if filler else text
        if len(text.split()) <= MAX_WORDS:
            return text


def _phrases():
    """Every phrase of the grammar, in a fixed order."""
    yield from ("a", "an", "in front of", "behind", "and", "to the", "towards the", "diagonally",
                "left", "right", "up", "down", "upwards", "downwards")
    for table in (_SIZE_WORDS, _COLOUR_WORDS, _SHAPE_WORDS, _SPEED_WORDS, _LIGHT_WORDS):
        for options in table.values():
            yield from options
    for options in _MOTION_WORDS.values():
        for forms in options:
            yield from forms
    for adjectives, nouns in _BACKGROUND_WORDS.values():
        yield from adjectives + nouns
    for options in (_MOVE, _MOVING, _OVER, _GROUND, _PAN_WORDS, _STILL_CAMERA, _LEADS, FILLERS):
        yield from options


# Every word a caption can have, in a fixed order. "," stands apart: it is glued to the word before.
VOCABULARY = list(dict.fromkeys(
    word for phrase in _phrases() for word in phrase.replace("{}", "").split()))


def _index(table: dict) -> dict:
    """Word -> name for a table of name -> words."""
    return {word: name for name, words in table.items() for word in words if word}


_BY_SIZE, _BY_COLOUR, _BY_SHAPE = _index(_SIZE_WORDS), _index(_COLOUR_WORDS), _index(_SHAPE_WORDS)
_BY_SPEED = _index(_SPEED_WORDS)
_BY_KIND = {word: kind for kind, forms in _BACKGROUND_WORDS.items() for words in forms for word in words}
_BY_MOTION = {  # "not" of "does not move" is the word that tells
    **{word: name for name, forms in _MOTION_WORDS.items() for pair in forms for form in pair
       for word in form.split() if word not in ("up", "down", "and", "gets", "getting", "goes", "going",
                                                "does", "move", "moving")},
}
_BY_LIGHT = {phrase.split()[-1]: name for name, words in _LIGHT_WORDS.items() for phrase in words}
_ENDS = {"a", "an", "in", "behind", ",", *_OVER}  # what ends the words of an action
_STEPS = {"left": "left", "right": "right", "up": "up", "upwards": "up", "down": "down", "downwards": "down"}


def _read_motion(words: list) -> str | None:
    """Motion named by the words after a shape, or None."""
    for word in words:
        if word in _BY_MOTION:
            return _BY_MOTION[word]
    steps = [_STEPS[word] for word in words if word in _STEPS]
    return "-".join(steps) if steps else None


def _read_object(words: list, begin: int, at: int) -> dict:
    """Attributes of the object whose shape word is `words[at]`, its phrase starting at `begin`."""
    found = {"shape": _BY_SHAPE[words[at]]}
    for word in words[begin:at]:
        if word in _BY_SIZE:
            found["size"] = _BY_SIZE[word]
        if _BY_COLOUR.get(word) in OBJECT_COLOURS:
            found["colour"] = _BY_COLOUR[word]
    end = next((i for i in range(at + 1, len(words)) if words[i] in _ENDS), len(words))
    motion = _read_motion(words[at + 1:end])
    if motion:
        found["motion"] = motion
    found["speed"] = next((_BY_SPEED[w] for w in words[at + 1:end] if w in _BY_SPEED), "normal")
    return found


def parse_caption(text: str) -> dict:
    """What a caption of the grammar says; what it does not say is absent.

    Keys: `colour`, `shape`, `size`, `motion`, `speed` of the first object, `objects` (the same
    for each), `background` (kind), `colours` (tuple of one or two dull colours), `pan`
    ("left"/"right"), `light` ("fades"/"brightens").
    """
    words = [w for w in text.lower().replace(",", " , ").split() if w not in FILLERS]
    shapes = [i for i, word in enumerate(words) if word in _BY_SHAPE]
    objects = [_read_object(words, 0 if k == 0 else shapes[k - 1], at) for k, at in enumerate(shapes)]
    found = {**(objects[0] if objects else {}), "objects": objects}
    kinds = [_BY_KIND[w] for w in words if w in _BY_KIND]
    colours = tuple(_BY_COLOUR[w] for w in words if _BY_COLOUR.get(w) in DULL_COLOURS)
    lights = [_BY_LIGHT[w] for w in words if w in _BY_LIGHT]
    camera = next((i for i, w in enumerate(words) if w in ("camera", "view")), len(words))
    pans = [w for w in words[camera:] if w in ("left", "right")]
    for key, value in (("background", kinds[:1]), ("pan", pans[:1]), ("light", lights[:1])):
        if value:
            found[key] = value[0]
    if colours:
        found["colours"] = colours
    return found
