// SPDX-License-Identifier: Apache-2.0
// The reference backend: plain loops, data read as f32, sums in double. Slow and right; every other
// backend is tested against it. Results do not depend on the number of threads.
#pragma once

#include <memory>

#include "lacuna/backend/backend.h"

namespace lacuna {

std::unique_ptr<Backend> make_ref_backend();

}  // namespace lacuna
