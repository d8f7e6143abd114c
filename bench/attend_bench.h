// SPDX-License-Identifier: Apache-2.0
// `lacuna bench attend`: attention of the CPU backend against this machine's measured peak.
#pragma once

#include <CLI/CLI.hpp>

namespace lacuna::bench {

void add_attend_bench(CLI::App& bench);

}  // namespace lacuna::bench
