// SPDX-License-Identifier: Apache-2.0
#include "tests/support/backends.h"

#include "lacuna/backend/cuda/cuda_backend.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"

namespace lacuna::test {

std::vector<BackendChoice> backends_under_test() {
  return {{"emulated",
           [] {
             return make_cuda_backend(cuda::emulator::make_emulated_device(cuda::Family::sm80, 1));
           }},
          {"gpu", [] { return make_cuda_backend(); }}};
}

}  // namespace lacuna::test
