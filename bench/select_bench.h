// SPDX-License-Identifier: Apache-2.0
// `lacuna bench select`: what selecting costs over a whole schedule, preset by preset.
#pragma once

#include <CLI/CLI.hpp>

namespace lacuna::bench {

void add_select_bench(CLI::App& bench);

}  // namespace lacuna::bench
