"""Tensors that are pure functions of their names (docs/formats.md, "Hash"), and the numbers that goldens keep of one."""
import math

import numpy as np
import torch


def uniform(name, count):
    """[-1, 1), float64: splitmix64 of the FNV-1a hash of the name."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return 2.0 * ((z >> np.uint64(40)).astype(np.float64) / 2.0**24) - 1.0


def tensor(name, shape, offset=0.0, amplitude=math.sqrt(3.0)):
    values = offset + amplitude * uniform(name, math.prod(shape))
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def weight_rule(name, shape):
    """Offset and amplitude of a weight."""
    if name.endswith(".bias"):
        return 0.0, 0.1
    if "scale_shift_table" in name:
        return 0.0, 0.5
    if len(shape) <= 1 or name.endswith(".gamma"):
        return 1.0, 0.1
    if name == "pos_frequencies":
        return 0.0, 1.0
    return 0.0, math.sqrt(3.0 / math.prod(shape[1:]))


def fill(module, prefix="w:"):
    """Every parameter of a torch module, by its name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensor(prefix + name, parameter.shape, *weight_rule(name, parameter.shape)))
    return module.eval()


def numbers(result, tag, indices):
    """`expect` of a golden."""
    y = result.detach().double().flatten().numpy()
    values = result.detach().flatten()
    return {"shape": list(result.shape), "tag": tag, "rms": float(f"{np.sqrt(np.mean(y * y)):.9g}"),
            "probe": float(f"{y @ uniform('probe:' + tag, y.size):.9g}"),
            "values": {str(i % y.size): float(f"{float(values[i]):.7g}") for i in indices}}
