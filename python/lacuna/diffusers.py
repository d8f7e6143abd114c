# SPDX-License-Identifier: Apache-2.0
"""Sparse attention in diffusers' WanPipeline, without a change of its files.

    with lacuna.diffusers.enable(pipe, "haste") as patch:
        video = pipe(prompt=..., num_frames=81).frames[0]
    print(patch.session.summary())

Self-attention (attn1) of Wan2.1, Wan2.2 with two transformers and TI2V-5B runs in a lacuna.Session; cross-attention,
projections, norms, rotary embedding and all else stay upstream's.

How: each self-attention gets a processor that runs upstream's own processor code with our `dispatch_attention_fn` in
the place of upstream's. Step, branch, expert and grid come from what the pipeline says: the timestep of each forward,
`cache_context`, which transformer is called, and the latents' shape.
"""
from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

from ._lacuna import Error
from ._session import Session, check_words


def enable(pipe: Any, attention: str | None = None, *, skip: str = "", dense_steps: str = "", dense_layers: str = "",
           min_tokens: int = 0, profile: str | None = None, strict: bool = False) -> Patch:
    """Puts Lacuna into a WanPipeline until disable() or the end of a with block. The words are those of
    lacuna.Session. Raises Error, and changes nothing, for another pipeline, one that is patched already, and words
    that no number of steps and tokens makes right."""
    return Patch(pipe, dict(attention=attention, skip=skip, dense_steps=dense_steps, dense_layers=dense_layers,
                            min_tokens=min_tokens, profile=profile, strict=strict))


class Patch:
    """What enable() returns. `session` is that of the pipeline's latest run, None before the first."""

    def __init__(self, pipe: Any, words: dict[str, Any]) -> None:
        self.session: Session | None = None
        self._pipe, self._words = pipe, words
        self._timesteps: Any = None  # of the session's run: the very tensor that the scheduler made for it
        self._grid: tuple[int, int, int] | None = None
        self._branch: str | None = None
        self._site: dict[str, Any] | None = None  # while a transformer runs
        experts = [(i, t) for i, t in enumerate(_transformers(pipe)) if t is not None]
        for _, transformer in experts:
            _check_transformer(transformer)
        check_words(num_layers=len(pipe.transformer.blocks),
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
        for layer, block in enumerate(transformer.blocks):
            processor = block.attn1.processor
            block.attn1.set_processor(_processor(processor, self, layer))
            self._undo.callback(block.attn1.set_processor, processor)

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(zip(("hidden_states", "timestep"), args)) | kwargs
            self._site = self._begin(transformer, expert, given["hidden_states"], given["timestep"])

        def after(*_: object) -> None:
            self._site = None

        upstream = transformer.cache_context

        @contextlib.contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with upstream(name, *args, **kwargs) as value:
                self._branch = name
                try:
                    yield value
                finally:
                    self._branch = None

        transformer.cache_context = cache_context
        self._undo.callback(delattr, transformer, "cache_context")
        self._undo.callback(transformer.register_forward_pre_hook(before, with_kwargs=True).remove)
        self._undo.callback(transformer.register_forward_hook(after, always_call=True).remove)

    def _begin(self, transformer: Any, expert: int, latents: Any, timestep: Any) -> dict[str, Any]:
        """The site of one forward, without its layer; a new session where a new run begins."""
        if self._branch not in ("cond", "uncond"):
            raise Error(f"diffusers: transformer called in cache_context {self._branch!r}, expected 'cond' or 'uncond' "
                        "as WanPipeline says")
        given = float(timestep.flatten()[0])  # one value, repeated for samples or tokens
        # The transformer may be another pipeline's too, whose scheduler has other steps than ours.
        current = getattr(self._pipe, "current_timestep", None)
        if current is None or float(current) != given:
            ours = "none" if current is None else f"{float(current):g}"
            raise Error(f"diffusers: transformer called at timestep {given:g} where the enabled pipeline is at {ours}, "
                        "expected calls of that pipeline")
        scheduler = self._pipe.scheduler
        grid = tuple(size // patch for size, patch in zip(latents.shape[2:], transformer.config.patch_size))
        if scheduler.timesteps is not self._timesteps or grid != self._grid:
            sigmas = getattr(scheduler, "sigmas", None)
            steps = len(scheduler.timesteps)
            self.session = Session(**self._words, steps=steps, num_layers=len(transformer.blocks), grid=grid,
                                   sigmas=None if sigmas is None else [float(s) for s in sigmas[:steps]])
            self._timesteps, self._grid = scheduler.timesteps, grid
        return dict(step=_step(self._timesteps.tolist(), given), branch=self._branch, expert=expert)

    def _attend(self, layer: int, query: Any, key: Any, value: Any) -> Any:
        if self._site is None or self.session is None:
            raise Error("diffusers: self-attention outside its transformer's forward, expected a call of WanPipeline")
        return self.session.attend(query, key, value, layer=layer, layout="NHD", **self._site)


def _transformers(pipe: Any) -> tuple[Any, Any]:
    from diffusers import WanPipeline

    if not isinstance(pipe, WanPipeline):
        raise Error(f"diffusers: {type(pipe).__name__}, expected a WanPipeline (text to video of Wan2.1 and Wan2.2)")
    return pipe.transformer, getattr(pipe, "transformer_2", None)


def _check_transformer(transformer: Any) -> None:
    """Raises Error unless it is upstream's own, with upstream's own attention."""
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers import transformer_wan

    processor_class = getattr(transformer_wan, "WanAttnProcessor", None)
    names = () if processor_class is None else processor_class.__call__.__code__.co_names
    if "dispatch_attention_fn" not in names or not hasattr(WanTransformer3DModel, "cache_context"):
        raise Error("diffusers: this version, expected one whose WanAttnProcessor calls dispatch_attention_fn and "
                    "whose WanPipeline uses cache_context (0.42 is tested)")
    if type(transformer) is not WanTransformer3DModel:
        raise Error(f"diffusers: transformer {type(transformer).__name__}, expected WanTransformer3DModel")
    for block in transformer.blocks:
        if type(block.attn1.processor) is not processor_class:
            raise Error(f"diffusers: attention processor {type(block.attn1.processor).__name__}, expected "
                        f"WanAttnProcessor: disable() what is enabled, Lacuna or other")


def _processor(upstream: Any, patch: Patch, layer: int) -> Any:
    """upstream's processor with its code and settings, whose one global name dispatch_attention_fn is ours."""

    def dispatch_attention_fn(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
                              is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
                              attention_kwargs: Any = None, *, backend: Any = None, parallel_config: Any = None) -> Any:
        # `backend` chooses among upstream's dense kernels: what runs here was chosen by enable().
        asked = {"attn_mask": attn_mask is not None, "dropout_p": dropout_p != 0.0, "is_causal": is_causal,
                 "scale": scale is not None, "enable_gqa": enable_gqa, "attention_kwargs": bool(attention_kwargs),
                 "parallel_config": parallel_config is not None}
        if any(asked.values()):
            raise Error(f"diffusers: self-attention with {', '.join(k for k, v in asked.items() if v)}, "
                        "expected plain attention on one device")
        return patch._attend(layer, query, key, value)

    code = type(upstream).__call__
    call = types.FunctionType(code.__code__, {**code.__globals__, "dispatch_attention_fn": dispatch_attention_fn},
                              code.__name__, code.__defaults__, code.__closure__)
    call.__kwdefaults__ = code.__kwdefaults__
    ours: Any = object.__new__(type("LacunaWanAttnProcessor", (type(upstream),), {"__call__": call}))
    ours.__dict__.update(vars(upstream))
    return ours


def _step(timesteps: list[float], given: float) -> int:
    """Which of the scheduler's timesteps a transformer was given."""
    found = [i for i, t in enumerate(timesteps) if t == given]
    if len(found) != 1:
        raise Error(f"diffusers: timestep {given:g} is {len(found)} of the scheduler's {len(timesteps)} timesteps, "
                    "expected one")
    return found[0]
