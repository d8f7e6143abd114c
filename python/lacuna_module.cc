// SPDX-License-Identifier: Apache-2.0
// The compiled part of the Python package: kernels, methods and the engine on other programs'
// arrays. Signatures, defaults and documentation are those of lacuna/__init__.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "lacuna/core/error.h"
#include "lacuna/engine/tables.h"
#include "python/arrays.h"
#include "python/bindings.h"

NB_MODULE(_lacuna, m) {
  namespace py = lacuna::python;
  // What is refused is nearly always an argument, so callers may catch ValueError.
  nanobind::exception<lacuna::Error>(m, "Error", PyExc_ValueError);
  py::bind_mask(m);
  py::bind_attention(m);
  py::bind_session(m);
  m.attr("version") = LACUNA_VERSION;
  m.def("methods_json", &lacuna::methods_json);
  m.def("set_threads", &py::set_compute_threads, nanobind::arg("n"));
  m.def("threads", &py::compute_threads);
  m.def("backend_description", [] {
    const py::Computing computing;  // the first time the levels of this machine may be measured
    return py::backend().description();
  });
}
