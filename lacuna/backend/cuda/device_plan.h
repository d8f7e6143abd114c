// SPDX-License-Identifier: Apache-2.0
// A call's plan in device memory: its key tiles are made there, and what attention leaves behind is
// folded there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "lacuna/backend/cuda/device.h"
#include "lacuna/backend/cuda/plan.h"

namespace lacuna::cuda {

// Host values of a call on their way to the device: one allocation, one copy.
class Bundle {
 public:
  // Values stay as they are until send(). Returns what at() knows them by.
  template <typename T>
  size_t add(const T* values, size_t count) {
    parts_.push_back({values, bytes_, count * sizeof(T)});
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
    return parts_.size() - 1;
  }
  template <typename T>
  size_t add(const std::vector<T>& values) {
    return add(values.data(), values.size());
  }
  void send(Device& device);
  // Null where there were no values.
  template <typename T>
  T* at(size_t part) const {
    return parts_[part].bytes == 0
               ? nullptr
               : reinterpret_cast<T*>(memory_->as<unsigned char>() + parts_[part].offset);
  }

 private:
  std::vector<UploadPart> parts_;
  size_t bytes_ = 0;
  std::optional<DeviceMemory> memory_;
};

class DevicePlan {
 public:
  // Uploads; `params` and `plan` outlive it.
  DevicePlan(Device& device, const AttendParams& params, const Plan& plan);

  // Launches only. Chunks come in their order, one at a time: they share memory.
  void make_tiles(size_t chunk) const;
  // What AttendArgs need of the plan. slot_lse and kept where they are to be folded.
  void fill(AttendArgs& args, size_t chunk) const;

  // Device memory for what is folded, by tensor head; null = not wanted.
  struct Outputs {
    uint64_t* skip_bits = nullptr;
    float* mass = nullptr;
    const float* lse = nullptr;  // [heads, q_len], for mass
  };
  void fold(size_t chunk, const Outputs& to) const;
  // After the last chunk, under a rule: [num_heads] pairs.
  void sum_pairs(int64_t* to) const;

  const Job* jobs() const { return bundle_.at<Job>(jobs_); }
  const KeyTile* tiles() const { return tiles_->as<KeyTile>(); }

 private:
  Device& device_;
  const AttendParams& p_;
  const Plan& plan_;
  std::vector<float> threshold_values_, kappa_values_;
  std::vector<int32_t> counter_values_, head_values_;
  Bundle bundle_;
  size_t jobs_, lists_, places_, first_half_, mask_, k_offsets_, q_offsets_, heads_, counters_,
      thresholds_, kappas_;
  std::optional<DeviceMemory> tiles_, kept_, slot_lse_, pairs_;
};

}  // namespace lacuna::cuda
