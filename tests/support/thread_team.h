// SPDX-License-Identifier: Apache-2.0
// A Team of threads of one process: what several processes do, without starting any.
#pragma once

#include <condition_variable>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/core/team.h"

namespace lacuna {

// What the threads of a team meet at.
class ThreadHub {
 public:
  struct Offer {
    const std::byte* data = nullptr;
    std::span<const int64_t> begins;
  };
  explicit ThreadHub(int size) : offers(static_cast<size_t>(size)) {}

  // Waits for all; throws once one of them has failed, who will never come.
  void meet() {
    std::unique_lock lock(mutex_);
    const int round = round_;
    if (++waiting_ == static_cast<int>(offers.size())) {
      waiting_ = 0, ++round_;
      met_.notify_all();
      return;
    }
    met_.wait(lock, [&] { return round_ != round || failed_; });
    if (round_ == round) fail("thread team: another thread has failed");
  }
  void give_up() {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    met_.notify_all();
    for (auto& [colour, part] : parts_) part->give_up();
  }
  std::shared_ptr<ThreadHub> part(int colour, int size) {
    const std::lock_guard lock(mutex_);
    auto& found = parts_[colour];
    if (found == nullptr) found = std::make_shared<ThreadHub>(size);
    return found;
  }

  std::vector<Offer> offers;  // by rank

 private:
  std::mutex mutex_;
  std::condition_variable met_;
  int waiting_ = 0, round_ = 0;
  bool failed_ = false;
  std::map<int, std::shared_ptr<ThreadHub>> parts_;
};

class ThreadTeam final : public Team {
 public:
  ThreadTeam(std::shared_ptr<ThreadHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(hub_->offers.size()); }
  int local_size() const override { return size(); }

  void all_gather(std::byte* all, std::span<const int64_t> begins) override {
    offer({all, begins});
    for (size_t r = 0; r < hub_->offers.size(); ++r)
      if (static_cast<int>(r) != rank_)
        std::memcpy(all + begins[r], hub_->offers[r].data + begins[r], size_of(begins, r));
    hub_->meet();
  }
  void all_to_all(const std::byte* send, std::span<const int64_t> send_begins, std::byte* receive,
                  std::span<const int64_t> receive_begins) override {
    offer({send, send_begins});
    for (size_t s = 0; s < hub_->offers.size(); ++s) {
      const ThreadHub::Offer& from = hub_->offers[s];
      const size_t bytes = size_of(from.begins, static_cast<size_t>(rank_));
      LACUNA_CHECK(bytes == size_of(receive_begins, s),
                   "thread team: {} bytes from rank {}, expected {}", bytes, s,
                   size_of(receive_begins, s));
      std::memcpy(receive + receive_begins[s], from.data + from.begins[static_cast<size_t>(rank_)],
                  bytes);
    }
    hub_->meet();
  }
  void broadcast(std::span<std::byte> bytes, int root) override {
    offer({bytes.data(), {}});
    if (rank_ != root && !bytes.empty())
      std::memcpy(bytes.data(), hub_->offers[static_cast<size_t>(root)].data, bytes.size());
    hub_->meet();
  }
  std::unique_ptr<Team> split(int colour) override {
    const double own = colour;
    const std::vector<double> colours = HeadShare{this, 0}.gather({&own, 1});
    int before = 0, all = 0;
    for (int r = 0; r < size(); ++r) {
      if (colours[static_cast<size_t>(r)] != colour) continue;
      if (r < rank_) ++before;
      ++all;
    }
    return std::make_unique<ThreadTeam>(hub_->part(colour, all), before);
  }

 private:
  static size_t size_of(std::span<const int64_t> begins, size_t rank) {
    return static_cast<size_t>(begins[rank + 1] - begins[rank]);
  }
  void offer(const ThreadHub::Offer& offer) {
    hub_->offers[static_cast<size_t>(rank_)] = offer;
    hub_->meet();
  }
  std::shared_ptr<ThreadHub> hub_;
  int rank_;
};

// Runs `body` on every rank of a team of `size`, and rethrows what the first of them threw.
inline void in_team(int size, const std::function<void(Team& team)>& body) {
  const auto hub = std::make_shared<ThreadHub>(size);
  std::exception_ptr first;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      ThreadTeam team(hub, rank);
      try {
        body(team);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
        hub->give_up();
      }
    });
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace lacuna
