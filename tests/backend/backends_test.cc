// SPDX-License-Identifier: Apache-2.0
#include "tests/support/backends.h"

#include "lacuna/backend/cpu/cpu_backend.h"
#include "tests/support/tile_unit.h"

namespace lacuna::test {

std::vector<BackendChoice> backends_under_test() {
  std::vector<BackendChoice> list;
  for (cpu::Isa isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_bf16, cpu::Isa::amx})
    list.push_back({fmt::format("cpu_{}", isa == cpu::Isa::amx ? amx_name() : cpu::isa_name(isa)),
                    [isa] { return make_cpu_backend(isa, with_tile_unit(cpu::machine_isa())); }});
  // cuda: tests/backend/cuda.
  for (std::string_view name : backend_names())
    if (name != "ref" && name != "cpu" && name != "cuda")
      list.push_back({std::string(name), [name] { return make_backend(name); }});
  return list;
}

}  // namespace lacuna::test
