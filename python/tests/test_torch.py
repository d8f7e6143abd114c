# SPDX-License-Identifier: Apache-2.0
"""lacuna on torch tensors; skipped where torch is missing."""
import lacuna
import numpy as np
import pytest
from conftest import reference

torch = pytest.importorskip("torch")


def tensors(qkv, *shape, **kwargs):
    return [torch.from_numpy(x) for x in qkv(*shape, **kwargs)]


def test_same_bytes_as_numpy_and_a_tensor_comes_back(qkv):
    out, lse = lacuna.attention(*tensors(qkv, 2, 3, 50, 64), return_lse=True)
    expected, expected_lse = lacuna.attention(*qkv(2, 3, 50, 64), return_lse=True)
    assert isinstance(out, torch.Tensor) and isinstance(lse, torch.Tensor) and lse.dtype == torch.float32
    np.testing.assert_array_equal(out.numpy(), expected)
    np.testing.assert_array_equal(lse.numpy(), expected_lse)


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_against_sdpa(qkv, layout):
    q, k, v = tensors(qkv, 2, 3, 150, 128, k_len=70)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    turn = (lambda x: x.transpose(1, 2)) if layout == "NHD" else (lambda x: x)
    torch.testing.assert_close(turn(lacuna.attention(turn(q), turn(k), turn(v), layout=layout)), expected)


def test_bf16(qkv):
    q, k, v = (x.bfloat16() for x in tensors(qkv, 2, 200, 64))
    out, lse = lacuna.attention(q, k, v, return_lse=True)
    expected, expected_lse = reference(*(x.double().numpy() for x in (q, k, v)))
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    error = np.linalg.norm(out.double().numpy() - expected) / np.linalg.norm(expected)
    assert error < 5e-3  # bf16 keeps 8 bits: rounding the exact result alone gives 1.7e-3
    np.testing.assert_allclose(lse.numpy(), expected_lse, atol=1e-2)


def test_bf16_in_a_session_and_out(qkv):
    q, k, v = (x.bfloat16() for x in tensors(qkv, 2, 256, 64))
    session = lacuna.Session("xattention:block=32,stride=8,top_p=0.5", steps=1, num_layers=1, grid=(4, 8, 8))
    out = torch.empty_like(q)
    assert session.attend(q, k, v, step=0, layer=0, out=out) is out and out.isfinite().all()
    assert 0 < session.trace[0]["qk_density"] < 1


def test_gradients_are_refused_and_no_grad_is_taken(qkv):
    q, k, v = tensors(qkv, 2, 9, 64)
    expected = lacuna.attention(q, k, v)
    q.requires_grad_()
    with pytest.raises(lacuna.Error, match=r"q: requires a gradient, expected none.*torch.no_grad\(\)"):
        lacuna.attention(q, k, v)
    with torch.no_grad():
        assert torch.equal(lacuna.attention(q, k, v), expected)
    with torch.inference_mode():
        assert torch.equal(lacuna.attention(*tensors(qkv, 2, 9, 64)), expected)


def test_other_devices_and_dtypes_are_refused(qkv):
    q, k, v = tensors(qkv, 2, 9, 64)
    with pytest.raises(lacuna.Error, match=r"k: on meta, expected the CPU \(Lacuna's GPU backend has not been run"):
        lacuna.attention(q, k.to("meta"), v)
    with pytest.raises(lacuna.Error, match="q: float16, expected float32 or bfloat16"):
        lacuna.attention(q.half(), k, v)
    with pytest.raises(lacuna.Error, match="k .* bf16, expected the heads, channels and dtype of q"):
        lacuna.attention(q, k.bfloat16(), v)


def test_tensors_whose_memory_is_not_their_values_are_refused(qkv):
    q, k, v = tensors(qkv, 2, 9, 64)
    # DLPack does not tell of the negation that torch owes: what it hands over is q. conj().imag makes such tensors too.
    for odd in (torch._neg_view(q), q.to_sparse(), torch.nested.nested_tensor([q[0], q[1]])):
        with pytest.raises(lacuna.Error, match="q: a sparse, nested, quantized or lazily negated tensor"):
            lacuna.attention(odd, k, v)


def test_torch_keeps_its_number_of_threads(qkv):
    before = torch.get_num_threads()
    try:
        lacuna.set_threads(1)
        lacuna.attention(*tensors(qkv, 2, 300, 64))
        assert torch.get_num_threads() == before
    finally:
        lacuna.set_threads(0)
