// SPDX-License-Identifier: Apache-2.0
// What lives from step to step, to named tensors and back, so that a stopped run can go on. One
// function per type says both ways.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/tensor.h"

namespace lacuna {

// Contiguous host tensors by name.
using StateTensors = std::map<std::string, Tensor, std::less<>>;

// Each function writes its argument under `name`, or replaces it by what is there. What is read
// comes from a file and may be hostile: number, dtype and rank are checked here, meaning by the
// caller. Throws Error naming the tensor.
class StateIo {
 public:
  static StateIo writer(StateTensors& to) { return StateIo(&to, nullptr, {}); }
  static StateIo reader(const StateTensors& from) { return StateIo(nullptr, &from, {}); }

  bool reading() const { return from_ != nullptr; }
  // The same under names that begin with "scope.".
  StateIo in(std::string_view scope) const;

  // One number from `low` to `high`.
  void number(std::string_view name, int64_t& value, int64_t low, int64_t high) const;
  void flag(std::string_view name, bool& value) const;
  void values(std::string_view name, std::vector<int32_t>& values) const;
  void values(std::string_view name, std::vector<uint64_t>& values) const;  // as i64
  void values(std::string_view name, std::vector<float>& values) const;
  void values(std::string_view name, std::vector<double>& values) const;
  // f32 or bf16 of any rank, or empty.
  void tensor(std::string_view name, Tensor& tensor) const;

 private:
  StateIo(StateTensors* to, const StateTensors* from, std::string prefix)
      : to_(to), from_(from), prefix_(std::move(prefix)) {}
  std::string path(std::string_view name) const { return prefix_ + std::string(name); }
  const TensorView& find(std::string_view name) const;
  template <typename T>
  void vector(std::string_view name, DType dtype, std::vector<T>& values) const;

  StateTensors* to_;
  const StateTensors* from_;
  std::string prefix_;
};

}  // namespace lacuna
