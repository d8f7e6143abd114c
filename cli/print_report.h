// SPDX-License-Identifier: Apache-2.0
// A report's summary, texts and tables on stdout; what needs a page is left out.
#pragma once

#include "lacuna/engine/json_object.h"

namespace lacuna::cli {

void print_report(const Json& report);

}  // namespace lacuna::cli
