# What the parsers need and nothing else. Where a file is an object (no unity build: make asan, dev), test_corpus is linked from the same
# files, so that this list cannot fall behind.
set(LACUNA_PARSER_SOURCES
  lacuna/core/atomic_file.cc
  lacuna/core/block_mask.cc
  lacuna/core/convert.cc
  lacuna/core/gguf.cc
  lacuna/core/mapped_file.cc
  lacuna/core/memory.cc
  lacuna/core/rng.cc
  lacuna/core/safetensors.cc
  lacuna/core/state_io.cc
  lacuna/core/tensor.cc
  lacuna/core/token_order.cc
  lacuna/engine/json_object.cc
  lacuna/engine/mask_log_load.cc
  lacuna/engine/profile_target.cc
  lacuna/engine/trace_file.cc
  lacuna/methods/selection.cc
  lacuna/models/checkpoint.cc
  lacuna/models/file_weights.cc
  lacuna/models/weights.cc
  lacuna/models/text/hostile_json.cc
  lacuna/models/text/umt5_config.cc
  lacuna/models/vae/vae_config.cc
  lacuna/models/wan/wan_config.cc
  lacuna/models/wan/wan_config_read.cc)
