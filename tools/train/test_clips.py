# SPDX-License-Identifier: Apache-2.0
"""Tests of the procedural clips, their captions and the judge: python -m pytest tools/train"""
import dataclasses
import pathlib
import random
import subprocess
import sys

import numpy as np
import torch

from tools.train import captions, clips, guide, laboratory, reader, score, stages

PROMPTS = pathlib.Path(__file__).parents[2] / "assets" / "prompts"


def frames_of(scene: clips.Scene, count: int = 16, side: int = 96) -> np.ndarray:
    """The scene as `count` frames [T, side, side, 3] uint8."""
    video = clips.render([scene], torch.linspace(0, 1, count)[None], side, side)[0]
    return ((video + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()


def blurred(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames after a Gaussian blur of 1 pixel and noise of deviation 8."""
    kernel = np.exp(-np.arange(-3, 4)**2 / 2.0)
    values = frames.astype(np.float32)
    for axis in (1, 2):
        padded = np.pad(values, [(3, 3) if a == axis else (0, 0) for a in range(4)], mode="edge")
        values = sum(k * padded.take(range(i, i + values.shape[axis]), axis)
                     for i, k in enumerate(kernel / kernel.sum()))
    return (values + rng.normal(0, 8, values.shape)).clip(0, 255).astype(np.uint8)


def accuracy(scenes: list, texts: list, damage=lambda frames: frames) -> dict:
    """Share of right answers per attribute."""
    results = [score.score_clip(damage(frames_of(s)), text) for s, text in zip(scenes, texts)]
    return {key: np.mean([r[key] for r in results]) for key in score.ATTRIBUTES}


def test_a_seed_determines_the_clip():
    assert clips.sample_scene(11) == clips.sample_scene(11) != clips.sample_scene(12)
    scenes = [clips.sample_scene(seed) for seed in range(6)]
    times = torch.linspace(0, 1, 3).repeat(6, 1)
    together = clips.render(scenes, times, 48, 48)
    for k, scene in enumerate(scenes):
        assert torch.allclose(clips.render([scene], times[:1], 48, 48)[0], together[k], atol=1e-4)


def test_clips_have_the_promised_shape_and_range():
    scenes = [clips.sample_scene(seed) for seed in range(20)]
    video = clips.render(scenes, torch.rand(20, 2), 40, 48)
    assert video.shape == (20, 3, 2, 40, 48) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1


def test_every_resolution_shows_the_same_scene():
    scenes = [clips.sample_scene(seed) for seed in range(30)]
    times = torch.linspace(0, 1, 3).repeat(30, 1)
    low = clips.render(scenes, times, 96, 96)
    high = torch.nn.functional.avg_pool3d(clips.render(scenes, times, 192, 192), (1, 2, 2))
    psnr = 10 * torch.log10(4 / (low - high).square().mean((1, 2, 3, 4)))
    assert psnr.min() > 32


def test_the_object_covers_the_side_it_moves_to():
    rightward = next(s for s in map(clips.sample_scene, range(1000))
                     if s.objects[0].motion == "right" and len(s.objects) == 1 and s.light == "none")
    colour = clips.OBJECT_COLOURS[rightward.objects[0].colour]
    frames = frames_of(rightward) / 255
    distance = ((frames - np.array(colour))**2).sum(-1)
    first, last = (np.nonzero(distance[k] < 0.05)[1].mean() for k in (0, -1))
    assert last - first > 0.3 * 96


def test_a_pan_moves_the_background_and_not_the_object():
    scene = next(s for s in map(clips.sample_scene, range(1000))
                 if s.pan == "right" and s.background == "texture" and s.objects[0].motion == "still"
                 and len(s.objects) == 1)
    frames = frames_of(scene, count=2).astype(np.float32)
    shift = round(scene.pan_length * 96)
    moved = np.abs(frames[1, :, :-shift] - frames[0, :, shift:]).mean(-1)
    assert np.median(moved) < 8 < np.median(np.abs(frames[1] - frames[0]).mean(-1))


def test_captions_read_back_what_the_scene_has():
    rng = random.Random(3)
    for seed in range(500):
        scene = clips.sample_scene(seed)
        plain = scene.background == "plain"
        expected = {"background": scene.background, "colours": scene.colours[:1 if plain else 2]}
        expected.update({"pan": scene.pan} if scene.pan != "none" else {})
        expected.update({"light": scene.light} if scene.light != "none" else {})
        for text in (captions.canonical_caption(scene), captions.caption(scene, rng, drop_attributes=False)):
            said = captions.parse_caption(text)
            keys = ("shape", "colour", "size", "motion", "speed")
            assert said.pop("objects") == [{k: getattr(o, k) for k in keys} for o in scene.objects], text
            assert {k: v for k, v in said.items() if k not in keys} == expected, text


def test_random_captions_say_nothing_wrong():
    rng = random.Random(4)
    shorter = 0
    for seed in range(500):
        scene = clips.sample_scene(seed)
        full = captions.parse_caption(captions.canonical_caption(scene))
        said = captions.parse_caption(captions.caption(scene, rng))
        shorter += len(said) < len(full)
        assert all(full[key] == value for key, value in said.items() if key != "objects")
    assert 10 < shorter < 100


def test_captions_are_short_and_use_only_the_vocabulary():
    rng = random.Random(5)
    words = set(captions.VOCABULARY)
    assert len(words) == len(captions.VOCABULARY) and 120 <= len(words) <= 200
    for seed in range(500):
        for text in (captions.canonical_caption(clips.sample_scene(seed)), captions.caption(clips.sample_scene(seed), rng)):
            pieces = text.replace(",", " , ").split()
            assert set(pieces) <= words | {","}
            assert len(pieces) <= 30 and sum(p != "," for p in pieces) <= captions.MAX_WORDS


def test_held_out_triples_are_never_sampled():
    assert not any(clips.is_held_out(clips.sample_scene(seed)) for seed in range(2000))
    assert all(clips.is_held_out(clips.sample_scene(seed, held_out=True)) for seed in range(20))
    triples = [(c, s, m) for c in clips.OBJECT_COLOURS for s in clips.SHAPES for m in clips.MOTIONS]
    share = np.mean([clips.triple_held_out(*triple) for triple in triples])
    assert 0.03 < share < 0.07


def test_prompt_files_are_disjoint_and_readable():
    evaluation, calibration = (score.read_prompts(PROMPTS / f"{name}.txt") for name in ("eval", "calibration"))
    assert len(set(evaluation)) == len(set(calibration)) == 64 and not set(evaluation) & set(calibration)
    assert [score.held_out(text) for text in evaluation] == [False] * 56 + [True] * 8
    assert not any(score.held_out(text) for text in calibration)
    for text in evaluation + calibration:
        assert set(text.replace(",", "").split()) <= set(captions.VOCABULARY)
        assert {"colour", "shape", "size", "motion", "background", "colours"} <= set(captions.parse_caption(text))


def test_the_largest_component_is_found():
    rows = ["##..#", "#..##", "..#.#", "##..."]
    mask = np.array([[c == "#" for c in row] for row in rows])
    expected = np.zeros_like(mask)
    expected[[0, 1, 1, 2], [4, 3, 4, 4]] = True
    found = score.largest_component(np.stack([mask, np.zeros_like(mask), mask]))
    assert (found[0] == expected).all() and not found[1].any() and (found[2] == expected).all()


def test_the_judge_agrees_with_the_truth():
    scenes = [clips.sample_scene(seed, p_second=0) for seed in range(24)]
    texts = [captions.canonical_caption(s) for s in scenes]
    assert min(accuracy(scenes, texts).values()) >= 0.95


def test_the_judge_bears_blur_and_noise():
    scenes = [clips.sample_scene(seed, p_second=0) for seed in range(100, 116)]
    texts = [captions.canonical_caption(s) for s in scenes]
    rng = np.random.default_rng(0)
    assert min(accuracy(scenes, texts, lambda frames: blurred(frames, rng)).values()) >= 0.9


def test_the_judge_rejects_wrong_captions():
    scenes = [clips.sample_scene(seed, p_second=0) for seed in range(24)]
    texts = [captions.canonical_caption(s) for s in scenes[1:] + scenes[:1]]
    right = accuracy(scenes, texts)
    assert max(right[key] for key in ("colour", "shape", "motion", "background")) < 0.45


def test_y4m_files_are_read(tmp_path):
    planes = {"444": [(4, 6)] * 3, "420jpeg": [(4, 6), (2, 3), (2, 3)]}
    for chroma, sizes in planes.items():
        # A flat colour: red of BT.709, limited range.
        frame = b"".join(np.full(s, v, np.uint8).tobytes() for s, v in zip(sizes, (63, 102, 240)))
        path = tmp_path / f"{chroma}.y4m"
        path.write_bytes(f"YUV4MPEG2 W6 H4 F16:1 Ip A1:1 C{chroma} XA=b\n".encode() + 2 * (b"FRAME\n" + frame))
        video = score.read_clip_file(path)
        assert video.shape == (2, 4, 6, 3)
        assert np.abs(video.astype(int) - (255, 0, 0)).max() <= 2


def test_clips_of_other_options_are_not_scored(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ball\n \n")
    fake = tmp_path / "lacuna"
    fake.write_text('#!/bin/sh\nfor word; do [ "$last" = -o ] && : > "$word"; last=$word; done\nexit 0\n')
    fake.chmod(0o755)

    def evaluate(*words):
        command = [sys.executable, pathlib.Path(__file__).with_name("evaluate"), "--lacuna", fake, "--prompts",
                   tmp_path / "prompts.txt", "--work", tmp_path / "work", *words]
        return subprocess.run(command, capture_output=True, text=True)

    for _ in range(2):  # the clip is empty, so the score of what was made fails
        assert "other options" not in evaluate().stderr
    assert [p.name for p in (tmp_path / "work").glob("*.y4m")] == ["000.y4m"]
    other = evaluate("--", "-a", "xattention")
    assert other.returncode == 2 and "other options" in other.stderr


def test_one_prompt_has_no_overlap_with_others():
    phase = dict.fromkeys(("density90", "density95", "near", "site"), 0.5)
    entry = {"layer": 1, "head": 2, "mask_overlap_steps": 0.25, "mask_overlap_prompts": None, "early": phase, "late": phase}
    assert laboratory.line_of(entry).split()[-2:] == ["0.25", "-"]


def test_wilson_interval():
    low, high = score.wilson(95, 100)
    assert abs(low - 0.8882) < 1e-3 and abs(high - 0.9785) < 1e-3


def test_cells_near_objects_hold_nearly_all_of_the_objects():
    scenes = [clips.sample_scene(seed, 0.5) for seed in range(40)]
    times = torch.linspace(0, 1, 3).repeat(40, 1)
    near = clips.near_objects(scenes, times, 12, 12, 0.5 / 12)
    missed = total = 0
    for k, scene in enumerate(scenes):
        colours = torch.tensor([clips.OBJECT_COLOURS[o.colour] for o in scene.objects])
        video = (clips.render([dataclasses.replace(scene, light="none")], times[:1], 96, 96)[0] + 1) / 2
        shown = torch.stack([(video - c.view(3, 1, 1, 1)).abs().amax(0) < 0.02 for c in colours]).any(0)
        cells = shown.float().unflatten(-1, (12, 8)).unflatten(-3, (12, 8)).amax((-3, -1)) > 0
        missed, total = missed + (cells & ~near[k]).sum(), total + cells.sum()
        assert near[k].float().mean() < 0.8
    assert missed < 0.03 * total  # tips of stars and corners of squares reach beyond the circle


def test_the_reader_learns_what_captions_say():
    scene = clips.sample_scene(5)
    said = reader.classes(captions.canonical_caption(scene))
    names = dict(zip(reader.ATTRIBUTES, said))
    first = scene.objects[0]
    assert reader.ATTRIBUTES["colour 0"][names["colour 0"] - 1] == first.colour
    assert reader.ATTRIBUTES["motion 0"][names["motion 0"] - 1] == first.motion
    assert (names["colour 1"] == 0) == (len(scene.objects) == 1)
    assert sum(reader.classes("")) == 0 and len(reader.classes("a blue dog")) == len(reader.ATTRIBUTES)
    torch.manual_seed(0)
    net, ids = reader.AttributeReader(16), torch.tensor([[5, 6, 0], [7, 0, 0]])
    context = torch.randn(2, 3, 16) * (ids != 0)[..., None]
    target = torch.tensor([said, reader.classes("")])
    optimiser = torch.optim.Adam(net.parameters(), 0.05)
    before = net.loss(context, ids, target).item()
    for _ in range(60):
        optimiser.zero_grad()
        net.loss(context, ids, target).backward()
        optimiser.step()
    assert net.loss(context, ids, target).item() < 0.2 * before


def test_the_guide_knows_tokens_and_objects():
    scenes = [clips.sample_scene(seed, p_second=0.0) for seed in range(30)]
    scenes = [s for s in scenes if s.light == "none"]
    slots, cells = [0, 6, 15], 12
    times = torch.tensor(slots).add(0.5).div(16).repeat(len(scenes), 1)
    place, told = guide.targets(scenes, slots, 16, times, cells)
    told = told.unflatten(1, (len(slots), cells, cells))
    place = place.unflatten(0, (len(slots), cells, cells)) / 3.4
    # Place minus way is the object's centre, whichever token says it.
    centre = place[..., [2, 1]] - 0.3 * told[..., :2]
    assert centre.std((2, 3)).max() < 1e-5
    assert (centre[:, 1:, 0, 0] - centre[:, :-1, 0, 0]).norm(dim=-1).max() > 0.2  # some of them move
    # A token well inside the outline shows nothing but the object, one well outside nothing of it.
    video = clips.render(scenes, times, 96, 96).unflatten(4, (cells, 8)).unflatten(3, (cells, 8))
    colours = torch.tensor([clips.OBJECT_COLOURS[s.objects[0].colour] for s in scenes]) * 2 - 1
    off = (video - colours[:, :, None, None, None, None, None]).abs().sum(1)
    far = told[..., 2:]
    assert off.amax((3, 5))[far.amax(-1) < -0.35].max() < 0.1
    assert off.amin((3, 5))[far.amin(-1) > 0.35].min() > 0.2


def test_ends_are_always_shown():
    rng = np.random.default_rng(0)
    for count in (2, 4, 16):
        slots = stages.pick_slots(count, rng)
        assert len(set(slots)) == count and slots[0] == 0 and slots[-1] == stages.CLIP_SLOTS - 1
        assert (np.diff(slots) > 0).all()
