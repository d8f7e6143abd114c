// SPDX-License-Identifier: Apache-2.0
// Row-wise network operations and the linear layer.
#include <algorithm>
#include <vector>

#include "lacuna/backend/network_check.h"
#include "lacuna/backend/ref/numeric.h"
#include "lacuna/backend/ref/ops.h"
#include "lacuna/core/threads.h"

namespace lacuna::ref {
namespace {

std::vector<double> load_row(const TensorView& x, int64_t row) {
  std::vector<double> values(static_cast<size_t>(x.shape[1]));
  for (size_t c = 0; c < values.size(); ++c)
    values[c] = reader(x)[row * x.stride[0] + static_cast<int64_t>(c)];
  return values;
}

void store_row(const TensorView& out, int64_t row, const std::vector<double>& values) {
  for (size_t c = 0; c < values.size(); ++c)
    writer(out).set(row * out.stride[0] + static_cast<int64_t>(c), values[c]);
}

double apply(Epilogue epilogue, double y) {
  switch (epilogue) {
    case Epilogue::gelu_tanh:
      return gelu_tanh(y);
    case Epilogue::silu:
      return silu(y);
    case Epilogue::none:
    case Epilogue::residual:
      break;
  }
  return y;
}

// One axis' pairs: channels (2i, 2i+1) turn by the angle of `position`.
void rotate(double* x, int32_t pairs, const float* cos, const float* sin, int64_t position) {
  for (int32_t i = 0; i < pairs; ++i) {
    const double c = cos[position * pairs + i], s = sin[position * pairs + i];
    const double a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * c - b * s;
    x[2 * i + 1] = a * s + b * c;
  }
}

// Pairs turn by the angles of one position after the other, which adds them up.
void rope_token_summed(const RopeTables& rope, int64_t frame, int64_t line, int64_t column,
                       std::vector<double>& row) {
  // All heads of a position follow each other, as the channels of the row do.
  const auto pairs = static_cast<int32_t>(row.size() / 2);
  rotate(row.data(), pairs, rope.cos_frames, rope.sin_frames, frame);
  rotate(row.data(), pairs, rope.cos_height, rope.sin_height, line);
  rotate(row.data(), pairs, rope.cos_width, rope.sin_width, column);
}

void rope_token(const RopeTables& rope, int64_t token, int64_t head_dim, std::vector<double>& row) {
  const int64_t column = token % rope.width;
  const int64_t line = token / rope.width % rope.height;
  const int64_t frame = token / (rope.width * rope.height);
  if (rope.summed) return rope_token_summed(rope, frame, line, column, row);
  for (size_t at = 0; at < row.size(); at += static_cast<size_t>(head_dim)) {
    double* x = row.data() + at;
    rotate(x, rope.pairs_frames, rope.cos_frames, rope.sin_frames, frame);
    x += 2 * rope.pairs_frames;
    rotate(x, rope.pairs_height, rope.cos_height, rope.sin_height, line);
    x += 2 * rope.pairs_height;
    rotate(x, rope.pairs_width, rope.cos_width, rope.sin_width, column);
  }
}

}  // namespace

void linear(const TensorView& x, const TensorView& w, const float* bias, Epilogue epilogue,
            const float* gate, const TensorView& out) {
  check_linear(Reach::host, x, w, epilogue, out);
  const int64_t m = x.shape[0], k = x.shape[1], n = w.shape[0];
  std::vector<float> xs(static_cast<size_t>(m * k));
  for (int64_t i = 0; i < m; ++i) reader(x).row(i * x.stride[0], std::span(xs).subspan(i * k, k));
  parallel_ranges(n, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> w_row(static_cast<size_t>(k));
    for (int64_t j = begin; j < end; ++j) {
      reader(w).row(j * w.stride[0], w_row);
      for (int64_t i = 0; i < m; ++i) {
        double y = dot(xs.data() + i * k, w_row.data(), k);
        if (bias != nullptr) y += bias[j];
        y = apply(epilogue, y);
        const int64_t at = i * out.stride[0] + j;
        if (epilogue == Epilogue::residual)
          y = reader(out)[at] + (gate != nullptr ? double{gate[j]} : 1.0) * y;
        writer(out).set(at, y);
      }
    }
  });
}

void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                const float* shift, float eps, const TensorView& out) {
  check_layer_norm(Reach::host, x, out);
  const auto d = static_cast<size_t>(x.shape[1]);
  parallel_tasks(x.shape[0], [&](int64_t i, int) {
    std::vector<double> row = load_row(x, i);
    double mean = 0.0, variance = 0.0;
    for (double v : row) mean += v;
    mean /= static_cast<double>(d);
    for (double v : row) variance += (v - mean) * (v - mean);
    variance /= static_cast<double>(d);
    const double inv = 1.0 / std::sqrt(variance + double{eps});
    for (size_t c = 0; c < d; ++c) {
      double y = (row[c] - mean) * inv;
      if (weight != nullptr) y *= weight[c];
      if (bias != nullptr) y += bias[c];
      if (scale != nullptr) y *= 1.0 + double{scale[c]};
      if (shift != nullptr) y += shift[c];
      row[c] = y;
    }
    store_row(out, i, row);
  });
}

void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan norm_span,
              const RopeTables* rope, int32_t num_heads, const TensorView& out) {
  check_rms_norm(Reach::host, x, weight, norm_span, rope, num_heads, out);
  const auto span =
      static_cast<size_t>(norm_span == NormSpan::head ? x.shape[1] / num_heads : x.shape[1]);
  parallel_tasks(x.shape[0], [&](int64_t i, int) {
    std::vector<double> row = load_row(x, i);
    for (size_t begin = 0; begin < row.size(); begin += span) {
      double sum = 0.0;
      for (size_t c = 0; c < span; ++c) sum += row[begin + c] * row[begin + c];
      const double inv = 1.0 / std::sqrt(sum / static_cast<double>(span) + double{eps});
      for (size_t c = 0; c < span; ++c) row[begin + c] *= inv * double{weight[c]};
    }
    if (rope != nullptr) rope_token(*rope, i, x.shape[1] / num_heads, row);
    store_row(out, i, row);
  });
}

void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                   const TensorView& out) {
  check_gated_product(Reach::host, activation, gate, up, out);
  const int last = gate.rank - 1;
  const int64_t d = gate.shape[last];
  if (gate.numel() == 0) return;
  // Offset of a row, counted over all dimensions but the last.
  const auto offset = [last](const TensorView& t, int64_t row) {
    int64_t at = 0;
    for (int i = last - 1; i >= 0; --i) {
      at += row % t.shape[i] * t.stride[i];
      row /= t.shape[i];
    }
    return at;
  };
  parallel_tasks(gate.numel() / d, [&](int64_t row, int) {
    const int64_t g = offset(gate, row), u = offset(up, row), o = offset(out, row);
    for (int64_t c = 0; c < d; ++c)
      writer(out).set(o + c * out.stride[last],
                      apply(activation, reader(gate)[g + c * gate.stride[last]]) *
                          double{reader(up)[u + c * up.stride[last]]});
  });
}

void channel_norm(const TensorView& x, const float* gamma, bool with_silu, const TensorView& out) {
  check_channel_norm(Reach::host, x, gamma, out);
  const int64_t c = x.shape[x.rank - 1];
  if (x.numel() == 0) return;
  parallel_ranges(x.numel() / c, 64, [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<size_t>(c));
    for (int64_t i = begin; i < end; ++i) {
      double sum = 0.0;
      for (int64_t j = 0; j < c; ++j) {
        row[j] = reader(x)[i * c + j];
        sum += row[j] * row[j];
      }
      const double factor = std::sqrt(static_cast<double>(c)) / std::max(std::sqrt(sum), 1e-12);
      for (int64_t j = 0; j < c; ++j) {
        const double y = row[j] * factor * double{gamma[j]};
        writer(out).set(i * c + j, with_silu ? silu(y) : y);
      }
    }
  });
}

void group_norm(const TensorView& x, int32_t num_groups, const float* weight, const float* bias,
                float eps, bool with_silu, const TensorView& out) {
  check_group_norm(Reach::host, x, num_groups, weight, bias, out);
  if (x.numel() == 0) return;
  const int64_t m = x.shape[1], c = x.shape[2], width = c / num_groups;
  const auto count = static_cast<double>(m * width);
  parallel_tasks(x.shape[0] * num_groups, [&](int64_t task, int) {
    const int64_t group = task % num_groups;
    const int64_t begin = task / num_groups * m * c + group * width;
    // f(offset of the element, its channel) for all of the group.
    const auto for_group = [&](const auto& f) {
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < width; ++j) f(begin + i * c + j, group * width + j);
    };
    double mean = 0.0, variance = 0.0;
    for_group([&](int64_t at, int64_t) { mean += double{reader(x)[at]}; });
    mean /= count;
    for_group([&](int64_t at, int64_t) {
      const double difference = double{reader(x)[at]} - mean;
      variance += difference * difference;
    });
    const double inv = 1.0 / std::sqrt(variance / count + double{eps});
    for_group([&](int64_t at, int64_t channel) {
      const double y =
          (double{reader(x)[at]} - mean) * inv * double{weight[channel]} + double{bias[channel]};
      writer(out).set(at, with_silu ? silu(y) : y);
    });
  });
}

}  // namespace lacuna::ref
