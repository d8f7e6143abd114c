# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest


def reference(q, k, v, keep=None, scale=None):
    """Attention in float64 and its log-sum-exp; keep is bool and broadcasts to [..., Nq, Nk]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("...id,...jd->...ij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if keep is not None:
        logits = np.where(keep, logits, -np.inf)
    top = np.maximum(logits.max(-1, keepdims=True, initial=-1e300), -1e300)
    mass = np.exp(logits - top)
    total = mass.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return mass @ v / np.maximum(total, 1e-300), np.where(total[..., 0] > 0, lse, -np.inf)


@pytest.fixture
def qkv():
    """Makes float32 q [..., H, Nq, D] and k, v [..., H, Nk, D] of the same values each time."""

    def make(*shape, k_len=None, seed=0):
        rng = np.random.default_rng(seed)
        kv_shape = (*shape[:-2], shape[-2] if k_len is None else k_len, shape[-1])
        return (rng.standard_normal(shape, np.float32), rng.standard_normal(kv_shape, np.float32),
                rng.standard_normal(kv_shape, np.float32))

    return make
