#!/usr/bin/env python3
"""Live parity at the sizes of the public checkpoints, with random weights, in fp32.

transformer: the whole network of Wan2.1-T2V-1.3B at 480x832, 17 frames (7,800 tokens), one guided step;
             a text encoder of UMT5-XXL's width, two layers. Latents only. Needs 16 GB of memory.
vae2.1:      the whole decoder of Wan2.1 behind a small transformer, 96x128, 9 frames.
vae2.2:      the same with the whole decoder of Wan2.2 TI2V-5B.

The seconds are those of the two programs as they come, text encoder and loading of weights in lacuna's.
Needs what pipelines.py needs. Usage: python3 -m tools.parity.full_size [--lacuna FILE] [--work DIR] [CASE ...]
"""
import sys

from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

from tools.parity import pipelines


def text_encoder(tokenizer):
    return pipelines.text_encoder(tokenizer, d_model=4096, d_kv=64, num_heads=64, d_ff=10240)


def network(tokenizer):
    transformer = pipelines.randomize(WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=12, attention_head_dim=128, in_channels=16, out_channels=16,
        text_dim=4096, freq_dim=256, ffn_dim=8960, num_layers=30, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=1024), 3)
    vae = pipelines.randomize(AutoencoderKLWan(base_dim=8), 2)
    return {"pipeline": WanPipeline(tokenizer, text_encoder(tokenizer), vae, pipelines.unipc(), transformer),
            "height": 480, "width": 832, "num_frames": 17, "steps": 1, "decode": False}


def decoder(channels, **config):
    def case(tokenizer):
        transformer = pipelines.randomize(WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=64, in_channels=channels,
            out_channels=channels, text_dim=64, freq_dim=256, ffn_dim=192, num_layers=2, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", rope_max_seq_len=1024), 3)
        text = pipelines.text_encoder(tokenizer, d_model=64, d_kv=16, num_heads=4, d_ff=128)
        vae = pipelines.randomize(AutoencoderKLWan(**config), 2)
        return {"pipeline": WanPipeline(tokenizer, text, vae, pipelines.unipc(), transformer,
                                        expand_timesteps=channels == 48), "height": 96, "width": 128}
    return case


CASES = {
    "transformer": network,
    "vae2.1": decoder(16),
    "vae2.2": decoder(48, base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12,
                      out_channels=12, patch_size=2, scale_factor_spatial=16, scale_factor_temporal=4,
                      latents_mean=[0.05 * (i % 7 - 3) for i in range(48)],
                      latents_std=[0.5 + 0.1 * (i % 5) for i in range(48)]),
}

if __name__ == "__main__":
    sys.exit(pipelines.main(__doc__, CASES))
