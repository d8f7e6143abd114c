// SPDX-License-Identifier: Apache-2.0
#include "bench/onednn_attend.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "lacuna/core/error.h"

namespace lacuna::bench {
namespace {

using dnnl::memory;
using DataType = memory::data_type;

constexpr int64_t kTileRows[] = {32, 64, 128, 256, 512};
constexpr int64_t kTrialQueries = 1024;

DataType input_type(const AttendParams& p) {
  return p.dtype == AttendDType::f32 ? DataType::f32 : DataType::bf16;
}

memory::desc rows_desc(int64_t rows, int64_t columns, DataType type) {
  return memory::desc({rows, columns}, type, memory::format_tag::ab);
}

dnnl::matmul::primitive_desc matmul(const dnnl::engine& engine, const memory::desc& a,
                                    const memory::desc& b, const memory::desc& c, float scale) {
  dnnl::primitive_attr attr;
  if (scale != 1.0f) attr.set_output_scales(0, {scale});
  const memory::desc any(b.dims(), b.data_type(), memory::format_tag::any);
  return {dnnl::matmul::desc(a, any, c), attr, engine};
}

}  // namespace

// The primitives for one number of rows and one type of scores, with their own packed K and V.
struct OneDnnAttention::Tile {
  int64_t rows;
  memory::desc q, out, plain_k, plain_v;
  dnnl::matmul::primitive_desc qk_desc, pv_desc;
  dnnl::matmul qk, pv;
  dnnl::softmax_v2_forward softmax;
  memory k, v, scores, weights;  // weights: scores themselves where the types allow it

  Tile(const AttendParams& p, const dnnl::engine& engine, int64_t tile_rows, DataType score_type)
      : rows(tile_rows) {
    const DataType type = input_type(p);
    const int64_t d = p.head_dim, n = p.k_len;
    q = out = rows_desc(rows, d, type);
    plain_k = memory::desc({d, n}, type, memory::dims{1, d});  // K^T without moving it
    plain_v = rows_desc(n, d, type);
    const memory::desc s = rows_desc(rows, n, score_type), w = rows_desc(rows, n, type);
    qk_desc = matmul(engine, q, plain_k, s, p.sm_scale);
    pv_desc = matmul(engine, w, plain_v, out, 1.0f);
    qk = dnnl::matmul(qk_desc);
    pv = dnnl::matmul(pv_desc);
    softmax = dnnl::softmax_v2_forward(
        {{dnnl::prop_kind::forward_inference, dnnl::algorithm::softmax_accurate, s, w, 1}, engine});
    k = memory(qk_desc.weights_desc(), engine);
    v = memory(pv_desc.weights_desc(), engine);
    scores = memory(s, engine);
    weights = score_type == type ? scores : memory(w, engine);
  }
};

OneDnnAttention::OneDnnAttention(const AttendParams& params)
    : p_(params), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
  LACUNA_CHECK(p_.num_heads == 1 && p_.q_len % kTileRows[1] == 0,
               "onednn_attend: {} heads, {} queries, expected 1 and a multiple of {}", p_.num_heads,
               p_.q_len, kTileRows[1]);
  std::vector<DataType> score_types = {DataType::f32};
  if (p_.dtype == AttendDType::bf16) score_types.push_back(DataType::bf16);
  double best = 1e30;
  DataType best_type = DataType::f32;
  try {
    for (DataType score_type : score_types)
      for (int64_t rows : kTileRows) {
        if (p_.q_len % rows != 0) continue;
        auto tile = std::make_unique<Tile>(p_, engine_, rows, score_type);
        const double seconds = time_of(*tile);
        if (seconds >= best) continue;
        best = seconds;
        best_type = score_type;
        tile_ = std::move(tile);
      }
  } catch (const dnnl::error& e) {
    fail("onednn_attend: oneDNN status {}, {}", static_cast<int>(e.status), e.what());
  }
  const dnnl_version_t* version = dnnl_version();
  description_ = fmt::format("oneDNN {}.{}.{} {}, {} queries a tile{}", version->major,
                             version->minor, version->patch, tile_->qk_desc.impl_info_str(),
                             tile_->rows, best_type == DataType::bf16 ? ", bf16 scores" : "");
}

OneDnnAttention::~OneDnnAttention() = default;

void OneDnnAttention::run() {
  pack(*tile_);
  run_rows(*tile_, p_.q_len);
}

void OneDnnAttention::pack(const Tile& tile) {
  memory k(tile.plain_k, engine_, const_cast<void*>(p_.k));
  memory v(tile.plain_v, engine_, const_cast<void*>(p_.v));
  memory packed_k = tile.k, packed_v = tile.v;
  dnnl::reorder(k, packed_k).execute(stream_, k, packed_k);
  dnnl::reorder(v, packed_v).execute(stream_, v, packed_v);
}

// Queries [0, end).
void OneDnnAttention::run_rows(const Tile& tile, int64_t end) {
  const int64_t element = p_.dtype == AttendDType::bf16 ? 2 : 4;
  const int64_t tile_bytes = tile.rows * p_.head_dim * element;
  auto* q_data = static_cast<char*>(const_cast<void*>(p_.q));
  auto* out_data = static_cast<char*>(p_.out);
  for (int64_t row = 0; row < end; row += tile.rows) {
    memory q(tile.q, engine_, q_data), out(tile.out, engine_, out_data);
    tile.qk.execute(stream_,
                    {{DNNL_ARG_SRC, q}, {DNNL_ARG_WEIGHTS, tile.k}, {DNNL_ARG_DST, tile.scores}});
    tile.softmax.execute(stream_, {{DNNL_ARG_SRC, tile.scores}, {DNNL_ARG_DST, tile.weights}});
    tile.pv.execute(
        stream_, {{DNNL_ARG_SRC, tile.weights}, {DNNL_ARG_WEIGHTS, tile.v}, {DNNL_ARG_DST, out}});
    q_data += tile_bytes;
    out_data += tile_bytes;
  }
  stream_.wait();
}

double OneDnnAttention::time_of(const Tile& tile) {
  pack(tile);
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run_rows(tile, std::min(p_.q_len, kTrialQueries));
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    best = std::min(best, spent.count());
  }
  return best;
}

}  // namespace lacuna::bench
