# SPDX-License-Identifier: Apache-2.0
"""What lacuna.diffusers knows about each of diffusers' pipelines: a class a pipeline, and its attention processor."""
from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from ._lacuna import Error

# attend(q, k, v, first, mask) -> out: q, k, v [rows, tokens, heads, channels] of the rows of a forward's batch from
# `first` on; mask is None, or upstream's of the keys that a row attends to.
Attend = Callable[[Any, Any, Any, int, Any], Any]


class Row(NamedTuple):
    """Whose a row of a forward's batch is."""
    branch: str
    sample: int


class Upstream:
    """A pipeline of diffusers, by the names of its classes. Step, rows and grid are what it says at each forward."""
    pipeline: str
    transformer: str
    processor: str  # of self-attention or joint attention: module under diffusers.models, class
    contexts: tuple[str, ...] = ("cond", "uncond")  # of cache_context
    calls: tuple[str, ...] = ("dispatch_attention_fn",)  # names in the processor's code of what it calls for attention

    def transformers(self, pipe: Any) -> list[tuple[int, Any]]:
        """Its transformers, each behind the number of its expert."""
        return [(0, pipe.transformer)]

    def attentions(self, transformer: Any) -> list[Any]:
        """The attention modules in order of layers."""
        raise NotImplementedError

    def patch(self, config: Any) -> tuple[int, int, int]:
        """What of the latents (frames, height, width) makes a token."""
        raise NotImplementedError

    def clock(self, timesteps: Any) -> Any:
        """What the pipeline calls its current timestep, for each of the scheduler's."""
        return timesteps

    def rows(self, pipe: Any, context: str, batch: int) -> list[Row]:
        return [Row(context, sample) for sample in range(batch)]

    def check(self, transformer: Any) -> None:
        """Raises Error unless it is upstream's own, with upstream's own attention."""
        import diffusers

        module, _, name = self.processor.rpartition(".")
        processor = getattr(importlib.import_module(f"diffusers.models.{module}"), name, None)
        expected = getattr(diffusers, self.transformer, None)
        names = () if processor is None else processor.__call__.__code__.co_names
        if not set(self.calls) <= set(names) or not hasattr(expected, "cache_context"):
            raise Error(f"diffusers: this version, expected one whose {name} calls {'.'.join(self.calls)} and whose "
                        f"{self.pipeline} uses cache_context (0.42 is tested)")
        if type(transformer) is not expected:
            raise Error(f"diffusers: transformer {type(transformer).__name__}, expected {self.transformer}")
        for attention in self.attentions(transformer):
            if type(attention.processor) is not processor:
                raise Error(f"diffusers: attention processor {type(attention.processor).__name__}, expected {name}: "
                            "disable() what is enabled, Lacuna or other")

    def replacement(self, upstream: Any, attend: Attend) -> Any:
        """upstream's processor with its code and settings, whose one global name dispatch_attention_fn is ours."""

        def dispatch_attention_fn(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
                                  is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
                                  attention_kwargs: Any = None, *, backend: Any = None,
                                  parallel_config: Any = None) -> Any:
            # `backend` chooses among upstream's dense kernels: what runs here was chosen by enable().
            _refuse(dropout_p=dropout_p != 0.0, is_causal=is_causal, scale=scale is not None, enable_gqa=enable_gqa,
                    attention_kwargs=bool(attention_kwargs), parallel_config=parallel_config is not None)
            return attend(query, key, value, 0, attn_mask)

        return _like(upstream, _with_names(type(upstream).__call__, dispatch_attention_fn=dispatch_attention_fn))


class Wan(Upstream):
    pipeline, transformer = "WanPipeline", "WanTransformer3DModel"
    processor = "transformers.transformer_wan.WanAttnProcessor"

    def transformers(self, pipe: Any) -> list[tuple[int, Any]]:
        both = enumerate((pipe.transformer, getattr(pipe, "transformer_2", None)))
        return [(expert, transformer) for expert, transformer in both if transformer is not None]

    def attentions(self, transformer: Any) -> list[Any]:
        return [block.attn1 for block in transformer.blocks]

    def patch(self, config: Any) -> tuple[int, int, int]:
        frames, height, width = config.patch_size
        return frames, height, width


class WanImage(Wan):
    """Cross-attention, with its keys of pictures, stays upstream's."""
    pipeline = "WanImageToVideoPipeline"


class Hunyuan(Upstream):
    pipeline, transformer = "HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel"
    processor = "transformers.transformer_hunyuan_video.HunyuanVideoAttnProcessor2_0"

    def attentions(self, transformer: Any) -> list[Any]:
        return [block.attn for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]

    def patch(self, config: Any) -> tuple[int, int, int]:
        return config.patch_size_t, config.patch_size, config.patch_size

    def check(self, transformer: Any) -> None:
        super().check(transformer)
        condition = getattr(transformer.config, "image_condition_type", None)
        if condition is not None:
            raise Error(f"diffusers: a transformer with image_condition_type {condition}, expected one of text to "
                        "video")


class Mochi(Upstream):
    """Its processor calls torch for a row at a time, which does not say which: so each row runs through it alone."""
    pipeline, transformer = "MochiPipeline", "MochiTransformer3DModel"
    processor = "attention_processor.MochiAttnProcessor2_0"
    contexts = ("cond_uncond",)
    calls = ("F", "scaled_dot_product_attention")

    def attentions(self, transformer: Any) -> list[Any]:
        return [block.attn1 for block in transformer.transformer_blocks]

    def patch(self, config: Any) -> tuple[int, int, int]:
        return 1, config.patch_size, config.patch_size

    def clock(self, timesteps: Any) -> Any:
        return 1000 - timesteps  # the transformer's time runs backwards

    def rows(self, pipe: Any, context: str, batch: int) -> list[Row]:
        branches = ("uncond", "cond") if pipe.do_classifier_free_guidance else ("cond",)
        return [Row(branch, sample) for branch in branches for sample in range(batch // len(branches))]

    def replacement(self, upstream: Any, attend: Attend) -> Any:
        import torch

        row = 0

        def scaled_dot_product_attention(query: Any, key: Any, value: Any, attn_mask: Any = None,
                                         dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                                         enable_gqa: bool = False) -> Any:
            _refuse(attn_mask=attn_mask is not None, dropout_p=dropout_p != 0.0, is_causal=is_causal,
                    scale=scale is not None, enable_gqa=enable_gqa)
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            return attend(q, k, v, row, None).transpose(1, 2)

        functional = types.SimpleNamespace(**vars(torch.nn.functional))
        functional.scaled_dot_product_attention = scaled_dot_product_attention
        code = _with_names(type(upstream).__call__, F=functional)

        def call(self: Any, attn: Any, hidden_states: Any, encoder_hidden_states: Any, attention_mask: Any,
                 image_rotary_emb: Any = None) -> tuple[Any, Any]:
            nonlocal row
            video, text = [], []
            for row in range(hidden_states.shape[0]):
                own = slice(row, row + 1)
                done = code(self, attn, hidden_states[own], encoder_hidden_states[own], attention_mask[own],
                            image_rotary_emb)
                video.append(done[0])
                text.append(done[1])
            return torch.cat(video), torch.cat(text)

        return _like(upstream, call)


def upstream_of(pipe: Any) -> Upstream:
    """Raises Error for a pipeline that none of these is."""
    known: tuple[Upstream, ...] = (Wan(), WanImage(), Mochi(), Hunyuan())
    for upstream in known:
        if any(c.__name__ == upstream.pipeline and c.__module__.startswith("diffusers.") for c in type(pipe).__mro__):
            return upstream
    raise Error(f"diffusers: {type(pipe).__name__}, expected a WanPipeline, WanImageToVideoPipeline, MochiPipeline "
                "or HunyuanVideoPipeline")


def _refuse(**asked: bool) -> None:
    if any(asked.values()):
        raise Error(f"diffusers: self-attention with {', '.join(k for k, v in asked.items() if v)}, "
                    "expected plain attention on one device")


def _with_names(function: Any, **names: Any) -> Any:
    """The same code, for which these global names mean something else."""
    copy = types.FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__,
                              function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _like(upstream: Any, call: Any) -> Any:
    """An object with upstream's settings that runs `call`."""
    name = f"Lacuna{type(upstream).__name__}"
    ours: Any = object.__new__(type(name, (type(upstream),), {"__call__": call}))
    ours.__dict__.update(vars(upstream))
    return ours
