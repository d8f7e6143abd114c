// SPDX-License-Identifier: Apache-2.0
// Ctrl-C asks the work to stop where it can be resumed; a second Ctrl-C ends the process.
#pragma once

#include <atomic>

namespace lacuna::cli {

// Installs handlers for SIGINT and SIGTERM once; the flag is set by the first of them.
const std::atomic<bool>& interrupt_flag();

}  // namespace lacuna::cli
