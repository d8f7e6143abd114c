# SPDX-License-Identifier: Apache-2.0
"""The real WanPipeline with tiny random weights: stock, with Lacuna, and stock again."""
import pathlib
import sys

import lacuna
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")
import lacuna.diffusers  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools/parity"))
import pipelines  # noqa: E402
from test_docs import EXAMPLES  # noqa: E402

STEPS = 4
KINDS = ("wan2.1", "wan2.2-a14b", "wan2.2-ti2v-5b")
GRIDS = {"wan2.1": (3, 8, 12), "wan2.2-a14b": (3, 8, 12), "wan2.2-ti2v-5b": (3, 4, 6)}  # of 128x192 and 9 frames
SPARSE = "xattention:top_p=0.6,stride=8,block=16"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return pipelines.train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=KINDS)
def pipe(request, tokenizer):
    pipe = pipelines.build(request.param, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    pipe.kind = request.param
    return pipe


def latents(pipe, **kwargs):
    settings = {"prompt": "a red ball", "negative_prompt": "blurry", "height": 128, "width": 192, "num_frames": 9,
                "num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "latent",
                "generator": torch.Generator().manual_seed(7), **kwargs}
    return pipe(**settings).frames


def error(a, b):
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


def state_of(pipe):
    return [(t.__dict__.keys(), len(t._forward_hooks), len(t._forward_pre_hooks),
             [(b.attn1.processor, b.attn2.processor) for b in t.blocks])
            for t in (pipe.transformer, pipe.transformer_2) if t is not None]


def test_dense_agrees_and_stock_is_stock_again(pipe, tokenizer):
    before, stock = state_of(pipe), latents(pipe)
    twin = pipelines.build(pipe.kind, tokenizer)
    twin.set_progress_bar_config(disable=True)
    with lacuna.diffusers.enable(pipe, "dense") as patch:
        dense = latents(pipe)
        assert torch.equal(latents(twin), stock)  # another pipeline of this process
    assert 0 < error(dense, stock) <= 1e-4
    assert state_of(pipe) == before
    assert torch.equal(latents(pipe), stock)
    trace = patch.session.trace
    assert len(trace) == STEPS * 2 * 2 and {c["method"] for c in trace} == {"dense"}


def test_step_layer_branch_and_expert_are_the_pipelines(pipe):
    with lacuna.diffusers.enable(pipe, "dense") as patch:
        latents(pipe)
    sites = [(c["step"], c["branch"], c["layer"]) for c in patch.session.trace]
    assert sites == [(s, b, l) for s in range(STEPS) for b in ("cond", "uncond") for l in range(2)]
    # With a shift of 5 the third of four timesteps is below 875, where A14B changes its network.
    low = {int(s) for s, t in enumerate(pipe.scheduler.timesteps) if t < 875} if pipe.kind == "wan2.2-a14b" else set()
    assert {c["step"] for c in patch.session.trace if c["expert"] == 1} == low
    assert pipe.kind != "wan2.2-a14b" or 0 < len(low) < STEPS
    assert patch._grid == GRIDS[pipe.kind]


def test_full_density_agrees(pipe):
    stock = latents(pipe)
    with lacuna.diffusers.enable(pipe, "xattention:block=16,stride=8,top_p=1") as patch:
        full = latents(pipe)
    assert error(full, stock) <= 1e-4
    assert {(c["method"], c["qk_density"]) for c in patch.session.trace} == {("xattention", 1.0)}


def test_sparse_runs_where_the_trace_says(pipe):
    stock = latents(pipe)
    with lacuna.diffusers.enable(pipe, SPARSE, dense_steps="25%") as patch:
        sparse = latents(pipe)
    assert 1e-3 < error(sparse, stock) < 1
    for call in patch.session.trace:
        assert (call["reason"] == "dense-steps") == (call["step"] == 0)
        assert (call["qk_density"] < 1) == (call["step"] > 0)
    assert "dense-steps" in patch.session.summary() and SPARSE in patch.session.summary()


def test_sparse_is_the_mask_that_select_shows(pipe):
    """What a processor of our own would compute from q, k, v as upstream hands them over."""
    seen = []
    with lacuna.diffusers.enable(pipe, SPARSE) as patch:
        plain = patch._attend

        def watched(layer, q, k, v, *rest):
            out = plain(layer, q, k, v, *rest)
            mask = lacuna.select(q[0], k[0], SPARSE, grid=GRIDS[pipe.kind], layout="NHD")
            seen.append(torch.equal(out, lacuna.attention(q, k, v, mask, layout="NHD")))
            return out

        patch._attend = watched
        latents(pipe, num_inference_steps=1)
    assert seen == [True] * 4


def test_each_run_has_a_session_and_without_guidance_one_branch(pipe):
    with lacuna.diffusers.enable(pipe, "haste:block=16") as patch:
        assert patch.session is None
        latents(pipe, num_inference_steps=2)
        first = patch.session
        latents(pipe, num_inference_steps=2, guidance_scale=1.0)
    assert patch.session is not first
    assert len(first.trace) == 8 and len(patch.session.trace) == 4
    assert {c["branch"] for c in patch.session.trace} == {"cond"}


def test_videos_of_a_batch_are_those_of_single_runs(pipe):
    def noise(seed):
        return torch.randn((1, *latents(pipe, num_inference_steps=1).shape[1:]),
                           generator=torch.Generator().manual_seed(seed))

    both = torch.cat([noise(1), noise(2)])
    with lacuna.diffusers.enable(pipe, SPARSE) as patch:
        together = latents(pipe, num_videos_per_prompt=2, latents=both)
        assert {c["sample"] for c in patch.session.trace} == {0, 1}
        alone = [latents(pipe, latents=both[i:i + 1]) for i in range(2)]
    assert error(together, torch.cat(alone)) <= 1e-4


def test_bf16(pipe):
    for part in (pipe.transformer, pipe.transformer_2):
        if part is not None:
            part.to(torch.bfloat16)
    try:
        stock = latents(pipe)
        with lacuna.diffusers.enable(pipe, "dense"):
            assert error(latents(pipe).float(), stock.float()) < 0.05
    finally:
        for part in (pipe.transformer, pipe.transformer_2):
            if part is not None:
                part.to(torch.float32)


def test_an_error_inside_leaves_nothing_behind(pipe):
    def stop(*_):
        raise InterruptedError

    before, stock = state_of(pipe), latents(pipe)
    with pytest.raises(InterruptedError):
        with lacuna.diffusers.enable(pipe, SPARSE):
            latents(pipe, callback_on_step_end=stop)
    assert state_of(pipe) == before
    assert torch.equal(latents(pipe), stock)


@pytest.mark.parametrize("words, message", [
    ({"attention": "sparse"}, "attention: 'sparse', expected one of the methods"),
    ({"attention": "xattention:top_p=2"}, "top_p"),
    ({"skip": "sometimes"}, "sometimes"),
    ({"dense_layers": "2"}, "expected layers below 2"),
    ({"dense_steps": "first"}, "first"),
    ({"profile": "/no/such.profile.json"}, "/no/such.profile.json"),
    ({"profile": "a.profile.json", "attention": "dense"}, "a.profile.json decides about attention"),
])
def test_words_are_checked_before_anything_runs(pipe, words, message):
    before = state_of(pipe)
    with pytest.raises(lacuna.Error, match=message):
        lacuna.diffusers.enable(pipe, **words)
    assert state_of(pipe) == before


def test_words_that_only_a_number_of_steps_decides_wait_for_it(pipe):
    with lacuna.diffusers.enable(pipe, "dense", dense_steps="4-5"):
        with pytest.raises(lacuna.Error, match="step"):
            latents(pipe)
        latents(pipe, num_inference_steps=6)


@pytest.mark.parametrize("kind", ["wan2.2-i2v-a14b", "wan2.1-i2v", "wan2.2-ti2v-5b-image"])
def test_pipelines_of_pictures(kind, tokenizer, tmp_path):
    """Self-attention is Lacuna's; cross-attention, which looks at pictures too, stays upstream's."""
    pipe = pipelines.build(kind, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    image = pipelines.picture(tmp_path / "first.png", 128, 192)
    before, stock = state_of(pipe), latents(pipe, image=image)
    with lacuna.diffusers.enable(pipe, "dense") as patch:
        assert [second for *_, blocks in state_of(pipe) for _, second in blocks] == \
            [second for *_, blocks in before for _, second in blocks]
        assert 0 < error(latents(pipe, image=image), stock) <= 1e-4
    assert [(c["step"], c["branch"], c["layer"]) for c in patch.session.trace] == \
        [(s, b, l) for s in range(STEPS) for b in ("cond", "uncond") for l in range(2)]
    with lacuna.diffusers.enable(pipe, SPARSE):
        assert 1e-3 < error(latents(pipe, image=image), stock) < 1
    assert state_of(pipe) == before
    assert torch.equal(latents(pipe, image=image), stock)


def test_what_is_refused(pipe):
    class WanVACEPipeline:
        pass

    with pytest.raises(lacuna.Error, match="WanVACEPipeline, expected a WanPipeline, WanImageToVideoPipeline, Mochi"):
        lacuna.diffusers.enable(WanVACEPipeline())
    before = state_of(pipe)
    patch = lacuna.diffusers.enable(pipe, "dense")
    with pytest.raises(lacuna.Error, match="LacunaWanAttnProcessor, expected WanAttnProcessor"):
        lacuna.diffusers.enable(pipe, "dense")
    patch.disable()
    patch.disable()  # again is nothing
    assert state_of(pipe) == before
    with lacuna.diffusers.enable(pipe, "dense"):
        pipe.scheduler.set_timesteps(4)
        hidden = torch.zeros((1, pipe.transformer.config.in_channels, 1, 8, 8))
        text = torch.zeros((1, 5, 64))
        with pytest.raises(lacuna.Error, match="in cache_context None, expected 'cond' or 'uncond'"), torch.no_grad():
            pipe.transformer(hidden, pipe.scheduler.timesteps[:1], text)
        with pytest.raises(lacuna.Error, match="at timestep 123 where the enabled pipeline is at"), torch.no_grad(), \
                pipe.transformer.cache_context("cond"):
            pipe.transformer(hidden, torch.tensor([123]), text)
        with pytest.raises(lacuna.Error, match="self-attention outside its transformer's forward"), torch.no_grad():
            pipe.transformer.blocks[0].attn1(torch.zeros((1, 4, 128)))


def test_a_transformer_run_by_another_pipeline_is_refused(pipe, tokenizer):
    """Until a pipeline runs, its scheduler has the 1000 timesteps of training, most of the other's among them."""
    fresh = pipelines.build(pipe.kind, tokenizer)
    other = type(fresh)(**{**fresh.components, "scheduler": pipelines.unipc()}, **{
        key: fresh.config[key] for key in ("boundary_ratio", "expand_timesteps")})
    with lacuna.diffusers.enable(fresh, SPARSE) as patch:
        with pytest.raises(lacuna.Error, match="where the enabled pipeline is at none, expected calls of that"):
            latents(other)
        assert patch.session is None
        latents(fresh)
        assert len(patch.session.trace) == STEPS * 2 * 2


def test_a_repeated_timestep_is_refused():
    with pytest.raises(lacuna.Error, match="timestep 5 is 2 of the scheduler's 3 timesteps"):
        lacuna.diffusers._index([9.0, 5.0, 5.0], 5.0)


def test_the_example_of_the_documentation(pipe, capsys):
    exec(EXAMPLES[4], {"pipe": pipe})
    assert "dense-steps" in capsys.readouterr().out
