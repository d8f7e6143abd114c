# SPDX-License-Identifier: Apache-2.0
"""Procedural clips: the only training data of the default model.

A clip is a `Scene`, made from an integer seed, and a scene is all there is to store: `render`
draws it at any resolution and at any times. captions.py describes it in a closed vocabulary and
reads a description back, so that generated clips can be judged without a model.

Coordinates: the origin is the frame's centre, x points right, y points down and the frame's
shorter side has length 1. Time runs from 0 (first frame) to 1 (last frame).
"""
import dataclasses
import math
import random
import zlib

import torch

# Saturated colours for objects and dull ones for backgrounds, RGB in [0, 1]. The smallest
# distance between any two keeps nearest-colour segmentation safe under a mild blur.
OBJECT_COLOURS = {
    "red": (0.92, 0.08, 0.10), "green": (0.10, 0.80, 0.15), "blue": (0.10, 0.25, 1.00),
    "yellow": (1.00, 0.92, 0.08), "orange": (1.00, 0.50, 0.00), "purple": (0.72, 0.12, 0.92),
    "cyan": (0.05, 0.92, 0.98), "white": (1.00, 1.00, 1.00),
}
DULL_COLOURS = {
    "navy": (0.08, 0.10, 0.36), "brown": (0.40, 0.23, 0.10), "olive": (0.36, 0.42, 0.12),
    "gray": (0.52, 0.52, 0.52), "teal": (0.08, 0.40, 0.40), "maroon": (0.38, 0.04, 0.16),
    "black": (0.04, 0.04, 0.05), "tan": (0.72, 0.61, 0.46),
}
BACKGROUNDS = ("plain", "stripes", "checker", "clouds", "texture")
SHAPES = ("circle", "square", "triangle", "ring", "star", "cross")
SIZES = {"small": 0.16, "big": 0.28}  # radius, in shorter sides
SPEEDS = ("slow", "normal", "fast")

# Unit steps of the straight motions. A diagonal is a little shorter on each axis.
DIRECTIONS = {
    "left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0),
    "up-left": (-0.8, -0.8), "up-right": (0.8, -0.8),
    "down-left": (-0.8, 0.8), "down-right": (0.8, 0.8),
}
DIAGONALS = tuple(name for name in DIRECTIONS if "-" in name)
MOTIONS = (*DIRECTIONS, "bounces", "rotates", "grows", "shrinks", "circles", "still")
# What a clip covers at each speed: path length, bounces up and down, turns, rounds.
TRAVEL = {"slow": 0.38, "normal": 0.50, "fast": 0.64}
BOUNCES = {"slow": 1.0, "normal": 1.5, "fast": 2.0}
SPIN = {"slow": 0.25, "normal": 0.5, "fast": 0.75}
ROUNDS = {"slow": 0.6, "normal": 1.0, "fast": 1.5}

DIMMED = 0.55  # brightness at the dark end of a lighting change
GRID = 32  # texture cells per wrap-around
CELL = 1 / 16  # texture cell, in shorter sides: 6 px at 96, so that no period is under 12 px
WAVES = 6  # sines in a cloud


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object. `x`, `y` is the centre at time 0 (for `circles`, the centre of the round).

    `radius`, `x` and `y` are in shorter sides; `phase` in [0, 1) is where a bounce or a round
    starts.
    """
    shape: str
    colour: str
    size: str
    motion: str
    speed: str
    radius: float
    x: float
    y: float
    phase: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything that determines a clip.

    `period` (shorter sides), `angle` (radians) and `phase` ([0, 1)) place stripes and checks;
    clouds and textures come from `seed`. `pan` and `light` are "none" or the caption's word,
    `pan_length` is the way of the camera over the clip in shorter sides. `objects` has one or
    two entries in the order of the caption, and `front` is the index of the one in front.
    """
    seed: int
    background: str
    colours: tuple
    period: float
    angle: float
    phase: float
    pan: str
    pan_length: float
    light: str
    objects: tuple
    front: int


# ---------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------

def triple_held_out(colour: str, shape: str, motion: str) -> bool:
    """True for the 5 % of (colour, shape, motion) triples that training never shows."""
    return zlib.crc32(f"{colour} {shape} {motion}".encode()) % 20 == 0


def is_held_out(scene: Scene) -> bool:
    """True if any object of the scene is a held-out (colour, shape, motion) triple."""
    return any(triple_held_out(o.colour, o.shape, o.motion) for o in scene.objects)


def _start(rng: random.Random, motion: str, speed: str, radius: float) -> tuple:
    """Start position (x, y) from which the motion stays mostly inside the central square."""
    room = 0.8 * (0.5 - radius)
    if motion in DIRECTIONS:
        ends = 0.5 - 0.6 * radius  # how far the centre may go along the motion
        start = []
        for step in DIRECTIONS[motion]:
            half = 0.5 * step * TRAVEL[speed]
            slack = max(0.0, ends - abs(half)) if step else room
            start.append(rng.uniform(-slack, slack) - half)
        return tuple(start)
    if motion in ("grows", "shrinks", "circles"):
        room = 0.04
    x, y = rng.uniform(-room, room), rng.uniform(-room, room)
    return (x, 0.0) if motion == "bounces" else (x, y)


def _sample_object(rng: random.Random, colours: list, single: bool) -> SceneObject:
    """One object in one of `colours`. Beside another it has no diagonal and no speed words."""
    shape = rng.choice(SHAPES)
    motions = [m for m in MOTIONS
               if not (m == "rotates" and shape in ("circle", "ring"))  # would not be visible
               and (single or m not in DIAGONALS)]
    motion = rng.choice(motions)
    fixed = motion in ("grows", "shrinks", "still")
    speed = "normal" if fixed or not single else rng.choices(SPEEDS, (0.2, 0.6, 0.2))[0]
    size = rng.choice(tuple(SIZES))
    radius = SIZES[size] * rng.uniform(0.93, 1.07)
    x, y = _start(rng, motion, speed, radius)
    return SceneObject(shape, rng.choice(colours), size, motion, speed, radius, x, y, rng.random())


def _middle(o: SceneObject) -> tuple:
    """Centre (x, y) of the straight part of the object's path."""
    dx, dy = DIRECTIONS.get(o.motion, (0.0, 0.0))
    return o.x + 0.5 * dx * TRAVEL[o.speed], o.y + 0.5 * dy * TRAVEL[o.speed]


def _sample_objects(rng: random.Random, count: int) -> tuple:
    """`count` objects of different colours, two of which are not on top of each other."""
    while True:
        colours = list(OBJECT_COLOURS)
        objects = []
        for _ in range(count):
            objects.append(_sample_object(rng, colours, count == 1))
            colours.remove(objects[-1].colour)
        if count == 1 or math.dist(_middle(objects[0]), _middle(objects[1])) > 0.22:
            return tuple(objects)


def _draw(rng: random.Random, seed: int, p_second: float, p_pan: float) -> Scene:
    """One scene, held out or not."""
    background = rng.choice(BACKGROUNDS)
    objects = _sample_objects(rng, 2 if rng.random() < p_second else 1)
    # A pan over a plain background cannot be seen, nor one along horizontal stripes.
    pan = rng.choice(("left", "right")) if background != "plain" and rng.random() < p_pan else "none"
    angles = (0.0, 0.25 * math.pi, 0.75 * math.pi) + ((0.5 * math.pi,) if pan == "none" else ())
    light = "none"
    if pan == "none" and len(objects) == 1 and rng.random() < 0.15:
        light = rng.choice(("fades", "brightens"))
    return Scene(
        seed=seed, background=background, colours=tuple(rng.sample(tuple(DULL_COLOURS), 2)),
        period=rng.uniform(0.22, 0.36), angle=rng.choice(angles), phase=rng.random(), pan=pan,
        pan_length=0.0 if pan == "none" else rng.uniform(0.35, 0.55), light=light, objects=objects,
        front=rng.randrange(len(objects)))


def sample_scene(seed: int, p_second: float = 0.25, p_pan: float = 0.3, held_out: bool = False) -> Scene:
    """The scene of a seed: equal arguments give equal scenes.

    `p_second` is the probability of a second object and `p_pan` that of a camera pan (plain
    backgrounds have none). With `held_out` false no object is a held-out triple; with `held_out`
    true at least one is.
    """
    rng = random.Random(seed)
    while True:
        scene = _draw(rng, seed, p_second, p_pan)
        if is_held_out(scene) == held_out:
            return scene


# ---------------------------------------------------------------------------------------------
# Rendering
# ---------------------------------------------------------------------------------------------

def _hash01(seeds: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform numbers [B, count] in [0, 1) from integer seeds [B], equal on every device."""
    mask = 0xFFFFFFFF
    index = torch.arange(count, device=seeds.device)
    h = (seeds[:, None] * 0x9E3779B1 + index * 0x85EBCA77 + 0x165667B1) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = ((h ^ (h >> shift)) * factor) & mask
    return (h ^ (h >> 16)).float() / 2.0**32


def _smooth_step(distance: torch.Tensor, pixel: float) -> torch.Tensor:
    """1 inside (negative distance), 0 outside, with an edge about one pixel wide."""
    return torch.sigmoid(distance * (-2.5 / pixel))


def _bands(u: torch.Tensor, period: torch.Tensor, pixel: float) -> torch.Tensor:
    """Bands of half a period across the coordinate `u`; both in shorter sides."""
    f = u / period
    return _smooth_step(((f - f.floor() - 0.5).abs() - 0.25) * period, pixel)


def _stripes(p: dict, x: torch.Tensor, y: torch.Tensor, pixel: float) -> torch.Tensor:
    """Stripes at the scene's angle, as the share of the second colour."""
    u = x * p["angle"].cos() + y * p["angle"].sin() + p["phase"] * p["period"]
    return _bands(u, p["period"], pixel)


def _checker(p: dict, x: torch.Tensor, y: torch.Tensor, pixel: float) -> torch.Tensor:
    """A checkerboard, as the share of the second colour."""
    a = _bands(x + p["phase"] * p["period"], p["period"], pixel)
    b = _bands(y + p["phase"] * p["period"], p["period"], pixel)
    return a + b - 2 * a * b


def _clouds(p: dict, x: torch.Tensor, y: torch.Tensor, pixel: float) -> torch.Tensor:
    """A sum of long sines in random directions, as the share of the second colour."""
    r = _hash01(p["seed"], 3 * WAVES).view(-1, WAVES, 3)
    heading, wavelength = 2 * math.pi * r[..., 0], 0.42 + 0.5 * r[..., 1]
    kx = (2 * math.pi * heading.cos() / wavelength)[:, None, None]  # [B, 1, 1, WAVES]
    ky = (2 * math.pi * heading.sin() / wavelength)[:, None, None]
    across = x[:, :, 0, :, None] * kx + (2 * math.pi * r[..., 2])[:, None, None]
    along = y[:, :, :, 0, None] * ky
    # sin(a + b) = sin a cos b + cos a sin b: the sum over waves is one small matrix product.
    left = torch.cat((along.cos(), along.sin()), -1)  # [B, 1, H, 2 WAVES]
    right = torch.cat((across.sin(), across.cos()), -1)  # [B, T, W, 2 WAVES]
    return torch.sigmoid(3.0 * math.sqrt(2 / WAVES) * (left @ right.transpose(-1, -2)))


def _spline(u: torch.Tensor) -> torch.Tensor:
    """Cubic B-spline weights [..., GRID] of the wrapped texture cells at coordinates u [...]."""
    cells = torch.arange(GRID, device=u.device)
    d = u[..., None] / CELL - cells
    d = (d - GRID * (d / GRID).round()).abs()
    return ((2 - d).clamp(min=0)**3 - 4 * (1 - d).clamp(min=0)**3) / 6


def _texture(p: dict, x: torch.Tensor, y: torch.Tensor, pixel: float) -> torch.Tensor:
    """Low-pass random texture of the seed, as the share of the second colour."""
    noise = _hash01(p["seed"], GRID * GRID).view(-1, 1, GRID, GRID) - 0.5
    rows = _spline(y[:, :, :, 0]) @ noise  # [B, 1, H, GRID]
    smooth = rows @ _spline(x[:, :, 0, :]).transpose(-1, -2)
    return torch.sigmoid(smooth * (2.5 / 0.14))  # 0.14: deviation of smoothed uniform noise


def _plain(p: dict, x: torch.Tensor, y: torch.Tensor, pixel: float) -> torch.Tensor:
    """Nothing of the second colour."""
    return x.new_zeros(()).expand(x.shape[0], x.shape[1], y.shape[2], x.shape[3])


_PAINTERS = {"plain": _plain, "stripes": _stripes, "checker": _checker, "clouds": _clouds,
             "texture": _texture}


def _sd_circle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (u * u + v * v).sqrt() - 1.0


def _sd_ring(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return ((u * u + v * v).sqrt() - 0.75).abs() - 0.27


def _sd_square(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.88


def _sd_triangle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.maximum(v, 0.8660254 * u.abs() - 0.5 * v) - 0.6


def _sd_cross(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    a, b = u.abs(), v.abs()
    return torch.maximum(torch.minimum(a, b) - 0.33, torch.maximum(a, b) - 1.05)


def _sd_star(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Five points: the plane is folded onto half a point, whose edge is one straight line."""
    c, s = math.cos(math.pi / 5), math.sin(math.pi / 5)
    a, b = u.abs(), -v
    fold = 2 * (c * a - s * b).clamp(min=0)
    a, b = a - c * fold, b + s * fold
    fold = 2 * (-c * a - s * b).clamp(min=0)
    a, b = (a + c * fold).abs(), b + s * fold
    outer, inner = 1.25, 0.56
    ex, ey = inner * s, inner * c - outer  # along the edge, from the tip to the notch
    return (a * -ey - (outer - b) * ex) / math.hypot(ex, ey)


# Signed distances of the shapes with radius 1, upright, v pointing down.
SHAPE_DISTANCE = {"circle": _sd_circle, "square": _sd_square, "triangle": _sd_triangle,
                   "ring": _sd_ring, "star": _sd_star, "cross": _sd_cross}


def _groups(names: list) -> dict:
    """Name -> positions in the list, so that each kind is drawn once for all its members."""
    found = {}
    for i, name in enumerate(names):
        found.setdefault(name, []).append(i)
    return found


def _column(values: list, device: torch.device) -> torch.Tensor:
    """Floats as [B, 1, 1, 1], which broadcasts against [B, T, H, W]."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1, 1)


def _background(scenes: list, times: torch.Tensor, xs: torch.Tensor, ys: torch.Tensor,
                pixel: float) -> torch.Tensor:
    """Share [B, T, H, W] of each scene's second background colour; the camera's pan is in it."""
    device = times.device
    share = times.new_empty(*times.shape, len(ys), len(xs))
    # A camera that pans right sees the background move left: it looks further right in it.
    sign = {"none": 0.0, "left": -1.0, "right": 1.0}
    speed = _column([sign[s.pan] * s.pan_length for s in scenes], device)
    for kind, members in _groups([s.background for s in scenes]).items():
        chosen = [scenes[i] for i in members]
        index = torch.tensor(members, device=device)
        p = {name: _column([getattr(s, name) for s in chosen], device) for name in ("period", "angle", "phase")}
        p["seed"] = torch.tensor([s.seed & 0xFFFFFFFF for s in chosen], device=device)
        x = xs + speed[index] * times[index][:, :, None, None]  # [n, T, 1, W]
        y = ys.view(1, 1, -1, 1).expand(len(chosen), 1, -1, 1)
        share[index] = _PAINTERS[kind](p, x, y, pixel)
    return share


def _path(o: SceneObject) -> tuple:
    """The object's motion as numbers, zero for whatever it does not do; read by `_local`."""
    dx, dy = DIRECTIONS.get(o.motion, (0.0, 0.0))
    travel = TRAVEL[o.speed]
    bounce = 0.5 - o.radius if o.motion == "bounces" else 0.0
    orbit = 0.47 - o.radius if o.motion == "circles" else 0.0
    turns = SPIN[o.speed] if o.motion == "rotates" else 0.0
    first, last = {"grows": (0.5, 1.4), "shrinks": (1.4, 0.5)}.get(o.motion, (1.0, 1.0))
    return (o.x, o.y, dx * travel, dy * travel, bounce, BOUNCES[o.speed], orbit, ROUNDS[o.speed],
            o.phase, turns, o.radius * first, o.radius * (last - first))


def _course(objects: list, times: torch.Tensor) -> tuple:
    """Centres (x, y), radii and angles of objects at times [n, T], each [n, T]."""
    path = torch.tensor([_path(o) for o in objects], dtype=torch.float32, device=times.device)
    x0, y0, vx, vy, bounce, bounces, orbit, rounds, phase, turns, r0, r1 = path.T[..., None]
    wave = bounces * times + phase
    wave = 4 * (wave - wave.floor() - 0.5).abs() - 1
    round_angle = 2 * math.pi * (rounds * times + phase)
    x = x0 + vx * times + orbit * round_angle.cos()
    y = y0 + vy * times + orbit * round_angle.sin() + bounce * wave
    return x, y, r0 + r1 * times, 2 * math.pi * turns * times


def _local(objects: list, times: torch.Tensor, xs: torch.Tensor, ys: torch.Tensor) -> tuple:
    """Coordinates (u, v) in each object's own frame [n, T, H, W], radius 1, and radii [n, T, 1, 1]."""
    x, y, radius, angle = (v[:, :, None, None] for v in _course(objects, times))
    dx, dy = (xs - x) / radius, (ys.view(-1, 1) - y) / radius
    return dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin(), radius


def _paint(image: torch.Tensor, which: list, objects: list, times: torch.Tensor, xs: torch.Tensor,
           ys: torch.Tensor, pixel: float) -> None:
    """Draws `objects[i]` over clip `which[i]` of image [B, 3, T, H, W], in place."""
    for shape, members in _groups([o.shape for o in objects]).items():
        chosen = [objects[i] for i in members]
        index = torch.tensor([which[i] for i in members], device=times.device)
        u, v, radius = _local(chosen, times[index], xs, ys)
        cover = _smooth_step(SHAPE_DISTANCE[shape](u, v) * radius, pixel)
        colour = _colour_tensor([OBJECT_COLOURS[o.colour] for o in chosen], times.device)
        image[index] = torch.lerp(image[index], colour, cover[:, None])


def near_objects(scenes: list, times: torch.Tensor, rows: int, columns: int, margin: float) -> torch.Tensor:
    """Which cells [B, T, rows, columns] of a grid over the frame lie within `margin` (shorter sides) of an
    object's circle at times [B, T]."""
    step = 1.0 / min(rows, columns)
    xs = (torch.arange(columns, device=times.device) + 0.5 - 0.5 * columns) * step
    ys = (torch.arange(rows, device=times.device) + 0.5 - 0.5 * rows) * step
    which = torch.tensor([i for i, s in enumerate(scenes) for _ in s.objects], device=times.device)
    u, v, radius = _local([o for s in scenes for o in s.objects], times.float()[which], xs, ys)
    near = (u * u + v * v).sqrt() * radius < radius + margin
    found = torch.zeros(len(scenes), times.shape[1], rows, columns, dtype=torch.int32, device=times.device)
    return found.index_add_(0, which, near.int()) > 0


def object_field(scenes: list, times: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """At the centres of a grid of cells and times [B, T]: the way (x, y) from the first object's centre and the signed
    distance to the nearest object, all in shorter sides, [B, T, rows, columns, 3]."""
    step = 1.0 / min(rows, columns)
    xs = (torch.arange(columns, device=times.device) + 0.5 - 0.5 * columns) * step
    ys = (torch.arange(rows, device=times.device) + 0.5 - 0.5 * rows) * step
    which = torch.tensor([i for i, s in enumerate(scenes) for _ in s.objects], device=times.device)
    objects = [o for s in scenes for o in s.objects]
    nearest = times.new_full((len(scenes), times.shape[1], rows, columns), math.inf, dtype=torch.float32)
    for shape, members in _groups([o.shape for o in objects]).items():
        clip = which[torch.tensor(members, device=times.device)]
        u, v, radius = _local([objects[i] for i in members], times.float()[clip], xs, ys)
        far = SHAPE_DISTANCE[shape](u, v) * radius
        nearest.scatter_reduce_(0, clip.view(-1, 1, 1, 1).expand_as(far), far, "amin")
    x, y, _, _ = _course([s.objects[0] for s in scenes], times.float())
    across, down = xs - x[..., None, None], ys[:, None] - y[..., None, None]
    return torch.stack((across.expand_as(nearest), down.expand_as(nearest), nearest), -1)


def _colour_tensor(colours: list, device: torch.device) -> torch.Tensor:
    """RGB triples as [n, 3, 1, 1, 1]."""
    return torch.tensor(colours, dtype=torch.float32, device=device).view(-1, 3, 1, 1, 1)


def render(scenes: list, times: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Draws scenes at times [B, T] in [0, 1] (0: first frame, 1: last frame of the clip).

    Returns float32 [B, 3, T, height, width] in [-1, 1] on the device of `times`. The scene is the
    same at every resolution; edges are one pixel soft.
    """
    times, device = times.float(), times.device
    pixel = 1.0 / min(height, width)
    xs = (torch.arange(width, device=device) + 0.5 - 0.5 * width) * pixel
    ys = (torch.arange(height, device=device) + 0.5 - 0.5 * height) * pixel
    share = _background(scenes, times, xs, ys, pixel)
    first, second = (_colour_tensor([DULL_COLOURS[s.colours[k]] for s in scenes], device) for k in (0, 1))
    image = first + (second - first) * share[:, None]
    pair = [i for i, s in enumerate(scenes) if len(s.objects) == 2]
    back = [s.objects[1 - s.front if len(s.objects) == 2 else 0] for s in scenes]
    _paint(image, list(range(len(scenes))), back, times, xs, ys, pixel)
    _paint(image, pair, [scenes[i].objects[scenes[i].front] for i in pair], times, xs, ys, pixel)
    light = {"none": (1.0, 0.0), "fades": (1.0, DIMMED - 1.0), "brightens": (DIMMED, 1.0 - DIMMED)}
    start, change = (_column([light[s.light][k] for s in scenes], device)[..., None] for k in (0, 1))
    return image * (2 * (start + change * times[:, None, :, None, None])) - 1
