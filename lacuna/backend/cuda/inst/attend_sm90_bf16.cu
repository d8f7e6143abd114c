// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/inst/attend_sm90.cuh"

LACUNA_ATTEND_SM90_ALL(attend_sm90_bf16, Bf16)
