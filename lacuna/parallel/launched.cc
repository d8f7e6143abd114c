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
  return std::max(1, number_of({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}, 1));
}

int launched_rank() {
  return number_of({"OMPI_COMM_WORLD_RANK", "PMI_RANK"}, 0);
}

}  // namespace lacuna
