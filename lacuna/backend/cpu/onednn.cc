// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/onednn.h"

#include <omp.h>

#include <algorithm>
#include <mutex>

#include "lacuna/core/error.h"

namespace lacuna::cpu {
namespace {

using dnnl::memory;

// oneDNN asks OpenMP for the thread count when it makes a primitive and, for some, when it runs it.
class SingleThread {
 public:
  SingleThread() : saved_(omp_get_max_threads()) {
    if (saved_ != 1) omp_set_num_threads(1);
  }
  ~SingleThread() {
    if (saved_ != 1) omp_set_num_threads(saved_);
  }
  SingleThread(const SingleThread&) = delete;
  SingleThread& operator=(const SingleThread&) = delete;

 private:
  int saved_;
};

memory::data_type data_type(DType dtype) {
  return dtype == DType::f32 ? memory::data_type::f32 : memory::data_type::bf16;
}

dnnl::cpu_isa dnnl_isa(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return dnnl::cpu_isa::avx2;
    case Isa::avx512:
      return dnnl::cpu_isa::avx512_core;
    case Isa::avx512_bf16:
      return dnnl::cpu_isa::avx512_core_bf16;
    case Isa::amx:
      break;
  }
  return dnnl::cpu_isa::avx512_core_amx;
}

void limit_level() {
  const Isa wanted = active_isa();
  if (wanted == machine_isa()) return;
  const dnnl::cpu_isa level = dnnl_isa(wanted);
  if (dnnl::set_max_cpu_isa(level) == dnnl::status::success) return;
  // Levels are bit sets: within the wanted one is good enough.
  const auto effective = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  LACUNA_CHECK((effective & ~static_cast<unsigned>(level)) == 0,
               "LACUNA_ISA: {}, but oneDNN is in use already at a higher level, expected to be set "
               "before the first primitive",
               isa_name(wanted));
}

void set_post_ops(const GemmSpec& spec, const memory::desc& vector, dnnl::primitive_attr& attr) {
  dnnl::post_ops ops;
  switch (spec.epilogue) {
    case Epilogue::none:
      break;
    case Epilogue::gelu_tanh:
      ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_gelu_tanh, 0.0f, 0.0f);
      break;
    case Epilogue::silu:
      ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_swish, 1.0f, 0.0f);
      break;
    case Epilogue::residual:
      if (spec.gate) ops.append_binary(dnnl::algorithm::binary_mul, vector);
      ops.append_sum(1.0f);
      break;
  }
  attr.set_post_ops(ops);
}

memory borrow(const memory::desc& desc, const dnnl::engine& engine, const void* data) {
  return memory(desc, engine, const_cast<void*>(data));
}

// The CPU stream has no state of its own; one per thread keeps execution free of sharing.
dnnl::stream& thread_stream(const dnnl::engine& engine) {
  thread_local dnnl::stream stream(engine);
  return stream;
}

// On all threads. Made anew for the present thread count; oneDNN keeps recent primitives itself.
void reorder_weights(const dnnl::engine& engine, const memory::desc& plain, const void* from,
                     const memory::desc& packed, void* to) {
  memory source = borrow(plain, engine, from), target = borrow(packed, engine, to);
  dnnl::reorder(source, target).execute(thread_stream(engine), source, target);
}

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

}  // namespace

GemmPlan::GemmPlan(const dnnl::engine& engine, const GemmSpec& spec, int64_t tail_m)
    : engine_(engine),
      plain_({spec.k, spec.n}, data_type(spec.src), memory::dims{1, spec.k}),
      weights_(plain_),
      vector_({1, spec.n}, memory::data_type::f32, memory::format_tag::ab) {
  SingleThread guard;
  variants_[0] = make(spec, spec.m, spec.pack);
  if (tail_m > 0) variants_[1] = make(spec, tail_m, false);
  packs_ = weights_ != plain_;
}

GemmPlan::Variant GemmPlan::make(const GemmSpec& spec, int64_t rows, bool any_layout) {
  Variant v;
  v.rows = rows;
  v.src = memory::desc({rows, spec.k}, data_type(spec.src), memory::format_tag::ab);
  v.dst = memory::desc({rows, spec.n}, data_type(spec.dst), memory::format_tag::ab);
  const memory::desc weights =
      any_layout ? memory::desc({spec.k, spec.n}, data_type(spec.src), memory::format_tag::any)
                 : weights_;
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  set_post_ops(spec, vector_, attr);
  const dnnl::matmul::desc desc = spec.bias ? dnnl::matmul::desc(v.src, weights, vector_, v.dst)
                                            : dnnl::matmul::desc(v.src, weights, v.dst);
  const dnnl::matmul::primitive_desc pd(desc, attr, engine_);
  v.primitive = dnnl::matmul(pd);
  if (any_layout) weights_ = pd.weights_desc();
  scratch_bytes_ = std::max(scratch_bytes_, static_cast<int64_t>(pd.scratchpad_desc().get_size()));
  implementation_ = pd.impl_info_str();
  return v;
}

void GemmPlan::pack(const void* plain, void* packed) const {
  reorder_weights(engine_, plain_, plain, weights_, packed);
}

void GemmPlan::run(int64_t rows, const void* src, const void* weights, const float* bias,
                   const float* gate, void* dst, void* scratch) const {
  const Variant& v = variants_[rows == variants_[0].rows ? 0 : 1];
  LACUNA_CHECK(v.rows == rows, "gemm: {} rows, expected {} or {}", rows, variants_[0].rows,
               variants_[1].rows);
  SingleThread guard;
  std::unordered_map<int, memory> args = {
      {DNNL_ARG_SRC, borrow(v.src, engine_, src)},
      {DNNL_ARG_WEIGHTS, borrow(weights_, engine_, weights)},
      {DNNL_ARG_DST, borrow(v.dst, engine_, dst)},
  };
  if (bias != nullptr) args.emplace(DNNL_ARG_BIAS, borrow(vector_, engine_, bias));
  if (gate != nullptr)
    args.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1,
                 borrow(vector_, engine_, gate));
  if (scratch_bytes_ > 0) {
    const memory::desc bytes({scratch_bytes_}, memory::data_type::u8, memory::format_tag::a);
    args.emplace(DNNL_ARG_SCRATCHPAD, borrow(bytes, engine_, scratch));
  }
  v.primitive.execute(thread_stream(engine_), args);
}

ConvPlan::ConvPlan(const dnnl::engine& engine, const ConvSpec& spec)
    : engine_(engine),
      plain_({spec.c_out, spec.c_in, spec.kt, spec.kh, spec.kw}, data_type(spec.dtype),
             spec.dtype == DType::f32 ? memory::format_tag::oidhw : memory::format_tag::odhwi),
      vector_({spec.c_out}, memory::data_type::f32, memory::format_tag::a),
      src_({1, spec.c_in, spec.t, spec.h, spec.w}, data_type(spec.dtype),
           memory::format_tag::ndhwc),
      dst_({1, spec.c_out, spec.out_t, spec.out_h, spec.out_w}, data_type(spec.dst),
           memory::format_tag::ndhwc) {
  SingleThread guard;
  const memory::desc weights({spec.c_out, spec.c_in, spec.kt, spec.kh, spec.kw},
                             data_type(spec.dtype), memory::format_tag::any);
  const memory::dims strides = {spec.stride_t, spec.stride_h, spec.stride_w};
  const memory::dims left = {0, 0, spec.pad_left};
  const int64_t used = (spec.out_w - 1) * spec.stride_w + spec.kw;
  const memory::dims right = {0, 0, std::max<int64_t>(0, used - spec.w - spec.pad_left)};
  const auto kind = dnnl::prop_kind::forward_inference;
  const auto direct = dnnl::algorithm::convolution_direct;
  using Desc = dnnl::convolution_forward::desc;
  const Desc desc = spec.bias
                        ? Desc(kind, direct, src_, weights, vector_, dst_, strides, left, right)
                        : Desc(kind, direct, src_, weights, dst_, strides, left, right);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops ops;
  if (spec.accumulate) ops.append_sum(1.0f);
  if (spec.relu) ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
  attr.set_post_ops(ops);
  const dnnl::convolution_forward::primitive_desc pd(desc, attr, engine_);
  primitive_ = dnnl::convolution_forward(pd);
  weights_ = pd.weights_desc();
  scratch_bytes_ = static_cast<int64_t>(pd.scratchpad_desc().get_size());
  implementation_ = pd.impl_info_str();
}

void ConvPlan::pack(const void* plain, void* packed) const {
  reorder_weights(engine_, plain_, plain, weights_, packed);
}

void ConvPlan::run(const void* src, const void* weights, const float* bias, void* dst,
                   void* scratch) const {
  SingleThread guard;
  std::unordered_map<int, memory> args = {
      {DNNL_ARG_SRC, borrow(src_, engine_, src)},
      {DNNL_ARG_WEIGHTS, borrow(weights_, engine_, weights)},
      {DNNL_ARG_DST, borrow(dst_, engine_, dst)},
  };
  if (bias != nullptr) args.emplace(DNNL_ARG_BIAS, borrow(vector_, engine_, bias));
  if (scratch_bytes_ > 0) {
    const memory::desc bytes({scratch_bytes_}, memory::data_type::u8, memory::format_tag::a);
    args.emplace(DNNL_ARG_SCRATCHPAD, borrow(bytes, engine_, scratch));
  }
  primitive_.execute(thread_stream(engine_), args);
}

OneDnn::OneDnn(Isa isa) : isa_(isa) {
  static std::once_flag once;
  std::call_once(once, limit_level);
  engine_ = cpu_engine();
}

size_t OneDnn::KeyHash::operator()(const Key& key) const {
  uint64_t h = 0xcbf29ce484222325u;
  for (int64_t word : key) h = (h ^ static_cast<uint64_t>(word)) * 0x100000001b3u;
  return static_cast<size_t>(h ^ (h >> 32));
}

namespace {

// A video run needs some dozens of plans; callers with ever new shapes must not fill the memory.
constexpr size_t kMaxPlans = 512;

template <typename Plans, typename Key, typename Make>
auto find_or_make(Plans& plans, const Key& key, Make&& make) {
  auto found = plans.find(key);
  if (found == plans.end()) {
    if (plans.size() >= kMaxPlans) plans.clear();
    found = plans.emplace(key, make()).first;
  }
  return found->second;
}

}  // namespace

std::shared_ptr<const GemmPlan> OneDnn::gemm(const GemmSpec& s, int64_t tail_m) {
  const Key key = {s.m,
                   s.n,
                   s.k,
                   tail_m,
                   s.pack,
                   4 * static_cast<int64_t>(s.epilogue) + 2 * s.bias + s.gate,
                   static_cast<int64_t>(s.src),
                   static_cast<int64_t>(s.dst)};
  return find_or_make(gemms_, key,
                      [&] { return std::make_shared<const GemmPlan>(engine_, s, tail_m); });
}

std::shared_ptr<const ConvPlan> OneDnn::conv(const ConvSpec& s) {
  const Key key = {s.c_in,
                   s.c_out,
                   s.kt,
                   s.kh,
                   s.kw,
                   s.t,
                   s.h,
                   s.w,
                   s.out_t,
                   s.out_h,
                   s.out_w,
                   s.stride_t,
                   s.stride_h,
                   s.stride_w,
                   s.pad_left,
                   static_cast<int64_t>(s.dtype),
                   static_cast<int64_t>(s.dst),
                   4 * s.relu + 2 * s.bias + s.accumulate};
  return find_or_make(convs_, key, [&] { return std::make_shared<const ConvPlan>(engine_, s); });
}

std::vector<std::string> OneDnn::implementations() const {
  std::vector<std::string> names;
  for (const auto& [key, plan] : gemms_) names.push_back(plan->implementation());
  for (const auto& [key, plan] : convs_) names.push_back(plan->implementation());
  return names;
}

char* OneDnn::scratch(std::string_view name, int64_t bytes) {
  return static_cast<char*>(workspace_.get(name, DType::u8, {std::max<int64_t>(bytes, 1)}).data);
}

}  // namespace lacuna::cpu
