// SPDX-License-Identifier: Apache-2.0
// libFuzzer's entry point for the parser that LACUNA_FUZZ_PARSER names.
#include "tests/fuzz/parsers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lacuna::fuzz::LACUNA_FUZZ_PARSER({data, size});
  return 0;
}
