// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/sprite.h"

extern "C" {
#include <libavutil/base64.h>
}

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/models/video/video_writer.h"

namespace lacuna {
namespace {

constexpr int kColumns = 8;
// Sizes worth encoding to see whether they fit: PNG rarely makes less than this of a video.
constexpr size_t kBestRatio = 12;
// Below this width a clip loses frames before it loses more pixels.
constexpr int kSmallWidth = 200;

void shrink_frame(std::span<const uint8_t> frame, const Clip& from, int shrink, Clip& to) {
  for (int y = 0; y < from.height; y += shrink) {
    for (int x = 0; x < from.width; x += shrink) {
      const int rows = std::min(shrink, from.height - y),
                columns = std::min(shrink, from.width - x);
      const int count = rows * columns;
      for (int c = 0; c < 3; ++c) {
        int sum = 0;
        for (int dy = 0; dy < rows; ++dy)
          for (int dx = 0; dx < columns; ++dx)
            sum += frame[size_t{3} * ((y + dy) * from.width + x + dx) + c];
        to.rgb.push_back(static_cast<uint8_t>((sum + count / 2) / count));
      }
    }
  }
}

std::string ordinal(int n) {
  return std::to_string(n) + (n == 2 ? "nd" : n == 3 ? "rd" : "th");
}

std::string note_of(int shrink, int keep_every) {
  std::string note = "The same noise, decoded without an encoder's loss.";
  if (shrink > 1) note += fmt::format(" Shown at 1/{} of the size to keep the page small.", shrink);
  if (keep_every > 1)
    note += fmt::format(" Every {} frame is shown to keep the page small.", ordinal(keep_every));
  return note;
}

}  // namespace

std::string base64(std::span<const uint8_t> bytes) {
  std::string text(AV_BASE64_SIZE(bytes.size()), '\0');
  LACUNA_CHECK(av_base64_encode(text.data(), static_cast<int>(text.size()), bytes.data(),
                                static_cast<int>(bytes.size())) != nullptr,
               "base64: {} bytes are too many", bytes.size());
  text.resize(text.find('\0'));
  return text;
}

Clip thinned(const Clip& clip, int shrink, int keep_every) {
  LACUNA_CHECK(shrink >= 1 && keep_every >= 1, "thinned: shrink {}, keep_every {}, expected 1 up",
               shrink, keep_every);
  Clip out{(clip.width + shrink - 1) / shrink,
           (clip.height + shrink - 1) / shrink,
           std::max(1, (clip.fps + keep_every / 2) / keep_every),
           {}};
  for (int t = 0; t < clip.frames(); t += keep_every) {
    if (shrink == 1) {
      out.append(clip.frame(t));
    } else {
      shrink_frame(clip.frame(t), clip, shrink, out);
    }
  }
  return out;
}

std::string sprite_sheet(const Clip& clip, int columns) {
  const int frames = clip.frames();
  LACUNA_CHECK(frames > 0 && columns > 0, "sprite sheet: {} frames in {} columns, expected both",
               frames, columns);
  const int rows = (frames + columns - 1) / columns;
  const size_t line = size_t{3} * clip.width;  // bytes of one row of one frame
  const VideoInfo info{.width = clip.width * columns, .height = clip.height * rows};
  std::vector<uint8_t> sheet(line * columns * info.height);
  for (int t = 0; t < frames; ++t) {
    const auto frame = clip.frame(t);
    for (int y = 0; y < clip.height; ++y) {
      const size_t row = static_cast<size_t>(t / columns) * clip.height + y;
      std::copy_n(frame.data() + y * line, line, &sheet[(row * columns + t % columns) * line]);
    }
  }
  return "data:image/png;base64," + base64(encode_png(info, sheet));
}

nlohmann::ordered_json player_section(std::span<const NamedClip> clips, size_t max_bytes) {
  LACUNA_CHECK(!clips.empty() && clips.front().clip->frames() > 0, "player: no frames");
  const Clip& first = *clips.front().clip;
  for (const NamedClip& c : clips)
    LACUNA_CHECK(c.clip->width == first.width && c.clip->rgb.size() == first.rgb.size(),
                 "player: clip {} has another size than {}", c.name, clips.front().name);
  int shrink = 1, keep_every = 1;
  for (;; (first.width / shrink > kSmallWidth || keep_every >= first.frames()) ? shrink *= 2
                                                                               : keep_every *= 2) {
    const size_t raw = first.rgb.size() / shrink / shrink / keep_every * clips.size();
    if (raw > kBestRatio * max_bytes) continue;
    nlohmann::ordered_json sheets = nlohmann::ordered_json::array();
    size_t bytes = 0;
    Clip small;
    for (const NamedClip& c : clips) {
      small = thinned(*c.clip, shrink, keep_every);
      sheets.push_back(
          {{"name", c.name}, {"columns", kColumns}, {"image", sprite_sheet(small, kColumns)}});
      bytes += sheets.back()["image"].get_ref<const std::string&>().size();
      if (bytes > max_bytes) break;
    }
    // A single pixel is the end of what can be left out.
    if (bytes > max_bytes && (small.width > 1 || small.frames() > 1)) continue;
    return {{"kind", "player"},
            {"title", "Frames side by side"},
            {"note", note_of(shrink, keep_every)},
            {"fps", small.fps},
            {"frames", small.frames()},
            {"width", small.width},
            {"height", small.height},
            {"clips", std::move(sheets)}};
  }
}

}  // namespace lacuna
