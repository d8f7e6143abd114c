// SPDX-License-Identifier: Apache-2.0
// lacuna.attention and lacuna.select.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <array>
#include <cmath>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/core/workspace.h"
#include "lacuna/engine/kernel_call.h"
#include "lacuna/methods/selection.h"
#include "python/arrays.h"
#include "python/bindings.h"
#include "python/mask.h"

namespace lacuna::python {

namespace {

using Lse = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

void check_mask(const Mask& mask, const Batch& q, const Batch& k) {
  const int64_t heads = mask.selection.mask.num_heads();
  LACUNA_CHECK(heads == q.all.shape[1] && mask.q().seq_len == q.all.shape[2] &&
                   mask.k().seq_len == k.all.shape[2],
               "attention: a mask of {} heads, {} queries and {} keys, expected {}, {} and {}",
               heads, mask.q().seq_len, mask.k().seq_len, q.all.shape[1], q.all.shape[2],
               k.all.shape[2]);
}

void attend(const InArray& q_array, const InArray& k_array, const InArray& v_array,
            const OutArray& out_array, const Mask* mask, std::string_view layout,
            std::optional<double> scale, std::string_view skip, const std::optional<Lse>& lse) {
  const Batch q = batch_of("q", q_array, layout), k = batch_of("k", k_array, layout),
              v = batch_of("v", v_array, layout), out = batch_of("out", out_array, layout);
  check_batches(q, k, v, out);
  LACUNA_CHECK(
      k.all.shape[1] == q.all.shape[1],
      "attention: {} heads of q and {} of k, expected as many: grouped heads are not taken, "
      "repeat those of k and v",
      q.all.shape[1], k.all.shape[1]);
  if (mask != nullptr) check_mask(*mask, q, k);
  const SkipRule rule = parse_skip(skip);
  const int64_t rows = q.all.shape[1] * q.all.shape[2];
  if (q.size() * rows == 0) return;
  float* const values = lse ? lse->data() : nullptr;
  const Computing computing;
  Workspace workspace(backend());
  KernelCall call(backend(), workspace);
  for (int64_t b = 0; b < q.size(); ++b) {
    call.begin(q.at(b), k.at(b), v.at(b), out.at(b));
    if (scale) call.set_scale(static_cast<float>(*scale));
    call.set_skip(rule);
    if (mask != nullptr) call.keep(mask->selection);
    if (values != nullptr) call.write_lse({values + b * rows, static_cast<size_t>(rows)});
    call.run();
  }
}

// A method as in Session, without what is no part of one selection.
Plan plan_of(const std::string& spec) {
  Plan plan = parse_plan(spec);
  const Method* method = plan.method;
  const Plan plain = parse_plan(spec.substr(0, spec.find(':')));
  LACUNA_CHECK(plan.refresh == plain.refresh && plan.compensate == Compensation::none,
               "select: '{}', expected a method and its parameters: refresh rules and compensation "
               "belong to a Session",
               spec);
  LACUNA_CHECK(method == nullptr || !method->takes_masks(),
               "select: {} takes its masks from a profile, expected a method that makes them",
               method->name());
  return plan;
}

Mask select(const InArray& q_array, const InArray& k_array, const std::string& spec,
            const std::array<int64_t, 3>& grid, int64_t text_tokens, std::string_view layout,
            std::optional<double> scale) {
  const Batch q = batch_of("q", q_array, layout), k = batch_of("k", k_array, layout);
  const Plan plan = plan_of(spec);
  const VideoGrid video = grid_of(grid, text_tokens);
  const int64_t heads = q.all.shape[1], channels = q.all.shape[3];
  const int64_t seq_len = video.tokens() + text_tokens;
  LACUNA_CHECK(q.size() == 1 && k.size() == 1,
               "select: a batch of {}, expected one sample: each has masks of its own", q.size());
  LACUNA_CHECK(q.all.shape == k.all.shape && q.all.dtype == k.all.dtype && heads > 0 &&
                   channels > 0 && q.all.shape[2] == seq_len,
               "select: q {} and k {}, expected both {} heads, {} tokens of grid and text",
               q.at(0).describe(), k.at(0).describe(), heads, seq_len);
  const Computing computing;
  Mask mask;
  Selection& s = mask.selection;
  if (plan.method != nullptr) {
    Workspace workspace(backend());
    std::vector<int32_t> all(static_cast<size_t>(heads));
    std::iota(all.begin(), all.end(), 0);
    const double natural = 1.0 / std::sqrt(static_cast<double>(channels));
    const SelectArgs args{
        backend(),  workspace, Site{},  video, text_tokens,
        q.at(0),    k.at(0),   k.at(0), all,   static_cast<float>(scale.value_or(natural)),
        plan.params};
    const std::unique_ptr<State> state = plan.method->make_state();
    s = plan.method->select(args, state.get());
    check_selection(s, plan.method->name(), heads, video.tokens(), text_tokens);
    LACUNA_CHECK(!s.provisional,
                 "select: {} looks at a dense call before it selects; run it in a Session",
                 plan.method->name());
  }
  if (s.mask.empty()) {  // dense
    constexpr int32_t kBlock = 128;
    s = {};
    s.q_layout = s.k_layout = BlockLayout::uniform(seq_len, kBlock);
    s.mask = BlockMask(heads, s.q_layout.num_blocks, s.k_layout.num_blocks);
    s.mask.fill();
  }
  s.wants_lse = s.wants_block_mass = s.wants_skip_bits = false;
  return mask;
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("attend", &attend, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"),
        nb::arg("mask").none(), nb::arg("layout"), nb::arg("scale").none(), nb::arg("skip"),
        nb::arg("lse").none());
  m.def("select", &select, nb::arg("q"), nb::arg("k"), nb::arg("method"), nb::arg("grid"),
        nb::arg("text_tokens"), nb::arg("layout"), nb::arg("scale").none());
}

}  // namespace lacuna::python
