// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "lacuna/calibrate/probe.h"
#include "lacuna/core/error.h"
#include "lacuna/engine/engine.h"
#include "lacuna/report/head_shape.h"
#include "lacuna/report/inspect_parts.h"
#include "lacuna/report/sprite.h"

namespace lacuna {
namespace {

constexpr int32_t kBlock = 64;
constexpr double kRecalls[] = {0.9, 0.95, 0.99};
constexpr size_t kShown = 1;  // of kRecalls: whose masks are shown
constexpr int64_t kMaxMassImages = 600;

// One recorded call: the mass of its blocks, and the fewest blocks that reach each recall.
struct Looked {
  Tensor mass;              // [heads, blocks, blocks] f32, rows sum to 1
  Selection selections[3];  // per recall
};

Looked look(const RecordedCall& call, Backend& backend) {
  const int64_t heads = call.q.shape[0];
  const BlockLayout layout = BlockLayout::uniform(call.grid.tokens() + call.text_tokens, kBlock);
  Looked looked;
  looked.mass = Tensor(DType::f32, {heads, layout.num_blocks, layout.num_blocks});
  Observer::Hooks hooks;
  hooks.block = kBlock;
  hooks.mass = [&](const Observation& seen) {
    std::copy_n(seen.block_mass, looked.mass.numel(), looked.mass.as<float>());
  };
  const Observer observer(hooks);
  Engine engine(backend, probe_policy(observer, Params()));
  const Tensor out(call.q.dtype, {heads, call.q.shape[1], call.q.shape[2]});
  engine.attend(call.site, call.grid, call.text_tokens, call.q, call.k, call.v, out);
  for (size_t r = 0; r < std::size(kRecalls); ++r) {
    Selection& s = looked.selections[r];
    s.q_layout = s.k_layout = layout;
    s.mask = BlockMask(heads, layout.num_blocks, layout.num_blocks);
    backend.select_top_p(
        looked.mass,
        std::vector<float>(static_cast<size_t>(heads), static_cast<float>(kRecalls[r])), s.mask);
  }
  return looked;
}

double head_density(const Selection& s, int64_t head) {
  return s.mask.density(head, s.q_layout, s.k_layout);
}

Json call_rows(std::span<const RecordedCall> calls, const std::vector<Looked>& looked) {
  Json rows = Json::array();
  for (size_t i = 0; i < calls.size(); ++i)
    for (int64_t h = 0; h < calls[i].q.shape[0]; ++h)
      rows.push_back({{"step", calls[i].site.step},
                      {"layer", calls[i].site.layer},
                      {"branch", calls[i].site.branch == Branch::cond ? "cond" : "uncond"},
                      {"head", h},
                      {"d90", head_density(looked[i].selections[0], h)},
                      {"d95", head_density(looked[i].selections[1], h)},
                      {"d99", head_density(looked[i].selections[2], h)}});
  return rows;
}

// One head, averaged down to what a page shows, relative to the largest of its row.
std::vector<uint8_t> mass_pixels(const float* mass, int64_t blocks, int64_t& side) {
  const CellMask all{blocks, kBlock, std::vector<float>(mass, mass + blocks * blocks)};
  const CellMask small = all.shrunk(64);
  side = small.cells;
  std::vector<uint8_t> pixels;
  for (int64_t row = 0; row < side; ++row) {
    const float* line = small.share.data() + row * side;
    const float most = std::max(*std::max_element(line, line + side), 1e-30f);
    for (int64_t j = 0; j < side; ++j)
      pixels.push_back(static_cast<uint8_t>(std::lround(255.0f * line[j] / most)));
  }
  return pixels;
}

Json mass_section(std::span<const RecordedCall> calls, const std::vector<Looked>& looked) {
  Json images = Json::object();
  std::set<int> all_steps, all_layers;
  for (const RecordedCall& call : calls)
    if (call.site.branch == Branch::cond) {
      all_steps.insert(call.site.step);
      all_layers.insert(call.site.layer);
    }
  // Whole layers of whole steps: the page draws a head without a picture as dense.
  const int64_t heads = calls.front().q.shape[0];
  const std::vector<int> layers = some_of(all_layers, std::max<int64_t>(kMaxMassImages / heads, 1));
  const auto per_step = heads * std::max<int64_t>(static_cast<int64_t>(layers.size()), 1);
  const std::vector<int> steps =
      some_of(all_steps, std::max<int64_t>(kMaxMassImages / per_step, 1));
  const auto shown = [](const std::vector<int>& list, int value) {
    return std::binary_search(list.begin(), list.end(), value);
  };
  int64_t side = 1;
  for (size_t i = 0; i < calls.size(); ++i) {
    const Site& site = calls[i].site;
    if (site.branch != Branch::cond || !shown(steps, site.step) || !shown(layers, site.layer))
      continue;
    const Tensor& mass = looked[i].mass;
    const int64_t blocks = mass.view().shape[1];
    for (int64_t h = 0; h < heads; ++h)
      images[fmt::format("{}/{}/{}", site.step, site.layer, h)] =
          base64(mass_pixels(mass.as<float>() + h * blocks * blocks, blocks, side));
  }
  return {{"kind", "masks"},
          {"title", "Block mass"},
          {"note", fmt::format("Softmax mass of each block of 64 x 64, relative to the largest of "
                               "its row. {} of {} steps, {} of {} layers.",
                               steps.size(), all_steps.size(), layers.size(), all_layers.size())},
          {"steps", steps},
          {"layers", layers},
          {"heads", heads},
          {"rows", side},
          {"columns", side},
          {"images", images},
          {"unit", "mass of the row's largest"},
          {"notes", Json::object()}};
}

}  // namespace

void add_recording_sections(std::span<const RecordedCall> calls, Backend& backend, Json& sections) {
  std::vector<Looked> looked;
  MaskSeries series;
  for (const RecordedCall& call : calls) {
    series.places.push_back(
        {call.site.step, call.site.layer, call.site.branch, looked.size(), "95 % of the mass"});
    series.num_heads = std::max(series.num_heads, call.q.shape[0]);
    series.grid = call.grid;
    looked.push_back(look(call, backend));
  }
  for (const RecordedCall& call : calls)
    LACUNA_CHECK(call.grid == series.grid && call.q.shape[0] == series.num_heads,
                 "inspect: recorded calls of different grids or heads, expected one");
  series.selection = [&](size_t i) { return looked[i].selections[kShown]; };
  sections.push_back(table_section(
      "Density that recall needs",
      "Fewest blocks of 64 x 64 per row of blocks that hold this share of the softmax mass.",
      {{"step", "step"},
       {"layer", "layer"},
       {"branch", "branch"},
       {"head", "head"},
       {"d90", "90 %", "", "", 3},
       {"d95", "95 %", "", "", 3},
       {"d99", "99 %", "", "", 3}},
      call_rows(calls, looked)));
  add_mask_sections(series, sections);
  sections.push_back(mass_section(calls, looked));
}

}  // namespace lacuna
