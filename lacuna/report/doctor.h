// SPDX-License-Identifier: Apache-2.0
// Which layers and heads can be sparse at what loss, and whether that pays on this machine.
//
// Loss is rel_l1 of one head's attention output, sum |o - o'| / sum |o|, against dense attention in
// the same dtype, in one call. The density a head needs is that of the sparsest mask of the method
// with at most the wanted loss. A head that needs more than the break-even density stays dense, and
// so does a layer whose expected time, selection counted, is not below dense attention's.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lacuna/calibrate/replay.h"
#include "lacuna/engine/json_object.h"
#include "lacuna/engine/profile.h"
#include "lacuna/report/cost_model.h"

namespace lacuna {

// What one head needs in one call.
struct HeadNeed {
  double fullness = 1.0;  // place on the knob: 0 sparse end, 1 full end
  double density = 1.0, loss = 0.0;
  double weight = 0.0;   // sum |o|: the head's share in its layer's loss
  bool reached = false;  // false: no tried value had a loss this small
};

// One layer at one step.
struct Finding {
  int expert = 0, step = 0, layer = 0;
  std::vector<HeadNeed> heads;
};

// What was looked for, and found.
struct Examined {
  ReplayCase wanted;  // has a knob
  double loss = 0.0;
  std::vector<Finding> findings;
};

// Looks at calls one by one; keeps none of their tensors.
class Examination {
 public:
  // Throws Error unless `wanted` is a method with a knob that takes a value per head, without a
  // skip rule, whose masks do not outlive a step or are static.
  Examination(Backend& backend, ReplayCase wanted, double loss, std::function<void()> between = {});
  // Halves the knob's range for each head on its own. Of calls at one site, such as those of
  // several prompts, the greatest need stays.
  void look(const RecordedCall& call);

  const Examined& result() const { return found_; }
  // How many values look() tries.
  static constexpr int kRounds = 6;

 private:
  struct Tried {
    double density, loss;
  };
  std::vector<Tried> attempt(const RecordedCall& call, const Tensor& dense,
                             const std::vector<double>& fullness);

  Backend& backend_;
  Examined found_;
  std::function<void()> between_;
};

// The steps of a generation, for what is expected of a whole one.
struct Schedule {
  int num_steps = 1;
  std::vector<int> experts;  // per step; empty = that of the nearest finding
  std::vector<bool> dense;   // per step; empty = none is kept dense
  std::vector<int> layers;   // all that are counted
  int num_layers = 0;        // of the network; 0 = as many as are counted
};

// One layer over a range of steps around the step that was examined.
struct Decision {
  int expert = 0, step_begin = 0, step_end = 0, layer = 0;
  bool sparse = false;
  std::string why;                   // of dense
  std::vector<double> values;        // of the knob, per head
  std::vector<double> head_density;  // as decided; 1 = dense
  double needed = 1.0;               // mean over heads of the density they need
  double density = 1.0, loss = 0.0;  // mean over heads; of the layer's output
  double sparse_ms = 0.0;            // expected, selection counted
};

struct Diagnosis {
  std::string method;
  double target = 0.0;
  int64_t tokens = 0;
  bool pays = false;
  bool experts = false;  // rules name the expert
  std::vector<Decision> decisions;
  // Of a network of num_layers, layers are counted; the same unless a recording stands alone.
  int layers = 0, num_layers = 0;
  double attention_speedup = 1.0;      // of these layers, over a whole generation
  std::optional<double> step_speedup;  // by Amdahl, when attention's share of a step is known
  std::optional<double> attention_share;
  double density = 1.0;  // mean over these layers and a whole generation
};

// `attention_share` of a dense step, if known.
Diagnosis diagnose(const Examined& examined, const MeasuredCost& cost, int64_t tokens,
                   Schedule schedule, std::optional<double> attention_share);

// One or two sentences a person can act on.
std::string verdict(const Diagnosis& diagnosis, const MeasuredCost& cost);

// The policy of the diagnosis: `dense` rules first, then one per sparse decision.
Profile doctor_profile(const Diagnosis& diagnosis, const Examined& examined,
                       const ProfileTarget& target, std::vector<ProfileRule> dense);

// Sections of the report: verdict, cost on this machine, layers, two heat maps, bars.
Json doctor_sections(const Diagnosis& diagnosis, const Examined& examined,
                     const MeasuredCost& cost);

}  // namespace lacuna
