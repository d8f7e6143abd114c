// SPDX-License-Identifier: Apache-2.0
// Which blocks of attention to compute. A method is order + score + select; when it runs again
// (refresh) and what the kernel drops (skip) belong to the policy.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/block_mask.h"
#include "lacuna/core/site.h"
#include "lacuna/core/state_io.h"
#include "lacuna/core/team.h"
#include "lacuna/core/token_order.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/core/workspace.h"

namespace lacuna {

// Declared once per parameter; CLI flags, profile validation, docs/methods.md, Python signatures
// and calibration ranges all come from it.
struct ParamSpec {
  std::string_view name;
  double default_value;
  double min, max;
  bool integer;
  std::string_view help;
};

// Values of one method's parameters: a scalar, or one value per head.
class Params {
 public:
  // Defaults of `specs`.
  explicit Params(std::span<const ParamSpec> specs = {});
  // Throws Error (name, value, allowed range, known names) when unknown or out of range.
  void set(std::string_view name, double value);
  void set_per_head(std::string_view name, std::vector<double> values);
  double get(std::string_view name, int64_t head = 0) const;
  int64_t get_int(std::string_view name, int64_t head = 0) const;
  bool per_head(std::string_view name) const;
  std::span<const double> values(std::string_view name) const;  // 1, or one per head
  // Of heads [begin, end) alone, where `num_heads` have values.
  Params of_heads(int64_t begin, int64_t end, int64_t num_heads) const;
  std::span<const ParamSpec> specs() const { return specs_; }

 private:
  size_t index(std::string_view name) const;
  std::span<const ParamSpec> specs_;
  std::vector<std::vector<double>> values_;  // per spec: 1 value, or one per head
};

// What a method decided for the heads of SelectArgs::head_ids: row i of everything is head i of
// them. An empty mask means dense, for all of them.
struct Selection {
  BlockLayout q_layout, k_layout;
  BlockMask mask;
  TokenOrder q_order, k_order;  // over all seq_len tokens; empty = raster. Text tokens stay last.
  // Raster token whose output row a token takes when the kernel is done, no permutation: a token
  // that others copy takes its own. Empty = every token its own. Query blocks of nothing but
  // copying tokens may keep no key block.
  TokenOrder row_source;
  // What the kernel shall report about these heads; observe() is called iff one is set.
  bool wants_lse = false;
  bool wants_block_mass = false;
  bool wants_skip_bits = false;
  // The mask is not decided yet: this call only looks. It runs dense and without a skip rule, and
  // whatever the refresh rule says these heads are selected again in the next call, from the state.
  // The mask must be empty.
  bool provisional = false;
};

struct SelectArgs {
  Backend& backend;
  Workspace& workspace;  // of backend memory; names start with the method's name
  Site site;
  VideoGrid grid;           // video tokens; text tokens, if any, follow them
  int64_t text_tokens = 0;  // rows and columns after the video tokens that are never dropped
  TensorView q, k, v;       // [num_heads, seq_len, head_dim], strided, raster order; for ops only
  std::span<const int32_t> head_ids;  // the heads to select for, ascending
  float sm_scale = 0.0f;
  const Params& params;
  const Selection* fixed = nullptr;  // all heads, from a profile or a replay; read by `fixed` only
  HeadShare share{};                 // which heads these are, where others lie in other processes

  int64_t seq_len() const { return grid.tokens() + text_tokens; }
};

// What the kernel reports back, for the heads of the selection. Arrays are null unless asked for
// and indexed by tensor head; rows and blocks are those of the selection's order and layout.
struct Observation {
  Site site;
  std::span<const int32_t> head_ids;
  const SelectArgs* args = nullptr;     // what select() got for this call
  const float* lse = nullptr;           // [num_heads, q_len]
  const float* block_mass = nullptr;    // [num_heads, num_q_blocks, num_k_blocks]
  const uint64_t* skip_bits = nullptr;  // [num_heads, num_q_blocks, words per row]
};

// What a method remembers between calls at one (layer, branch, expert). Owned by the engine.
class State {
 public:
  virtual ~State() = default;
  // Saves or restores what there is to remember; what is restored is of such a site. Sizes that
  // select() relies on are checked here or there.
  virtual void transfer(const StateIo& io, int64_t num_heads, int64_t seq_len) = 0;
};

// The sizes of one site's attention.
struct SiteSizes {
  VideoGrid grid;
  int64_t text_tokens = 0;
  int64_t num_heads = 0, head_dim = 0;
  DType dtype = DType::f32;  // of q and k
  int64_t seq_len() const { return grid.tokens() + text_tokens; }
};

// What decides how much a site holds of a method.
struct HoldArgs {
  SiteSizes sizes;
  const Params& params;
  const Selection* fixed = nullptr;  // as in SelectArgs
  // What the kernel skips is taken out of the selection in force: there is a mask then also where
  // the method gives none.
  bool drops = false;
};

class Method {
 public:
  virtual ~Method() = default;
  virtual std::string_view name() const = 0;
  virtual std::string_view summary() const = 0;  // one line; paper and arXiv id
  virtual std::span<const ParamSpec> specs() const = 0;
  // Version of the formulas; rises when equal parameters mean another mask. Profiles carry it.
  virtual int formula() const { return 1; }
  // True when the mask follows from grid and parameters alone: selecting once is enough.
  virtual bool static_mask() const { return false; }
  // The parameter that moves the density one way over its range when the others are as in
  // `params`, for searches; empty if none does.
  virtual std::string_view density_parameter(const Params& /*params*/) const { return {}; }
  // True when select() reads SelectArgs::fixed and cannot do without it.
  virtual bool takes_masks() const { return false; }
  // True when a first selection may only look (Selection::provisional).
  virtual bool looks() const { return false; }
  // True when select() may put tokens in another order or let rows stand for others: attention then
  // holds q, k, v and out twice. What SelectArgs::fixed says by itself needs no word here.
  virtual bool moves_tokens(const Params& /*params*/) const { return false; }
  // Bytes that one site holds from call to call, at most: the selection in force and what the State
  // saves. By default a mask in blocks of the parameter `block`, or of `block_q` and `block_k`.
  virtual int64_t held_bytes(const HoldArgs& args) const;
  // Of these what the State saves, at most: all that is held where every call selects anew.
  virtual int64_t state_bytes(const HoldArgs& /*args*/) const { return 0; }
  // Whether what a head keeps depends on the other heads of the call: then heads that lie in other
  // processes must select in the same calls.
  virtual bool weighs_heads(const Params& /*params*/) const { return false; }
  // Throws Error when values that are each in range do not fit together.
  virtual void check(const Params& /*params*/) const {}
  virtual std::unique_ptr<State> make_state() const { return nullptr; }
  // Selects blocks for a subset of heads. Must not depend on thread count.
  virtual Selection select(const SelectArgs& args, State* state) const = 0;
  virtual void observe(const Observation& /*seen*/, State* /*state*/) const {}
};

// All methods, in the order of methods.def.
std::span<const Method* const> all_methods();
// Throws Error listing the names when unknown.
const Method& find_method(std::string_view name);

}  // namespace lacuna
