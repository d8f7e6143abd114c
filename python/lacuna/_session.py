# SPDX-License-Identifier: Apache-2.0
"""The engine for a caller who has a denoising loop."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from . import _lacuna
from ._arrays import array_in, array_out, empty_like
from ._lacuna import Error


class Session:
    """Self-attention of one generation under a policy: which method, refresh rule and skip rule runs at which step,
    layer, branch and expert, with what it remembers from step to step. Nothing is inferred from how often it is called.

    attention: "METHOD[:key=value,...]" or "PRESET[:key=value,...]" as `lacuna generate --attention` reads it; None is
        "haste", or what `profile` says.
    steps, sigmas: how many denoising steps there are, or the noise level of each; one of them is needed.
    num_layers: transformer blocks with self-attention.
    grid: (frames, height, width) of the video in tokens; text_tokens follow them in the sequence and stay dense.
    skip, dense_steps, dense_layers, min_tokens: as the options of `lacuna generate`; "" is what the preset says.
    profile: a file of `lacuna calibrate` or `lacuna doctor`, instead of all these. Its layers, grid, steps, sigmas,
        heads and channels are checked; for which weights it was made is not known here.
    strict: a dense call that no rule asked for raises Error.

    One session serves one generation; a batch has a state per sample. Python threads may share it, calls take turns.
    """

    def __init__(self, attention: str | None = None, *, steps: int | None = None,
                 sigmas: Sequence[float] | None = None, num_layers: int, grid: tuple[int, int, int],
                 text_tokens: int = 0, skip: str = "", dense_steps: str = "", dense_layers: str = "",
                 min_tokens: int = 0, profile: str | None = None, strict: bool = False) -> None:
        if steps is None and sigmas is None:
            raise Error("session: neither steps nor sigmas, expected one of them")
        levels = [] if sigmas is None else [float(s) for s in sigmas]
        self._session = _lacuna.Session(
            **_words(attention, skip, dense_steps, dense_layers, min_tokens, profile),
            num_steps=len(levels) if steps is None else steps, sigmas=levels, num_layers=num_layers, grid=tuple(grid),
            text_tokens=text_tokens, strict=strict)

    def attend(self, q: Any, k: Any, v: Any, *, step: int, layer: int, branch: str = "cond", expert: int = 0,
               text_tokens: int | None = None, sample: int | None = None, layout: str = "HND",
               out: Any = None) -> Any:
        """Attention of one call, with scale 1 / sqrt(D).

        q, k, v: [B, H, N, D] ("HND") or [B, N, H, D] ("NHD"), B may be left out; N is the grid's tokens in raster
        order, then text. step and layer count from 0; branch is "cond" or "uncond"; expert is 0, or 1 for the
        low-noise network of Wan2.2. out: as in lacuna.attention. Steps rise; going back begins anew at that site.

        text_tokens: of this call, where prompts differ in length; None is the session's number.
        sample: which sample q, k and v are, for callers who give the samples of a batch one by one; None is a batch of
            all, which keeps its size until reset().
        """
        q, k, v = array_in("q", q), array_in("k", k), array_in("v", v)
        room = empty_like(q) if out is None else array_out("out", out)
        self._session.attend(q, k, v, room, step, layer, branch, expert, text_tokens, sample, layout)
        return room if out is None else out

    def reset(self) -> None:
        """Forgets masks, states and the trace: call between generations."""
        self._session.reset()

    @property
    def rules(self) -> list[str]:
        """The policy in words, first match wins; no match is dense."""
        return self._session.rules()

    @property
    def trace(self) -> list[dict[str, Any]]:
        """What ran, a dict for every call and sample: its sample and what a trace file says (docs/formats.md, "Traces"),
        among it step, layer, branch, expert, method, reason (why dense, or ""), num_heads, heads_refreshed (the others
        reused their mask), qk_density, pv_density (after the skip rule), select_ms, attend_ms."""
        calls: list[dict[str, Any]] = json.loads(self._session.trace_json())
        return calls

    def summary(self) -> str:
        """What ran in which steps and layers, and why: a line for neighbouring calls that ran alike."""
        trace = self.trace
        if not trace:
            return "nothing ran"
        lines = [f"{'steps':<9} {'layers':<9} {'branch':<7} {'calls':>6} {'refreshed':>9} {'reused':>9} {'QK':>6} "
                 f"{'PV':>6}  what and why"]
        for row in self._session.summary():
            why = f" ({row['why']})" if row["why"] else ""
            lines.append(f"{row['steps']:<9} {row['layers']:<9} {row['branch']:<7} {row['calls']:>6} "
                         f"{row['heads_refreshed']:>9} {row['heads_reused']:>9} {row['qk_density']:>6.3f} "
                         f"{row['pv_density']:>6.3f}  {row['what']}{why}")
        attend, select = (sum(call[key] for call in trace) / 1e3 for key in ("attend_ms", "select_ms"))
        return "\n".join([*lines, f"{attend:.1f} s of attention, {select:.1f} s of selection"])


def check_words(*, num_layers: int, attention: str | None = None, skip: str = "", dense_steps: str = "",
                dense_layers: str = "", min_tokens: int = 0, profile: str | None = None) -> None:
    """Raises Error for words that Session refuses whatever its steps and its grid: before either is known."""
    _lacuna.check_words(**_words(attention, skip, dense_steps, dense_layers, min_tokens, profile), num_layers=num_layers)


def _words(attention: str | None, skip: str, dense_steps: str, dense_layers: str, min_tokens: int,
           profile: str | None) -> dict[str, Any]:
    """The words as the compiled module takes them."""
    if profile and (attention or skip or dense_steps or dense_layers or min_tokens):
        raise Error(f"session: {profile} decides about attention; leave out attention, skip, dense_steps, "
                    "dense_layers and min_tokens")
    return dict(attention=attention or "haste", skip=skip, dense_steps=dense_steps, dense_layers=dense_layers,
                min_tokens=min_tokens, profile=str(profile or ""))
