# SPDX-License-Identifier: Apache-2.0
"""lacuna.Session: what the engine does is tested in tests/engine; here, that it is reached and told apart."""
import json
import threading

import lacuna
import numpy as np
import pytest
from conftest import reference

GRID = (4, 8, 8)
TOKENS = 256
SPARSE = "xattention:block=32,stride=8,top_p=0.5"
PROFILE = {
    "schema": "lacuna-profile", "version": 1, "formulas": {"method.xattention": 1, "refresh.every_step": 1},
    "model": {"name": "wan", "fingerprint": "x", "num_layers": 2, "num_heads": 3, "head_dim": 64},
    "grid": {"frames": 4, "height": 8, "width": 8, "text_tokens": 0}, "sigmas": [1.0, 0.5],
    "rules": [{"match": {"sigmas": [0.9, 2.0]}, "reason": "high-noise"},
              {"match": {}, "method": "xattention", "refresh": {"kind": "every_step"},
               "params": {"block": 32, "stride": 8, "top_p": [0.5, 0.6, 0.7]}}]}


def run(session, inputs, steps, layers=2, **site):
    return [session.attend(*inputs, step=step, layer=layer, **site) for step in range(steps) for layer in range(layers)]


def test_dense_is_attention(qkv):
    inputs = qkv(2, TOKENS, 64)
    session = lacuna.Session("dense", steps=3, num_layers=2, grid=GRID)
    for out in run(session, inputs, 3):
        np.testing.assert_array_equal(out, lacuna.attention(*inputs))
    assert session.rules == ["dense"]
    assert {(c["method"], c["qk_density"]) for c in session.trace} == {("dense", 1.0)}


def test_every_step_selects_at_every_step(qkv):
    session = lacuna.Session(SPARSE, steps=4, num_layers=2, grid=GRID)
    outs = run(session, qkv(3, TOKENS, 64), 4)
    assert [(c["step"], c["layer"]) for c in session.trace] == [(s, l) for s in range(4) for l in range(2)]
    assert all(c["heads_refreshed"] == c["num_heads"] == 3 and c["reason"] == "" for c in session.trace)
    assert all(0 < c["qk_density"] < 1 and c["pv_density"] == c["qk_density"] for c in session.trace)
    mask = lacuna.select(*qkv(3, TOKENS, 64)[:2], SPARSE, grid=GRID)
    np.testing.assert_array_equal(outs[0], lacuna.attention(*qkv(3, TOKENS, 64), mask))


def test_haste_selects_once_where_nothing_drifts_and_is_dense_at_first(qkv):
    session = lacuna.Session("haste:block=32,top_p=0.5", steps=10, num_layers=2, grid=GRID)
    run(session, qkv(3, TOKENS, 64), 10)
    trace = session.trace
    assert [c["reason"] for c in trace[:2]] == ["dense-steps"] * 2  # 10 % of the steps
    assert [c["heads_refreshed"] for c in trace[2:4]] == [3, 3]
    assert sum(c["heads_refreshed"] for c in trace[4:]) == 0
    assert "dense (dense-steps)" in session.summary() and "refresh=drift" in session.summary()


def test_haste_is_what_nobody_chose(qkv):
    sessions = [lacuna.Session(name, steps=20, num_layers=2, grid=GRID) for name in (None, "haste")]
    assert sessions[0].rules == sessions[1].rules and "xattention" in sessions[0].rules[1]


def test_branches_experts_and_layers_have_masks_of_their_own(qkv):
    session = lacuna.Session(SPARSE + ",refresh=never", steps=3, num_layers=2, grid=GRID)
    for site in ({"branch": "cond"}, {"branch": "uncond"}, {"expert": 1}):
        run(session, qkv(3, TOKENS, 64), 3, **site)
    first = [c for c in session.trace if c["step"] == 0]
    assert [c["heads_refreshed"] for c in first] == [3] * 6
    assert all(c["heads_refreshed"] == 0 for c in session.trace if c["step"] > 0)
    assert {(c["branch"], c["expert"]) for c in session.trace} == {("cond", 0), ("uncond", 0), ("cond", 1)}


def test_samples_of_a_batch_have_masks_of_their_own(qkv):
    q, k, v = qkv(2, 3, TOKENS, 64)
    together = lacuna.Session(SPARSE, steps=2, num_layers=1, grid=GRID)
    out = together.attend(*(x.transpose(0, 2, 1, 3) for x in (q, k, v)), step=0, layer=0, layout="NHD")
    assert [c["sample"] for c in together.trace] == [0, 1]
    for b in range(2):
        alone = lacuna.Session(SPARSE, steps=2, num_layers=1, grid=GRID)
        np.testing.assert_array_equal(out[b].transpose(1, 0, 2), alone.attend(q[b], k[b], v[b], step=0, layer=0))
    with pytest.raises(lacuna.Error, match=r"a batch of 1 after one of 2, expected the same: call reset\(\) first"):
        together.attend(q[0], k[0], v[0], step=1, layer=0)
    together.reset()
    assert together.trace == [] and together.summary() == "nothing ran"
    together.attend(q[0], k[0], v[0], step=0, layer=0)


def test_words_of_the_command_line(qkv):
    session = lacuna.Session(SPARSE, steps=4, num_layers=3, grid=GRID, dense_steps="25%", dense_layers="-1",
                             skip="running_max:lambda=0.001", strict=True)
    run(session, qkv(3, TOKENS, 64), 4, layers=3)
    reasons = {(c["step"], c["layer"]): c["reason"] for c in session.trace}
    assert {site for site, why in reasons.items() if why == "dense-steps"} == {(0, 0), (0, 1), (0, 2)}
    assert {site for site, why in reasons.items() if why == "dense-layers"} == {(1, 2), (2, 2), (3, 2)}
    assert "skip running_max" in session.rules[-1]
    short = lacuna.Session(SPARSE, steps=4, num_layers=1, grid=GRID, min_tokens=TOKENS + 1)
    short.attend(*qkv(3, TOKENS, 64), step=0, layer=0)
    assert short.trace[0]["reason"] == "min-tokens"


def test_noise_levels_decide_where_a_preset_says_so():
    sigmas = [1.0, 0.95, 0.9, 0.85, 0.5]
    assert "dense" == lacuna.Session("blasst", sigmas=sigmas, num_layers=8, grid=GRID).rules[0]
    with pytest.raises(lacuna.Error, match="5 sigmas, expected one for each of 4 steps"):
        lacuna.Session("blasst", steps=4, sigmas=sigmas, num_layers=8, grid=GRID)


def test_text_tokens_follow_the_video(qkv):
    inputs = qkv(2, TOKENS + 20, 64)
    session = lacuna.Session("radial:block=32", steps=1, num_layers=1, grid=GRID, text_tokens=20)
    out = session.attend(*inputs, step=0, layer=0)
    np.testing.assert_allclose(out[:, TOKENS:], reference(*inputs)[0][:, TOKENS:], atol=5e-6)  # text rows are dense


def test_text_tokens_of_each_call(qkv):
    """A branch's own number: another would forget its masks."""
    session = lacuna.Session(SPARSE + ",refresh=never", steps=3, num_layers=1, grid=GRID, text_tokens=20)
    inputs = {"cond": (qkv(3, TOKENS + 20, 64), None), "uncond": (qkv(3, TOKENS + 7, 64), 7)}
    for step in range(3):
        for branch, (arrays, text) in inputs.items():
            session.attend(*arrays, step=step, layer=0, branch=branch, text_tokens=text)
    assert [c["heads_refreshed"] for c in session.trace] == [3, 3, 0, 0, 0, 0]
    session = lacuna.Session(SPARSE, steps=1, num_layers=1, grid=GRID)
    out = session.attend(*inputs["uncond"][0], step=0, layer=0, text_tokens=7)
    mask = lacuna.select(*inputs["uncond"][0][:2], SPARSE, grid=GRID, text_tokens=7)
    np.testing.assert_array_equal(out, lacuna.attention(*inputs["uncond"][0], mask))


def test_samples_one_by_one_are_those_of_a_batch(qkv):
    q, k, v = qkv(2, 3, TOKENS, 64)
    settings = {"steps": 2, "num_layers": 1, "grid": GRID}
    together, apart = (lacuna.Session(SPARSE + ",refresh=never", **settings) for _ in range(2))
    for step in range(2):
        out = together.attend(q, k, v, step=step, layer=0)
        for b in (1, 0):
            np.testing.assert_array_equal(out[b], apart.attend(q[b], k[b], v[b], step=step, layer=0, sample=b))

    def told(session):
        return [(c["step"], c["sample"], c["heads_refreshed"], c["mask_hash"]) for c in session.trace]

    assert told(apart) == told(together)
    assert [c[:3] for c in told(apart)] == [(0, 0, 3), (0, 1, 3), (1, 0, 0), (1, 1, 0)]


def test_a_trace_says_what_trace_files_say(qkv):
    session = lacuna.Session(SPARSE, steps=1, num_layers=1, grid=GRID)
    run(session, qkv(3, TOKENS, 64), 1, layers=1)
    (call,) = session.trace
    assert set(call) == {
        "sample", "step", "num_steps", "sigma", "layer", "num_layers", "branch", "expert", "method", "reason", "rule",
        "num_heads", "heads_refreshed", "qk_density", "pv_density", "pooled_density", "select_ms", "attend_ms",
        "mask_hash"}


def test_a_profile_decides_and_is_checked(qkv, tmp_path):
    path = tmp_path / "wan.profile.json"
    path.write_text(json.dumps(PROFILE))
    session = lacuna.Session(profile=path, steps=2, num_layers=2, grid=GRID)
    session.attend(*qkv(3, TOKENS, 64), step=0, layer=0)
    session.attend(*qkv(3, TOKENS, 64), step=1, layer=0)
    assert [(c["method"], c["reason"]) for c in session.trace] == [("dense", "high-noise"), ("xattention", "")]
    with pytest.raises(lacuna.Error, match="2 heads of 64 channels, expected 3 of 64"):
        lacuna.Session(profile=path, steps=2, num_layers=2, grid=GRID).attend(*qkv(2, TOKENS, 64), step=0, layer=0)
    for text, words in {"decides about attention": {"attention": "dense"}, "layers": {"num_layers": 3},
                        "steps": {"steps": 3}, "grid": {"grid": (4, 8, 9)}, "sigma": {"sigmas": [1.0, 0.4]}}.items():
        with pytest.raises(lacuna.Error, match=text):
            lacuna.Session(**{"profile": path, "steps": 2, "num_layers": 2, "grid": GRID, **words})


def test_strict_refuses_dense_calls_that_nobody_asked_for(qkv, tmp_path):
    path = tmp_path / "wan.profile.json"
    path.write_text(json.dumps({**PROFILE, "rules": [{**PROFILE["rules"][1], "match": {"steps": [1, 2]}}]}))
    session = lacuna.Session(profile=path, steps=2, num_layers=2, grid=GRID, strict=True)
    with pytest.raises(lacuna.Error, match="step 0 layer 1 cond runs dense .*which no rule asked for"):
        session.attend(*qkv(3, TOKENS, 64), step=0, layer=1)
    session.attend(*qkv(3, TOKENS, 64), step=1, layer=1)


def test_what_is_refused(qkv):
    inputs = qkv(3, TOKENS, 64)
    session = lacuna.Session("dense", steps=2, num_layers=2, grid=GRID)
    for text, call in {
        "neither steps nor sigmas": lambda: lacuna.Session("dense", num_layers=1, grid=GRID),
        "0 steps and 2 layers": lambda: lacuna.Session("dense", steps=0, num_layers=2, grid=GRID),
        "grid: 1x0x2, expected frames": lambda: lacuna.Session("dense", steps=2, num_layers=2, grid=(1, 0, 2)),
        "width of 1 to 1048576": lambda: lacuna.Session("svg", steps=2, num_layers=2, grid=(2**31, 2**31, 4)),
        "attention: 'sparse', expected one of the methods":
            lambda: lacuna.Session("sparse", steps=2, num_layers=2, grid=GRID),
        "top_p": lambda: lacuna.Session("xattention:top_p=2", steps=2, num_layers=2, grid=GRID),
        "step 2 and layer 0, expected below 2 and 2": lambda: session.attend(*inputs, step=2, layer=0),
        "branch 'both', expected cond or uncond": lambda: session.attend(*inputs, step=0, layer=0, branch="both"),
        "text_tokens: -1, expected 0 to":
            lambda: session.attend(*inputs, step=0, layer=0, text_tokens=-1),
        "sample -1, expected 0 or more": lambda: session.attend(*inputs, step=0, layer=0, sample=-1),
        "a batch of 2 as sample 1, expected one sample":
            lambda: session.attend(*qkv(2, 3, TOKENS, 64), step=0, layer=0, sample=1),
        "expert 2, expected 0 or 1": lambda: session.attend(*inputs, step=0, layer=0, expert=2),
        "expected [num_heads, 256, head_dim]": lambda: session.attend(*qkv(3, 250, 64), step=0, layer=0),
        "out: memory overlaps that of v": lambda: session.attend(*inputs, step=0, layer=0, out=inputs[2]),
    }.items():
        with pytest.raises(lacuna.Error) as error:
            call()
        assert text in str(error.value)


def test_python_threads_take_turns(qkv):
    inputs = qkv(3, TOKENS, 64)
    session = lacuna.Session(SPARSE, steps=1, num_layers=8, grid=GRID)
    expected = session.attend(*inputs, step=0, layer=0)
    outs = {}
    threads = [threading.Thread(target=lambda i=i: outs.update({i: session.attend(*inputs, step=0, layer=i)}))
               for i in range(1, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(session.trace) == 8
    for out in outs.values():
        np.testing.assert_array_equal(out, expected)


def test_a_refused_first_call_decides_nothing(qkv):
    session = lacuna.Session(SPARSE, steps=1, num_layers=1, grid=GRID)
    with pytest.raises(lacuna.Error, match="expected .num_heads, 256, head_dim"):
        session.attend(*qkv(2, 3, TOKENS - 1, 64), step=0, layer=0)
    run(session, qkv(3, TOKENS, 64), 1, layers=1)
    assert len(session.trace) == 1
