# SPDX-License-Identifier: Apache-2.0
"""lacuna.Mask and lacuna.select."""
import lacuna
import numpy as np
import pytest
from conftest import reference

GRID = (4, 8, 8)
TOKENS = 256
TOLERANCE = 5e-6


def spread(bits, block_q, block_k, q_len, k_len):
    return np.repeat(np.repeat(bits, block_q, 1), block_k, 2)[:, :q_len, :k_len]


@pytest.mark.parametrize("q_len, k_len, block_q, block_k", [(100, 130, 32, 16), (64, 64, 64, 64), (1, 9, 128, 1)])
def test_bits_go_in_and_come_out(q_len, k_len, block_q, block_k):
    nq, nk = -(-q_len // block_q), -(-k_len // block_k)
    bits = np.random.default_rng(0).random((3, nq, nk)) < 0.4
    mask = lacuna.Mask.from_numpy(bits, q_len, k_len, block_q, block_k)
    np.testing.assert_array_equal(mask.to_numpy(), bits)
    assert (mask.num_heads, mask.q_len, mask.k_len, mask.block_q, mask.block_k) == (3, q_len, k_len, block_q, block_k)
    np.testing.assert_allclose(mask.density, spread(bits, block_q, block_k, q_len, k_len).mean())
    assert not mask.moves_tokens and mask.q_order is None and mask.k_order is None
    for head, (indptr, indices) in enumerate(mask.csr()):
        assert indptr.dtype == np.int64 and indices.dtype == np.int32 and indptr[-1] == len(indices)
        for row in range(nq):
            np.testing.assert_array_equal(indices[indptr[row]:indptr[row + 1]], np.flatnonzero(bits[head, row]))


def test_attention_computes_the_blocks_of_the_mask(qkv):
    q, k, v = qkv(2, 3, 100, 64, k_len=130)
    bits = np.random.default_rng(0).random((3, 4, 9)) < 0.4
    bits[1, 2] = False  # these rows keep nothing
    mask = lacuna.Mask.from_numpy(bits, 100, 130, 32, 16)
    out, lse = lacuna.attention(q, k, v, mask, return_lse=True)
    expected, expected_lse = reference(q, k, v, spread(bits, 32, 16, 100, 130))
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-5)
    assert (out[:, 1, 64:96] == 0).all() and (lse[:, 1, 64:96] == -np.inf).all()


def test_a_full_mask_is_dense(qkv):
    q, k, v = qkv(3, 100, 64)
    mask = lacuna.Mask.from_numpy(np.ones((3, 4, 4), bool), 100, 100, 32, 32)
    assert mask.density == 1.0
    np.testing.assert_allclose(lacuna.attention(q, k, v, mask), lacuna.attention(q, k, v), atol=TOLERANCE)


def test_masks_unite_and_intersect():
    a, b = np.random.default_rng(0).random((2, 3, 4, 5)) < 0.5
    x, y = (lacuna.Mask.from_numpy(bits, 100, 130, 32, 32) for bits in (a, b))
    np.testing.assert_array_equal((x | y).to_numpy(), a | b)
    np.testing.assert_array_equal((x & y).to_numpy(), a & b)
    with pytest.raises(lacuna.Error, match="mask: of other heads, lengths or block sizes"):
        x | lacuna.Mask.from_numpy(a, 99, 130, 32, 32)


def test_bits_of_any_strides_and_only_bits():
    bits = np.random.default_rng(0).random((5, 4, 3)) < 0.5
    for seen in (bits.transpose(2, 1, 0)[:, ::-1], np.broadcast_to(bits[:1], (2, 4, 3))):
        q_len, k_len = (10 * blocks for blocks in seen.shape[1:])
        np.testing.assert_array_equal(lacuna.Mask.from_numpy(seen, q_len, k_len, 10, 10).to_numpy(), seen)
    added = np.where(bits, 0.0, -np.inf).astype(np.float32)  # as bool this would keep what it drops
    with pytest.raises(TypeError, match="dtype=bool"):
        lacuna.Mask.from_numpy(added, 40, 30, 10, 10)


def test_what_is_refused(qkv):
    q, k, v = qkv(3, 100, 64)
    with pytest.raises(lacuna.Error, match="4x5 blocks per head, expected 4x4 for 100 queries and 100 keys"):
        lacuna.Mask.from_numpy(np.ones((3, 4, 5), bool), 100, 100, 32, 32)
    with pytest.raises(lacuna.Error, match="block 0, expected 1 or more"):
        lacuna.Mask.from_numpy(np.ones((3, 4, 4), bool), 100, 100, 0, 32)
    mask = lacuna.Mask.from_numpy(np.ones((3, 4, 4), bool), 101, 100, 32, 32)
    with pytest.raises(lacuna.Error, match="3 heads, 101 queries and 100 keys, expected 3, 100 and 100"):
        lacuna.attention(q, k, v, mask)


@pytest.mark.parametrize("method", ["xattention:block=32,stride=8,top_p=0.5", "radial:block=32", "sparge:top_k=0.4",
                                    "window:window_frames=1,window_height=3,window_width=3,tile_height=2,tile_width=2",
                                    "svg:density=0.3,block=32", "svg2:top_p=0.5,q_clusters=6,k_clusters=9"])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_a_selected_mask_computes_what_its_bits_say(qkv, method, layout):
    q, k, v = qkv(3, TOKENS, 64)
    given = [x.transpose(1, 0, 2) if layout == "NHD" else x for x in (q, k, v)]
    mask = lacuna.select(given[0], given[1], method, grid=GRID, layout=layout)
    assert (mask.num_heads, mask.q_len, mask.k_len) == (3, TOKENS, TOKENS) and 0 < mask.density <= 1
    out = lacuna.attention(*given, mask, layout=layout)
    if mask.block_q is None or mask.block_k is None:
        assert mask.moves_tokens  # uneven blocks are clusters
        return
    # Bits speak of tokens at their places in the mask's order.
    keep = spread(mask.to_numpy(), mask.block_q, mask.block_k, TOKENS, TOKENS)
    for order, axis in ((mask.q_order, 1), (mask.k_order, 2)):
        if order is not None:
            place = np.argsort(np.broadcast_to(order, (3, TOKENS)), axis=1)
            keep = np.take_along_axis(keep, place[:, :, None] if axis == 1 else place[:, None, :], axis)
    expected = reference(q, k, v, keep)[0]
    np.testing.assert_allclose(out.transpose(1, 0, 2) if layout == "NHD" else out, expected, atol=TOLERANCE)


def test_select_keeps_text(qkv):
    q, k, _ = qkv(3, TOKENS + 32, 64)
    bits = lacuna.select(q, k, "xattention:block=32,stride=8,top_p=0.1", grid=GRID, text_tokens=32).to_numpy()
    assert bits[:, -1].all() and bits[:, :, -1].all() and not bits.all()


def test_select_dense_is_full(qkv):
    q, k, _ = qkv(3, TOKENS, 64)
    assert lacuna.select(q, k, "dense", grid=GRID).to_numpy().all()


def test_what_select_refuses(qkv):
    q, k, _ = qkv(3, TOKENS, 64)
    for text, call in {
        "expected one of dense": lambda: lacuna.select(q, k, "haste", grid=GRID),
        "refresh rules and compensation belong to a Session":
            lambda: lacuna.select(q, k, "xattention:refresh=drift", grid=GRID),
        "takes its masks from a profile": lambda: lacuna.select(q, k, "fixed", grid=GRID),
        "looks at a dense call before it selects": lambda: lacuna.select(q, k, "adaspa", grid=GRID),
        "expected both 3 heads, 300 tokens of grid and text": lambda: lacuna.select(q, k, "radial", grid=(3, 10, 10)),
        "grid: 0x10x10, expected frames": lambda: lacuna.select(q, k, "radial", grid=(0, 10, 10)),
        # 2^64 tokens are 0 in 64 bits, so that the text alone is as long as q
        "width of 1 to 1048576": lambda: lacuna.select(q, k, "svg", grid=(2**31, 2**31, 4), text_tokens=q.shape[1]),
        "text_tokens: -1, expected 0 to": lambda: lacuna.select(q, k, "svg", grid=(1, 10, 10), text_tokens=-1),
        "a batch of 2, expected one sample":
            lambda: lacuna.select(np.stack([q, q]), np.stack([k, k]), "radial", grid=GRID),
    }.items():
        with pytest.raises(lacuna.Error) as error:
            call()
        assert text in str(error.value)
