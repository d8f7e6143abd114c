# SPDX-License-Identifier: Apache-2.0
"""Sparse attention in diffusers' pipelines of Wan, Mochi and HunyuanVideo, without a change of their files.

    with lacuna.diffusers.enable(pipe, "haste") as patch:
        video = pipe(prompt=..., num_frames=81).frames[0]
    print(patch.session.summary())

Self-attention of Wan2.1, Wan2.2 with two transformers and TI2V-5B (attn1), and the joint attention of video and text in
every block of Mochi 1 and HunyuanVideo, run in a lacuna.Session; cross-attention, the token refiner, projections, norms,
rotary embedding and all else stay upstream's.

How: each attention gets a processor that runs upstream's own processor code with a function of ours in the place of the
one that it calls for attention (_upstream.py). Step, branch, expert, sample, text and grid come from what the pipeline
says: its timestep, `cache_context`, which transformer is called, the mask of the prompts, and the latents' shape. Of text
only what prompts fill takes part, and rows behind it, which upstream never reads, become zeros.
"""
from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ._lacuna import Error
from ._session import Session, check_words
from ._upstream import Row, upstream_of


def enable(pipe: Any, attention: str | None = None, *, skip: str = "", dense_steps: str = "", dense_layers: str = "",
           min_tokens: int = 0, profile: str | None = None, strict: bool = False) -> Patch:
    """Puts Lacuna into a pipeline until disable() or the end of a with block. The words are those of lacuna.Session.
    Raises Error, and changes nothing, for another pipeline, one that is patched already, and words that no number of
    steps and tokens makes right."""
    return Patch(pipe, dict(attention=attention, skip=skip, dense_steps=dense_steps, dense_layers=dense_layers,
                            min_tokens=min_tokens, profile=profile, strict=strict))


class _Site(NamedTuple):
    """One forward of a transformer."""
    step: int
    expert: int
    rows: list[Row]  # of its batch
    text: list[int]  # text tokens of each row


class Patch:
    """What enable() returns. `session` is that of the pipeline's latest run, None before the first."""

    def __init__(self, pipe: Any, words: dict[str, Any]) -> None:
        self.session: Session | None = None
        self._upstream = upstream_of(pipe)
        self._pipe, self._words = pipe, words
        self._timesteps: Any = None  # of the session's run: the very tensor that the scheduler made for it
        self._grid: tuple[int, ...] = ()
        self._context: str | None = None
        self._site: _Site | None = None  # while a transformer runs
        experts = self._upstream.transformers(pipe)
        for _, transformer in experts:
            self._upstream.check(transformer)
        check_words(num_layers=len(self._upstream.attentions(pipe.transformer)),
                    **{key: word for key, word in words.items() if key != "strict"})
        self._undo = contextlib.ExitStack()
        with self._undo:  # undoes what was done if the rest fails
            for expert, transformer in experts:
                self._patch(expert, transformer)
            self._undo = self._undo.pop_all()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()

    def disable(self) -> None:
        """Puts everything back as it was; `session` stays."""
        self._undo.close()

    def _patch(self, expert: int, transformer: Any) -> None:
        for layer, attention in enumerate(self._upstream.attentions(transformer)):
            processor = attention.processor

            def attend(query: Any, key: Any, value: Any, first: int, mask: Any, layer: int = layer) -> Any:
                return self._attend(layer, query, key, value, first, mask)

            attention.processor = self._upstream.replacement(processor, attend)
            self._undo.callback(setattr, attention, "processor", processor)
        names = list(inspect.signature(type(transformer).forward).parameters)[1:]

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._site = self._begin(transformer, expert, dict(zip(names, args)) | kwargs)

        def after(*_: object) -> None:
            self._site = None

        upstream = transformer.cache_context

        @contextlib.contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with upstream(name, *args, **kwargs) as value:
                self._context = name
                try:
                    yield value
                finally:
                    self._context = None

        transformer.cache_context = cache_context
        self._undo.callback(delattr, transformer, "cache_context")
        self._undo.callback(transformer.register_forward_pre_hook(before, with_kwargs=True).remove)
        self._undo.callback(transformer.register_forward_hook(after, always_call=True).remove)

    def _begin(self, transformer: Any, expert: int, given: dict[str, Any]) -> _Site:
        """The site of one forward; a new session where a new run begins."""
        context = self._context
        if context is None or context not in self._upstream.contexts:
            raise Error(f"diffusers: transformer called in cache_context {context!r}, expected "
                        f"{' or '.join(map(repr, self._upstream.contexts))} as {self._upstream.pipeline} says")
        step = self._step(given["timestep"])
        latents, mask = given["hidden_states"], given.get("encoder_attention_mask")
        rows = self._upstream.rows(self._pipe, context, latents.shape[0])
        text = [0] * len(rows) if mask is None else [int(n) for n in mask.bool().sum(1)]
        if not len(rows) == len(text) == latents.shape[0]:
            raise Error(f"diffusers: a batch of {latents.shape[0]} with {len(text)} prompts, expected "
                        f"{len(rows)} of both")
        patch = self._upstream.patch(transformer.config)
        grid = tuple(size // side for size, side in zip(latents.shape[2:], patch))
        timesteps = self._pipe.scheduler.timesteps
        if timesteps is not self._timesteps or grid != self._grid:
            branches = [row.branch for row in rows]
            self.session = Session(**self._words, steps=len(timesteps), sigmas=_sigmas(self._pipe.scheduler),
                                   num_layers=len(self._upstream.attentions(transformer)), grid=grid,
                                   text_tokens=text[branches.index("cond") if "cond" in branches else 0])
            self._timesteps, self._grid = timesteps, grid
        return _Site(step, expert, rows, text)

    def _step(self, timestep: Any) -> int:
        """At which step a transformer is called that was given this timestep."""
        given = timestep.max()  # one value, repeated for samples or tokens; those of a first picture are at 0
        timesteps = self._pipe.scheduler.timesteps
        # The transformer may be another pipeline's too, whose scheduler has other steps than ours.
        current = getattr(self._pipe, "current_timestep", None)
        at = "none"
        if current is not None:
            step = _index(self._upstream.clock(timesteps).tolist(), float(current))
            if timesteps[step].to(given.dtype) == given:  # the pipeline rounds it so
                return step
            at = f"{float(timesteps[step]):g}"
        raise Error(f"diffusers: transformer called at timestep {float(given):g} where the enabled pipeline is at {at}, "
                    "expected calls of that pipeline")

    def _attend(self, layer: int, query: Any, key: Any, value: Any, first: int = 0, mask: Any = None) -> Any:
        """Attention of the forward's rows from `first` on: [rows, tokens, heads, channels]. mask: upstream's."""
        import torch

        site, session = self._site, self.session
        if site is None or session is None:
            raise Error("diffusers: self-attention outside its transformer's forward, expected a call of "
                        f"{self._upstream.pipeline}")
        own = slice(first, first + query.shape[0])
        ends = [query.shape[1]] * query.shape[0]
        if mask is not None:
            ends = [math.prod(self._grid) + text for text in site.text[own]]
            _check_mask(mask, ends, key.shape[1])
        out = torch.empty_like(query)
        for i, (row, text, end) in enumerate(zip(site.rows[own], site.text[own], ends)):
            q, k, v, result = (x[i:i + 1, :end] for x in (query, key, value, out))
            session.attend(q, k, v, step=site.step, layer=layer, branch=row.branch, expert=site.expert,
                           text_tokens=text, sample=row.sample, layout="NHD", out=result)
            out[i, end:] = 0
        return out


def _check_mask(mask: Any, ends: list[int], keys: int) -> None:
    """Raises Error unless it keeps the first keys of each row up to its end, and hides the others."""
    import torch

    expected = torch.arange(keys) < torch.tensor(ends)[:, None]
    same = mask.dtype == torch.bool and mask.shape == (len(ends), 1, 1, keys)  # a mask of floats would be added
    if not same or not torch.equal(mask[:, 0, 0].cpu(), expected):
        raise Error(f"diffusers: attn_mask {mask.dtype} {tuple(mask.shape)}, expected one that hides what no prompt fills")


def _sigmas(scheduler: Any) -> list[float] | None:
    """The noise level of each step, where the scheduler says it."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return None
    levels = [float(s) for s in sigmas[:len(scheduler.timesteps)]]
    return [1.0 - s for s in levels] if getattr(scheduler.config, "invert_sigmas", False) else levels


def _index(timesteps: list[float], given: float) -> int:
    """Which of the scheduler's timesteps this is."""
    found = [i for i, t in enumerate(timesteps) if t == given]
    if len(found) != 1:
        raise Error(f"diffusers: timestep {given:g} is {len(found)} of the scheduler's {len(timesteps)} timesteps, "
                    "expected one")
    return found[0]
