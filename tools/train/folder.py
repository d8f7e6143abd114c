"""A trained model as a diffusers folder, written and read: what `lacuna generate --model` loads."""
import json
import pathlib
import shutil
import struct

import torch

from tools.train import tokenizer
from tools.train.autoencoder import LinearAutoencoder
from tools.train.model import Sizes, TextEncoder, WanTransformer

SHARD_BYTES = 15 << 20  # a file stays below 16 MB


def tensor_bytes(tensor):
    """Raw little-endian bytes; bf16 has no numpy dtype and travels as 16-bit integers."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


def write_safetensors(path, tensors):
    """A .safetensors file: header length, JSON header, data. Small enough not to ask for the library."""
    names = {torch.bfloat16: "BF16", torch.float32: "F32"}
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in sorted(tensors.items()):
        blobs.append(tensor_bytes(tensor))
        end = offset + len(blobs[-1])
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for blob in blobs:
            file.write(blob)


def write_sharded(folder, stem, tensors):
    """`stem.safetensors`, or shards below SHARD_BYTES with their index."""
    shards, size = [{}], 0
    for name, tensor in sorted(tensors.items()):
        count = tensor.numel() * tensor.element_size()
        if size + count > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += count
    if len(shards) == 1:
        write_safetensors(folder / f"{stem}.safetensors", shards[0])
        return
    where = {}
    for i, shard in enumerate(shards):
        file = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        where |= {name: file for name in shard}
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def stored(module):
    """Matrices as bf16, everything with one dimension and the modulation tables as f32."""
    return {name: value.to(torch.float32 if value.dim() == 1 or "scale_shift_table" in name else torch.bfloat16)
            for name, value in module.state_dict().items()}


def transformer_config(sizes):
    return {"_class_name": "WanTransformer3DModel", "_diffusers_version": "0.35.0",
            "patch_size": [sizes.patch_frames, 1, 1], "num_attention_heads": sizes.heads,
            "attention_head_dim": sizes.head_dim, "in_channels": sizes.channels, "out_channels": sizes.channels,
            "text_dim": sizes.text_dim, "freq_dim": sizes.freq_dim, "ffn_dim": sizes.ffn, "num_layers": sizes.layers,
            "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "image_dim": None,
            "added_kv_proj_dim": None, "rope_max_seq_len": 1024, "text_len": sizes.text_len}


def text_config(sizes):
    return {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": sizes.vocab,
            "d_model": sizes.text_dim, "d_kv": sizes.text_dim // sizes.text_heads, "d_ff": sizes.text_ffn,
            "num_heads": sizes.text_heads, "num_layers": sizes.text_layers, "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128, "feed_forward_proj": "gated-gelu", "is_gated_act": True,
            "dense_act_fn": "gelu_new", "layer_norm_epsilon": 1e-6, "dropout_rate": 0.0, "pad_token_id": 0,
            "eos_token_id": 1, "tie_word_embeddings": False, "tokenizer_class": "T5Tokenizer"}


SCHEDULER = {"_class_name": "UniPCMultistepScheduler", "num_train_timesteps": 1000, "solver_order": 2,
             "solver_type": "bh2", "prediction_type": "flow_prediction", "predict_x0": True,
             "use_flow_sigmas": True, "lower_order_final": True, "final_sigmas_type": "zero"}

MODEL_INDEX = {"_class_name": "WanPipeline", "_diffusers_version": "0.35.0",
               "scheduler": ["diffusers", "UniPCMultistepScheduler"], "text_encoder": ["transformers", "UMT5EncoderModel"],
               "tokenizer": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
               "vae": ["lacuna", "LinearVideoAutoencoder"]}


def write_model(folder, trainer, defaults):
    """The whole folder, from the weights as they are; replaces what is there.

    `defaults`: width, height, frames, fps, steps, shift, guidance that `lacuna generate` uses when not told.
    """
    folder = pathlib.Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in ("transformer", "text_encoder", "tokenizer", "vae", "scheduler"):
        (partial / part).mkdir(parents=True)
    sizes = trainer.sizes
    write_json(partial / "model_index.json", MODEL_INDEX | {"lacuna_defaults": defaults})
    write_json(partial / "scheduler" / "scheduler_config.json", SCHEDULER | {"flow_shift": defaults["shift"]})
    write_json(partial / "transformer" / "config.json", transformer_config(sizes))
    write_sharded(partial / "transformer", "diffusion_pytorch_model", stored(trainer.transformer))
    write_json(partial / "text_encoder" / "config.json", text_config(sizes))
    write_sharded(partial / "text_encoder", "model", stored(trainer.text_encoder))
    write_json(partial / "vae" / "config.json", {"_class_name": "LinearVideoAutoencoder", "patch_size": 8,
                                                 "latent_channels": sizes.channels})
    write_safetensors(partial / "vae" / "diffusion_pytorch_model.safetensors", trainer.autoencoder.tensors())
    (partial / "tokenizer" / "tokenizer.json").write_text(tokenizer.tokenizer_json(sizes.vocab), encoding="utf-8")
    write_json(partial / "tokenizer" / "tokenizer_config.json", {
        "tokenizer_class": "T5TokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
        "model_max_length": sizes.text_len, "extra_ids": 0})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def read_safetensors(path):
    """Tensors of a file written here, widened to f32."""
    data = pathlib.Path(path).read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    types = {"BF16": torch.bfloat16, "F32": torch.float32}
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        raw = torch.frombuffer(bytearray(data[begin:end]), dtype=types[entry["dtype"]])
        tensors[name] = raw.view(entry["shape"]).float()
    return tensors


def read_part(folder):
    """All tensors of one subfolder, whatever its shards are called."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in read_safetensors(file).items()}


def read_sizes(folder):
    """Sizes from the two config.json."""
    dit = json.loads((folder / "transformer" / "config.json").read_text())
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    return Sizes(layers=dit["num_layers"], heads=dit["num_attention_heads"], head_dim=dit["attention_head_dim"],
                 ffn=dit["ffn_dim"], channels=dit["in_channels"], patch_frames=dit["patch_size"][0],
                 freq_dim=dit["freq_dim"], vocab=text["vocab_size"], text_dim=text["d_model"],
                 text_len=dit["text_len"], text_layers=text["num_layers"], text_heads=text["num_heads"],
                 text_ffn=text["d_ff"])


def read_model(folder):
    """(transformer, text encoder, autoencoder) of a folder that write_model made, on the CPU in f32."""
    folder = pathlib.Path(folder)
    sizes = read_sizes(folder)
    transformer, text_encoder = WanTransformer(sizes), TextEncoder(sizes)
    transformer.load_state_dict(read_part(folder / "transformer"))
    text_encoder.load_state_dict(read_part(folder / "text_encoder"))
    return transformer.eval(), text_encoder.eval(), LinearAutoencoder(**read_part(folder / "vae"))
