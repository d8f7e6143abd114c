// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <tuple>

#include "lacuna/core/error.h"

namespace lacuna::cuda {
namespace {

// Its functions, by their names. They stay loaded.
struct Api {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtMatmulDescCreate) create_matmul;
  decltype(&cublasLtMatmulDescSetAttribute) set_matmul;
  decltype(&cublasLtMatmulDescDestroy) destroy_matmul;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;
};

template <typename F>
bool find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  return *function != nullptr;
}

bool find_all(void* library, Api* a) {
  return find(library, "cublasLtCreate", &a->create) &&
         find(library, "cublasLtDestroy", &a->destroy) &&
         find(library, "cublasLtGetVersion", &a->version) &&
         find(library, "cublasLtMatmulDescCreate", &a->create_matmul) &&
         find(library, "cublasLtMatmulDescSetAttribute", &a->set_matmul) &&
         find(library, "cublasLtMatmulDescDestroy", &a->destroy_matmul) &&
         find(library, "cublasLtMatrixLayoutCreate", &a->create_layout) &&
         find(library, "cublasLtMatrixLayoutDestroy", &a->destroy_layout) &&
         find(library, "cublasLtMatmulPreferenceCreate", &a->create_preference) &&
         find(library, "cublasLtMatmulPreferenceSetAttribute", &a->set_preference) &&
         find(library, "cublasLtMatmulPreferenceDestroy", &a->destroy_preference) &&
         find(library, "cublasLtMatmulAlgoGetHeuristic", &a->heuristic) &&
         find(library, "cublasLtMatmul", &a->matmul);
}

void check(cublasStatus_t status, const char* what) {
  LACUNA_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuda: {}: status {} of cuBLASLt, expected 0", what,
               static_cast<int>(status));
}

cudaDataType type_of(bool bf16) {
  return bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

// The largest power of two up to 256 that divides the address.
uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return static_cast<uint32_t>(std::min<uintptr_t>(256, address & (~address + 1)));
}

// Rows in our sense are columns in BLAS's: out^T [n, m] = w [n, k] x^T [k, m].
struct Plan {
  cublasLtMatmulDesc_t matmul = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, base = nullptr, out = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool possible = false;
};

class CublasLt final : public MatrixLibrary {
 public:
  CublasLt(const Api& api, void* workspace) : api_(api), workspace_(workspace) {
    check(api_.create(&handle_), "cublasLtCreate");
  }
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;
  // With the context current, as in gemm().
  ~CublasLt() override {
    for (const auto& [key, plan] : plans_) {
      if (plan.matmul != nullptr) api_.destroy_matmul(plan.matmul);
      if (plan.base != plan.out && plan.base != nullptr) api_.destroy_layout(plan.base);
      for (const cublasLtMatrixLayout_t layout : {plan.w, plan.x, plan.out})
        if (layout != nullptr) api_.destroy_layout(layout);
    }
    api_.destroy(handle_);
  }
  std::string name() const override {
    const size_t v = api_.version();
    return fmt::format("cuBLASLt {}.{}.{}", v / 10000, v / 100 % 100, v % 100);
  }

  bool gemm(const Gemm& g, void* stream) override {
    Plan& plan = plan_of(g);
    if (!plan.possible) return false;
    set_bias(plan, g);
    const float one = 1.0f, beta = g.base == nullptr ? 0.0f : 1.0f;
    check(
        api_.matmul(handle_, plan.matmul, &one, g.w, plan.w, g.x, plan.x, &beta,
                    g.base == nullptr ? g.out : g.base, plan.base, g.out, plan.out, &plan.algorithm,
                    workspace_, kMatrixWorkspaceBytes, static_cast<cudaStream_t>(stream)),
        "cublasLtMatmul");
    return true;
  }

 private:
  // All that the choice of an algorithm may depend on.
  using Key = std::tuple<int32_t, int32_t, int32_t, int64_t, int64_t, int64_t, int64_t, int,
                         std::array<uint32_t, 5>>;
  static Key key_of(const Gemm& g) {
    const int flags = (g.bf16 ? 1 : 0) | (g.out_bf16 ? 2 : 0) | (g.bias != nullptr ? 4 : 0) |
                      (g.base == nullptr ? 0
                       : g.base == g.out ? 8
                                         : 16) |
                      static_cast<int>(g.activation) << 5 | (g.relu ? 128 : 0);
    return {g.m,
            g.n,
            g.k,
            g.x_stride,
            g.w_stride,
            g.out_stride,
            g.base_stride,
            flags,
            {alignment(g.x), alignment(g.w), alignment(g.out),
             alignment(g.base == nullptr ? g.out : g.base),
             alignment(g.bias == nullptr ? g.out : g.bias)}};
  }

  // Applied to the sum with the base.
  static cublasLtEpilogue_t epilogue_of(const Gemm& g) {
    const bool bias = g.bias != nullptr;
    if (g.activation == Activation::gelu_tanh)
      return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    if (g.relu) return bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
    return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  }

  Plan& plan_of(const Gemm& g) {
    const auto [at, fresh] = plans_.try_emplace(key_of(g));
    if (fresh) make_plan(g, &at->second);
    return at->second;
  }

  void set_bias(const Plan& plan, const Gemm& g) {
    if (g.bias == nullptr) return;
    check(api_.set_matmul(plan.matmul, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g.bias, sizeof(g.bias)),
          "bias");
  }

  void make_plan(const Gemm& g, Plan* plan) {
    const auto apart = [](int32_t rows, int64_t stride, int32_t channels) {
      return rows <= 1 || stride >= channels;
    };
    if (!apart(g.m, g.x_stride, g.k) || !apart(g.n, g.w_stride, g.k) ||
        !apart(g.m, g.out_stride, g.n) || (g.base != nullptr && !apart(g.m, g.base_stride, g.n)))
      return;
    // Plain f32: TF32 would have to be asked for.
    check(api_.create_matmul(&plan->matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F), "matmul");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(
        api_.set_matmul(plan->matmul, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
        "transposition");
    const cublasLtEpilogue_t epilogue = epilogue_of(g);
    check(api_.set_matmul(plan->matmul, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)),
          "epilogue");
    set_bias(*plan, g);
    const auto layout = [&](cublasLtMatrixLayout_t* to, bool bf16, int32_t rows, int32_t columns,
                            int64_t stride) {
      check(api_.create_layout(to, type_of(bf16), static_cast<uint64_t>(rows),
                               static_cast<uint64_t>(columns),
                               std::max<int64_t>(stride, rows)),  // of one column any will do
            "layout");
    };
    layout(&plan->w, g.bf16, g.k, g.n, g.w_stride);
    layout(&plan->x, g.bf16, g.k, g.m, g.x_stride);
    layout(&plan->out, g.out_bf16, g.n, g.m, g.out_stride);
    // In place and without a base, C is D.
    plan->base = plan->out;
    if (g.base != nullptr && g.base != g.out)
      layout(&plan->base, g.out_bf16, g.n, g.m, g.base_stride);
    choose(g, plan);
  }

  void choose(const Gemm& g, Plan* plan) {
    cublasLtMatmulPreference_t preference = nullptr;
    check(api_.create_preference(&preference), "preference");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      check(api_.set_preference(preference, what, &value, sizeof(value)), "preference");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kMatrixWorkspaceBytes});
    // Sums are f32 also where a product is cut along its channels: not in the type of the result.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(g.w));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(g.x));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(g.base == nullptr ? g.out : g.base));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(g.out));
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status =
        api_.heuristic(handle_, plan->matmul, plan->w, plan->x, plan->base, plan->out, preference,
                       1, &result, &found);
    api_.destroy_preference(preference);
    plan->possible =
        status == CUBLAS_STATUS_SUCCESS && found > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    if (plan->possible) plan->algorithm = result.algo;
  }

  const Api api_;
  void* workspace_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

}  // namespace

std::unique_ptr<MatrixLibrary> open_matrix_library(void* workspace, std::string* why) {
  // The header's own version first; what is used here is the same in both.
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    Api api{};
    if (library == nullptr || !find_all(library, &api)) continue;
    try {
      return std::make_unique<CublasLt>(api, workspace);
    } catch (const Error& e) {
      *why = e.what();  // a driver older than this library: perhaps the other one
    }
  }
  if (why->empty()) *why = "libcublasLt.so.13 or .12 cannot be opened";
  return nullptr;
}

}  // namespace lacuna::cuda
