// SPDX-License-Identifier: Apache-2.0
#include "cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <thread>

namespace lacuna::cli {
namespace {

std::atomic<bool> interrupted{false}, awaited{false};

[[noreturn]] void watch(sigset_t signals) {
  for (;;) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) continue;
    if (!awaited) {  // nobody will look at the flag: end as any program does
      pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
      raise(signal);
    }
    if (interrupted.exchange(true)) _exit(130);
  }
}

}  // namespace

void watch_interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // for this thread and all it starts
  std::thread(watch, signals).detach();
}

const std::atomic<bool>& interrupt_flag() {
  awaited = true;
  return interrupted;
}

}  // namespace lacuna::cli
