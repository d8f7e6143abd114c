// SPDX-License-Identifier: Apache-2.0
// Methods that calibration puts in the place of a real one. They are not in the registry.
#pragma once

#include <functional>
#include <span>
#include <string>

#include "lacuna/engine/policy.h"
#include "lacuna/methods/method.h"

namespace lacuna {

// The host for one head, every block for all others. Works on all heads of a call.
class OneHead final : public Method {
 public:
  // The density that the head's mask really had goes to *density.
  OneHead(const Method& host, int32_t head, double* density)
      : host_(host), head_(head), density_(density) {}
  std::string_view name() const override { return "one_head"; }
  std::string_view summary() const override { return "The host for one head, dense for others"; }
  std::span<const ParamSpec> specs() const override { return host_.specs(); }
  bool moves_tokens(const Params& params) const override { return host_.moves_tokens(params); }
  void check(const Params& params) const override { host_.check(params); }
  std::unique_ptr<State> make_state() const override { return host_.make_state(); }
  Selection select(const SelectArgs& args, State* state) const override;

 private:
  const Method& host_;
  int32_t head_;
  double* density_;
};

// The host, which tells the density of every head it selects for.
class HeadDensities final : public Method {
 public:
  // densities[head] is that of the head's last mask; as long as there are heads.
  HeadDensities(const Method& host, std::span<double> densities)
      : host_(host), densities_(densities) {}
  std::string_view name() const override { return host_.name(); }
  std::string_view summary() const override { return host_.summary(); }
  std::span<const ParamSpec> specs() const override { return host_.specs(); }
  bool static_mask() const override { return host_.static_mask(); }
  bool moves_tokens(const Params& params) const override { return host_.moves_tokens(params); }
  void check(const Params& params) const override { host_.check(params); }
  std::unique_ptr<State> make_state() const override { return host_.make_state(); }
  Selection select(const SelectArgs& args, State* state) const override;
  void observe(const Observation& seen, State* state) const override { host_.observe(seen, state); }

 private:
  const Method& host_;
  std::span<double> densities_;
};

// Dense attention that shows its inputs and, if asked for, the exact mass of every block.
class Observer final : public Method {
 public:
  struct Hooks {
    std::function<void(const SelectArgs&)> inputs;
    std::function<void(const Observation&)> mass;  // unset = mass is not computed
    int32_t block = 128;                           // of the mass
  };
  explicit Observer(Hooks hooks) : hooks_(std::move(hooks)) {}
  std::string_view name() const override { return "observer"; }
  std::string_view summary() const override { return "Dense attention that is looked at"; }
  std::span<const ParamSpec> specs() const override { return {}; }
  Selection select(const SelectArgs& args, State* state) const override;
  void observe(const Observation& seen, State* state) const override;

 private:
  Hooks hooks_;
};

// `method` with `params` in every layer (layer < 0) or in one, dense elsewhere.
Policy probe_policy(const Method& method, const Params& params, int layer = -1,
                    Compensation compensate = Compensation::none);

}  // namespace lacuna
