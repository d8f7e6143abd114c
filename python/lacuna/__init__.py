# SPDX-License-Identifier: Apache-2.0
"""Training-free sparse attention for video diffusion, on CPU tensors of numpy and PyTorch.

    out = lacuna.attention(q, k, v)                                      # dense
    mask = lacuna.select(q, k, "xattention:top_p=0.9", grid=(21, 30, 52))
    out = lacuna.attention(q, k, v, mask)                                # the blocks of the mask only
    session = lacuna.Session("haste", steps=50, num_layers=30, grid=(21, 30, 52))
    out = session.attend(q, k, v, step=0, layer=0)                       # what a policy says for this site

Arrays are numpy arrays, torch tensors or anything else on the CPU that speaks DLPack, float32 (torch's also
bfloat16), and are read where they lie: any strides, but channels side by side. Results are torch tensors for torch
tensors, else numpy arrays. What cannot be done raises lacuna.Error, a ValueError, which names what was given
and what was expected; a setting of a wrong Python type (steps=4.0) is a TypeError.
"""
from __future__ import annotations

import json
import re
from typing import Any

from . import _processor

_processor.check()

from . import _lacuna  # noqa: E402
from ._arrays import array_in, array_out, empty_like, empty_lse  # noqa: E402
from ._lacuna import Error, Mask  # noqa: E402
from ._session import Session  # noqa: E402

__version__: str = _lacuna.version
Error.__module__ = Mask.__module__ = __name__  # where callers find them
__all__ = ["Error", "Mask", "Session", "attention", "describe", "methods", "presets", "select", "set_threads"]


def attention(q: Any, k: Any, v: Any, mask: Mask | None = None, *, layout: str = "HND", scale: float | None = None,
              skip: str = "none", return_lse: bool = False, out: Any = None) -> Any:
    """softmax(scale q k^T) v, over the blocks that `mask` keeps.

    q is [B, H, Nq, D] and k, v are [B, H, Nk, D] for layout "HND"; [B, Nq, H, D] and [B, Nk, H, D] for "NHD"; B
    may be left out. Any Nq, Nk and D up to 1024; as many heads of k and v as of q.

    mask: the same for every sample of the batch; None is dense.
    scale: of the logits; None is 1 / sqrt(D).
    skip: what the kernel drops while it runs, in the words of `lacuna generate --skip`, e.g. "running_max:lambda=0.01".
    return_lse: also return the log-sum-exp of each row's kept logits: float32, natural log, [B, H, Nq] in either
        layout, -inf where a row keeps nothing (its output is 0).
    out: written and returned instead of a new array; q's shape and dtype, apart from q, k and v in memory.
    """
    if mask is not None and not isinstance(mask, Mask):
        raise Error(f"mask: {type(mask).__name__}, expected a lacuna.Mask (Mask.from_numpy makes one of bool blocks)")
    q, k, v = array_in("q", q), array_in("k", k), array_in("v", v)
    room = empty_like(q) if out is None else array_out("out", out)
    lse = empty_lse(q, layout) if return_lse else None
    _lacuna.attend(q, k, v, room, mask, layout, scale, skip, lse)
    out = room if out is None else out
    return (out, lse) if return_lse else out


def select(q: Any, k: Any, method: str, *, grid: tuple[int, int, int], text_tokens: int = 0, layout: str = "HND",
           scale: float | None = None) -> Mask:
    """What a method would keep for one sample: a mask to look at, to change, and to pass to attention().

    q, k: [H, N, D] or [N, H, D], N = frames * height * width + text_tokens in raster order, text last.
    method: "NAME[:parameter=value,...]" of methods(), without refresh rules, which need a Session.
    grid: (frames, height, width) in tokens.

    A method may move tokens (svg, svg2, window): its mask then carries their orders (Mask.q_order), and
    attention() moves tokens and puts rows back.
    """
    return _lacuna.select(array_in("q", q), array_in("k", k), method, tuple(grid), text_tokens, layout, scale)


def methods() -> dict[str, list[dict[str, Any]]]:
    """What can be asked for: "methods", and "refresh", "compensate" and "skip" rules, each with name, summary and
    params (name, default, min, max, integer, help)."""
    tables: dict[str, list[dict[str, Any]]] = json.loads(_lacuna.methods_json())
    del tables["presets"]
    return tables


def presets() -> list[dict[str, Any]]:
    """Published configurations by name, with what each stands for and where it is from."""
    tables: dict[str, list[dict[str, Any]]] = json.loads(_lacuna.methods_json())
    return tables["presets"]


def set_threads(n: int) -> None:
    """Threads of every call from now on, in every Python thread; 0 = OpenMP's number (OMP_NUM_THREADS, or what
    torch.set_num_threads said last: PyTorch from PyPI and Lacuna run on one OpenMP)."""
    _lacuna.set_threads(n)


def describe() -> dict[str, Any]:
    """version; backend, with the instruction sets that attention runs on; threads; openmp, the OpenMP libraries of this
    process. Where those are two that both compute, their waiting threads take the cores from each other: set
    OMP_WAIT_POLICY=passive before the program starts (docs/python.md, "Threads")."""
    with open("/proc/self/maps") as maps:
        openmp = {line.split()[-1] for line in maps if re.search(r"/lib[gi]?omp[^/]*$", line)}
    return {"version": __version__, "backend": _lacuna.backend_description(), "threads": _lacuna.threads(),
            "openmp": sorted(openmp)}
