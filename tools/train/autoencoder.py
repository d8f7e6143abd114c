"""The linear autoencoder of the small model: 8x8 pixel patches of a frame on their principal components.

Shipped as `vae/` of class LinearVideoAutoencoder: mean [192], basis [32, 192], scale [32], with
patch = mean + sum_k z_k scale_k basis_k and z_k = basis_k . (patch - mean) / scale_k.
"""
import torch

from tools.train import clips

PATCH = 8


def patches(video):
    """video [B, 3, T, H, W] -> [B, T, H/8, W/8, 192], values of a patch ordered (channel, y, x)."""
    b, c, t, h, w = video.shape
    video = video.view(b, c, t, h // PATCH, PATCH, w // PATCH, PATCH)
    return video.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, t, h // PATCH, w // PATCH, c * PATCH * PATCH)


def frames(values):
    """Inverse of patches()."""
    b, t, h, w, _ = values.shape
    values = values.view(b, t, h, w, 3, PATCH, PATCH).permute(0, 4, 1, 2, 5, 3, 6)
    return values.reshape(b, 3, t, h * PATCH, w * PATCH)


class LinearAutoencoder:
    """Tensors `mean`, `basis`, `scale` on one device."""

    def __init__(self, mean, basis, scale):
        self.mean, self.basis, self.scale = mean, basis, scale

    @classmethod
    def fit(cls, channels, seed, device="cpu", clip_count=500):
        """Principal components of frames of procedural clips, four moments of each clip.

        scale_k = s sqrt(sigma_k), sigma_k the component's deviation, s such that latents have mean variance 1.
        Half-whitening: equal variances would make the network spend itself on the finest components.
        """
        scenes = [clips.sample_scene(seed + i) for i in range(clip_count)]
        times = torch.linspace(0, 1, 4, device=device).expand(clip_count, 4)
        values = torch.cat([patches(clips.render(scenes[i:i + 50], times[i:i + 50], 96, 96)).flatten(0, 3)
                            for i in range(0, clip_count, 50)]).double()
        mean = values.mean(0)
        variance, vectors = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
        deviation = variance[-channels:].flip(0).sqrt()
        basis = vectors[:, -channels:].flip(1).T
        basis = basis * torch.where(basis.sum(1, keepdim=True) < 0, -1.0, 1.0)  # eigenvectors have no sign
        scale = deviation.sqrt() * deviation.mean().sqrt()
        return cls(*(t.float().contiguous() for t in (mean, basis, scale)))

    def to(self, device):
        return LinearAutoencoder(self.mean.to(device), self.basis.to(device), self.scale.to(device))

    def encode(self, video):
        """video [B, 3, T, H, W] -> latents [B, T, H/8, W/8, channels]."""
        return (patches(video) - self.mean) @ self.basis.T / self.scale

    def decode(self, latents):
        """Inverse of encode up to the components left out, clamped to [-1, 1]."""
        return frames((latents * self.scale) @ self.basis + self.mean).clamp(-1, 1)

    def tensors(self):
        return {"mean": self.mean, "basis": self.basis, "scale": self.scale}
