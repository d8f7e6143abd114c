// SPDX-License-Identifier: Apache-2.0
// Modules of general kernels: X(name). A module has its kernels listed in <name>_kernels.h, its
// entry points made of that list in inst/<name>.cu, the emulator's functions in
// emulator/<name>_emulated.cc, and its name in cmake/LacunaCuda.cmake.
//
// A list is a macro of lines X(entry point, argument struct, threads of a block, kernel).
#pragma once

#define LACUNA_CUDA_MODULES(X) \
  X(attend_any)                \
  X(decode)                    \
  X(network)                   \
  X(plan)                      \
  X(select)
