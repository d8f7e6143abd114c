// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/models/image/clip_processor.h"
#include "lacuna/models/text/encoder_config.h"
#include "lacuna/models/text/hostile_json.h"

namespace lacuna {
namespace {

constexpr int64_t kMostEdge = 1024;

// A length in pixels, or an object of the lengths called `keys`, which must be equal.
int64_t edge_of(const nlohmann::json& parsed, const char* field,
                std::initializer_list<const char*> keys, int64_t absent, std::string_view who) {
  const auto it = parsed.find(field);
  if (it == parsed.end()) return absent;
  if (!it->is_object()) return config_int(parsed, field, who);
  const int64_t edge = config_int(*it, *keys.begin(), who);
  for (const char* key : keys)
    LACUNA_CHECK(config_int(*it, key, who) == edge, "{}: `{}` {}, expected a square", who, field,
                 shown_json(*it));
  return edge;
}

void read_colours(const nlohmann::json& parsed, const char* field, std::array<double, 3>& into,
                  std::string_view who) {
  const auto it = parsed.find(field);
  if (it == parsed.end()) return;
  LACUNA_CHECK(it->is_array() && it->size() == into.size(), "{}: `{}` {}, expected 3 numbers", who,
               field, shown_json(*it));
  for (size_t i = 0; i < into.size(); ++i) {
    LACUNA_CHECK((*it)[i].is_number(), "{}: `{}` {}, expected 3 numbers", who, field,
                 shown_json(*it));
    into[i] = (*it)[i].get<double>();
  }
}

}  // namespace

void ClipProcessorConfig::validate() const {
  check_config_size("clip processor", "shortest_edge", shortest_edge, kMostEdge);
  // Beyond what there is, upstream pads.
  check_config_size("clip processor", "crop_size", crop_size, shortest_edge);
  LACUNA_CHECK(rescale_factor > 0.0 && rescale_factor <= 1.0,
               "clip processor: rescale_factor {}, expected above 0, at most 1", rescale_factor);
  for (size_t c = 0; c < mean.size(); ++c) {
    LACUNA_CHECK(std::abs(mean[c]) <= 1e3, "clip processor: image_mean {}, expected -1000 to 1000",
                 mean[c]);
    LACUNA_CHECK(std[c] >= 1e-3 && std[c] <= 1e3,
                 "clip processor: image_std {}, expected 0.001 to "
                 "1000",
                 std[c]);
  }
}

ClipProcessorConfig clip_processor_config_from_json(std::string_view json, std::string_view who) {
  const nlohmann::json parsed = parse_encoder_config(json, who);
  for (const char* step : {"do_resize", "do_center_crop", "do_rescale", "do_normalize"})
    expect_config_if_any(parsed, step, true, who);
  expect_config_if_any(parsed, "resample", 3, who);  // Pillow's bicubic
  ClipProcessorConfig config;
  config.shortest_edge = edge_of(parsed, "size", {"shortest_edge"}, config.shortest_edge, who);
  config.crop_size = edge_of(parsed, "crop_size", {"height", "width"}, config.crop_size, who);
  config.rescale_factor = config_number(parsed, "rescale_factor", config.rescale_factor, who);
  read_colours(parsed, "image_mean", config.mean, who);
  read_colours(parsed, "image_std", config.std, who);
  try {
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  return config;
}

}  // namespace lacuna
