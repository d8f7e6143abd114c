// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "lacuna/core/threads.h"
#include "lacuna/report/head_shape.h"
#include "lacuna/report/inspect_parts.h"
#include "lacuna/report/sprite.h"

namespace lacuna {

std::vector<int> some_of(const std::set<int>& values, int64_t count) {
  const std::vector<int> all(values.begin(), values.end());
  const auto n = static_cast<int64_t>(all.size());
  if (count >= n) return all;
  std::vector<int> some;
  for (int64_t i = 0; i < count; ++i)
    some.push_back(all[static_cast<size_t>(count == 1 ? 0 : i * (n - 1) / (count - 1))]);
  return some;
}

namespace {

constexpr int64_t kMaxImages = 1500;  // 5 KB each in the page
constexpr int64_t kMaxSteps = 8;
constexpr int64_t kImageSide = 64;

std::string head_label(int layer, int64_t head) {
  return fmt::format("{}.{}", layer, head);
}

// What is measured of one head of one layer over the steps that are looked at.
struct HeadHistory {
  HeadShape last;  // means over the steps
  std::string order;
  Json jaccard = Json::array();  // to the step before
};

class Album {
 public:
  explicit Album(const MaskSeries& series) : series_(series) {
    const bool cond = std::any_of(series.places.begin(), series.places.end(),
                                  [](const auto& p) { return p.branch == Branch::cond; });
    std::set<int> steps, layers;
    for (const PlacedMask& place : series.places) {
      if ((place.branch == Branch::cond) != cond) continue;
      places_[place.layer][place.step] = &place;
      steps.insert(place.step);
      layers.insert(place.layer);
    }
    all_steps_.assign(steps.begin(), steps.end());
    const int64_t heads = std::max<int64_t>(series.num_heads, 1);
    layers_ = some_of(layers, std::max<int64_t>(kMaxImages / heads, 1));
    steps_ = some_of(steps, std::clamp(kMaxImages / (heads * static_cast<int64_t>(layers_.size())),
                                       int64_t{1}, kMaxSteps));
  }

  void add_to(Json& sections) {
    add_densities(sections);
    for (const int layer : layers_) look_at(layer);
    add_shapes(sections);
    if (steps_.size() > 1) add_likeness(sections);
    add_gallery(sections);
  }

 private:
  // Per-head density of every step, of selections that are measured once.
  void add_densities(Json& sections) {
    std::map<size_t, std::vector<double>> known;
    std::vector<std::string> row_labels, column_labels;
    for (const int step : all_steps_) column_labels.push_back(std::to_string(step));
    Json values = Json::array();
    for (const auto& [layer, steps] : places_) {
      std::vector<Json> rows(static_cast<size_t>(series_.num_heads), Json::array());
      for (const int step : all_steps_) {
        const auto place = steps.find(step);
        for (int64_t h = 0; h < series_.num_heads; ++h)
          rows[h].push_back(
              place == steps.end() ? Json() : Json(densities(place->second->selection, known)[h]));
      }
      for (int64_t h = 0; h < series_.num_heads; ++h) {
        row_labels.push_back(head_label(layer, h));
        values.push_back(std::move(rows[h]));
      }
    }
    sections.push_back(
        heatmap_section("Density per head", "Rows are layer.head. Kept (query, key) pairs / all.",
                        "head", row_labels, "step", column_labels, values, "density"));
  }

  const std::vector<double>& densities(size_t index, std::map<size_t, std::vector<double>>& known) {
    const auto [entry, fresh] = known.try_emplace(index);
    if (!fresh) return entry->second;
    const Selection s = series_.selection(index);
    for (int64_t h = 0; h < series_.num_heads; ++h)
      entry->second.push_back(s.mask.empty() ? 1.0 : s.mask.density(h, s.q_layout, s.k_layout));
    return entry->second;
  }

  // Layer by layer, so that only two steps' cells are in memory.
  void look_at(int layer) {
    std::vector<HeadHistory>& heads = history_[layer];
    heads.resize(static_cast<size_t>(series_.num_heads));
    std::vector<CellMask> before;
    int64_t looked = 0;
    for (const int step : steps_) {
      const auto found = places_[layer].find(step);
      if (found == places_[layer].end()) {
        before.clear();
        for (HeadHistory& head : heads) head.jaccard.push_back(nullptr);
        continue;
      }
      const Selection s = series_.selection(found->second->selection);
      std::vector<CellMask> cells(heads.size());
      parallel_tasks(series_.num_heads, [&](int64_t h, int) { cells[h] = cell_mask(s, h); });
      ++looked;
      for (int64_t h = 0; h < series_.num_heads; ++h) {
        add_shape(heads[h], head_shape(cells[h], series_.grid));
        heads[h].order = s.mask.empty() ? "" : order_name(s.k_order, h, series_.grid);
        heads[h].jaccard.push_back(before.empty() ? Json() : Json(cells[h].jaccard(before[h])));
        if (!s.mask.empty()) add_image(step, layer, h, cells[h]);
      }
      notes_[fmt::format("{}/{}", step, layer)] = found->second->note;
      before = std::move(cells);
    }
    for (HeadHistory& head : heads) finish_shape(head, looked);
  }

  static void add_shape(HeadHistory& head, const HeadShape& shape) {
    if (head.last.kind.empty()) head.last.density = 0.0;
    head.last.density += shape.density;
    for (size_t r = 0; r < shape.share.size(); ++r) {
      head.last.share[r] += shape.share[r];
      head.last.lift[r] += shape.lift[r];
    }
    head.last.kind = "sum";
  }
  static void finish_shape(HeadHistory& head, int64_t steps) {
    if (steps == 0) return;
    head.last.density /= static_cast<double>(steps);
    for (size_t r = 0; r < head.last.share.size(); ++r) {
      head.last.share[r] /= static_cast<double>(steps);
      head.last.lift[r] /= static_cast<double>(steps);
    }
    head.last.kind = head_kind(head.last);
  }

  void add_image(int step, int layer, int64_t head, const CellMask& cells) {
    const CellMask small = cells.shrunk(kImageSide);
    side_ = small.cells;
    std::vector<uint8_t> pixels;
    for (const float share : small.share)
      pixels.push_back(static_cast<uint8_t>(std::lround(255.0f * std::min(share, 1.0f))));
    images_[fmt::format("{}/{}/{}", step, layer, head)] = base64(pixels);
  }

  void add_shapes(Json& sections) const {
    Json rows = Json::array();
    for (const auto& [layer, heads] : history_)
      for (size_t h = 0; h < heads.size(); ++h) {
        const HeadShape& s = heads[h].last;
        rows.push_back({{"layer", layer},
                        {"head", h},
                        {"kind", s.kind},
                        {"order", heads[h].order},
                        {"density", s.density},
                        {"band", s.share[static_cast<size_t>(Region::band)]},
                        {"stripe", s.share[static_cast<size_t>(Region::stripe)]},
                        {"sink", s.share[static_cast<size_t>(Region::sink)]},
                        {"other", s.share[static_cast<size_t>(Region::other)]},
                        {"band_lift", s.lift[static_cast<size_t>(Region::band)]},
                        {"stripe_lift", s.lift[static_cast<size_t>(Region::stripe)]},
                        {"sink_lift", s.lift[static_cast<size_t>(Region::sink)]}});
      }
    sections.push_back(table_section(
        "Heads",
        "Where the kept pairs lie, means over the steps looked at. Lift: that share over the share "
        "that all pairs have there; 1 = no bias.",
        {{"layer", "layer"},
         {"head", "head"},
         {"kind", "kind", "", "dense, local, temporal, sink, mixed or global"},
         {"order", "order", "", "in which the mask was made"},
         {"density", "density", "", "", 3},
         {"band", "band", "", "near the diagonal, half a frame to each side", 2},
         {"stripe", "stripe", "", "the same place in another frame", 2},
         {"sink", "sink", "", "keys of the first frame and text", 2},
         {"other", "other", "", "", 2},
         {"band_lift", "band lift", "", "", 2},
         {"stripe_lift", "stripe lift", "", "", 2},
         {"sink_lift", "sink lift", "", "", 2}},
        rows));
  }

  void add_likeness(Json& sections) const {
    std::vector<std::string> row_labels, column_labels;
    for (const int step : steps_) column_labels.push_back(std::to_string(step));
    Json values = Json::array();
    for (const auto& [layer, heads] : history_)
      for (size_t h = 0; h < heads.size(); ++h) {
        row_labels.push_back(head_label(layer, static_cast<int64_t>(h)));
        values.push_back(heads[h].jaccard);
      }
    sections.push_back(heatmap_section(
        "How alike masks are",
        "Jaccard: pairs kept here and in the column before / kept in either. Rows are layer.head.",
        "head", row_labels, "step", column_labels, values, "Jaccard"));
  }

  void add_gallery(Json& sections) {
    Json json = {
        {"kind", "masks"},
        {"title", "Masks"},
        {"note", fmt::format("Raster order, rows are queries. {} of {} steps, {} of {} layers.",
                             steps_.size(), all_steps_.size(), layers_.size(), places_.size())}};
    json["steps"] = steps_;
    json["layers"] = layers_;
    json["heads"] = series_.num_heads;
    json["rows"] = json["columns"] = side_;
    json["images"] = images_;
    json["notes"] = notes_;
    sections.push_back(std::move(json));
  }

  const MaskSeries& series_;
  std::map<int, std::map<int, const PlacedMask*>> places_;  // layer, step
  std::vector<int> all_steps_, steps_, layers_;
  std::map<int, std::vector<HeadHistory>> history_;  // by layer
  Json images_ = Json::object(), notes_ = Json::object();
  int64_t side_ = 1;
};

}  // namespace

void add_mask_sections(const MaskSeries& series, Json& sections) {
  if (!series.places.empty()) Album(series).add_to(sections);
}

}  // namespace lacuna
