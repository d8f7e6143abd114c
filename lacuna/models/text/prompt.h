// SPDX-License-Identifier: Apache-2.0
// Cleaning of prompts before tokenisation.
#pragma once

#include <string>
#include <string_view>

namespace lacuna {

// As the prompt_clean of Wan pipelines: quotes straightened, HTML entities resolved twice, runs of
// white space made one space, ends stripped; malformed UTF-8 becomes U+FFFD.
//
// Upstream runs ftfy.fix_text first. Of it only the quotes are done here (U+2018.. to ', U+201C..
// to "), the one step that changes ordinary prompts: most others (widths, ligatures, control
// characters, composition) the tokenizer's character map does anyway. Guessing the encoding of
// garbled text is left out. U+02BC counts as a quote, as in ftfy.
std::string clean_prompt(std::string_view text);

// HTML entities once, by the rules of HTML5 as in Python's html.unescape: `&#65;` `&#x41;` `&amp;`,
// the semicolon optional after numbers and, for the names older browsers knew, after names
// (`&copy2020`). Named entities are those of HTML 4 and `&apos;`; the other 1,900 names of HTML5
// stay as they are.
std::string unescape_html(std::string_view text);

}  // namespace lacuna
