# SPDX-License-Identifier: Apache-2.0
"""Whose arrays come in, and what goes out. torch is looked up, never imported: a tensor's owner has imported it."""
from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ._lacuna import Error

_DLPACK_CPU = 1


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def array_in(name: str, x: Any) -> Any:
    """x as the compiled module reads it. Raises Error for what is no array, lies elsewhere or needs gradients."""
    if not hasattr(x, "__dlpack__"):
        raise Error(f"{name}: {type(x).__name__}, expected a numpy array, a torch tensor or another DLPack array")
    if is_torch(x):
        torch = sys.modules["torch"]
        if x.requires_grad and torch.is_grad_enabled():
            raise Error(f"{name}: requires a gradient, expected none, as Lacuna has no backward pass: "
                        "run under torch.no_grad() or pass a detached tensor")
        if x.device.type != "cpu":
            raise _elsewhere(name, x.device)
        if x.is_nested or x.layout is not torch.strided or x.is_quantized or x.is_neg():
            raise Error(f"{name}: a sparse, nested, quantized or lazily negated tensor, expected its plain values "
                        "in memory")
        return x.detach() if x.requires_grad else x
    if isinstance(x, np.ndarray):
        if x.dtype != np.float32:  # also of the other byte order, and what DLPack cannot say
            raise Error(f"{name}: {x.dtype}, expected float32, or bfloat16 as a torch tensor")
        return x
    if x.__dlpack_device__()[0] != _DLPACK_CPU:
        raise _elsewhere(name, "a device")
    return x


def array_out(name: str, x: Any) -> Any:
    """The same for an array to write to."""
    x = array_in(name, x)
    if isinstance(x, np.ndarray) and not x.flags.writeable:
        raise Error(f"{name}: read-only, expected an array to write to")
    return x


def _elsewhere(name: str, where: Any) -> Error:
    return Error(f"{name}: on {where}, expected the CPU (Lacuna's GPU backend has not been run on hardware)")


def empty_like(q: Any) -> Any:
    """A contiguous array of q's shape and dtype, of q's library."""
    if is_torch(q):
        return sys.modules["torch"].empty(q.shape, dtype=q.dtype)
    q = q if isinstance(q, np.ndarray) else np.from_dlpack(q)
    return np.empty(q.shape, q.dtype)


def empty_lse(q: Any, layout: str) -> Any:
    """float32 [B, H, Nq] for q."""
    shape = list(q.shape)[:-1]
    if layout == "NHD":
        shape[-2:] = shape[:-3:-1]
    return sys.modules["torch"].empty(shape, dtype=sys.modules["torch"].float32) if is_torch(q) else np.empty(
        shape, np.float32)
