// SPDX-License-Identifier: Apache-2.0
// The processes that one mpirun (or srun) started.
#pragma once

#include <memory>

#include "lacuna/core/team.h"

namespace lacuna {

// How many processes the launcher of this one started; 1 without a launcher. Looks at the variables
// that Open MPI, PMI and Slurm set, so that a program without MPI knows that it is one of several.
int launched_processes();
int launched_rank();  // among them, from 0

// The team of all of them, over MPI. One object per process: it begins MPI and ends it.
class World {
 public:
  // Throws Error when this build has no MPI or MPI has no threads beside its own.
  World();
  // Waits for the others without taking a core, then ends MPI.
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  Team& team() { return *team_; }
  // Ends all processes at once: after an error, which leaves the others waiting.
  [[noreturn]] void abort(int status);

 private:
  std::unique_ptr<Team> team_;
};

}  // namespace lacuna
