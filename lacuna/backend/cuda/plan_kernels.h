// SPDX-License-Identifier: Apache-2.0
// The kernels of module "plan" (modules.h).
#pragma once

#include "lacuna/backend/cuda/fold.cuh"
#include "lacuna/backend/cuda/plan.cuh"

#define LACUNA_PLAN_KERNELS(X)                      \
  X(make_lists, PlanArgs, kPlanThreads, make_lists) \
  X(fold_votes, FoldArgs, kFoldThreads, fold_votes) \
  X(fold_pairs, FoldPairsArgs, 32, fold_pairs)      \
  X(fold_mass, FoldArgs, kFoldMassThreads, fold_mass)
