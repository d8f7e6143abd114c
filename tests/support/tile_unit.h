// SPDX-License-Identifier: Apache-2.0
// AMX where the processor has none: the machine code that ships runs, and its tile instructions,
// each of which is an invalid opcode there, are carried out in software.
#pragma once

#include "lacuna/backend/cpu/isa.h"

namespace lacuna::test {

// `isa`, or `amx` where that is all that this machine has but the tile unit: then tile instructions
// of this process are taken up from SIGILL, as the manual says (Intel 64 and IA-32 Architectures
// Software Developer's Manual, volume 2, "LDTILECFG" to "TDPBF16PS"), except that tiles hold NaN
// after LDTILECFG and TILERELEASE, not zero. What the manual makes an exception ends the process:
// an instruction without a configuration, tiles whose shapes do not fit, a bad configuration. A
// microsecond or two each.
cpu::Isa with_tile_unit(cpu::Isa isa);

// "amx" on hardware, "amx_in_software" where the instructions above are taken up: the name that a
// test goes by, since a result holds for the machine it was had on.
const char* amx_name();

}  // namespace lacuna::test
