// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/team.h"

#include <cstring>

namespace lacuna {

std::vector<int64_t> even_shares(int64_t count, int parts) {
  std::vector<int64_t> begins(static_cast<size_t>(parts) + 1);
  for (int64_t i = 0; i <= parts; ++i) begins[static_cast<size_t>(i)] = count * i / parts;
  return begins;
}

void broadcast(Team& team, std::string& text, int root) {
  uint64_t size = text.size();
  team.broadcast(std::as_writable_bytes(std::span(&size, 1)), root);
  text.resize(size);
  if (size > 0) team.broadcast(std::as_writable_bytes(std::span(text)), root);
}

std::vector<std::string> all_gather(Team& team, const std::string& text) {
  const auto ranks = static_cast<size_t>(team.size());
  std::vector<int64_t> begins(ranks + 1), sizes(ranks);
  for (size_t r = 0; r <= ranks; ++r) begins[r] = static_cast<int64_t>(r * sizeof(int64_t));
  sizes[static_cast<size_t>(team.rank())] = static_cast<int64_t>(text.size());
  team.all_gather(reinterpret_cast<std::byte*>(sizes.data()), begins);
  for (size_t r = 0; r < ranks; ++r) begins[r + 1] = begins[r] + sizes[r];
  std::string all(static_cast<size_t>(begins[ranks]), '\0');
  const auto own = static_cast<size_t>(begins[static_cast<size_t>(team.rank())]);
  std::memcpy(all.data() + own, text.data(), text.size());
  team.all_gather(reinterpret_cast<std::byte*>(all.data()), begins);
  std::vector<std::string> texts;
  for (size_t r = 0; r < ranks; ++r)
    texts.push_back(all.substr(static_cast<size_t>(begins[r]), static_cast<size_t>(sizes[r])));
  return texts;
}

std::vector<double> HeadShare::gather(std::span<const double> own) const {
  if (team == nullptr) return {own.begin(), own.end()};
  const std::string bytes(reinterpret_cast<const char*>(own.data()), own.size_bytes());
  std::vector<double> all;
  for (const std::string& part : all_gather(*team, bytes)) {
    all.resize(all.size() + part.size() / sizeof(double));
    std::memcpy(all.data() + all.size() - part.size() / sizeof(double), part.data(), part.size());
  }
  return all;
}

}  // namespace lacuna
