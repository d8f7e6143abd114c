// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdlib>
#include <initializer_list>

#include "lacuna/parallel/world.h"

namespace lacuna {

namespace {

// The value of the first that is set.
int number_of(std::initializer_list<const char*> names, int otherwise) {
  for (const char* name : names)
    if (const char* value = std::getenv(name)) return std::atoi(value);
  return otherwise;
}

}  // namespace

int launched_processes() {
  // Of Slurm's PMIx, which itself says no size.
  const int of_step =
      std::getenv("PMIX_RANK") != nullptr ? number_of({"SLURM_STEP_NUM_TASKS"}, 1) : 1;
  return std::max(1, number_of({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}, of_step));
}

int launched_rank() {
  return number_of({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"}, 0);
}

}  // namespace lacuna
