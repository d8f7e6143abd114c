# SPDX-License-Identifier: Apache-2.0
"""The real MochiPipeline and HunyuanVideoPipeline with tiny random transformers: stock, with Lacuna, and stock again."""
import json
import math
import pathlib
import sys
import types

import lacuna
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import lacuna.diffusers  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools/parity"))
from pipelines import randomize  # noqa: E402

STEPS, ROWS = 4, 20  # ROWS: of a padded prompt
SPARSE = "xattention:top_p=0.6,stride=8,block=16"
HUNYUAN = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
           "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 32, "pooled_projection_dim": 24,
           "rope_axes_dim": (4, 6, 6)}


def mochi(seed=3):
    transformer = diffusers.MochiTransformer3DModel(num_attention_heads=2, attention_head_dim=16, num_layers=3,
                                                    pooled_projection_dim=24, in_channels=4, text_embed_dim=32,
                                                    time_embed_dim=64, max_sequence_length=ROWS)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.MochiPipeline(scheduler, None, None, None, randomize(transformer, seed))


def hunyuan(seed=4, **changes):
    transformer = diffusers.HunyuanVideoTransformer3DModel(**{**HUNYUAN, **changes})
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.HunyuanVideoPipeline(None, None, randomize(transformer, seed), None, scheduler, None, None)


KINDS = {"mochi": mochi, "hunyuan": hunyuan}
LAYERS = {"mochi": 3, "hunyuan": 4}
GRID = (3, 8, 12)


@pytest.fixture(scope="module", params=KINDS)
def pipe(request):
    return quiet(KINDS[request.param](), request.param)


def quiet(pipe, kind):
    pipe.set_progress_bar_config(disable=True)
    pipe.kind = kind
    return pipe


def prompt(prefix, lengths, seed):
    """Embeddings of prompts that fill so many rows, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(ROWS) < torch.tensor(lengths)[:, None]
    return {f"{prefix}prompt_embeds": torch.randn((len(lengths), ROWS, 32), generator=generator),
            f"{prefix}prompt_attention_mask": mask}


def latents(pipe, lengths=(11,), unlike=(5,), **kwargs):
    """A run whose prompts fill `lengths` rows, and those that guide away `unlike`; empty: without guidance."""
    settings = {"height": 128, "width": 192, "num_frames": 13 if pipe.kind == "mochi" else 9,
                "num_inference_steps": STEPS, "output_type": "latent", **prompt("", lengths, 1)}
    guided = len(unlike) > 0
    settings["guidance_scale" if pipe.kind == "mochi" else "true_cfg_scale"] = 4.0 if guided else 1.0
    if guided:
        settings |= prompt("negative_", unlike, 2)
    if pipe.kind == "hunyuan":
        settings["pooled_prompt_embeds"] = torch.ones((len(lengths), 24))
        settings |= {"negative_pooled_prompt_embeds": torch.zeros((len(unlike), 24))} if guided else {}
    if "latents" not in kwargs:
        settings["generator"] = torch.Generator().manual_seed(7)
    return pipe(**{**settings, **kwargs}).frames


def error(a, b):
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


def attentions(transformer):
    return [m for m in transformer.modules() if hasattr(m, "processor") and hasattr(m, "to_q")]


def state_of(pipe):
    t = pipe.transformer
    return (t.__dict__.keys(), len(t._forward_hooks), len(t._forward_pre_hooks), [m.processor for m in attentions(t)])


def test_dense_agrees_and_stock_is_stock_again(pipe):
    before, stock = state_of(pipe), latents(pipe)
    twin = quiet(KINDS[pipe.kind](), pipe.kind)
    with lacuna.diffusers.enable(pipe, "dense") as patch:
        dense = latents(pipe)
        assert torch.equal(latents(twin), stock)  # another pipeline of this process
    assert 0 < error(dense, stock) <= 1e-5
    assert state_of(pipe) == before
    assert torch.equal(latents(pipe), stock)
    assert {c["method"] for c in patch.session.trace} == {"dense"}


def test_every_joint_attention_and_no_other_is_ours(pipe):
    with lacuna.diffusers.enable(pipe, "dense"):
        ours = [type(m.processor).__name__.startswith("Lacuna") for m in attentions(pipe.transformer)]
    # HunyuanVideo's refiner, which comes first, and Mochi's pooling of the prompt stay as they are.
    assert ours == [False] * (len(ours) - LAYERS[pipe.kind]) + [True] * LAYERS[pipe.kind]
    assert pipe.kind == "mochi" or len(ours) == LAYERS[pipe.kind] + 1


def test_step_layer_branch_and_noise_are_the_pipelines(pipe):
    with lacuna.diffusers.enable(pipe, "dense") as patch:
        latents(pipe)
    trace = patch.session.trace
    for branch in ("cond", "uncond"):
        sites = [(c["step"], c["layer"]) for c in trace if c["branch"] == branch]
        assert sites == [(s, l) for s in range(STEPS) for l in range(LAYERS[pipe.kind])]
    assert {(c["sample"], c["expert"]) for c in trace} == {(0, 0)} and patch._grid == GRID
    noise = [c["sigma"] for c in trace if c["layer"] == 0 and c["branch"] == "cond"]
    assert noise[0] == pytest.approx(1.0) and noise == sorted(noise, reverse=True) and 0 < noise[-1] < noise[0]


@pytest.mark.parametrize("unlike", [(5,), (1,), (0,), (ROWS,), ()])
def test_full_density_agrees_whatever_the_prompts_fill(pipe, unlike):
    if pipe.kind == "hunyuan" and unlike == (0,):
        return  # upstream divides by the number of a prompt's tokens
    stock = latents(pipe, unlike=unlike)
    with lacuna.diffusers.enable(pipe, "xattention:block=16,stride=8,top_p=1") as patch:
        full = latents(pipe, unlike=unlike)
    assert error(full, stock) <= 1e-5
    assert {(c["method"], c["qk_density"]) for c in patch.session.trace} == {("xattention", 1.0)}
    assert len(patch.session.trace) == STEPS * LAYERS[pipe.kind] * (2 if unlike else 1)


def test_sparse_is_the_mask_that_select_shows(pipe):
    """What a processor of our own would compute from q, k, v as upstream hands them over: only rows that prompts fill."""
    seen, tokens = [], math.prod(GRID)
    with lacuna.diffusers.enable(pipe, SPARSE) as patch:
        plain = patch._attend

        def watched(layer, q, k, v, first, mask):
            out = plain(layer, q, k, v, first, mask)
            text = patch._site.text[first]
            q, k, v = (x[:, :tokens + text] for x in (q, k, v))
            mask = lacuna.select(q[0], k[0], SPARSE, grid=GRID, text_tokens=text, layout="NHD")
            expected = lacuna.attention(q, k, v, mask, layout="NHD")
            seen.append((patch._site.rows[first].branch, text, torch.equal(out[:, :tokens + text], expected),
                         not out[:, tokens + text:].any()))
            return out

        patch._attend = watched
        latents(pipe, num_inference_steps=2)
    assert len(seen) == 2 * 2 * LAYERS[pipe.kind]
    assert set(seen) == {("cond", 11, True, True), ("uncond", 5, True, True)}


def test_sparse_runs_where_the_trace_says(pipe):
    stock = latents(pipe)
    with lacuna.diffusers.enable(pipe, SPARSE, dense_steps="25%") as patch:
        sparse = latents(pipe)
    assert 1e-3 < error(sparse, stock) < 1
    for call in patch.session.trace:
        assert (call["reason"] == "dense-steps") == (call["step"] == 0)
        assert (call["qk_density"] < 1) == (call["step"] > 0)


def test_masks_are_kept_for_each_branch(pipe):
    with lacuna.diffusers.enable(pipe, SPARSE + ",refresh=never") as patch:
        latents(pipe)
    for call in patch.session.trace:
        assert call["heads_refreshed"] == (call["num_heads"] if call["step"] == 0 else 0)


def test_videos_of_a_batch_are_those_of_single_runs(pipe):
    """Also where their prompts differ in length."""
    shape = latents(pipe, num_inference_steps=2).shape[1:]
    noise = torch.randn((2, *shape), generator=torch.Generator().manual_seed(1))
    both, away = prompt("", (11, 3), 1), prompt("negative_", (5, 8), 2)
    with lacuna.diffusers.enable(pipe, SPARSE) as patch:
        together = latents(pipe, (11, 3), (5, 8), latents=noise)
        assert {(c["sample"], c["branch"]) for c in patch.session.trace} == {
            (s, b) for s in (0, 1) for b in ("cond", "uncond")}
        alone = [latents(pipe, latents=noise[i:i + 1], **{k: v[i:i + 1] for k, v in {**both, **away}.items()})
                 for i in range(2)]
    assert error(together, torch.cat(alone)) <= 1e-5


def test_bf16(pipe):
    """Mochi's timesteps, of the latents' dtype, are rounded then."""
    def run():
        inputs = {k: v.bfloat16() for k, v in {**prompt("", (11,), 1), **prompt("negative_", (5,), 2)}.items()
                  if k.endswith("embeds")}
        return latents(pipe, num_inference_steps=10, **inputs)

    pipe.transformer.to(torch.bfloat16)
    try:
        stock = run()
        with lacuna.diffusers.enable(pipe, "dense") as patch:
            assert error(run().float(), stock.float()) < 0.05
        assert {c["step"] for c in patch.session.trace} == set(range(10))
    finally:
        pipe.transformer.to(torch.float32)


def test_an_error_inside_leaves_nothing_behind(pipe):
    def stop(*_):
        raise InterruptedError

    before, stock = state_of(pipe), latents(pipe)
    with pytest.raises(InterruptedError):
        with lacuna.diffusers.enable(pipe, SPARSE):
            latents(pipe, callback_on_step_end=stop)
    assert state_of(pipe) == before
    with pytest.raises(lacuna.Error, match="attention: 'sparse', expected one of the methods"):
        lacuna.diffusers.enable(pipe, "sparse")
    assert state_of(pipe) == before
    assert torch.equal(latents(pipe), stock)


def test_a_profile_is_made_for_the_text_of_the_prompt(pipe, tmp_path):
    """Masks fit one number of text tokens, that of the prompt; parameters fit all, and here those are asked for."""
    layers = LAYERS[pipe.kind]
    path = tmp_path / "x.profile.json"
    with lacuna.diffusers.enable(pipe, "dense") as patch:
        latents(pipe)
    sigmas = [c["sigma"] for c in patch.session.trace if c["layer"] == 0 and c["branch"] == "cond"]
    path.write_text(json.dumps({
        "schema": "lacuna-profile", "version": 1, "formulas": {"method.xattention": 1, "refresh.every_step": 1},
        "model": {"name": "x", "fingerprint": "x", "num_layers": layers, "num_heads": 2, "head_dim": 16},
        "grid": dict(zip(("frames", "height", "width"), GRID)) | {"text_tokens": 17}, "sigmas": sigmas,
        "rules": [{"match": {}, "method": "xattention", "refresh": {"kind": "every_step"},
                   "params": {"block": 16, "stride": 8, "top_p": 0.5}}]}))
    with lacuna.diffusers.enable(pipe, profile=path) as patch:
        latents(pipe)
    assert {c["method"] for c in patch.session.trace} == {"xattention"}


def test_what_is_refused(pipe):
    before = state_of(pipe)
    with lacuna.diffusers.enable(pipe, "dense") as patch:
        with pytest.raises(lacuna.Error, match=r"Lacuna\w+AttnProcessor2_0, expected .*: disable\(\) what is enabled"):
            lacuna.diffusers.enable(pipe, "dense")
        mask = prompt("", (4,), 1)["prompt_attention_mask"]
        inputs = {"hidden_states": torch.zeros((1, 4, 1, 8, 8)), "encoder_hidden_states": torch.zeros((1, ROWS, 32)),
                  "encoder_attention_mask": mask}
        if pipe.kind == "hunyuan":
            inputs |= {"pooled_projections": torch.zeros((1, 24)), "guidance": torch.ones(1)}
        with pytest.raises(lacuna.Error, match="in cache_context None, expected 'cond"), torch.no_grad():
            pipe.transformer(timestep=torch.ones(1), **inputs)
        context = pipe.transformer.cache_context("cond_uncond" if pipe.kind == "mochi" else "cond")
        with pytest.raises(lacuna.Error, match="where the enabled pipeline is at none"), torch.no_grad(), context:
            pipe.transformer(timestep=torch.ones(1), **inputs)
        with pytest.raises(lacuna.Error, match="self-attention outside its transformer's forward"):
            patch._attend(0, torch.zeros((1, 4, 2, 16)), None, None)
    assert state_of(pipe) == before


@pytest.mark.parametrize("name", ["HunyuanVideoImageToVideoPipeline", "HunyuanVideoFramepackPipeline",
                                  "HunyuanSkyreelsImageToVideoPipeline", "HunyuanVideo15Pipeline"])
def test_other_pipelines_are_refused_by_name(name):
    other = object.__new__(getattr(diffusers, name))
    with pytest.raises(lacuna.Error, match=f"{name}, expected a WanPipeline, MochiPipeline or HunyuanVideoPipeline"):
        lacuna.diffusers.enable(other)


def test_transformers_for_pictures_are_refused_by_name():
    with pytest.raises(lacuna.Error, match="image_condition_type token_replace, expected one of text to video"):
        lacuna.diffusers.enable(hunyuan(image_condition_type="token_replace"))
    pipe = hunyuan()
    pipe.transformer = diffusers.HunyuanVideoFramepackTransformer3DModel(**HUNYUAN)
    with pytest.raises(lacuna.Error, match="HunyuanVideoFramepackTransformer3DModel, expected HunyuanVideoTransformer"):
        lacuna.diffusers.enable(pipe)


def test_a_version_that_calls_attention_by_another_name_is_refused(pipe, monkeypatch):
    """It would run stock attention, and say nothing."""
    processor = type(attentions(pipe.transformer)[-1].processor)
    monkeypatch.setattr(processor, "__call__", lambda *args, **kwargs: None)
    with pytest.raises(lacuna.Error, match=f"this version, expected one whose {processor.__name__} calls "):
        lacuna.diffusers.enable(pipe, "dense")


def test_several_devices_and_other_masks_are_refused():
    pipe = quiet(hunyuan(), "hunyuan")
    with lacuna.diffusers.enable(pipe, "dense"):
        pipe.transformer.transformer_blocks[0].attn.processor._parallel_config = types.SimpleNamespace()
        with pytest.raises(lacuna.Error, match="self-attention with parallel_config, expected plain attention on one"):
            latents(pipe)
    pipe = quiet(hunyuan(), "hunyuan")
    with lacuna.diffusers.enable(pipe, "dense"):
        pipe.transformer.transformer_blocks[1].register_forward_pre_hook(
            lambda _, args: (*args[:3], args[3].roll(1, -1), *args[4:]))
        with pytest.raises(lacuna.Error, match="attn_mask torch.bool .*, expected one that hides what no prompt fills"):
            latents(pipe)
