// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/machine_info.h"

#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

// "model name : ..." of the first processor; "unknown" where there is none.
std::string cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

// "cpu avx2, 2 threads" -> "avx2".
std::string isa_of(const std::string& description) {
  const size_t begin = description.find(' '), end = description.rfind(',');
  if (begin == std::string::npos || end == std::string::npos || end <= begin) return description;
  return description.substr(begin + 1, end - begin - 1);
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

std::string shell_word(const std::string& word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,+%@";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string text = "'";
  for (const char c : word) {
    if (c == '\'') {
      text += "'\\''";
    } else {
      text += c;
    }
  }
  return text + "'";
}

}  // namespace

nlohmann::ordered_json machine_info(const Backend& backend) {
  return {{"cpu", cpu_name()},
          {"backend", backend.name()},
          {"isa", isa_of(backend.description())},
          {"threads", num_threads()},
          {"version", LACUNA_VERSION},
          {"date", utc_now()}};
}

std::string command_line() {
  std::ifstream in("/proc/self/cmdline", std::ios::binary);
  std::string text;
  for (std::string word; std::getline(in, word, '\0');) {
    if (text.empty()) {
      text = std::filesystem::path(word).filename().string();
    } else {
      text += ' ' + shell_word(word);
    }
  }
  return text;
}

}  // namespace lacuna
