// SPDX-License-Identifier: Apache-2.0
// The parts of the module, a file each.
#pragma once

#include <nanobind/nanobind.h>

namespace lacuna::python {

void bind_mask(nanobind::module_& m);
void bind_attention(nanobind::module_& m);  // attention and selection
void bind_session(nanobind::module_& m);

}  // namespace lacuna::python
