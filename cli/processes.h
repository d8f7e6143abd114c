// SPDX-License-Identifier: Apache-2.0
// `mpirun -n N lacuna generate ...`: several processes, one video.
#pragma once

#include <functional>
#include <string>

#include "lacuna/core/team.h"
#include "lacuna/models/pipeline/work_share.h"

namespace lacuna::cli {

// Joins the processes that a launcher started with this one; nothing alone. Throws UsageError when
// the command line is of a command that runs in one process.
void join_processes(int argc, char** argv);
// Null alone.
Team* processes();
// Whether this process prints what all of them would: the root, or who is alone.
bool speaks();
// What one process after another does: what the first writes into a cache, the others read.
void in_turn(const std::function<void()>& body);
// Before an error is told: most are everyone's, and the root tells them and ends the others. The
// others wait for that, and speak where it does not come.
void let_root_speak();
// At the end of main: waits for the others, or ends them after a failure.
void leave_processes(int status);

// "4 processes, 2 for each branch of guidance", for people.
std::string describe(const WorkShare& share);

}  // namespace lacuna::cli
