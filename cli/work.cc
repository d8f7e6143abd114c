// SPDX-License-Identifier: Apache-2.0
#include "cli/work.h"

#include "cli/interrupt.h"
#include "lacuna/models/context.h"

namespace lacuna::cli {

void check_interrupt() {
  if (interrupt_flag()) throw Cancelled();
}

void Work::update(const std::string& label, int64_t done, int64_t total, const std::string& note) {
  if (quiet_) return;
  if (label != label_) bar_.reset();
  label_ = label;
  if (!bar_) bar_.emplace(label, static_cast<int>(total));
  bar_->update(static_cast<int>(done), note);
}

}  // namespace lacuna::cli
