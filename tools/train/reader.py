"""What a caption says, read off the text encoder's output: an extra objective of training, not part of the model.

The flow loss teaches the words for colours in minutes and those for motions hardly at all, because a direction
moves few pixels. Naming every attribute of the caption makes the encoder tell the words apart from the start, so
that the transformer's cross-attention only has to learn what they look like. The heads are dropped afterwards.
"""
import torch
import torch.nn.functional as F
from torch import nn

from tools.train import captions, clips

_OBJECT = {"colour": tuple(clips.OBJECT_COLOURS), "shape": clips.SHAPES, "size": tuple(clips.SIZES),
           "motion": clips.MOTIONS, "speed": clips.SPEEDS}
# Attribute -> its values; what a caption does not say is class 0.
ATTRIBUTES = {**{f"{key} {k}": values for k in (0, 1) for key, values in _OBJECT.items()},
              "background": clips.BACKGROUNDS, "dull 0": tuple(clips.DULL_COLOURS),
              "dull 1": tuple(clips.DULL_COLOURS), "pan": ("left", "right"), "light": ("fades", "brightens")}


def classes(text):
    """Class of every attribute of a caption, in the order of ATTRIBUTES."""
    said = captions.parse_caption(text)
    found = {key: said.get(key) for key in ("background", "pan", "light")}
    found |= {f"dull {k}": colour for k, colour in enumerate(said.get("colours", ()))}
    found |= {f"{key} {k}": o.get(key) for k, o in enumerate(said["objects"][:2]) for key in _OBJECT}
    return [1 + values.index(found[name]) if found.get(name) else 0 for name, values in ATTRIBUTES.items()]


class AttributeReader(nn.Module):
    """One learnt query per attribute pools the words, one linear layer names the class."""

    def __init__(self, width):
        super().__init__()
        self.query = nn.Parameter(torch.randn(len(ATTRIBUTES), width) / width ** 0.5)
        self.heads = nn.ModuleList(nn.Linear(width, 1 + len(values)) for values in ATTRIBUTES.values())

    def forward(self, context, ids):
        """context [B, text_len, width], ids [B, text_len] with 0 = padding -> a list of logits [B, classes]."""
        weight = (self.query @ context.mT).masked_fill((ids == 0)[:, None], float("-inf")).softmax(-1)
        return [head(row) for head, row in zip(self.heads, (weight @ context).unbind(1))]

    def loss(self, context, ids, said):
        """Mean cross-entropy over attributes; said [B, attributes] holds classes()."""
        logits = self(context, ids)
        return torch.stack([F.cross_entropy(row.float(), said[:, k]) for k, row in enumerate(logits)]).mean()
