// SPDX-License-Identifier: Apache-2.0
// A build without MPI.
#include <cstdlib>

#include "lacuna/core/error.h"
#include "lacuna/parallel/world.h"

namespace lacuna {

World::World() {
  fail(
      "parallel: one of {} processes, and this build has no MPI; install libopenmpi-dev and build "
      "again, or start one process",
      launched_processes());
}

World::~World() = default;

void World::abort(int status) {
  std::_Exit(status);
}

}  // namespace lacuna
