// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/attend.h"

#include <cstdint>

#include "lacuna/backend/attend_check.h"
#include "lacuna/backend/cpu/attend_run.h"
#include "lacuna/backend/cpu/kernel_ops.h"
#include "lacuna/core/error.h"

namespace lacuna::cpu {

const KernelOps& attend_kernel(AttendDType dtype, int32_t head_dim, Isa isa) {
  if (isa == Isa::avx2) return kAttendF32Avx2;
  if (dtype == AttendDType::f32 || isa == Isa::avx512) return kAttendF32Avx512;
  if (isa == Isa::amx && head_dim % kAttendBf16Amx.dim_multiple == 0) return kAttendBf16Amx;
  if (head_dim % kAttendBf16Avx512Bf16.dim_multiple == 0) return kAttendBf16Avx512Bf16;
  return kAttendF32Avx512;
}

std::string attend_unsupported(const AttendParams& p) {
  if (p.dtype != AttendDType::f32 && p.dtype != AttendDType::bf16)
    return fmt::format("attend: dtype {}, expected f32 or bf16", attend_dtype_name(p.dtype));
  return check_attend(p);
}

void attend(const AttendParams& params, Isa isa) {
  const std::string why = attend_unsupported(params);
  if (!why.empty()) throw Error(why);
  run_attend(params, attend_kernel(params.dtype, params.head_dim, isa));
}

std::string attend_kernel_name(const AttendParams& params, Isa isa) {
  const bool pair_bias = params.bias != nullptr && params.bias_q_stride != 0;
  if ((params.head_dim != 64 && params.head_dim != 128) || pair_bias) return "generic";
  const KernelOps& ops = attend_kernel(params.dtype, params.head_dim, isa);
  const bool converted = params.dtype == AttendDType::bf16 && ops.element_bytes == 4;
  return converted ? fmt::format("bf16 via {}", ops.name) : ops.name;
}

}  // namespace lacuna::cpu
