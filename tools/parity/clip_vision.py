#!/usr/bin/env python3
"""Golden numbers of CLIP's vision encoder: transformers' own class in fp32 on hash weights (docs/formats.md, "Hash").

Writes a file of goldens (docs/formats.md): the hidden states that enter the last layer, which image-to-video pipelines
take. With `--processor PROGRAM` compares 200 pictures of random odd sizes with CLIPImageProcessorPil instead: the program
calls clip_pixels() of what it reads, int32 width and height and RGB bytes, and answers [3, 224, 224] f32; width 0 ends it.
Usage: python3 -m tools.parity.clip_vision [--processor PROGRAM | FILE]; default assets/goldens/image.json. Needs torch
and transformers.
"""
import json
import subprocess
import sys

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from tools.parity import hash_tensors

# name -> what differs from CONFIG.
CONFIG = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "num_channels": 3, "hidden_size": 64,
          "num_attention_heads": 4, "intermediate_size": 160, "num_hidden_layers": 3, "layer_norm_eps": 1e-5,
          "hidden_act": "gelu"}
CASES = {
    "clip-vision": {},
    "clip-vision-quick": {"hidden_act": "quick_gelu", "image_size": 32, "patch_size": 8, "hidden_size": 48,
                          "num_attention_heads": 2},
    # The rows and heads of ViT-H.
    "clip-vision-257": {"image_size": 224, "hidden_size": 160, "num_attention_heads": 2, "intermediate_size": 640,
                        "num_hidden_layers": 4},
    # One layer that is computed, one patch.
    "clip-vision-patch": {"image_size": 16, "patch_size": 16, "num_hidden_layers": 2},
    "clip-vision-deep": {"image_size": 48, "patch_size": 16, "hidden_size": 128, "num_attention_heads": 2,
                         "intermediate_size": 96, "num_hidden_layers": 12, "layer_norm_eps": 1e-3},
}


@torch.no_grad()
def case(name, spec):
    config = CONFIG | spec
    model = CLIPVisionModel(CLIPVisionConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    network = hash_tensors.fill(model, "w:vision_model.")
    shape = [1, 3, config["image_size"], config["image_size"]]
    pixels = hash_tensors.tensor(f"pixels:{name}", shape)
    entered = []
    network.encoder.layers[-1].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    hidden = network(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(hidden, entered[0])
    return {"name": name, "module": "clip_vision", "config": config, "weights": "w:",
            "inputs": {"pixels": {"hash": f"pixels:{name}", "shape": shape}},
            "expect": hash_tensors.numbers(hidden[0], name, [0, 1, 2, 3, hidden.numel() // 2, -1])}


def compare_processor(program):
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    upstream = CLIPImageProcessorPil()
    dice = np.random.default_rng(7)
    ours = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # Pillow 13 scales columns before rows, but not where tall pictures shrink.
    worst, counts = {False: 0.0, True: 0.0}, {False: 0, True: 0}
    for i in range(200):
        width, height = (int(2 * dice.integers(1, 800) + 1) for _ in range(2))
        rgb = dice.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if i % 2:  # hard edges, where the filter goes beyond 0 and 255
            rgb = np.where(rgb < 128, 0, 255).astype(np.uint8).repeat(5, 0).repeat(3, 1)[:height, :width].copy()
        ours.stdin.write(np.array([width, height], np.int32).tobytes() + rgb.tobytes())
        ours.stdin.flush()
        made = np.frombuffer(ours.stdout.read(4 * 3 * 224 * 224), np.float32).reshape(3, 224, 224)
        expected = upstream(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0]
        tall = height > 2 * width > 2 * 224
        worst[tall] = max(worst[tall], float(np.abs(made - expected).max()))
        counts[tall] += 1
    ours.stdin.write(np.zeros(2, np.int32).tobytes())
    ours.stdin.close()
    for tall, count in counts.items():
        print(f"{count} pictures{' that shrink, more than twice as high as wide' if tall else ''}: "
              f"largest difference {worst[tall]:.3g} ({worst[tall] * 255 * 0.26130258:.3g} levels)")


def main():
    if sys.argv[1:2] == ["--processor"]:
        return compare_processor(sys.argv[2])
    path = sys.argv[1] if len(sys.argv) > 1 else "assets/goldens/image.json"
    file = {"schema": "lacuna-goldens", "version": 1,
            "source": "upstream modules (diffusers, transformers) run in fp32 on hash weights",
            "cases": [case(*item) for item in CASES.items()]}
    with open(path, "w") as f:
        json.dump(file, f, indent=1)
        f.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
