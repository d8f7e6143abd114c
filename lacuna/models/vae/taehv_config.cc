// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/taehv_config.h"

#include <algorithm>
#include <string>
#include <vector>

#include "lacuna/models/vae/config_fields.h"

namespace lacuna {
namespace {

void check_taehv_config(const TaehvConfig& config, std::string_view where) {
  const auto in_range = [&](const char* what, int64_t value, int64_t most) {
    LACUNA_CHECK(value >= 1 && value <= most, "{}: {} is {}, expected 1 to {}", where, what, value,
                 most);
  };
  in_range("latent_channels", config.latent_channels, 1024);
  in_range("patch_size", config.patch_size, 8);
  for (const int64_t channels : config.channels) in_range("channels", channels, 4096);
  for (const int64_t factor : config.time_factors) in_range("time_factors", factor, 4);
}

template <size_t N>
void read_list(const ConfigFields& fields, const char* key, std::string_view where,
               std::array<int64_t, N>& list) {
  const std::vector<int64_t> given = fields.integers(key, {list.begin(), list.end()});
  LACUNA_CHECK(given.size() == N, "{}: {} has {} entries, expected {}", where, key, given.size(),
               N);
  std::copy(given.begin(), given.end(), list.begin());
}

}  // namespace

TaehvConfig infer_taehv_config(const WeightSource& source, std::string_view where) {
  // Rows and columns of a convolution.
  const auto sizes = [&](const char* layer, int64_t taps) -> std::array<int64_t, 2> {
    const std::string name = std::string(layer) + ".weight";
    LACUNA_CHECK(source.has(name), "{}: no {}, expected the decoder of a TAEHV", where, name);
    const std::vector<int64_t> shape = source.shape(name);
    LACUNA_CHECK(
        shape.size() == 4 && shape[0] > 0 && shape[1] > 0 && shape[2] == taps && shape[3] == taps,
        "{}: {} has {} dimensions, expected [rows, columns, {}, {}]", where, name, shape.size(),
        taps, taps);
    return {shape[0], shape[1]};
  };
  TaehvConfig config;
  config.latent_channels = sizes("decoder.1", 3)[1];
  constexpr std::array kGrow = {"decoder.7.conv", "decoder.13.conv", "decoder.19.conv"};
  constexpr std::array kNext = {"decoder.8", "decoder.14", "decoder.20"};
  for (size_t i = 0; i < 3; ++i) {
    const auto grow = sizes(kGrow[i], 1);
    LACUNA_CHECK(grow[0] % grow[1] == 0, "{}: {}.weight has {} rows, expected a multiple of {}",
                 where, kGrow[i], grow[0], grow[1]);
    config.channels[i] = grow[1];
    config.time_factors[i] = grow[0] / grow[1];
    config.channels[i + 1] = sizes(kNext[i], 3)[0];
  }
  const int64_t values = sizes("decoder.22", 3)[0];
  config.patch_size = 1;
  while (config.patch_size < 8 && 3 * config.patch_size * config.patch_size < values)
    ++config.patch_size;
  LACUNA_CHECK(3 * config.patch_size * config.patch_size == values,
               "{}: decoder.22.weight has {} rows, expected 3 times a square", where, values);
  check_taehv_config(config, where);
  return config;
}

TaehvConfig parse_taehv_config(std::string_view json_text, std::string_view where) {
  const nlohmann::json json = parse_vae_object(json_text, where);
  const ConfigFields fields(json, where);
  TaehvConfig config;
  config.latent_channels = fields.integer("latent_channels", config.latent_channels);
  config.patch_size = fields.integer("patch_size", config.patch_size);
  read_list(fields, "channels", where, config.channels);
  read_list(fields, "time_factors", where, config.time_factors);
  check_taehv_config(config, where);
  return config;
}

}  // namespace lacuna
