// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/inst/attend_sm80.cuh"

LACUNA_ATTEND_SM80_ALL(attend_sm80_f16, F16)
