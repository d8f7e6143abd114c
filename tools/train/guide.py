"""Where a token is and what is drawn there, read off hidden states: an extra objective of training, not part of the model.

Rotary positions are relative: nothing tells a token where in the clip it lies but the borders, and finding out takes
attention several layers, which the flow loss teaches late. So does it teach what a motion word means, since a moving
object changes few pixels. The program that draws the clips knows both: a linear head names the place of a token after
a third of the blocks, and after two thirds the way to the object and the distance to its outline. (The idea of
guiding hidden states is that of REPA, Yu et al. 2024; there the target is another network's.) The heads are dropped.
"""
import torch
import torch.nn.functional as F
from torch import nn

from tools.train import clips

REACH = 0.25  # distances to the outline are told up to this, in shorter sides
FINE = 2      # distances are told at FINE x FINE points of a token


class Guide(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.taps = (sizes.layers // 3, 2 * sizes.layers // 3)
        self.place, self.scene = nn.Linear(sizes.width, 3), nn.Linear(sizes.width, 2 + FINE * FINE)

    def loss(self, hidden, place, scene):
        """Mean squares. hidden: states at `taps`; place [N, 3] and scene [B, N, 6] of targets()."""
        read = [head(F.layer_norm(x, x.shape[-1:])).float() for head, x in zip((self.place, self.scene), hidden)]
        return F.mse_loss(read[0], place.expand_as(read[0])) + F.mse_loss(read[1], scene)


def targets(scenes, slots, slot_count, times, cells):
    """What the heads should say, of deviation about 1: place [N, 3] of every token in time, rows and columns, and
    scene [B, N, 6], the way from the object and the distances to an outline; times [B, slots] are the slots' middles."""
    device = times.device
    across = (torch.arange(cells, device=device) + 0.5) / cells
    when = (torch.as_tensor(slots, device=device) + 0.5) / slot_count
    place = torch.stack(torch.meshgrid(when, across, across, indexing="ij"), -1).flatten(0, 2)
    field = clips.object_field(scenes, times, cells * FINE, cells * FINE).unflatten(3, (cells, FINE)).unflatten(2, (cells, FINE))
    way = field[..., :2].mean((3, 5)) / 0.3
    far = (field[..., 2] / REACH).clamp(-1, 1).transpose(3, 4).flatten(4)
    return 3.4 * (place - 0.5), torch.cat((way, far), -1).flatten(1, 3)
