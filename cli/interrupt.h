// SPDX-License-Identifier: Apache-2.0
// Ctrl-C asks the work to stop where it can be resumed; a second Ctrl-C ends the process.
#pragma once

#include <atomic>

namespace lacuna::cli {

// Takes SIGINT, SIGTERM and, unless it is ignored, SIGHUP on a thread of its own; call first in
// main. No handler may run on a thread that computes: oneDNN's kernels put the stack pointer into a
// heap buffer, and the frame of a signal that arrives there overwrites what lies below it.
void watch_interrupts();

// Set by the first of these signals. Until it is asked for, they end the process at once.
const std::atomic<bool>& interrupt_flag();

}  // namespace lacuna::cli
