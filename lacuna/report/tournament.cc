// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/tournament.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "lacuna/core/error.h"
#include "lacuna/report/front.h"
#include "lacuna/report/sections.h"

namespace lacuna {

namespace {

constexpr double kTie = 1.05;                 // losses this close are called equal
constexpr double kDenseButRounding = 0.9999;  // density of a mask that is dense, but for rounding

void mark_fronts(std::vector<TournamentPoint>& points) {
  std::vector<double> density, ms, loss;
  for (const TournamentPoint& p : points) {
    density.push_back(p.row.pv_density);
    ms.push_back(p.row.total_ms());
    loss.push_back(p.row.rel_l1);
  }
  const auto by_density = pareto_front(density, loss), by_time = pareto_front(ms, loss);
  for (size_t i = 0; i < points.size(); ++i) {
    points[i].on_density_front = by_density[i];
    points[i].on_time_front = by_time[i];
  }
}

std::vector<std::string> contestants(const Tournament& t) {
  std::vector<std::string> names;
  for (const TournamentPoint& p : t.points)
    if (std::find(names.begin(), names.end(), p.contestant) == names.end())
      names.push_back(p.contestant);
  return names;
}

// Points of one density, least loss first.
std::vector<const TournamentPoint*> at_density(const Tournament& t, double density) {
  std::vector<const TournamentPoint*> found;
  for (const TournamentPoint& p : t.points)
    if (p.target == density) found.push_back(&p);
  std::stable_sort(found.begin(), found.end(),
                   [](auto* a, auto* b) { return a->row.rel_l1 < b->row.rel_l1; });
  return found;
}

// The fastest point with at most the wanted loss that is faster than dense; of `contestant` if not
// empty.
const TournamentPoint* fastest(const Tournament& t, const std::string& contestant = {}) {
  const TournamentPoint* best = nullptr;
  for (const TournamentPoint& p : t.points) {
    if (!contestant.empty() && p.contestant != contestant) continue;
    if (p.row.rel_l1 > t.settings.loss || p.row.speedup() <= 1.0) continue;
    if (best == nullptr || p.row.total_ms() < best->row.total_ms()) best = &p;
  }
  return best;
}

// Geometric mean over the densities a contestant reached of its loss over the least loss there.
struct Rank {
  std::string name;
  double behind = 1.0;
  int reached = 0;
};

std::vector<Rank> ranking(const Tournament& t) {
  std::vector<Rank> ranks;
  for (const std::string& name : contestants(t)) {
    Rank rank{name};
    double sum = 0.0;
    for (const double density : t.settings.densities) {
      const auto points = at_density(t, density);
      for (const TournamentPoint* p : points) {
        if (p->contestant != name) continue;
        constexpr double kTiny = 1e-12;
        sum += std::log((p->row.rel_l1 + kTiny) / (points.front()->row.rel_l1 + kTiny));
        ++rank.reached;
      }
    }
    if (rank.reached > 0) {
      rank.behind = std::exp(sum / rank.reached);
      ranks.push_back(rank);
    }
  }
  std::stable_sort(ranks.begin(), ranks.end(), [](const Rank& a, const Rank& b) {
    return a.reached != b.reached ? a.reached > b.reached : a.behind < b.behind;
  });
  return ranks;
}

Json row_json(const ReplayRow& row, const std::optional<double>& target, const char* front) {
  Json json = {
      {"attention", row.name},        {"parameter", row.parameter},   {"target", nullptr},
      {"qk_density", row.qk_density}, {"pv_density", row.pv_density}, {"recall", row.recall},
      {"rel_l1", row.rel_l1},         {"select_ms", row.select_ms},   {"attend_ms", row.attend_ms},
      {"total_ms", row.total_ms()},   {"speedup", row.speedup()},     {"front", front}};
  if (target) json["target"] = *target;
  return json;
}

const char* front_name(const TournamentPoint& p) {
  if (p.on_density_front) return p.on_time_front ? "both" : "density";
  return p.on_time_front ? "time" : "";
}

Json density_table(const Tournament& t) {
  Json rows = Json::array();
  const auto add = [&](const TournamentPoint& p) {
    rows.push_back(row_json(p.row, p.target, front_name(p)));
  };
  for (const double density : t.settings.densities)
    for (const TournamentPoint* p : at_density(t, density)) add(*p);
  for (const TournamentPoint& p : t.points)
    if (!p.target) add(p);
  for (const ReplayRow* floor : {&t.dense, &t.reordered}) {
    Json row = row_json(*floor, {}, "");
    row["floor"] = true;
    rows.push_back(std::move(row));
  }
  return table_section(
      "At equal density",
      "Means over the recorded calls, least loss first; the last rows are dense attention, the "
      "noise floor.",
      {{"attention", "attention"},
       {"target", "wanted", "", "density of P V that was searched for", 2},
       {"qk_density", "QK", "", "share of query-key products that is computed", 3},
       {"pv_density", "PV", "", "share of products with values that is computed", 3},
       {"recall", "recall", "", "softmax mass of what was kept", 4},
       {"rel_l1", "rel_l1", "", "sum |o - o'| / sum |o|, against dense f32", 4},
       {"select_ms", "select", "ms", "one selection", 2},
       {"attend_ms", "attend", "ms", "one attention call without its selection", 2},
       {"speedup", "speed-up", "x", "over dense, selection counted", 2},
       {"parameter", "parameter"},
       {"front", "front"}},
      std::move(rows));
}

Json time_table(const Tournament& t) {
  std::vector<Column> columns = {{"attention", "attention"}};
  for (const double time : t.settings.times)
    columns.push_back({fmt::format("at_{:.4g}", time),
                       fmt::format("{:.4g} % of dense", 100.0 * time), "",
                       "rel_l1 in this time, selection counted", 4});
  Json rows = Json::array();
  for (const std::string& name : contestants(t)) {
    Json row = {{"attention", name}};
    bool any = false;
    for (const double time : t.settings.times) {
      const auto loss = loss_at_time(t, name, time * t.dense.dense_ms);
      row[fmt::format("at_{:.4g}", time)] = loss ? Json(*loss) : Json();
      any = any || loss;
    }
    if (any) rows.push_back(std::move(row));
  }
  return table_section(
      "At equal time",
      "rel_l1 at a share of dense attention's time, selection counted, read between the measured "
      "points (log rel_l1 is taken as linear in time). Empty: not in that range.",
      columns, std::move(rows));
}

Json ranking_table(const Tournament& t) {
  Json rows = Json::array();
  for (const Rank& rank : ranking(t)) {
    const TournamentPoint* best = fastest(t, rank.name);
    rows.push_back({{"attention", rank.name},
                    {"behind", rank.behind},
                    {"reached", rank.reached},
                    {"speedup", best != nullptr ? Json(best->row.speedup()) : Json()},
                    {"density", best != nullptr ? Json(best->row.pv_density) : Json()}});
  }
  return table_section(
      "Ranking",
      fmt::format("Loss over the least loss at the same density, geometric mean over the densities "
                  "reached; and the largest speed-up over dense with rel_l1 at most {:.4g}.",
                  t.settings.loss),
      {{"attention", "attention"},
       {"behind", "loss / best", "x", "1 = least at every density", 2},
       {"reached", "densities", "", "how many of the densities it reached"},
       {"speedup", "speed-up", "x", "the largest with a small loss; selection counted", 2},
       {"density", "at density", "", "of that point", 3}},
      std::move(rows));
}

Json front_section(const Tournament& t, bool time) {
  Json points = Json::array();
  for (const TournamentPoint& p : t.points)
    points.push_back({{"name", p.contestant},
                      {"x", time ? p.row.total_ms() : p.row.pv_density},
                      {"y", p.row.rel_l1},
                      {"front", time ? p.on_time_front : p.on_density_front}});
  Json x = {{"name", time ? "time" : "density"}};
  if (time) x["unit"] = "ms";
  return {
      {"kind", "front"},
      {"title", time ? "Loss over time" : "Loss over density"},
      {"note", time ? fmt::format("Selection counted; dense attention takes {:.4g} ms. Left and "
                                  "low is better.",
                                  t.dense.dense_ms)
                    : std::string("Density of P V; a skip rule computes all of Q K. Left and "
                                  "low is better.")},
      {"x", x},
      {"y", {{"name", "rel_l1"}, {"log", true}}},
      {"points", points},
      {"better", "low"}};
}

}  // namespace

Tournament run_tournament(Replay& replay, std::span<const ReplayCase> cases,
                          const TournamentSettings& settings,
                          const std::function<void(int, int, const std::string&)>& progress) {
  LACUNA_CHECK(!cases.empty() && !settings.densities.empty(),
               "tournament: {} contestants at {} densities, expected 1 or more", cases.size(),
               settings.densities.size());
  Tournament t;
  t.settings = settings;
  std::vector<double>& densities = t.settings.densities;
  std::sort(densities.begin(), densities.end());
  densities.erase(std::unique(densities.begin(), densities.end()), densities.end());
  for (const double density : t.settings.densities)
    LACUNA_CHECK(density > 0.0 && density <= 1.0,
                 "tournament: density {}, expected more than 0 and at most 1", density);
  const auto per_case = static_cast<int>(t.settings.densities.size());
  const int total = 1 + static_cast<int>(cases.size()) * per_case;
  int done = 0;
  const auto report = [&](const std::string& next) {
    if (progress) progress(done, total, next);
  };
  report("dense");
  t.dense = replay.dense();
  t.reordered = replay.reordered();
  ++done;
  for (const ReplayCase& wanted : cases) {
    Replay::Known known;
    for (int i = 0; i < per_case; ++i, ++done) {
      report(wanted.name);
      const double density = t.settings.densities[static_cast<size_t>(i)];
      if (!wanted.knob) {
        if (i > 0) continue;
        ReplayRow row = replay.run(wanted);
        if (row.pv_density < kDenseButRounding) {
          t.points.push_back({wanted.name, {}, std::move(row)});
        } else {
          t.missed.push_back({wanted.name, {}});
        }
      } else if (auto row = replay.at_density(wanted, density, &known)) {
        t.points.push_back({wanted.name, density, std::move(*row)});
      } else {
        t.missed.push_back({wanted.name, density});
      }
    }
  }
  report("");
  mark_fronts(t.points);
  return t;
}

std::optional<double> loss_at_time(const Tournament& tournament, const std::string& contestant,
                                   double ms) {
  const TournamentPoint *below = nullptr, *above = nullptr;
  for (const TournamentPoint& p : tournament.points) {
    if (p.contestant != contestant) continue;
    const double at = p.row.total_ms();
    if (at <= ms && (below == nullptr || at > below->row.total_ms())) below = &p;
    if (at >= ms && (above == nullptr || at < above->row.total_ms())) above = &p;
  }
  if (below == nullptr || above == nullptr) return {};
  constexpr double kTiny = 1e-12;
  const double from = below->row.total_ms(), to = above->row.total_ms();
  const double share = to > from ? (ms - from) / (to - from) : 0.0;
  return std::exp((1.0 - share) * std::log(below->row.rel_l1 + kTiny) +
                  share * std::log(above->row.rel_l1 + kTiny));
}

std::vector<std::string> tournament_sentences(const Tournament& t) {
  std::vector<std::string> sentences;
  for (const double density : t.settings.densities) {
    const auto points = at_density(t, density);
    if (points.empty()) continue;
    const ReplayRow& best = points.front()->row;
    std::string names = points.front()->contestant;
    size_t ties = 1;
    while (ties < points.size() && points[ties]->row.rel_l1 <= kTie * best.rel_l1) {
      names += " and " + points[ties]->contestant;
      ++ties;
    }
    std::string line =
        fmt::format("At density {:.4g} {} {} least (rel_l1 {:.3g}, recall {:.3f})", density, names,
                    ties == 1 ? "loses" : "lose", best.rel_l1, best.recall);
    if (ties < points.size())
      line +=
          fmt::format(", before {} ({:.3g})", points[ties]->contestant, points[ties]->row.rel_l1);
    sentences.push_back(line + ".");
  }
  if (const TournamentPoint* best = fastest(t)) {
    sentences.push_back(fmt::format(
        "Counting selection time, {} is fastest with rel_l1 at most {:.3g}: {:.2f}x dense at "
        "density {:.3f} (rel_l1 {:.3g}, selection {:.1f} % of dense).",
        best->contestant, t.settings.loss, best->row.speedup(), best->row.pv_density,
        best->row.rel_l1, 100.0 * best->row.selection_share()));
  } else {
    sentences.push_back(fmt::format(
        "Counting selection time, no measured point is faster than dense with rel_l1 at most "
        "{:.3g}.",
        t.settings.loss));
  }
  sentences.push_back(fmt::format(
      "Rounding alone costs rel_l1 {:.2g} (dense, recorded dtype): less than that means nothing.",
      std::max(t.dense.rel_l1, t.reordered.rel_l1)));
  return sentences;
}

namespace {

// "Not reached: svg at density 0.1, 0.2; radial at density 0.1."
std::vector<std::string> missed_sentences(const Tournament& t) {
  std::string densities, everything;
  const Tournament::Miss* last = nullptr;
  for (const Tournament::Miss& miss : t.missed) {
    if (!miss.density) {
      everything += (everything.empty() ? "" : ", ") + miss.contestant;
    } else if (last != nullptr && last->contestant == miss.contestant) {
      densities += fmt::format(", {:.4g}", *miss.density);
    } else {
      densities += fmt::format("{}{} at density {:.4g}", densities.empty() ? "" : "; ",
                               miss.contestant, *miss.density);
    }
    if (miss.density) last = &miss;
  }
  std::vector<std::string> lines;
  if (!densities.empty()) lines.push_back("Not reached: " + densities + ".");
  if (!everything.empty()) lines.push_back("Keeps everything at this size: " + everything + ".");
  return lines;
}

}  // namespace

Json tournament_sections(const Tournament& t) {
  std::vector<std::string> paragraphs = tournament_sentences(t);
  for (std::string& line : missed_sentences(t)) paragraphs.push_back(std::move(line));
  Json sections = Json::array({text_section("Result", std::move(paragraphs)), ranking_table(t),
                               density_table(t), time_table(t)});
  if (!t.points.empty())  // nobody reached any density: there is nothing to draw
    for (const bool time : {false, true}) sections.push_back(front_section(t, time));
  return sections;
}

}  // namespace lacuna
