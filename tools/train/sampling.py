"""Draws clips from a model in training: a look at progress, not the reference (that is `lacuna generate`)."""
import struct
import zlib

import torch

from tools.train import stages


def sigmas(steps, shift, device="cpu"):
    """steps + 1 noise levels from 1 to 0, shifted towards high noise."""
    s = torch.linspace(1, 0, steps + 1, device=device)
    return shift * s / (1 + (shift - 1) * s)


@torch.no_grad()
def generate(transformer, text_encoder, ids, shape, noise, steps=16, shift=3.0, guidance=4.0):
    """Euler steps with guidance. ids [B, text_len], noise [B, N, values (channel, frame)] -> tokens of that order."""
    slots = torch.linspace(0, stages.CLIP_SLOTS - 1, shape.slots).round().long().tolist()
    device = noise.device
    rope = stages.rope_of(slots, shape.cells, shape.stride, transformer.sizes.head_dim, device)
    empty = torch.zeros_like(ids)
    empty[:, 0] = 1
    context = text_encoder(torch.cat((ids, empty)))
    x, levels = noise, sigmas(steps, shift, device)
    for now, then in zip(levels[:-1].tolist(), levels[1:].tolist()):
        level = torch.full((2 * len(x),), now, device=device)
        velocity = stages.restore_order(transformer(torch.cat((x, x)), level, context, rope).float())
        given, free = velocity.chunk(2)
        x = x + (then - now) * (free + guidance * (given - free))
    return x


def contact_sheet(video, columns):
    """video [B, 3, T, H, W] in [-1, 1] -> one image [B H, columns W, 3] uint8, a clip per row."""
    picks = torch.linspace(0, video.shape[2] - 1, columns).round().long()
    rows = video[:, :, picks].permute(0, 3, 2, 4, 1).flatten(2, 3).flatten(0, 1)
    return ((rows + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def write_png(path, image):
    """image [height, width, 3] uint8. Written by hand: the machine that trains may have no imaging library."""
    height, width, _ = image.shape
    lines = b"".join(b"\0" + image[y].tobytes() for y in range(height))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)))
        file.write(chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
