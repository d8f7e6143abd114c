// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/state_io.h"

#include <cstring>

#include "lacuna/core/error.h"

namespace lacuna {

StateIo StateIo::in(std::string_view scope) const {
  return StateIo(to_, from_, path(scope) + ".");
}

const TensorView& StateIo::find(std::string_view name) const {
  const auto found = from_->find(path(name));
  LACUNA_CHECK(found != from_->end(), "state: {} is missing", path(name));
  return found->second.view();
}

template <typename T>
void StateIo::vector(std::string_view name, DType dtype, std::vector<T>& values) const {
  if (!reading()) {
    const TensorView view = make_view(values.data(), dtype, {static_cast<int64_t>(values.size())});
    to_->insert_or_assign(path(name), copy_of(view));
    return;
  }
  const TensorView& view = find(name);
  LACUNA_CHECK(view.dtype == dtype && view.rank == 1, "state: {} is {}, expected [n] {}",
               path(name), view.describe(), dtype_name(dtype));
  values.resize(static_cast<size_t>(view.numel()));
  if (!values.empty()) std::memcpy(values.data(), view.data, values.size() * sizeof(T));
}

void StateIo::values(std::string_view name, std::vector<int32_t>& values) const {
  vector(name, DType::i32, values);
}
void StateIo::values(std::string_view name, std::vector<uint64_t>& values) const {
  vector(name, DType::i64, values);
}
void StateIo::values(std::string_view name, std::vector<float>& values) const {
  vector(name, DType::f32, values);
}
void StateIo::values(std::string_view name, std::vector<double>& values) const {
  vector(name, DType::f64, values);
}

void StateIo::number(std::string_view name, int64_t& value, int64_t low, int64_t high) const {
  std::vector<uint64_t> one{static_cast<uint64_t>(value)};
  values(name, one);
  LACUNA_CHECK(one.size() == 1, "state: {} has {} values, expected 1", path(name), one.size());
  value = static_cast<int64_t>(one.front());
  LACUNA_CHECK(value >= low && value <= high, "state: {} = {}, expected {} to {}", path(name),
               value, low, high);
}

void StateIo::flag(std::string_view name, bool& value) const {
  int64_t number = value ? 1 : 0;
  this->number(name, number, 0, 1);
  value = number == 1;
}

void StateIo::tensor(std::string_view name, Tensor& tensor) const {
  if (!reading()) {
    to_->insert_or_assign(path(name),
                          tensor.empty() ? Tensor(DType::f32, {0}) : copy_of(tensor.view()));
    return;
  }
  const TensorView& view = find(name);
  LACUNA_CHECK(view.dtype == DType::f32 || view.dtype == DType::bf16,
               "state: {} is {}, expected f32 or bf16", path(name), view.describe());
  tensor = view.numel() == 0 ? Tensor() : copy_of(view);
}

}  // namespace lacuna
