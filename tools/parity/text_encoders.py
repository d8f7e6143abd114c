#!/usr/bin/env python3
"""Golden numbers of tests/models/text: transformers' T5, CLIP and Llama on hash weights, in f32.

Tiny models whose every weight and token id is a function of its name (docs/formats.md, "Hash"), run the way the
pipelines of diffusers run them: padded to a fixed length, T5 and Llama with the mask of the padding, CLIP without.
Prints for every case rms, probe and single elements of the rows that a pipeline keeps.

Needs Python packages that the build never does: torch, transformers. Usage: tools/parity/text_encoders.py
"""
import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, T5Config, T5EncoderModel

M64 = (1 << 64) - 1
T5_NAMES = {"layer.0.layer_norm": "norm1", "layer.0.SelfAttention.q": "attn.q", "layer.0.SelfAttention.k": "attn.k",
            "layer.0.SelfAttention.v": "attn.v", "layer.0.SelfAttention.o": "attn.o",
            "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding", "layer.1.layer_norm": "norm2",
            "layer.1.DenseReluDense.wi_0": "ffn.gate.0", "layer.1.DenseReluDense.wi_1": "ffn.fc1",
            "layer.1.DenseReluDense.wo": "ffn.fc2"}
LLAMA_CROP, LLAMA_SKIP = 95, 2  # diffusers: DEFAULT_PROMPT_TEMPLATE and num_hidden_layers_to_skip


def uniform(name, count):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & M64
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return 2 * ((z >> np.uint64(40)) / 2.0 ** 24) - 1


def rule(name, shape):
    """(offset, amplitude) of a weight."""
    if name.endswith(".bias"):
        return 0.0, 0.1
    if len(shape) <= 1:
        return 1.0, 0.1
    if name.endswith(("token_embedding.weight", "pos_embedding.embedding.weight")):
        return 0.0, 1.0
    return 0.0, (3.0 / np.prod(shape[1:])) ** 0.5


def fill(model, rename):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = rename(name)
            offset, amplitude = rule(own, parameter.shape)
            values = offset + amplitude * uniform("w:" + own, parameter.numel())
            parameter.copy_(torch.from_numpy(values.astype(np.float32)).reshape(parameter.shape))
    return model.eval()


def ids_of(name, count, below):
    return [int(abs(u) * below) for u in uniform("ids:" + name, count)]


def report(tag, y):
    y = y.detach().double().numpy().ravel()
    shown = ", ".join(f"{{{i}, {y[i]:.8g}}}" for i in (0, 1, 2, 3, y.size - 1))
    probe = float(np.dot(y, uniform("probe:" + tag, y.size)))
    print(f"{tag}: {y.size} values, rms {np.sqrt(np.mean(y * y)):.9g}, probe {probe:.9g}, {shown}")


def t5_name(name):
    if name == "shared.weight":
        return "token_embedding.weight"
    if name == "encoder.final_layer_norm.weight":
        return "norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blocks.{layer}.{T5_NAMES[rest.removesuffix('.weight')]}.weight"


def t5():
    model = fill(T5EncoderModel(T5Config(
        vocab_size=200, d_model=64, d_kv=16, num_heads=4, d_ff=160, num_layers=3, feed_forward_proj="gated-gelu")),
        t5_name)
    ids = ids_of("t5", 17, 199) + [1]
    padded = torch.tensor([ids + [0] * 14])
    report("t5-valid18", model(padded, attention_mask=(torch.arange(32) < 18)[None]).last_hidden_state[0, :18])


def clip(tag, eos_token_id, ids):
    model = fill(CLIPTextModel(CLIPTextConfig(
        vocab_size=200, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        bos_token_id=198, eos_token_id=eos_token_id, hidden_act="quick_gelu")),
        lambda name: "text_model." + name.removeprefix("text_model."))
    padded = torch.tensor([ids + [ids[-1]] * (77 - len(ids))])
    report(tag, model(padded).pooler_output[0])


def llama():
    model = fill(LlamaModel(LlamaConfig(
        vocab_size=200, hidden_size=96, intermediate_size=160, num_hidden_layers=5, num_attention_heads=6,
        num_key_value_heads=2, head_dim=24, rms_norm_eps=1e-5, max_position_embeddings=512, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0})), lambda name: "model." + name)
    ids = ids_of("llama", 113, 199)
    padded = torch.tensor([ids + [199] * 15])
    hidden = model(padded, attention_mask=(torch.arange(128) < 113)[None].long(), output_hidden_states=True)
    report("llama-valid18", hidden.hidden_states[-(LLAMA_SKIP + 1)][0, LLAMA_CROP:113])


@torch.no_grad()
def main():
    t5()
    text = ids_of("clip", 20, 190)
    clip("clip-highest", 2, [198] + text + [199])    # configs from before the end token was known: the highest id
    clip("clip-end", 195, [198] + text + [195])
    llama()


if __name__ == "__main__":
    main()
