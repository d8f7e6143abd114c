// SPDX-License-Identifier: Apache-2.0
// The CPU backend: own attention and row-wise kernels, oneDNN for matrix products and convolution.
#pragma once

#include <memory>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cpu/isa.h"

namespace lacuna {

// At cpu::active_isa(), attention at cpu::active_attend_levels(). Throws Error if LACUNA_ISA is
// wrong.
std::unique_ptr<Backend> make_cpu_backend();
// At a given level, attention too, for tests. Own kernels and the choice of data types follow
// `isa`; oneDNN's level is one for the whole process and follows LACUNA_ISA. Throws Error if the
// machine has less than `isa`; a test that carries out instructions itself
// (tests/support/tile_unit.h) says what the machine has.
std::unique_ptr<Backend> make_cpu_backend(cpu::Isa isa, cpu::Isa machine = cpu::machine_isa());

}  // namespace lacuna
