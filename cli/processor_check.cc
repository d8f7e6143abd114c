// SPDX-License-Identifier: Apache-2.0
// One clear line on a processor that is too old. Everything else is compiled for x86-64-v3 and may
// use its instructions in constructors already, so this file is compiled for plain x86-64
// (CMakeLists.txt), uses no library and runs before all constructors.
#include <unistd.h>

namespace {

void check_processor() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
      __builtin_cpu_supports("bmi2"))
    return;
  constexpr char kMessage[] =
      "lacuna: this processor lacks AVX2, FMA, F16C or BMI, expected all of them (x86-64-v3)\n";
  if (write(STDERR_FILENO, kMessage, sizeof kMessage - 1) < 0) _exit(2);
  _exit(1);
}

__attribute__((section(".preinit_array"), used)) void (*first)() = check_processor;

}  // namespace
