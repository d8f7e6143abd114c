# SPDX-License-Identifier: Apache-2.0
"""Does a clip show what its caption says? Measured on the frames, without any learnt judge.

  python -m tools.train.score --clips out --prompts assets/prompts/eval.txt

`out` is a folder, or a quoted glob, with one clip per prompt in the order of their names: y4m
files, or folders of PNG frames (reading PNG needs Pillow). Prompts are one a line; empty lines
and lines starting with `#` do not count.

Frames are segmented by the nearest colour of the palette. The object is the largest component of
the most frequent object colour; its moments tell the shape, its track tells the motion, and the
rest of the frame tells the background.
"""
import argparse
import glob
import json
import math
import pathlib

import numpy as np
import torch

from tools.train import captions, clips, sampling

OBJECT_NAMES = tuple(clips.OBJECT_COLOURS)
DULL_NAMES = tuple(clips.DULL_COLOURS)
PALETTE = np.array([*clips.OBJECT_COLOURS.values(), *clips.DULL_COLOURS.values()], np.float32)
ATTRIBUTES = ("colour", "shape", "size", "motion", "background")
SIZE_LIMIT = 0.21  # radius between small (0.16) and big (0.28), in shorter sides
ORDERS = (3, 4, 5)  # symmetries that tell triangles, squares and crosses, stars
SYMMETRY = {"triangle": 3, "square": 4, "cross": 4, "star": 5}


# ---------------------------------------------------------------------------------------------
# Segmentation
# ---------------------------------------------------------------------------------------------

def _undo_light(frames: np.ndarray, light: str) -> np.ndarray:
    """Frames [T, H, W, 3] in [0, 1] at the brightness of their bright end.

    The brightness of a frame is the median over pixels of its ratio to the bright end: an object
    that moves changes too few pixels to shift it.
    """
    luma = frames.mean(-1).reshape(len(frames), -1)
    reference = luma[0 if light == "fades" else -1]
    lit = reference > 0.03
    if not lit.any():
        return frames
    gain = np.median(luma[:, lit] / reference[lit], axis=1).clip(0.3, 1.5)
    return frames / gain[:, None, None, None]


def _labels(frames: np.ndarray) -> np.ndarray:
    """Index into `PALETTE` of the nearest colour, [T, H, W] for frames [T, H, W, 3]."""
    score = frames.reshape(-1, 3) @ (2 * PALETTE.T) - (PALETTE**2).sum(1)
    return score.argmax(1).reshape(frames.shape[:3])


def largest_component(masks: np.ndarray) -> np.ndarray:
    """The largest 4-connected component of every frame of boolean masks [T, H, W]."""
    t, h, w = masks.shape
    padded = np.zeros((t, h + 1, w + 1), np.int8)  # an empty row and column part rows and frames
    padded[:, :h, :w] = masks
    steps = np.diff(padded.ravel(), prepend=np.int8(0))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    if not len(starts):
        return masks
    # Runs of one row that touch runs of the next: all j in [first, last) for each run i.
    first = np.searchsorted(ends, starts + w + 1, "right")
    last = np.searchsorted(starts, ends + w + 1, "left")
    count = np.maximum(last - first, 0)
    i = np.repeat(np.arange(len(starts)), count)
    j = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count) + np.repeat(first, count)
    label = np.arange(len(starts))
    while True:
        before = label.copy()
        np.minimum.at(label, i, before[j])
        np.minimum.at(label, j, before[i])
        label = label[label]
        if (label == before).all():
            break
    size = np.bincount(label, ends - starts, len(starts))[label]
    frame = starts // ((h + 1) * (w + 1))
    best = np.zeros(t)
    np.maximum.at(best, frame, size)
    # Of two components of equal size the first counts.
    chosen = np.full(t, len(starts))
    top = size == best[frame]
    np.minimum.at(chosen, frame[top], label[top])
    keep = label == chosen[frame]
    marks = np.zeros(padded.size, np.int8)
    marks[starts[keep]] += 1
    marks[ends[keep]] -= 1
    return marks.cumsum().reshape(padded.shape)[:, :h, :w] > 0


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Masks [T, H, W] grown by `radius` pixels in the four directions, once per pixel."""
    for _ in range(radius):
        grown = mask.copy()
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        grown[:, :, 1:] |= mask[:, :, :-1]
        grown[:, :, :-1] |= mask[:, :, 1:]
        mask = grown
    return mask


def _segment_distance(pixels: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple:
    """Distance [n] of colours [n, 3] to the line from a to b, and their share [n] of b."""
    line = b - a
    share = ((pixels - a) @ line) / max(float(line @ line), 1e-6)
    nearest = a + share.clip(0, 1)[:, None] * line
    return np.sqrt(((pixels - nearest)**2).sum(1)), share


# ---------------------------------------------------------------------------------------------
# Background
# ---------------------------------------------------------------------------------------------

def _smooth(frames: np.ndarray) -> np.ndarray:
    """3 x 3 box mean of frames [T, H, W, 3], against noise."""
    padded = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9


def _best_colours(pixels: np.ndarray) -> tuple:
    """Names of the one or two dull colours that explain background pixels [n, 3] best."""
    spread = math.sqrt(pixels.var(0).sum())
    dull = {name: np.array(rgb, np.float32) for name, rgb in clips.DULL_COLOURS.items()}
    if spread < 0.05:
        middle = np.median(pixels, 0)
        return (min(dull, key=lambda name: float(((dull[name] - middle)**2).sum())),)
    best = (math.inf, None)
    for k, a in enumerate(DULL_NAMES):
        for b in DULL_NAMES[k + 1:]:
            distance, share = _segment_distance(pixels, dull[a], dull[b])
            low, high = np.quantile(share, (0.05, 0.95))
            # A pair must be reached at both ends, or the line of a longer pair would explain it too.
            ends = (abs(low) + abs(1 - high)) * float(np.linalg.norm(dull[b] - dull[a]))
            best = min(best, (float(distance.mean()) + 0.25 * ends, (a, b)))
    return best[1]


def _texture_features(share: np.ndarray, valid: np.ndarray) -> dict:
    """Measures of the pattern `share` [T, H, W] (0: one colour, 1: the other) where `valid`.

    `line`, `grid`: how much all gradients have one direction, or the directions of the two axes.
    `detail`: mean gradient, in changes of colour per shorter side.
    """
    gx, gy = share[:, 1:-1, 2:] - share[:, 1:-1, :-2], share[:, 2:, 1:-1] - share[:, :-2, 1:-1]
    inside = (valid[:, 1:-1, 2:] & valid[:, 1:-1, :-2] & valid[:, 2:, 1:-1] & valid[:, :-2, 1:-1])
    g = (gx + 1j * gy)[inside] / 2
    power = np.abs(g)**2
    power[power < 0.04**2] = 0  # noise has all directions
    unit = g / np.maximum(np.abs(g), 1e-6)
    total = max(float(power.sum()), 1e-6)
    return {
        "line": float(abs((power * unit**2).sum()) / total),
        "grid": float((power * unit**4).sum().real / total),
        "detail": float(np.sqrt(power).mean() * min(share.shape[1:])),
    }


def _background_kind(features: dict) -> str:
    """Kind of a background of two colours; limits lie midway between kinds, clean and blurred."""
    if features["line"] > 0.7 and features["detail"] > 4.2:
        return "stripes"
    if features["grid"] > 0.35 and features["detail"] > 4.5:
        return "checker"
    return "texture" if features["detail"] > 4.8 else "clouds"


def _read_background(frames: np.ndarray, labels: np.ndarray) -> dict:
    """Kind and colours of the background of frames [T, H, W, 3], and the features they come from."""
    some = np.linspace(0, len(frames) - 1, min(8, len(frames))).round().astype(int)
    smooth, valid = _smooth(frames[some]), ~_dilate(labels[some] < len(OBJECT_NAMES), 3)
    if valid.mean() < 0.02:
        return {"kind": None, "colours": ()}
    colours = _best_colours(smooth[valid][::3])
    if len(colours) == 1:
        return {"kind": "plain", "colours": colours}
    a, b = (np.array(clips.DULL_COLOURS[c], np.float32) for c in colours)
    _, share = _segment_distance(smooth.reshape(-1, 3), a, b)
    features = _texture_features(share.reshape(valid.shape), valid)
    return {"kind": _background_kind(features), "colours": colours, "features": features}


# ---------------------------------------------------------------------------------------------
# The object
# ---------------------------------------------------------------------------------------------

def _moments(mask: np.ndarray) -> dict:
    """Per-frame measures of masks [T, H, W]; all lengths in shorter sides, zero where empty.

    `area` [T], `x`, `y` [T] (frame centre 0), `border` [T] (touches the frame's edge), `compact` [T]
    (1 for a disc, less for anything else), `centre` [T] (part of the middle that is covered) and
    `order` [T, 3] complex: size and phase of the symmetries in `ORDERS`.
    """
    t, h, w = mask.shape
    unit = 1.0 / min(h, w)
    frame, row, column = np.nonzero(mask)
    x, y = (column + 0.5 - 0.5 * w) * unit, (row + 0.5 - 0.5 * h) * unit
    count = np.bincount(frame, minlength=t)

    def mean(values):
        return np.bincount(frame, values, t) / np.maximum(count, 1)

    cx, cy = mean(x), mean(y)
    z = (x - cx[frame]) + 1j * (y - cy[frame])
    rho = np.abs(z)
    area, inertia = count * unit**2, mean(rho**2) * count * unit**2
    near = rho < 0.18 * np.sqrt(area / math.pi)[frame]
    spot = np.maximum(0.18**2 * area, unit**2)
    whole = np.maximum(mean(rho**6), 1e-12)  # zero for a single pixel
    order = [(mean((rho**(6 - k) * z**k).real) + 1j * mean((rho**(6 - k) * z**k).imag)) / whole
             for k in ORDERS]
    edge = mask[:, 0].any(1) | mask[:, -1].any(1) | mask[:, :, 0].any(1) | mask[:, :, -1].any(1)
    return {
        "area": area, "x": cx, "y": cy, "border": edge, "compact": area**2 / (2 * math.pi * np.maximum(inertia, 1e-12)),
        "centre": np.bincount(frame, near, t) * unit**2 / spot, "order": np.stack(order, -1),
    }


def _shape_vector(m: dict) -> np.ndarray:
    """Features [T, 5] that tell shapes apart whatever their size and rotation."""
    return np.column_stack((m["compact"], 0.5 * np.minimum(m["centre"], 1), np.abs(m["order"])))


def _shape_table() -> tuple:
    """Features [6, 5] and areas [6] (for radius 1) of the ideal shapes, in the order of `SHAPES`."""
    line = (torch.arange(200) + 0.5) / 200 * 3 - 1.5
    v, u = torch.meshgrid(line, line, indexing="ij")
    masks = torch.stack([clips.SHAPE_DISTANCE[name](u, v) < 0 for name in clips.SHAPES]).numpy()
    m = _moments(masks)
    return _shape_vector(m), m["area"] * 9


_SHAPE_VECTORS, _SHAPE_AREAS = _shape_table()


def _read_shape(m: dict, usable: np.ndarray) -> str:
    """Shape by the nearest ideal features; `usable` [T] marks the frames that show all of it."""
    vector = np.median(_shape_vector(m)[usable], axis=0)
    return clips.SHAPES[int(((_SHAPE_VECTORS - vector)**2).sum(1).argmin())]


def _read_size(m: dict, usable: np.ndarray, shape: str) -> str:
    """Small or big, by the radius that an ideal shape of this area has, in the middle of the clip."""
    radius = np.sqrt(np.median(m["area"][usable]) / _SHAPE_AREAS[clips.SHAPES.index(shape)])
    return "small" if radius < SIZE_LIMIT else "big"


def _turned(m: dict, usable: np.ndarray, shape: str) -> float:
    """Angle in turns by which the shape rotated, from the phase of its symmetry; 0 for round shapes."""
    if shape not in SYMMETRY:
        return 0.0
    k = SYMMETRY[shape]
    phase = np.unwrap(np.angle(m["order"][usable, ORDERS.index(k)]))
    slope = np.polyfit(np.linspace(0, 1, len(phase)), phase, 1)[0] if len(phase) > 2 else 0.0
    return abs(slope) / k / (2 * math.pi)


def _read_motion(m: dict, usable: np.ndarray, whole: np.ndarray, shape: str) -> str:
    """Motion by the track of the centroid, then by area and rotation.

    `usable` [T] marks the frames with a trustworthy centroid, `whole` [T] those that show all of
    the object.
    """
    time = np.linspace(0, 1, len(usable))[usable]
    x, y = m["x"][usable], m["y"][usable]
    fits = [np.polyfit(time, v, 1) for v in (x, y)]
    vx, vy = fits[0][0], fits[1][0]
    miss = math.sqrt(sum(float(np.mean((np.polyval(f, time) - v)**2)) for f, v in zip(fits, (x, y))))
    wide, tall = (float(np.ptp(np.quantile(v, (0.03, 0.97)))) for v in (x, y))
    if max(wide, tall) > 0.15 and miss > 0.05:
        return "circles" if wide > 0.4 * tall else "bounces"
    if math.hypot(vx, vy) > 0.18:
        sector = round(math.atan2(vy, vx) / (math.pi / 4)) % 8
        return ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")[sector]
    growth = np.polyfit(time, 0.5 * np.log(m["area"][usable]), 1)[0]
    if abs(growth) > 0.35:
        return "grows" if growth > 0 else "shrinks"
    return "rotates" if _turned(m, whole, shape) > 0.10 else "still"


def _object_colours(labels: np.ndarray) -> tuple:
    """Object colours by the total area [pixels] of their largest components, largest first."""
    areas = {}
    for k, name in enumerate(OBJECT_NAMES):
        mask = labels == k
        if mask.sum() > 0.002 * mask.size:
            areas[name] = int(largest_component(mask).sum())
    return tuple(sorted(areas, key=areas.get, reverse=True))


def _object_mask(frames: np.ndarray, colour: str, rivals: tuple, ground: tuple) -> np.ndarray:
    """Largest component [T, H, W] of what is nearer to `colour` than to background or rivals."""
    pixels = frames.reshape(-1, 3)
    ends = [np.array(clips.DULL_COLOURS[c], np.float32) for c in (ground or ("gray",))]
    limit, _ = _segment_distance(pixels, ends[0], ends[-1])
    for rival in rivals:
        limit = np.minimum(limit, np.linalg.norm(pixels - np.float32(clips.OBJECT_COLOURS[rival]), axis=1))
    own = np.linalg.norm(pixels - np.float32(clips.OBJECT_COLOURS[colour]), axis=1)
    return largest_component((own < limit).reshape(frames.shape[:3]))


def _read_object(frames: np.ndarray, labels: np.ndarray, said: dict, ground: tuple) -> dict:
    """Colour, shape, size and motion of the object that the caption names first.

    With two objects it is the one of the requested colour, if that is one of the two largest.
    """
    present = _object_colours(labels)[:max(1, len(said["objects"]))]
    if not present:
        return {}
    colour = said.get("colour") if said.get("colour") in present else present[0]
    rivals = tuple(c for c in present if c != colour)
    mask = _object_mask(frames, colour, rivals, ground)
    m = _moments(mask)
    seen = m["area"] > 0.004
    if seen.sum() < 3:
        return {"colour": colour}
    other = np.isin(labels, [OBJECT_NAMES.index(c) for c in rivals])
    free = seen & ~(_dilate(mask, 2) & other).any((1, 2))  # touches no other object
    usable = free if free.sum() >= 0.4 * len(free) else seen
    whole = (free if free.sum() >= 3 else seen) & ~m["border"]
    whole = whole if whole.sum() >= 3 else usable
    shape = _read_shape(m, whole)
    return {"colour": colour, "shape": shape, "size": _read_size(m, whole, shape),
            "motion": _read_motion(m, usable, whole, shape)}


def read_clip(frames: np.ndarray, said: dict) -> dict:
    """What frames [T, H, W, 3] uint8 show: `colour`, `shape`, `size`, `motion`, `background`, `colours`.

    `said` is the parsed caption: it tells how many objects there are, which one counts and whether
    the light changes.
    """
    values = frames.astype(np.float32) / 255
    if "light" in said:
        values = _undo_light(values, said["light"])
    labels = _labels(values)
    ground = _read_background(values, labels)
    found = _read_object(values, labels, said, ground["colours"])
    return {**found, "background": ground["kind"], "colours": ground["colours"]}


def score_clip(frames: np.ndarray, caption: str) -> dict[str, bool]:
    """For every attribute in the caption, whether frames [T, H, W, 3] uint8 show it.

    `background` asks for the kind and the colours, as far as the caption names them.
    """
    said = captions.parse_caption(caption)
    found = read_clip(frames, said)
    result = {key: found.get(key) == said[key] for key in ("colour", "shape", "size", "motion") if key in said}
    kind = "background" not in said or found["background"] == said["background"]
    colours = "colours" not in said or set(found["colours"]) == set(said["colours"])
    if "background" in said or "colours" in said:
        result["background"] = kind and colours
    return result


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------

def read_prompts(path: str) -> list:
    """Prompts of a file: one a line, without empty lines and lines starting with `#`."""
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def read_y4m(path: pathlib.Path) -> np.ndarray:
    """Frames [T, H, W, 3] uint8 of a y4m file with 8-bit 4:4:4 or 4:2:0, BT.709, limited range."""
    data = path.read_bytes()
    header, _, data = data.partition(b"\n")
    fields = header.decode("ascii", "replace").split()
    if fields[:1] != ["YUV4MPEG2"]:
        raise ValueError(f"{path}: not a y4m file")
    tags = {field[0]: field[1:] for field in fields[1:] if not field.startswith("X")}
    w, h, chroma = int(tags["W"]), int(tags["H"]), tags.get("C", "420")
    if chroma != "444" and chroma not in ("420", "420jpeg", "420mpeg2", "420paldv"):
        raise ValueError(f"{path}: chroma {chroma}, expected 8-bit 444 or 420")
    step = 1 if chroma == "444" else 2
    cw, ch = -(-w // step), -(-h // step)
    size, frames = w * h + 2 * cw * ch, []
    while data:
        _, _, data = data.partition(b"\n")  # FRAME, maybe with parameters
        planes, data = np.frombuffer(data[:size], np.uint8).astype(np.float32), data[size:]
        if len(planes) < size:
            raise ValueError(f"{path}: the last frame is cut off")
        y = (planes[:w * h].reshape(h, w) - 16) / 219
        u, v = ((planes[w * h + k * cw * ch:][:cw * ch].reshape(ch, cw) - 128) / 224 for k in (0, 1))
        u, v = (c.repeat(step, 0).repeat(step, 1)[:h, :w] for c in (u, v))
        rgb = np.stack((y + 1.5748 * v, y - 0.1873 * u - 0.4681 * v, y + 1.8556 * u), -1)
        frames.append((rgb * 255).round().clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def read_clip_file(path: pathlib.Path) -> np.ndarray:
    """Frames [T, H, W, 3] uint8 of a y4m file, or of a folder of PNG frames in the order of their names."""
    if path.is_file():
        return read_y4m(path)
    from PIL import Image
    return np.stack([np.asarray(Image.open(p).convert("RGB")) for p in sorted(path.glob("*.png"))])


def find_clips(where: str) -> list:
    """Paths of the clips in a folder or matching a glob, in the order of their names."""
    root = pathlib.Path(where)
    found = root.iterdir() if root.is_dir() else (pathlib.Path(p) for p in glob.glob(where))
    return sorted(p for p in found if p.suffix == ".y4m" or (p.is_dir() and any(p.glob("*.png"))))


# ---------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------

def wilson(good: int, total: int) -> tuple:
    """95 % interval of a proportion by Wilson's formula."""
    z, p = 1.959964, good / total
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + (z / (2 * total))**2)
    scale = 1 + z * z / total
    return (middle - half) / scale, (middle + half) / scale


def held_out(caption: str) -> bool:
    """True if the caption names a (colour, shape, motion) triple that training never shows."""
    return any(clips.triple_held_out(o.get("colour"), o["shape"], o.get("motion"))
               for o in captions.parse_caption(caption)["objects"])


def summarise(prompts: list, results: list) -> dict:
    """Group -> attribute -> [good, total, lower bound, upper bound]; groups are held-in and held-out."""
    counts = {}
    for prompt, result in zip(prompts, results):
        group = counts.setdefault("held-out" if held_out(prompt) else "held-in", {})
        for key, good in result.items():
            row = group.setdefault(key, [0, 0])
            row[0] += good
            row[1] += 1
    return {group: {key: [*row, *wilson(*row)] for key, row in rows.items()} for group, rows in counts.items()}


def main() -> None:
    """Scores the clips named on the command line and prints a table or JSON."""
    parser = argparse.ArgumentParser(description="Score generated clips against their prompts.")
    parser.add_argument("--clips", required=True, help="folder or glob with one clip per prompt")
    parser.add_argument("--prompts", required=True, help="prompts, one a line")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--sheet", help="PNG to draw: eight frames of each of the first eight clips, a row each")
    args = parser.parse_args()
    prompts, paths = read_prompts(args.prompts), find_clips(args.clips)
    if len(prompts) != len(paths):
        parser.error(f"{len(paths)} clips in {args.clips}, expected one for each of {len(prompts)} prompts")
    if args.sheet:
        some = torch.from_numpy(np.stack([read_clip_file(path) for path in paths[:8]]))
        sampling.write_png(args.sheet, sampling.contact_sheet(some.permute(0, 4, 1, 2, 3) / 127.5 - 1, 8))
    results = [score_clip(read_clip_file(path), prompt) for path, prompt in zip(paths, prompts)]
    summary = summarise(prompts, results)
    if args.json:
        each = [{"clip": str(c), "prompt": p, **r} for c, p, r in zip(paths, prompts, results)]
        print(json.dumps({"summary": summary, "clips": each}))
        return
    print(f"{'prompts':<10}{'attribute':<12}{'right':>9}{'accuracy':>10}   95 % interval")
    for group, rows in sorted(summary.items()):
        for key in (k for k in ATTRIBUTES if k in rows):
            good, total, low, high = rows[key]
            print(f"{group:<10}{key:<12}{good:>5}/{total:<3}{100 * good / total:>8.1f} %   "
                  f"{100 * low:.1f} to {100 * high:.1f} %")


if __name__ == "__main__":
    main()
