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
    // Who closes a terminal may hear of it twice, from the kernel and from the shell.
    if (interrupted.exchange(true) && signal != SIGHUP) _exit(130);
  }
}

}  // namespace

void watch_interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  struct sigaction hangup;
  // Under nohup it is ignored, which waiting for it would undo.
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN)
    sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // for this thread and all it starts
  std::thread(watch, signals).detach();
}

const std::atomic<bool>& interrupt_flag() {
  awaited = true;
  return interrupted;
}

}  // namespace lacuna::cli
