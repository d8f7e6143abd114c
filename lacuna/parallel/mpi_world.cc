// SPDX-License-Identifier: Apache-2.0
// Team over MPI. Built where MPI is found; absent_world.cc stands in elsewhere.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <thread>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/parallel/world.h"

namespace lacuna {
namespace {

void check(int status, const char* what) {
  LACUNA_CHECK(status == MPI_SUCCESS, "parallel: {} failed with MPI error {}", what, status);
}

// MPI's own waiting keeps a core busy, which on one machine is a core that another rank computes
// on. Short waits spin, for the delay of an exchange; long ones, such as for the text encoder or
// the other branch, sleep.
void wait(MPI_Request& request) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  for (int done = 0;;) {
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "waiting");
    if (done != 0) return;
    if (Clock::now() - start > std::chrono::milliseconds(1))
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

// MPI counts in int.
int count_of(int64_t bytes) {
  LACUNA_CHECK(bytes <= INT_MAX,
               "parallel: a message of {} bytes, expected at most {}; more processes or fewer "
               "tokens",
               bytes, INT_MAX);
  return static_cast<int>(bytes);
}

// Counts and displacements as MPI takes them.
struct Parts {
  std::vector<int> counts, places;
  explicit Parts(std::span<const int64_t> begins) {
    for (size_t r = 0; r + 1 < begins.size(); ++r) {
      counts.push_back(count_of(begins[r + 1] - begins[r]));
      places.push_back(count_of(begins[r]));
    }
  }
};

class MpiTeam final : public Team {
 public:
  explicit MpiTeam(MPI_Comm comm, bool owned) : comm_(comm), owned_(owned) {
    check(MPI_Comm_rank(comm, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(comm, &size_), "MPI_Comm_size");
    MPI_Comm local;
    check(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local),
          "MPI_Comm_split_type");
    check(MPI_Comm_size(local, &local_size_), "MPI_Comm_size");
    MPI_Comm_free(&local);
  }
  ~MpiTeam() override {
    if (owned_) MPI_Comm_free(&comm_);
  }
  MpiTeam(const MpiTeam&) = delete;
  MpiTeam& operator=(const MpiTeam&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return local_size_; }

  void all_gather(std::byte* all, std::span<const int64_t> begins) override {
    const Parts parts(begins);
    MPI_Request request;
    check(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, parts.counts.data(),
                          parts.places.data(), MPI_BYTE, comm_, &request),
          "MPI_Iallgatherv");
    wait(request);
  }

  void all_to_all(const std::byte* send, std::span<const int64_t> send_begins, std::byte* receive,
                  std::span<const int64_t> receive_begins) override {
    const Parts sent(send_begins), received(receive_begins);
    MPI_Request request;
    check(MPI_Ialltoallv(send, sent.counts.data(), sent.places.data(), MPI_BYTE, receive,
                         received.counts.data(), received.places.data(), MPI_BYTE, comm_, &request),
          "MPI_Ialltoallv");
    wait(request);
  }

  void broadcast(std::span<std::byte> bytes, int root) override {
    // Of any size: prompts and what attention carries are not cut by ranks.
    constexpr size_t kMost = size_t{1} << 30;
    for (size_t at = 0; at < bytes.size(); at += kMost) {
      const auto part = bytes.subspan(at, std::min(kMost, bytes.size() - at));
      MPI_Request request;
      check(MPI_Ibcast(part.data(), count_of(static_cast<int64_t>(part.size())), MPI_BYTE, root,
                       comm_, &request),
            "MPI_Ibcast");
      wait(request);
    }
  }

  std::unique_ptr<Team> split(int colour) override {
    MPI_Comm part;
    check(MPI_Comm_split(comm_, colour, rank_, &part), "MPI_Comm_split");
    return std::make_unique<MpiTeam>(part, true);
  }

 private:
  MPI_Comm comm_;
  bool owned_;
  int rank_ = 0, size_ = 1, local_size_ = 1;
};

}  // namespace

World::World() {
  int provided = 0;
  // This thread alone calls MPI; others compute.
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  LACUNA_CHECK(provided >= MPI_THREAD_FUNNELED,
               "parallel: this MPI takes no program with threads, expected MPI_THREAD_FUNNELED");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  team_ = std::make_unique<MpiTeam>(MPI_COMM_WORLD, false);
}

World::~World() {
  MPI_Request request;
  if (MPI_Ibarrier(MPI_COMM_WORLD, &request) == MPI_SUCCESS) wait(request);
  team_.reset();
  MPI_Finalize();
}

void World::abort(int status) {
  MPI_Abort(MPI_COMM_WORLD, status);
  std::_Exit(status);
}

}  // namespace lacuna
