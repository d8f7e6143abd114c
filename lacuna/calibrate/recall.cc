// SPDX-License-Identifier: Apache-2.0
// The recall rule drops a piece of n keys when kappa n e^(mhat - m) fits into what may be lost.
// With kappa = 1 that bounds the mass of any piece; kappa is the share of this bound that pieces of
// a head really have: q90 by default, so that what was dropped is counted about right, or the
// largest seen (quantile 1), which certifies the rows that were looked at.
//
// Measured on dense attention in pieces of kVoteKeys keys, pooled over prompts, sampled steps, rows
// and pieces, on the conditional branch; the values serve both branches.
#include "lacuna/calibrate/recall.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lacuna/calibrate/probe.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {

namespace {

const double kLogRange = std::log2(static_cast<double>(kVoteKeys));

class Kappa final : public Measurement {
 public:
  Kappa(const Subject& subject, const RecallSettings& settings);

  std::string settings() const override;
  bool wants(int prompt, int step) const override {
    const auto& steps = steps_[static_cast<size_t>(prompt)];
    return std::find(steps.begin(), steps.end(), step) != steps.end();
  }
  int64_t cost(int, int) const override { return num_layers_; }
  void measure(Subject& subject, int prompt, int step, const TensorView& velocity,
               const std::function<void(int64_t)>& ran) override;
  NamedTensors tensors() override { return {{"counts", counts_}}; }

  Calibration result(const Subject& subject) const;

 private:
  KappaHistogram histogram(const Tensor& counts, int expert, int layer, int64_t head) const {
    const int64_t at = (int64_t{expert} * num_layers_ + layer) * num_heads_ + head;
    return KappaHistogram(
        {counts.as<int64_t>() + at * KappaHistogram::kBins, KappaHistogram::kBins});
  }
  void look(const SelectArgs& args, const Tensor& counts) const;

  RecallSettings settings_;
  Plan host_;
  int num_layers_;
  int64_t num_heads_;
  std::vector<std::vector<int>> steps_;  // sampled, per prompt
  Tensor counts_;                        // [experts, layers, heads, bins] i64
};

Kappa::Kappa(const Subject& subject, const RecallSettings& settings)
    : settings_(settings),
      host_(parse_plan(settings.host)),
      num_layers_(subject.target().num_layers),
      num_heads_(subject.target().num_heads) {
  LACUNA_CHECK(host_.method != nullptr && !host_.method->takes_masks(),
               "recall: host {}, expected a method that selects", settings.host);
  check_steps(host_, subject.target().num_steps());
  LACUNA_CHECK(settings.quantile > 0.0 && settings.quantile <= 1.0,
               "recall: quantile {}, expected more than 0 and at most 1", settings.quantile);
  LACUNA_CHECK(settings.rows >= 0 && settings.intervals >= 1,
               "recall: {} rows in {} intervals, expected 0 or more in 1 or more", settings.rows,
               settings.intervals);
  Params params(skip_info(SkipKind::recall).specs);
  params.set("r", settings.recall);
  for (int prompt = 0; prompt < subject.num_prompts(); ++prompt) {
    steps_.emplace_back();
    for (int expert = 0; expert < subject.num_experts(); ++expert) {
      const IndexRange steps = expert_steps(subject, expert);
      const int samples = std::min(settings.intervals, steps.end - steps.begin);
      for (int i = 0; i < samples; ++i)
        steps_.back().push_back(
            sample_step(steps.begin, steps.end, i, samples,
                        fmt::format("recall/{}/{}/{}/{}", settings.seed, prompt, expert, i)));
    }
  }
  counts_ = Tensor::zeros(DType::i64,
                          {subject.num_experts(), num_layers_, num_heads_, KappaHistogram::kBins});
}

std::string Kappa::settings() const {
  Json json;
  json["method"] = "recall";
  json["rows"] = settings_.rows;
  json["intervals"] = settings_.intervals;
  json["seed"] = settings_.seed;
  return json.dump();
}

void Kappa::measure(Subject& subject, int /*prompt*/, int /*step*/, const TensorView& velocity,
                    const std::function<void(int64_t)>& ran) {
  const Tensor fresh = Tensor::zeros(
      DType::i64, {counts_.view().shape[0], num_layers_, num_heads_, KappaHistogram::kBins});
  const Observer observer({.inputs = [&](const SelectArgs& args) {
    look(args, fresh);
    ran(1);
  }});
  Engine engine(subject.backend(), probe_policy(observer, Params()));
  const Tensor residual(DType::f32, subject.stream_shape(), subject.backend());
  subject.run(engine, {0, num_layers_}, residual, velocity);
  // Only now: a step that is stopped in the middle is looked at again from its start.
  for (int64_t i = 0; i < counts_.numel(); ++i) counts_.as<int64_t>()[i] += fresh.as<int64_t>()[i];
}

void Kappa::look(const SelectArgs& args, const Tensor& counts) const {
  const int64_t n = args.seq_len(), wanted = settings_.rows == 0 ? n : std::min(settings_.rows, n);
  constexpr int64_t kChunk = 64;  // rows at once: their logits must fit into memory
  const int64_t pieces = (n + kVoteKeys - 1) / kVoteKeys;
  std::vector<double> ratios(static_cast<size_t>(kChunk * pieces));
  for (int64_t head = 0; head < num_heads_; ++head) {
    TensorView k = args.k.slice(head, head + 1);
    k.rank = 2, k.shape = {n, args.k.shape[2]}, k.stride = {args.k.stride[1], 1};
    for (int64_t begin = 0; begin < wanted; begin += kChunk) {
      const int64_t rows = std::min(kChunk, wanted - begin);
      std::vector<int32_t> tokens;
      for (int64_t i = 0; i < rows; ++i)
        tokens.push_back(static_cast<int32_t>(spread_row(begin + i, wanted, n)));
      const TensorView sampled =
          args.workspace.get("recall.q", args.q.dtype, {1, rows, args.q.shape[2]});
      args.backend.gather_tokens(args.q.slice(head, head + 1), tokens.data(), 0, sampled);
      const TensorView q = sampled.reshape({rows, args.q.shape[2]});
      const TensorView logits = args.workspace.host("recall.logits", DType::f32, {rows, n});
      args.backend.linear(q, k, nullptr, Epilogue::none, nullptr, logits);
      parallel_tasks(rows, [&](int64_t i, int) {
        const std::span<float> row(logits.as<float>() + i * n, static_cast<size_t>(n));
        for (float& logit : row) logit *= args.sm_scale;
        piece_ratios(row, std::span(ratios).subspan(static_cast<size_t>(i * pieces)));
      });
      KappaHistogram into = histogram(counts, args.site.expert, args.site.layer, head);
      for (int64_t i = 0; i < rows * pieces; ++i) into.add(ratios[static_cast<size_t>(i)]);
    }
  }
}

Calibration Kappa::result(const Subject& subject) const {
  Calibration made;
  made.profile.target = subject.target();
  made.profile.rules = dense_rules(subject.target().num_steps(), settings_.dense_steps);
  Json& json = made.measurements = describe_target(subject, "recall");
  json["settings"] = Json::parse(settings());
  json["recall"] = settings_.recall;
  json["quantile"] = settings_.quantile;
  json["heads"] = Json::array();
  for (int expert = 0; expert < subject.num_experts(); ++expert)
    for (int layer = 0; layer < num_layers_; ++layer) {
      ProfileRule item = layer_rule(subject, expert, layer);
      item.rule.plan = host_;
      SkipRule& skip = item.rule.plan.skip;
      skip.kind = SkipKind::recall;
      skip.param = {static_cast<float>(settings_.recall)};
      for (int64_t head = 0; head < num_heads_; ++head) {
        const KappaHistogram seen = histogram(counts_, expert, layer, head);
        skip.kappa.push_back(static_cast<float>(seen.quantile(settings_.quantile)));
        json["heads"].push_back({{"expert", expert},
                                 {"layer", layer},
                                 {"head", head},
                                 {"kappa", skip.kappa.back()},
                                 {"median", seen.quantile(0.5)},
                                 {"q90", seen.quantile(0.9)},
                                 {"q99", seen.quantile(0.99)},
                                 {"max", seen.quantile(1.0)}});
      }
      made.profile.rules.push_back(std::move(item));
    }
  return made;
}

}  // namespace

void KappaHistogram::add(double ratio) {
  const double position = (1.0 + std::log2(std::max(ratio, 1e-30)) / kLogRange) * kBins;
  // A value on an edge belongs to the bin below it, whose upper end it is.
  const auto bin = static_cast<int>(std::ceil(position)) - 1;
  ++bins_[static_cast<size_t>(std::clamp(bin, 0, kBins - 1))];
}

double KappaHistogram::quantile(double quantile) const {
  const auto total = std::accumulate(bins_.begin(), bins_.end(), int64_t{0});
  int64_t sum = 0;
  for (int bin = 0; bin < kBins; ++bin) {
    sum += bins_[static_cast<size_t>(bin)];
    if (sum > 0 && static_cast<double>(sum) >= quantile * static_cast<double>(total))
      return std::exp2((static_cast<double>(bin + 1) / kBins - 1.0) * kLogRange);
  }
  return 1.0;
}

int64_t spread_row(int64_t i, int64_t wanted, int64_t n) {
  return (2 * i + 1) * n / (2 * wanted);
}

void piece_ratios(std::span<const float> logits, std::span<double> ratios) {
  for (size_t begin = 0; begin < logits.size(); begin += kVoteKeys) {
    const auto piece = logits.subspan(begin, std::min<size_t>(kVoteKeys, logits.size() - begin));
    const double top = *std::max_element(piece.begin(), piece.end());
    double mass = 0.0;
    for (float logit : piece) mass += std::exp(logit - top);
    ratios[begin / kVoteKeys] = mass / static_cast<double>(piece.size());
  }
}

Calibration calibrate_recall(Subject& subject, const RecallSettings& settings,
                             const std::filesystem::path& progress_file, const WalkHooks& hooks) {
  Kappa kappa(subject, settings);
  dense_rules(subject.target().num_steps(), settings.dense_steps);
  walk(subject, kappa, progress_file, hooks);
  return kappa.result(subject);
}

}  // namespace lacuna
