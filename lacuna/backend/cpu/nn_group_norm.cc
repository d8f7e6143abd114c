// SPDX-License-Identifier: Apache-2.0
// Group norm in two passes over memory: sums of each group, by chunks of rows whose results are
// added in order, then one multiply-add per value.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "lacuna/backend/cpu/elements.h"
#include "lacuna/backend/cpu/nn.h"
#include "lacuna/backend/cpu/nn_math.h"
#include "lacuna/backend/network_check.h"
#include "lacuna/core/threads.h"

#define LACUNA_INLINE __attribute__((always_inline))

namespace lacuna::cpu {
namespace {

constexpr int64_t kChunkValues = 65536;  // of one task

// Rows [m, c] of samples that follow each other, cut into chunks by shape alone.
struct Chunks {
  int64_t m, c, rows, count;  // of a sample: its rows, channels, rows of a chunk, chunks

  Chunks(int64_t m, int64_t c)
      : m(m), c(c), rows(std::max<int64_t>(1, kChunkValues / c)), count((m + rows - 1) / rows) {}

  // f(chunk of all samples, its sample, its first row of all, its rows), in parallel.
  template <typename F>
  void run(int64_t samples, const F& f) const {
    parallel_tasks(samples * count, [&](int64_t chunk, int) {
      const int64_t begin = chunk % count * rows;
      f(chunk, chunk / count, chunk / count * m + begin, std::min(rows, m - begin));
    });
  }
};

// Sums by channel, in f64: with sums of squares the variance loses the digits of mean^2 / variance,
// which f64 has to spare and f32 has not.
struct ChannelSums {
  std::vector<double> value, square;  // whole vectors of eight

  explicit ChannelSums(int64_t c) : value(static_cast<size_t>((c + 7) / 8 * 8)), square(value) {}

  // kRows at a time, so that sums are loaded and stored once for all of them.
  template <int kRows, typename T>
  void add(const T* x, int64_t c) {
    for_lanes(c, [&](int64_t i, int64_t lanes) LACUNA_INLINE {
      double* v = value.data() + i;
      double* s = square.data() + i;
      __m256d v0 = _mm256_loadu_pd(v), v1 = _mm256_loadu_pd(v + 4);
      __m256d s0 = _mm256_loadu_pd(s), s1 = _mm256_loadu_pd(s + 4);
      for (int r = 0; r < kRows; ++r) {
        const __m256 row = load_lanes(x + r * c + i, lanes);
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(row));
        const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(row, 1));
        v0 = _mm256_add_pd(v0, low), v1 = _mm256_add_pd(v1, high);
        s0 = _mm256_fmadd_pd(low, low, s0), s1 = _mm256_fmadd_pd(high, high, s1);
      }
      _mm256_storeu_pd(v, v0), _mm256_storeu_pd(v + 4, v1);
      _mm256_storeu_pd(s, s0), _mm256_storeu_pd(s + 4, s1);
    });
  }
};

struct Sums {
  double value = 0.0, square = 0.0;
};

// y = (x - mean) * factor + offset by channel. What the mean loses in f32 is in the offset: it can
// be large beside the spread.
struct Coefficients {
  std::vector<float> mean, factor, offset;

  explicit Coefficients(int64_t c) : mean(static_cast<size_t>(c)), factor(mean), offset(mean) {}
};

// Of each chunk and group, in chunks of all samples.
template <typename T>
std::vector<Sums> sum_chunks(const TensorView& x, const Chunks& chunks, int64_t groups) {
  std::vector<Sums> sums(static_cast<size_t>(x.shape[0] * chunks.count * groups));
  chunks.run(x.shape[0], [&](int64_t chunk, int64_t, int64_t row, int64_t rows) {
    ChannelSums by_channel(chunks.c);
    const T* from = static_cast<const T*>(x.data) + row * chunks.c;
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) by_channel.add<4>(from + i * chunks.c, chunks.c);
    for (; i < rows; ++i) by_channel.add<1>(from + i * chunks.c, chunks.c);
    const int64_t width = chunks.c / groups;
    for (int64_t channel = 0; channel < chunks.c; ++channel) {
      Sums& group = sums[static_cast<size_t>(chunk * groups + channel / width)];
      group.value += by_channel.value[static_cast<size_t>(channel)];
      group.square += by_channel.square[static_cast<size_t>(channel)];
    }
  });
  return sums;
}

// Of one sample, whose sums begin at `sums`.
Coefficients coefficients_of(const Sums* sums, const Chunks& chunks, int64_t groups,
                             const float* weight, const float* bias, float eps) {
  Coefficients result(chunks.c);
  const int64_t width = chunks.c / groups;
  const auto count = static_cast<double>(chunks.m * width);
  for (int64_t group = 0; group < groups; ++group) {
    Sums all;
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      all.value += sums[chunk * groups + group].value;
      all.square += sums[chunk * groups + group].square;
    }
    const double mean = all.value / count;
    const double difference = all.square / count - mean * mean;
    // Rounding may leave a constant group below 0; NaN stays.
    const double variance = difference < 0.0 ? 0.0 : difference;
    const double inv = 1.0 / std::sqrt(variance + double{eps});
    const auto rounded = static_cast<float>(mean);
    for (int64_t channel = group * width; channel < (group + 1) * width; ++channel) {
      const double factor = inv * double{weight[channel]};
      result.mean[channel] = rounded;
      result.factor[channel] = static_cast<float>(factor);
      result.offset[channel] =
          static_cast<float>(double{bias[channel]} - (mean - double{rounded}) * factor);
    }
  }
  return result;
}

template <typename T, typename Activate>
void apply(const TensorView& x, const Chunks& chunks, const std::vector<Coefficients>& samples,
           const Activate& activate, const TensorView& out) {
  chunks.run(x.shape[0], [&](int64_t, int64_t sample, int64_t row, int64_t rows) {
    const Coefficients& k = samples[static_cast<size_t>(sample)];
    for (int64_t at = row * chunks.c; at < (row + rows) * chunks.c; at += chunks.c) {
      const T* from = static_cast<const T*>(x.data) + at;
      T* to = static_cast<T*>(out.data) + at;
      for_lanes(chunks.c, [&](int64_t i, int64_t lanes) LACUNA_INLINE {
        const __m256 centred =
            _mm256_sub_ps(load_lanes(from + i, lanes), load_lanes(k.mean.data() + i, lanes));
        const __m256 y = _mm256_fmadd_ps(centred, load_lanes(k.factor.data() + i, lanes),
                                         load_lanes(k.offset.data() + i, lanes));
        store_lanes(to + i, activate(y), lanes);
      });
    }
  });
}

}  // namespace

void group_norm(const TensorView& x, int32_t num_groups, const float* weight, const float* bias,
                float eps, bool silu, const TensorView& out) {
  check_group_norm(Reach::host, x, num_groups, weight, bias, out);
  if (x.numel() == 0) return;
  const Chunks chunks(x.shape[1], x.shape[2]);
  with_type(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const std::vector<Sums> sums = sum_chunks<T>(x, chunks, num_groups);
    std::vector<Coefficients> samples(static_cast<size_t>(x.shape[0]), Coefficients(chunks.c));
    parallel_tasks(x.shape[0], [&](int64_t n, int) {
      samples[static_cast<size_t>(n)] = coefficients_of(sums.data() + n * chunks.count * num_groups,
                                                        chunks, num_groups, weight, bias, eps);
    });
    if (silu) {
      apply<T>(
          x, chunks, samples, [](__m256 y) LACUNA_INLINE { return silu8(y); }, out);
    } else {
      apply<T>(
          x, chunks, samples, [](__m256 y) LACUNA_INLINE { return y; }, out);
    }
  });
}

}  // namespace lacuna::cpu
