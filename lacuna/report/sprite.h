// SPDX-License-Identifier: Apache-2.0
// Pictures inside a report: PNG sprite sheets as data URIs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "lacuna/report/clip.h"

namespace lacuna {

std::string base64(std::span<const uint8_t> bytes);

// Every `keep_every`-th frame, each pixel the mean of a shrink x shrink box (rounded; a short box
// at the far edges). Frames per second are rounded, at least 1.
Clip thinned(const Clip& clip, int shrink, int keep_every);

// All frames side by side, `columns` to a row, missing ones at the end black; a PNG file as
// `data:image/png;base64,...`.
std::string sprite_sheet(const Clip& clip, int columns);

// The `player` section of a report. Clips of one size and length; they are thinned alike until all
// sheets together take at most max_bytes, and the section's note says so. Throws Error when there
// is none or they differ.
nlohmann::ordered_json player_section(std::span<const NamedClip> clips, size_t max_bytes);

}  // namespace lacuna
