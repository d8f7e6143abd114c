#!/usr/bin/env python3
"""Golden numbers of Wan's image-to-video transformers: diffusers' own class in fp32 on hash weights (docs/formats.md, "Hash").

Writes these cases of module `wan_dit` into a file of goldens (docs/formats.md), in place of those it has.
Usage: python3 -m tools.parity.wan_i2v_goldens [FILE]; default assets/goldens/wan.json. Needs torch and diffusers.
"""
import json
import sys

import torch
from diffusers import WanTransformer3DModel

from tools.parity import hash_tensors

CONFIG = {"num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 36, "out_channels": 16, "text_dim": 96,
          "freq_dim": 256, "ffn_dim": 320, "num_layers": 3, "patch_size": [1, 2, 2], "cross_attn_norm": True,
          "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 1024}
TEXT_ROWS = 512  # upstream's attention takes the last so many rows for text

# name -> config: what differs; x: the latent; image: rows of the pictures; timestep.
CASES = {
    # Two experts of Wan2.2: a condition, no keys of pictures.
    "wan-i2v-a14b": {"x": [1, 36, 3, 8, 12], "timestep": 937},
    "wan-i2v": {"x": [1, 36, 3, 8, 12], "timestep": 500, "image": [1, 11, 80],
                "config": {"image_dim": 80, "added_kv_proj_dim": 128}},
    # Of two pictures, each row with its position.
    "wan-flf2v": {"x": [1, 36, 2, 6, 10], "timestep": 64, "image": [2, 7, 80],
                  "config": {"image_dim": 80, "added_kv_proj_dim": 128, "pos_embed_seq_len": 14}},
}
TAPS = ["condition_embedder.image_embedder", "blocks.0.attn2", "blocks.2"]


def case(name, spec):
    config = CONFIG | spec.get("config", {})
    network = hash_tensors.fill(WanTransformer3DModel(**config))
    seen = {}
    for tap in TAPS if "image" in spec else ():
        network.get_submodule(tap).register_forward_hook(lambda module, args, result, tap=tap: seen.update({tap: result}))
    x_name, text_name, image_name = f"x:{name}", f"ctx:{name}", f"img:{name}"
    text_shape = [1, TEXT_ROWS, config["text_dim"]]
    image = hash_tensors.tensor(image_name, spec["image"]) if "image" in spec else None
    with torch.no_grad():
        result = network(hash_tensors.tensor(x_name, spec["x"]), torch.tensor([spec["timestep"]]),
                         hash_tensors.tensor(text_name, text_shape), image, return_dict=False)[0]
    frames, height, width = spec["x"][2:]
    inputs = {"x": {"hash": x_name, "shape": spec["x"]}, "context": {"hash": text_name, "shape": text_shape},
              "timesteps": [{"tokens": frames * height * width // 4, "timestep": spec["timestep"]}]}
    if image is not None:
        rows = spec["image"][0] * spec["image"][1]
        inputs["image"] = {"hash": image_name, "shape": [1, rows, spec["image"][2]]}
    made = {"name": name, "module": "wan_dit", "config": config, "weights": "w:", "inputs": inputs,
            "expect": hash_tensors.numbers(result, name, [0, 1, 2, 3, result.numel() // 2, -1])}
    if seen:
        made["taps"] = {tap: hash_tensors.numbers(value, f"tap:{tap}", [0, 1, -1]) for tap, value in seen.items()}
    return made


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "assets/goldens/wan.json"
    with open(path) as f:
        file = json.load(f)
    file["cases"] = [c for c in file["cases"] if c["name"] not in CASES] + [case(*item) for item in CASES.items()]
    with open(path, "w") as f:
        json.dump(file, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    sys.exit(main())
