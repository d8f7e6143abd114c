// SPDX-License-Identifier: Apache-2.0
// Text for a terminal that may hold what strangers wrote: names of tensors and files, comments of
// clips, prompts.
#pragma once

#include <string>
#include <string_view>

namespace lacuna {

// The text with visible escapes (\x1b, \u202e) in place of what a terminal would obey and not show:
// the control characters of C0 and C1, DEL, separators of lines and paragraphs, what turns the
// direction of writing, and bytes that are not UTF-8. Ends of lines and tabs stay, and so do
// backslashes: this is for reading, not to be read back.
std::string printable(std::string_view text);
// The same with ends of lines and tabs escaped, too: what stands in it cannot look like a line of
// its own.
std::string one_line(std::string_view text);

}  // namespace lacuna
