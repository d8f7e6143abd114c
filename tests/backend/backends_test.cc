// SPDX-License-Identifier: Apache-2.0
#include "tests/support/backends.h"

#include "lacuna/backend/cpu/cpu_backend.h"

namespace lacuna::test {

std::vector<BackendChoice> backends_under_test() {
  std::vector<BackendChoice> list;
  for (cpu::Isa isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_bf16, cpu::Isa::amx})
    list.push_back({"cpu_" + std::string(cpu::isa_name(isa)), [isa]() -> std::unique_ptr<Backend> {
                      LACUNA_CHECK(isa <= cpu::machine_isa(), "this machine has no {}",
                                   cpu::isa_name(isa));
                      return make_cpu_backend(isa);
                    }});
  // cuda: tests/backend/cuda.
  for (std::string_view name : backend_names())
    if (name != "ref" && name != "cpu" && name != "cuda")
      list.push_back({std::string(name), [name] { return make_backend(name); }});
  return list;
}

}  // namespace lacuna::test
