# SPDX-License-Identifier: Apache-2.0
"""lacuna.attention on numpy arrays, against plain attention in float64."""
import os
import subprocess
import sys
import threading
import time

import lacuna
import numpy as np
import pytest
from conftest import reference

TOLERANCE = 5e-6  # float32 against float64, of outputs of size 1


class Dlpack:
    """An array of a library that nobody here knows."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("q_len, k_len", [(1, 1), (1, 7), (7, 1), (63, 65), (128, 128), (130, 257), (300, 41)])
@pytest.mark.parametrize("channels", [1, 7, 64, 80, 128])
def test_any_shape(qkv, q_len, k_len, channels):
    q, k, v = qkv(2, 3, q_len, channels, k_len=k_len)
    out, lse = lacuna.attention(q, k, v, return_lse=True)
    expected, expected_lse = reference(q, k, v)
    assert out.shape == q.shape and out.dtype == np.float32
    assert lse.shape == (2, 3, q_len) and lse.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-5)


def test_nhd_and_no_batch(qkv):
    q, k, v = qkv(3, 50, 64, k_len=33)
    expected, expected_lse = reference(q, k, v)
    np.testing.assert_allclose(lacuna.attention(q, k, v), expected, atol=TOLERANCE)
    turned = [x.transpose(1, 0, 2).copy() for x in (q, k, v)]
    out, lse = lacuna.attention(*turned, layout="NHD", return_lse=True)
    np.testing.assert_allclose(out.transpose(1, 0, 2), expected, atol=TOLERANCE)
    assert lse.shape == (3, 50)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-5)


def test_nhd_of_a_batch(qkv):
    q, k, v = qkv(2, 3, 20, 64)
    turned = [x.transpose(0, 2, 1, 3).copy() for x in (q, k, v)]
    out, lse = lacuna.attention(*turned, layout="NHD", return_lse=True)
    assert lse.shape == (2, 3, 20)
    np.testing.assert_array_equal(out.transpose(0, 2, 1, 3), lacuna.attention(q, k, v))


def test_strides_are_read_where_they_lie(qkv):
    fused = np.random.default_rng(1).standard_normal((2, 40, 3, 3, 64), np.float32)  # batch, token, qkv, head, channel
    q, k, v = (fused[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    dense = lacuna.attention(*(np.ascontiguousarray(x) for x in (q, k, v)))
    np.testing.assert_array_equal(lacuna.attention(q, k, v), dense)
    np.testing.assert_array_equal(lacuna.attention(q[:, :, ::-1], k, v), dense[:, :, ::-1])
    np.testing.assert_array_equal(lacuna.attention(q[:, :, ::3], k, v), dense[:, :, ::3])
    np.testing.assert_array_equal(lacuna.attention(np.broadcast_to(q[:, :1], q.shape), k, v)[:, 0], dense[:, 0])
    room = np.full((2, 40, 3, 64), np.nan, np.float32)
    assert lacuna.attention(q, k, v, out=room.transpose(0, 2, 1, 3)) is not None
    np.testing.assert_array_equal(room.transpose(0, 2, 1, 3), dense)


def test_out_is_the_array_that_came_in(qkv):
    q, k, v = qkv(2, 9, 64)
    out = np.empty_like(q)
    assert lacuna.attention(q, k, v, out=out) is out


def test_scale(qkv):
    q, k, v = qkv(2, 30, 64)
    np.testing.assert_allclose(lacuna.attention(q, k, v, scale=0.5), reference(q, k, v, scale=0.5)[0], atol=TOLERANCE)


def test_nothing_to_do_and_nothing_to_see(qkv):
    q, k, v = qkv(2, 5, 64, k_len=0)
    out, lse = lacuna.attention(q, k, v, return_lse=True)
    assert (out == 0).all() and (lse == -np.inf).all()
    assert lacuna.attention(k, q, q).shape == (2, 0, 64)


def test_read_only_inputs_are_read(qkv):
    q, k, v = qkv(2, 9, 64)
    expected = lacuna.attention(q, k, v)
    for x in (q, k, v):
        x.flags.writeable = False
    np.testing.assert_array_equal(lacuna.attention(q, k, v), expected)


def test_arrays_of_other_libraries(qkv):
    out, lse = lacuna.attention(*(Dlpack(x) for x in qkv(2, 9, 64)), return_lse=True)
    expected = lacuna.attention(*qkv(2, 9, 64), return_lse=True)
    np.testing.assert_array_equal(out, expected[0])
    np.testing.assert_array_equal(lse, expected[1])


def test_arrays_on_a_device_are_refused(qkv):
    class OnGpu(Dlpack):
        def __dlpack_device__(self):
            return (2, 0)

    q, k, v = qkv(2, 9, 64)
    with pytest.raises(lacuna.Error, match=r"v: on a device, expected the CPU \(Lacuna's GPU backend has not been run"):
        lacuna.attention(q, k, OnGpu(v))


def test_parts_merged_by_lse_are_the_whole(qkv):
    q, k, v = qkv(2, 70, 64, k_len=90)
    (a, a_lse), (b, b_lse) = (lacuna.attention(q, k[:, keys], v[:, keys], return_lse=True)
                              for keys in (slice(0, 37), slice(37, 90)))
    both = np.logaddexp(a_lse, b_lse)
    merged = a * np.exp(a_lse - both)[..., None] + b * np.exp(b_lse - both)[..., None]
    whole, lse = lacuna.attention(q, k, v, return_lse=True)
    np.testing.assert_allclose(both, lse, atol=2e-5)
    np.testing.assert_allclose(merged, whole, atol=TOLERANCE)


def test_a_skip_rule_that_keeps_all_and_one_that_does_not(qkv):
    q, k, v = qkv(2, 600, 64)
    dense = lacuna.attention(q, k, v)
    np.testing.assert_allclose(lacuna.attention(q, k, v, skip="running_max:lambda=0"), dense, atol=TOLERANCE)
    k = k * np.linspace(0.1, 4, 600, dtype=np.float32)[:, None]
    loose = lacuna.attention(q, k, v, skip="running_max:lambda=0.9")
    assert 0 < np.abs(loose - lacuna.attention(q, k, v)).max() < 10


def test_rows_of_out_may_lie_anywhere_but_on_each_other(qkv):
    q, k, v = qkv(2, 3, 20, 64)
    memory = np.zeros(2 * 3 * 20 * 80, np.float32)
    apart = np.lib.stride_tricks.as_strided(memory, q.shape, (4 * 4800, 4 * 80, 4 * 240, 4))  # heads between tokens, gaps
    np.testing.assert_array_equal(lacuna.attention(q, k, v, out=apart), lacuna.attention(q, k, v))
    for strides in ((4 * 4800, 4 * 1600, 4 * 63, 4),  # a token begins in the last channel of the one before
                    (4 * 4800, 4 * 1200, 4 * 80, 4)):  # a head begins in the middle of the one before
        with pytest.raises(lacuna.Error, match="out: strides .*, expected a place in memory for each element"):
            lacuna.attention(q, k, v, out=np.lib.stride_tricks.as_strided(memory, q.shape, strides))


def test_what_is_refused_says_what_was_given_and_expected(qkv):
    q, k, v = qkv(2, 3, 20, 64)
    locked = np.empty_like(q)
    locked.flags.writeable = False
    shared = np.lib.stride_tricks.as_strided(np.empty(20 * 64, np.float32), q.shape, (0, 0, 256, 4))
    for text, call in {
        "q: float16, expected float32, or bfloat16 as a torch tensor": lambda: lacuna.attention(q.astype(np.float16), k, v),
        "k: int64, expected": lambda: lacuna.attention(q, k.astype(np.int64), v),
        "v: list, expected a numpy array": lambda: lacuna.attention(q, k, v.tolist()),
        "k: >f4, expected float32": lambda: lacuna.attention(q, k.astype(">f4"), v),
        "q: bool8, expected float32": lambda: lacuna.attention(Dlpack(q.astype(bool)), k, v),
        "q: 2 dimensions, expected 3 or 4": lambda: lacuna.attention(q[0, 0], k, v),
        "q: channels 2 elements apart, expected them side by side": lambda: lacuna.attention(q[..., ::2], k, v),
        "3 heads of q and 1 of k": lambda: lacuna.attention(q, k[:, :1], v[:, :1]),
        "q, k, v, out of 4, 3, 4 and 4 dimensions": lambda: lacuna.attention(q, k[0], v),
        "batches of 2, 1, 1 and 2": lambda: lacuna.attention(q, k[:1], v[:1]),
        "v [3, 5, 64] f32, expected the shape and dtype of k": lambda: lacuna.attention(q, k, v[:, :, :5]),
        "expected the heads, channels and dtype of q": lambda: lacuna.attention(q, k[..., :8], v[..., :8]),
        "layout: 'THD', expected HND or NHD": lambda: lacuna.attention(q, k, v, layout="THD"),
        "skip: 'some', expected one of none": lambda: lacuna.attention(q, k, v, skip="some"),
        "expected a lacuna.Mask": lambda: lacuna.attention(q, k, v, np.ones((20, 20), bool)),
        "out: memory overlaps that of q": lambda: lacuna.attention(q, k, v, out=q),
        "out: memory overlaps that of k": lambda: lacuna.attention(q, k, v, out=k[:, :, ::-1]),
        "out: strides 0,0,64,1, expected a place": lambda: lacuna.attention(q, k, v, out=shared),
        "out: read-only": lambda: lacuna.attention(q, k, v, out=locked),
        "out [3, 5, 64] f32, expected": lambda: lacuna.attention(q, k, v, out=np.empty((2, 3, 5, 64), np.float32)),
        "head_dim 0, expected 1 to 1024": lambda: lacuna.attention(*[q[..., :0]] * 3, return_lse=True),
        "head_dim 1100, expected 1 to 1024": lambda: lacuna.attention(*[np.zeros((1, 2, 1100), np.float32)] * 3),
    }.items():
        with pytest.raises(lacuna.Error) as error:
            call()
        assert text in str(error.value)
    assert issubclass(lacuna.Error, ValueError)


def test_other_python_threads_run_meanwhile(qkv):
    q, k, v = qkv(4, 2048, 128)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    calls = []
    for _ in range(20):
        begin = time.perf_counter()
        lacuna.attention(q, k, v)
        calls.append((begin, time.perf_counter()))
    done.set()
    thread.join()
    # In the middle half of a call, where nothing but the kernel runs.
    assert any(0.75 * a + 0.25 * b < t < 0.25 * a + 0.75 * b for a, b in calls for t in ticks)


def test_threads_are_set_for_every_python_thread_and_change_no_byte(qkv):
    q, k, v = qkv(4, 700, 64)
    before = lacuna.attention(q, k, v)
    try:
        lacuna.set_threads(1)
        seen = []
        thread = threading.Thread(target=lambda: seen.append((lacuna.describe()["threads"], lacuna.attention(q, k, v))))
        thread.start()
        thread.join()
        assert seen[0][0] == 1
        np.testing.assert_array_equal(seen[0][1], before)
    finally:
        lacuna.set_threads(0)
    with pytest.raises(lacuna.Error, match="threads: -1, expected 1 to 1024"):
        lacuna.set_threads(-1)


def test_more_threads_than_we_would_set_are_left_alone():
    code = ("import numpy, lacuna; x = numpy.ones((1, 4, 8), numpy.float32); lacuna.attention(x, x, x); "
            "assert lacuna.describe()['threads'] == 1500")
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1500"}).returncode == 0


def test_torch_is_not_imported():
    code = ("import sys, numpy, lacuna; x = numpy.ones((1, 4, 8), numpy.float32); lacuna.attention(x, x, x); "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_old_processor_is_told_before_the_module_is_loaded(monkeypatch):
    from lacuna import _processor
    assert _processor.missing("processor : 0\nflags\t: fpu fma f16c bmi1 bmi2 avx\n") == ["avx2"]
    assert _processor.missing("flags : avx2 fma f16c bmi1 bmi2\nflags : fpu") == []
    monkeypatch.setattr(_processor, "NEEDED", ("avx1024",))
    with pytest.raises(ImportError, match="this processor lacks avx1024"):
        _processor.check()


def test_describe_methods_and_presets():
    about = lacuna.describe()
    assert about["openmp"] and about["version"] == lacuna.__version__ and about["backend"].startswith(("cpu ", "ref"))
    tables = lacuna.methods()
    assert {"dense", "xattention", "radial"} <= {m["name"] for m in tables["methods"]}
    assert tables.keys() == {"methods", "refresh", "skip", "compensate"}
    xattention = next(m for m in tables["methods"] if m["name"] == "xattention")
    assert {"name", "default", "min", "max", "integer", "help"} <= xattention["params"][0].keys()
    assert "haste" in {p["name"] for p in lacuna.presets()}
