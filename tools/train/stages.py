"""What a training step sees: which clips, how many of their frames, at which resolution.

Attention over a whole clip is the cost, so a step shows the network only some of a clip's time slots. A slot
is one token's worth of time (two frames); `slots` of the 16, first and last always, are shown and keep their own rotary
positions, so every distance in time occurs from the first step on and a token's content never changes
meaning between stages. `stride` 2 renders half the resolution on every second row and column position:
layout and captions are learnt there at a quarter of the cost.
"""
import dataclasses
import random

import numpy as np
import torch

from tools.train import captions, clips, guide
from tools.train.model import rope_tables
from tools.train.reader import classes

CLIP_SLOTS = 16  # 32 frames


@dataclasses.dataclass(frozen=True)
class Shape:
    slots: int   # time slots shown, of CLIP_SLOTS
    cells: int   # rows = columns of patches
    stride: int  # distance of neighbouring rows in rotary positions
    batch: int   # clips per step

    @property
    def tokens(self):
        return self.slots * self.cells ** 2


@dataclasses.dataclass(frozen=True)
class Stage:
    until: float  # share of the budget at which it ends
    shift: float  # of the noise schedule
    shapes: tuple  # (probability, Shape)
    second: float = 0.25  # share of clips with a second object
    pan: float = 0.3      # share of clips with a moving camera


# Two CPU cores, some hours: clips of 96 x 96, the whole clip only at the end, simpler scenes. Of a whole clip the way
# of an object is decided at noise levels above 0.9, where a shift of 3 hardly trains: docs/training.md.
_PAIR, _HALF, _HALF_8, _HALF_16 = Shape(2, 6, 2, 64), Shape(4, 6, 2, 32), Shape(8, 6, 2, 16), Shape(16, 6, 2, 8)
_ENDS, _SOME, _EIGHT, _ALL = Shape(2, 12, 1, 16), Shape(4, 12, 1, 8), Shape(8, 12, 1, 6), Shape(16, 12, 1, 3)
CPU_PLAN = (
    Stage(0.50, 2.5, ((0.25, _PAIR), (0.5, _HALF), (0.25, _HALF_8)), 0.0, 0.1),
    Stage(0.70, 3.0, ((0.2, _HALF_16), (0.1, _ENDS), (0.7, _SOME)), 0.2, 0.2),
    Stage(1.00, 8.0, ((0.4, _EIGHT), (0.6, _ALL)), 0.2, 0.2),
)
# One data-centre GPU, twenty minutes: clips of 192 x 192.
CUDA_PLAN = (
    Stage(0.35, 2.5, ((1.0, Shape(16, 12, 2, 128)),)),
    Stage(0.60, 3.0, ((0.5, Shape(4, 24, 1, 128)), (0.5, Shape(16, 16, 1, 64)))),
    Stage(1.00, 8.0, ((0.9, Shape(16, 24, 1, 32)), (0.1, Shape(16, 28, 1, 24)))),
)


@dataclasses.dataclass
class Batch:
    clean: torch.Tensor    # [B, N, values], values ordered (channel, frame)
    ids: torch.Tensor      # [B, text_len]
    rope: torch.Tensor     # [2, N, head_dim], see model.rope_tables
    said: torch.Tensor     # [B, attributes], see reader.classes
    near: torch.Tensor     # [B, N], true where the token shows part of an object
    place: torch.Tensor    # [N, 3] and [B, N, 6]: where the tokens are and
    scene: torch.Tensor    # what is there, see guide.targets


def stage_at(plan, progress):
    return next(i for i, stage in enumerate(plan) if progress < stage.until or i == len(plan) - 1)


def slot_times(slots):
    """Moments in [0, 1] of the frames of time slots: frames 2s and 2s + 1 of 32."""
    frames = np.stack((2 * np.asarray(slots), 2 * np.asarray(slots) + 1), axis=1).ravel()
    return frames / (2 * CLIP_SLOTS - 1)


def to_tokens(latents):
    """latents [B, 2 slots, h, w, c] -> tokens [B, slots h w, (c, 2)]."""
    b, t, h, w, c = latents.shape
    return latents.view(b, t // 2, 2, h, w, c).permute(0, 1, 3, 4, 5, 2).reshape(b, t // 2 * h * w, c * 2)


def from_tokens(tokens, slots, cells):
    """Inverse of to_tokens for a square grid."""
    b, _, values = tokens.shape
    return tokens.view(b, slots, cells, cells, values // 2, 2).permute(0, 1, 5, 2, 3, 4).reshape(
        b, 2 * slots, cells, cells, values // 2)


def swap_order(tokens):
    """Values of a token from (channel, frame) to (frame, channel), the order of the network's output."""
    return tokens.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def restore_order(tokens):
    """Inverse of swap_order."""
    return tokens.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def rope_of(slots, cells, stride, head_dim, device):
    positions = np.arange(cells) * stride
    return rope_tables(slots, positions, positions, head_dim).to(device)


def pick_slots(count, rng):
    """Time slots of a step, ascending: first and last, from which a token can tell the time, and others at random."""
    if count == 1:
        return rng.integers(CLIP_SLOTS, size=1)
    between = 1 + rng.choice(CLIP_SLOTS - 2, count - 2, replace=False)
    return np.sort(np.concatenate(([0, CLIP_SLOTS - 1], between)))


def make_batch(stage, shape, step, seed, autoencoder, tokenizer, sizes, device, drop=0.1):
    """The clips of one step, a function of (seed, step, shape) alone. `drop` of the captions are empty."""
    rng = np.random.default_rng((seed, step))
    scenes = [clips.sample_scene(int(s), stage.second, stage.pan) for s in rng.integers(1 << 20, 1 << 62, shape.batch)]
    words = random.Random(f"{seed}/{step}")
    texts = ["" if words.random() < drop else captions.caption(scene, words) for scene in scenes]
    ids = torch.tensor([tokenizer.encode(text, sizes.text_len) for text in texts], device=device)
    slots = pick_slots(shape.slots, rng)
    times = torch.tensor(slot_times(slots), dtype=torch.float32, device=device).expand(shape.batch, -1)
    side = shape.cells * 8
    with torch.no_grad():
        clean = to_tokens(autoencoder.encode(clips.render(scenes, times, side, side)))
    near = clips.near_objects(scenes, times, shape.cells, shape.cells, 0.5 / shape.cells)
    near = near.unflatten(1, (-1, 2)).any(2).flatten(1)
    said = torch.tensor([classes(text) for text in texts], device=device)
    place, scene = guide.targets(scenes, slots, CLIP_SLOTS, times.unflatten(1, (-1, 2)).mean(2), shape.cells)
    rope = rope_of(slots, shape.cells, shape.stride, sizes.head_dim, device)
    return Batch(clean, ids, rope, said, near, place, scene)
