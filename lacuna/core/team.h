// SPDX-License-Identifier: Apache-2.0
// Processes that make one video together. core/ knows what they say to each other, not how:
// parallel/ says it with MPI, tests with threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace lacuna {

// Every call is made by all ranks, in the same order, with host memory; it returns when this rank's
// part is done. Throws Error when a message is larger than the transport can carry. A rank that
// fails in between leaves the others waiting: whoever starts the processes ends them all.
class Team {
 public:
  virtual ~Team() = default;
  virtual int rank() const = 0;  // 0..size()-1
  virtual int size() const = 0;
  // Ranks whose memory is this machine's, this one included.
  virtual int local_size() const = 0;

  // Bytes [begins[r], begins[r + 1]) of `all` are rank r's: everyone's reach everyone. `begins`
  // [size + 1], ascending, is the same on all ranks.
  virtual void all_gather(std::byte* all, std::span<const int64_t> begins) = 0;
  // Bytes [send_begins[r], send_begins[r + 1]) of `send` go to rank r; what comes from rank s lies
  // at receive_begins[s]. Both [size + 1]. The two do not overlap.
  virtual void all_to_all(const std::byte* send, std::span<const int64_t> send_begins,
                          std::byte* receive, std::span<const int64_t> receive_begins) = 0;
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  // The ranks that give the same colour (0 or more), in the order they have here. The team it is
  // made from must outlive it.
  virtual std::unique_ptr<Team> split(int colour) = 0;

  bool is_root() const { return rank() == 0; }
};

// Where the share of each of `parts` begins when `count` things are handed out as evenly as can be:
// [parts + 1], from 0 to count.
std::vector<int64_t> even_shares(int64_t count, int parts);

// A text of any length to everyone.
void broadcast(Team& team, std::string& text, int root);
// Everyone's text to everyone, by rank.
std::vector<std::string> all_gather(Team& team, const std::string& text);

// Which heads of an attention call are here, where a team has them all. For what is decided about
// heads together, or depends on a head's number.
struct HeadShare {
  Team* team = nullptr;  // null: all heads are here
  int64_t first = 0;     // number among all of the first head here

  // Values of all heads in their order, from those of the heads here. Made by all ranks at once.
  std::vector<double> gather(std::span<const double> own) const;
};

}  // namespace lacuna
