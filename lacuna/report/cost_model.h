// SPDX-License-Identifier: Apache-2.0
// What attention costs on this machine at a density: measured, not counted in operations.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/calibrate/replay.h"
#include "lacuna/engine/recording.h"

namespace lacuna {

// One attention call of all heads.
class CostModel {
 public:
  struct Point {
    double density, ms;  // of block-sparse attention without its selection
  };
  // Throws Error unless there is a point, densities are in (0, 1], and times positive. Order does
  // not matter. A time that is smaller than one at a lower density is noise, and is raised to it.
  CostModel(double dense_ms, double select_ms, std::vector<Point> points);

  double dense_ms() const { return dense_ms_; }
  double select_ms() const { return select_ms_; }
  const std::vector<Point>& points() const { return points_; }  // by rising density

  // Along lines between the points. Below the least measured density it stays what it was there:
  // nothing is promised that was not measured. Above the largest it grows as density does.
  double attend_ms(double density) const;
  // Selection, and the mean over heads of attention at each one's density.
  double sparse_ms(std::span<const double> head_densities) const;
  // The largest density at which selection and attention together are faster than dense; 0 when
  // there is none.
  double break_even() const;

 private:
  double dense_ms_, select_ms_;
  std::vector<Point> points_;
};

struct CostSettings {
  std::vector<double> densities{0.5, 0.25, 0.1};  // beside dense and the knob's full end
  int repeats = 3;
  double seconds = 5.0;  // about; longer sequences are measured on fewer heads
};

struct MeasuredCost {
  CostModel model;
  int64_t heads;        // measured, of all; times are scaled to all
  double full_density;  // at the knob's full end: 1 when the method can keep everything
};

// Times dense attention on the call, and the case (which must have a knob) at the densities its
// knob reaches, with what belongs to it: selection, moving tokens into order. Throws what `between`
// throws, and Error when the case has no knob.
MeasuredCost measure_cost(Backend& backend, const RecordedCall& call, const ReplayCase& wanted,
                          const CostSettings& settings, const std::function<void()>& between = {});

}  // namespace lacuna
