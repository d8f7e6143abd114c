// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/work_share.h"

#include <algorithm>
#include <array>

#include "lacuna/core/error.h"
#include "lacuna/engine/json_object.h"
#include "lacuna/engine/trace_share.h"

namespace lacuna {
namespace {

// f32 of any rank, empty too.
void broadcast_tensor(Team& team, Tensor& tensor) {
  std::array<int64_t, kMaxRank + 1> shape{};  // the rank, then the sizes
  if (!tensor.empty()) {
    shape[0] = tensor.view().rank;
    std::copy_n(tensor.view().shape.begin(), tensor.view().rank, shape.begin() + 1);
  }
  team.broadcast(std::as_writable_bytes(std::span(shape)), 0);
  if (shape[0] == 0) return;
  if (!team.is_root())
    tensor = Tensor(DType::f32, std::span(shape).subspan(1, static_cast<size_t>(shape[0])));
  const std::span values(tensor.as<float>(), static_cast<size_t>(tensor.numel()));
  if (!values.empty()) team.broadcast(std::as_writable_bytes(values), 0);
}

std::string of_rank(int rank) {
  return fmt::format("rank{}.", rank);
}

bool begins_with(const StateTensors& tensors, const std::string& prefix) {
  const auto at = tensors.lower_bound(prefix);
  return at != tensors.end() && at->first.starts_with(prefix);
}

// [[name, dtype, [sizes]], ...]
std::string tensors_text(const StateTensors& tensors) {
  Json list = Json::array();
  for (const auto& [name, tensor] : tensors) {
    const TensorView& view = tensor.view();
    list.push_back({name, static_cast<int>(view.dtype),
                    std::vector<int64_t>(view.shape.begin(), view.shape.begin() + view.rank)});
  }
  return list.dump();
}

}  // namespace

WorkShare::WorkShare(Team* world, bool guided) : world_(world) {
  if (world == nullptr || !guided || world->size() % 2 != 0) return;
  halves_ = 2;
  half_ = world->rank() < world->size() / 2 ? 0 : 1;
  own_half_ = world->split(half_);
}

Team* WorkShare::forward_team() const {
  Team* team = own_half_ ? own_half_.get() : world_;
  return team == nullptr || team->size() == 1 ? nullptr : team;
}

int WorkShare::forward_ranks() const {
  const Team* team = forward_team();
  return team == nullptr ? 1 : team->size();
}

std::pair<int64_t, int64_t> WorkShare::head_range(int64_t all) const {
  const Team* team = forward_team();
  if (team == nullptr) return {0, all};
  const auto begins = even_shares(all, team->size());
  const auto rank = static_cast<size_t>(team->rank());
  return {begins[rank], begins[rank + 1]};
}

int64_t WorkShare::num_heads(int64_t all) const {
  const auto [begin, end] = head_range(all);
  return end - begin;
}

HeadShare WorkShare::heads(int64_t num_heads) const {
  return {forward_team(), head_range(num_heads).first};
}

Policy WorkShare::policy(const Policy& whole, int64_t num_heads) const {
  if (forward_team() == nullptr) return whole;
  const auto [begin, end] = head_range(num_heads);
  return whole.of_heads(begin, end, num_heads);
}

void WorkShare::send(const TensorView& values, int root) const {
  world_->broadcast({static_cast<std::byte*>(values.data),
                     static_cast<size_t>(storage_bytes(values.dtype, values.numel()))},
                    root);
}

void WorkShare::exchange(const TensorView& cond, const TensorView* uncond) const {
  if (halves_ == 1) return;
  send(cond, 0);
  if (uncond != nullptr) send(*uncond, world_->size() / 2);
}

void WorkShare::broadcast(std::initializer_list<Tensor*> tensors) const {
  if (alone()) return;
  for (Tensor* tensor : tensors) broadcast_tensor(*world_, *tensor);
}

void WorkShare::gather(StateTensors& attention) const {
  if (alone()) return;
  StateTensors all;
  for (int rank = 0; rank < world_->size(); ++rank) {
    const bool own = rank == world_->rank();
    std::string text = own ? tensors_text(attention) : "";
    lacuna::broadcast(*world_, text, rank);
    for (const Json& tensor : Json::parse(text)) {
      const auto name = tensor[0].get<std::string>();
      const auto shape = tensor[2].get<std::vector<int64_t>>();
      Tensor values = own ? std::move(attention.at(name))
                          : Tensor(static_cast<DType>(tensor[1].get<int>()), shape);
      send(values, rank);
      if (is_root()) all.emplace(of_rank(rank) + name, std::move(values));
    }
  }
  attention = std::move(all);
}

StateTensors WorkShare::own(StateTensors attention) const {
  int writers = 0;
  while (begins_with(attention, of_rank(writers))) ++writers;
  const int ranks = alone() ? 1 : world_->size();
  LACUNA_CHECK(std::max(writers, 1) == ranks,
               "resume: the masks that are carried from step to step are those of {} processes, "
               "expected {}; go on with as many, or start again",
               std::max(writers, 1), ranks);
  if (writers == 0) return attention;
  const std::string prefix = of_rank(world_->rank());
  StateTensors own;
  for (auto& [name, tensor] : attention)
    if (name.starts_with(prefix)) own.emplace(name.substr(prefix.size()), std::move(tensor));
  return own;
}

void WorkShare::share_trace(Trace& trace, size_t first) const {
  if (world_ != nullptr) lacuna::share_trace(*world_, trace, first);
}

}  // namespace lacuna
