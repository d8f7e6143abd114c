// SPDX-License-Identifier: Apache-2.0
// CalibAtt's offline pass (arXiv 2603.05503): dense generations of all prompts; per
// (step, layer, head) of the conditional branch the exact block mass gives each prompt's minimal
// cover of epsilon(t), which votes; the first prompts also give the similarity of spatial rows.
//
// The masks serve both branches. A head whose mean similarity reaches gamma is repetitive at its
// step and layer; its mask stays in the profile and is not used. Steps share masks per layer, all
// heads of it together, because a profile's mask holds the heads of one layer.
//
// Not published and chosen here: the anchor formula and the tie rule (methods/anchors.h), the
// median without the anchors themselves, at most three frames of similarity, the gap of merged
// intervals, first-fit groups for step sharing, and the row that no prompt agrees on (vote.h).
#include "lacuna/calibrate/calibatt.h"

#include <algorithm>
#include <cmath>

#include "lacuna/calibrate/probe.h"
#include "lacuna/calibrate/replay_call.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/methods/anchors.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr int kMaxPrompts = 255;  // votes are counted in bytes
constexpr int64_t kSimilarityFrames = 3;

double cosine(const float* a, const float* b, int64_t n) {
  double ab = 0.0, aa = 0.0, bb = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    ab += double{a[i]} * b[i];
    aa += double{a[i]} * a[i];
    bb += double{b[i]} * b[i];
  }
  return ab / std::sqrt(std::max(aa * bb, 1e-300));
}

class Votes final : public Measurement {
 public:
  Votes(const Subject& subject, const CalibAttSettings& settings);

  std::string settings() const override;
  bool wants(int, int) const override { return true; }
  int64_t cost(int, int) const override { return num_layers_; }
  void measure(Subject& subject, int prompt, int step, const TensorView& velocity,
               const std::function<void(int64_t)>& ran) override;
  NamedTensors tensors() override { return {{"votes", votes_}, {"similarity", similarity_}}; }

  Calibration result(const Subject& subject) const;

 private:
  int64_t blocks() const { return layout_.num_blocks; }
  int64_t votes_per_layer() const { return num_heads_ * blocks() * blocks(); }
  // Repetitive heads have their number of anchors, others 0.
  std::vector<double> anchors_at(int step, int layer, int prompts) const;
  BlockMask mask_at(int step, int layer, int prompts) const;
  double density_of(const BlockMask& mask, std::span<const double> anchors,
                    const VideoGrid& grid) const;
  void look(const SelectArgs& args, double* similarity) const;
  void add_layer(const Subject& subject, int layer, Calibration& made) const;

  CalibAttSettings settings_;
  int num_steps_, num_layers_;
  int64_t num_heads_;
  BlockLayout layout_;
  Tensor votes_;       // [steps, layers, heads, blocks * blocks] u8
  Tensor similarity_;  // [steps, layers, heads] f64, summed over prompts
};

Votes::Votes(const Subject& subject, const CalibAttSettings& settings)
    : settings_(settings),
      num_steps_(subject.target().num_steps()),
      num_layers_(subject.target().num_layers),
      num_heads_(subject.target().num_heads) {
  const ProfileTarget& target = subject.target();
  LACUNA_CHECK(subject.num_prompts() <= kMaxPrompts, "calibatt: {} prompts, expected at most {}",
               subject.num_prompts(), kMaxPrompts);
  LACUNA_CHECK(settings.block >= 1 && settings.block <= 1024,
               "calibatt: block {}, expected 1 to 1024", settings.block);
  LACUNA_CHECK(settings.share > 0.0 && settings.share <= 1.0,
               "calibatt: vote share {}, expected more than 0 and at most 1", settings.share);
  LACUNA_CHECK(settings.gap >= 0 && settings.anchors >= 0 && settings.anchors <= 1024 &&
                   settings.similarity_prompts >= 0,
               "calibatt: gap {}, {} anchors, {} similarity prompts, expected 0 or more and at "
               "most 1024 anchors",
               settings.gap, settings.anchors, settings.similarity_prompts);
  const EnergySchedule& energy = settings.energy;
  const double low = energy.floor.value_or(0.0);
  LACUNA_CHECK(low >= 0.0 && low <= energy.start && energy.start > 0.0 && energy.start <= 1.0 &&
                   energy.decay >= 0.0,
               "calibatt: energy {},{},{}, expected 0 <= A <= C <= 1 and k of 0 or more", low,
               energy.start, energy.decay);
  layout_ = BlockLayout::uniform(target.grid.tokens() + target.text_tokens, settings.block);
  votes_ = Tensor::zeros(DType::u8, {num_steps_, num_layers_, num_heads_, blocks() * blocks()});
  similarity_ = Tensor::zeros(DType::f64, {num_steps_, num_layers_, num_heads_});
}

std::string Votes::settings() const {
  Json json;
  json["method"] = "calibatt";
  const EnergySchedule& energy = settings_.energy;
  json["energy"] = {energy.floor ? Json(*energy.floor) : Json(), energy.start, energy.decay};
  json["block"] = settings_.block;
  json["anchors"] = settings_.anchors;
  json["similarity_prompts"] = settings_.similarity_prompts;
  return json.dump();
}

void Votes::measure(Subject& subject, int prompt, int step, const TensorView& velocity,
                    const std::function<void(int64_t)>& ran) {
  const int64_t seq_len = layout_.seq_len;
  const std::vector<float> energy(
      static_cast<size_t>(num_heads_),
      static_cast<float>(settings_.energy.at(step, num_steps_, seq_len)));
  std::vector<BlockMask> covers;
  const Tensor similarity = Tensor::zeros(DType::f64, {num_layers_, num_heads_});
  Observer::Hooks hooks;
  hooks.block = settings_.block;
  if (prompt < settings_.similarity_prompts && settings_.anchors > 0 &&
      settings_.anchors < subject.target().grid.height)
    hooks.inputs = [&](const SelectArgs& args) {
      look(args, similarity.as<double>() + args.site.layer * num_heads_);
    };
  hooks.mass = [&](const Observation& seen) {
    const TensorView mass = make_view(const_cast<float*>(seen.block_mass), DType::f32,
                                      {num_heads_, blocks(), blocks()});
    BlockMask cover(num_heads_, layout_.num_blocks, layout_.num_blocks);
    subject.backend().select_top_p(mass, energy, cover);
    covers.push_back(std::move(cover));
    ran(1);
  };
  const Observer observer(std::move(hooks));
  Engine engine(subject.backend(), probe_policy(observer, Params()));
  const int64_t expected = subject.target().text_tokens;
  engine.watch_inputs([&](const Site&, const VideoGrid&, int64_t text_tokens, const auto&...) {
    LACUNA_CHECK(
        text_tokens == expected,
        "calibatt: prompts of {} and {} text tokens, expected as many in all; masks are of "
        "one length (haste takes any)",
        expected, text_tokens);
  });
  const Tensor residual(DType::f32, subject.stream_shape(), subject.backend());
  subject.run(engine, {0, num_layers_}, residual, velocity);
  // Only now: a step that is stopped in the middle is looked at again from its start.
  for (int layer = 0; layer < num_layers_; ++layer) {
    const int64_t at = int64_t{step} * num_layers_ + layer;
    auto* votes = static_cast<uint8_t*>(votes_.view().data) + at * votes_per_layer();
    for (int64_t h = 0; h < num_heads_; ++h) {
      similarity_.as<double>()[at * num_heads_ + h] +=
          similarity.as<double>()[layer * num_heads_ + h];
      for (int32_t qb = 0; qb < layout_.num_blocks; ++qb)
        for (int32_t kb = 0; kb < layout_.num_blocks; ++kb)
          votes[(h * blocks() + qb) * blocks() + kb] += covers[layer].get(h, qb, kb) ? 1 : 0;
    }
  }
}

void Votes::look(const SelectArgs& args, double* similarity) const {
  const int64_t tokens = args.grid.tokens();
  for (int64_t head = 0; head < num_heads_; ++head) {
    TensorView k = args.k.slice(head, head + 1);
    k.rank = 2, k.shape = {tokens, args.k.shape[2]}, k.stride = {args.k.stride[1], 1};
    const auto rows = [&](int64_t first, int64_t count, float* p) {
      TensorView q = args.q.slice(head, head + 1);
      q.data = static_cast<char*>(q.data) + storage_bytes(q.dtype, first * args.q.stride[1]);
      q.rank = 2, q.shape = {count, args.q.shape[2]}, q.stride = {args.q.stride[1], 1};
      args.backend.linear(q, k, nullptr, Epilogue::none, nullptr,
                          make_view(p, DType::f32, {count, tokens}));
      parallel_tasks(count, [&](int64_t i, int) {
        float* row = p + i * tokens;
        const float top = *std::max_element(row, row + tokens);
        double sum = 0.0;
        for (int64_t j = 0; j < tokens; ++j)
          sum += row[j] = std::exp(args.sm_scale * (row[j] - top));
        for (int64_t j = 0; j < tokens; ++j) row[j] = static_cast<float>(row[j] / sum);
      });
    };
    similarity[head] = row_similarity(args.grid, settings_.anchors, rows);
  }
}

std::vector<double> Votes::anchors_at(int step, int layer, int prompts) const {
  std::vector<double> anchors;
  const double* sums =
      similarity_.as<double>() + (int64_t{step} * num_layers_ + layer) * num_heads_;
  for (int64_t h = 0; h < num_heads_; ++h) {
    const bool repetitive = prompts > 0 && sums[h] / prompts >= settings_.similarity;
    anchors.push_back(repetitive ? settings_.anchors : 0);
  }
  return anchors;
}

BlockMask Votes::mask_at(int step, int layer, int prompts) const {
  const auto* votes = static_cast<const uint8_t*>(votes_.view().data) +
                      (int64_t{step} * num_layers_ + layer) * votes_per_layer();
  BlockMask mask = vote({votes, static_cast<size_t>(votes_per_layer())}, num_heads_,
                        layout_.num_blocks, layout_.num_blocks, prompts, settings_.share);
  merge_intervals(mask, settings_.gap);
  return mask;
}

// Of what runs with a mask and anchors (methods/calibatt.cc): heads with anchors compute the query
// blocks of these rows instead.
double Votes::density_of(const BlockMask& mask, std::span<const double> anchors,
                         const VideoGrid& grid) const {
  const int64_t rows = std::min<int64_t>(settings_.anchors, grid.height);
  const int64_t computed = grid.frames * rows * grid.width;
  BlockMask anchored(1, layout_.num_blocks, layout_.num_blocks);
  anchored.keep_q_blocks(0,
                         static_cast<int32_t>((computed + settings_.block - 1) / settings_.block));
  Selection runs;
  runs.q_layout = runs.k_layout = layout_;
  runs.mask = mask;
  for (int64_t h = 0; h < num_heads_; ++h)
    if (anchors[static_cast<size_t>(h)] > 0.0) runs.mask.copy_head(h, anchored, 0);
  keep_text(runs, grid.tokens());
  return runs.mask.density(layout_, layout_);
}

// Rules of one layer: a step each, but steps in a row with equal masks and anchors have one.
void Votes::add_layer(const Subject& subject, int layer, Calibration& made) const {
  std::vector<BlockMask> masks;
  for (int step = 0; step < num_steps_; ++step)
    masks.push_back(mask_at(step, layer, subject.num_prompts()));
  const std::vector<int> groups = share_steps(masks, settings_.share_iou);
  const int similarity_prompts = std::min(settings_.similarity_prompts, subject.num_prompts());
  std::vector<std::shared_ptr<const Selection>> shared(masks.size());
  ProfileRule* last = nullptr;
  Json& json = made.measurements["layers"].emplace_back();
  json["layer"] = layer;
  for (int step = 0; step < num_steps_; ++step) {
    auto& fixed = shared[static_cast<size_t>(groups[static_cast<size_t>(step)])];
    if (fixed == nullptr) {
      auto selection = std::make_shared<Selection>();
      selection->q_layout = selection->k_layout = layout_;
      selection->mask = masks[static_cast<size_t>(step)];
      fixed = std::move(selection);
    }
    const std::vector<double> anchors = anchors_at(step, layer, similarity_prompts);
    json["group"].push_back(groups[static_cast<size_t>(step)]);
    json["density"].push_back(fixed->mask.density(layout_, layout_));
    Json& similar = json["similarity"].emplace_back(Json::array());
    for (int64_t h = 0; h < num_heads_ && similarity_prompts > 0; ++h)
      similar.push_back(
          similarity_.as<double>()[(int64_t{step} * num_layers_ + layer) * num_heads_ + h] /
          similarity_prompts);
    json["repetitive"].push_back(
        std::count_if(anchors.begin(), anchors.end(), [](double a) { return a > 0.0; }));
    ProfileRule item = layer_rule(subject, subject.expert(step), layer);
    if (last != nullptr && last->rule.plan.fixed == fixed &&
        last->rule.match.expert == item.rule.match.expert &&
        std::ranges::equal(last->rule.plan.params.values("anchors"), anchors)) {
      last->rule.match.step_end = step + 1;
      continue;
    }
    item.rule.match.step_begin = step;
    item.rule.match.step_end = step + 1;
    Plan& plan = item.rule.plan;
    plan = parse_plan("calibatt");
    plan.params.set_per_head("anchors", anchors);
    plan.fixed = fixed;
    item.density = density_of(fixed->mask, anchors, subject.target().grid);
    made.profile.rules.push_back(std::move(item));
    last = &made.profile.rules.back();
  }
}

Calibration Votes::result(const Subject& subject) const {
  Calibration made;
  made.profile.target = subject.target();
  made.profile.rules = dense_rules(subject.target().num_steps(), settings_.dense_steps);
  Json& json = made.measurements = describe_target(subject, "calibatt");
  json["settings"] = Json::parse(settings());
  json["vote_share"] = settings_.share;
  json["gap"] = settings_.gap;
  json["share_iou"] = settings_.share_iou;
  json["similarity_threshold"] = settings_.similarity;
  for (int step = 0; step < num_steps_; ++step)
    json["energy"].push_back(settings_.energy.at(step, num_steps_, layout_.seq_len));
  json["layers"] = Json::array();
  for (int layer = 0; layer < num_layers_; ++layer) add_layer(subject, layer, made);
  return made;
}

}  // namespace

double row_similarity(const VideoGrid& grid, int anchors,
                      const std::function<void(int64_t first, int64_t count, float* p)>& rows) {
  const auto height = static_cast<int32_t>(grid.height);
  const std::vector<int32_t> anchor = anchor_rows(height, anchors);
  const std::vector<int32_t> nearest = nearest_anchors(height, anchors);
  const int64_t values = grid.width * grid.tokens();
  std::vector<float> a(static_cast<size_t>(values)), b(static_cast<size_t>(values));
  std::vector<double> similar;
  const int64_t frames = std::min(grid.frames, kSimilarityFrames);
  for (int64_t i = 0; i < frames; ++i) {
    const int64_t first = (2 * i + 1) * grid.frames / (2 * frames) * height;
    // Rows ascend and so do their anchors: each anchor is computed once.
    int32_t held = -1;
    for (int32_t row = 0; row < height; ++row) {
      if (nearest[row] == row) continue;
      if (nearest[row] != held) {
        held = nearest[row];
        rows((first + held) * grid.width, grid.width, a.data());
      }
      rows((first + row) * grid.width, grid.width, b.data());
      similar.push_back(cosine(a.data(), b.data(), values));
    }
  }
  return similar.empty() ? 1.0 : median(std::move(similar));
}

Calibration calibrate_calibatt(Subject& subject, const CalibAttSettings& settings,
                               const std::filesystem::path& progress_file, const WalkHooks& hooks) {
  Votes votes(subject, settings);
  dense_rules(subject.target().num_steps(), settings.dense_steps);
  walk(subject, votes, progress_file, hooks);
  return votes.result(subject);
}

}  // namespace lacuna
