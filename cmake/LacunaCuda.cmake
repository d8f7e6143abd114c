# The CUDA backend. LACUNA_CUDA: AUTO builds kernels when an nvcc is found that can, ON insists, OFF never does. The
# host code that plans calls is built either way: the emulator tests run it.
set(LACUNA_CUDA AUTO CACHE STRING "CUDA kernels: AUTO, ON or OFF")
set(LACUNA_HAS_CUDA OFF)
if(NOT LACUNA_CUDA STREQUAL "OFF")
  find_program(LACUNA_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda/bin)
  if(LACUNA_NVCC)
    file(REAL_PATH ${LACUNA_NVCC} nvcc_real)
    get_filename_component(nvcc_folder ${nvcc_real} DIRECTORY)
    # Types of the driver API; the library itself is opened at run time.
    find_path(LACUNA_CUDA_INCLUDE cuda.h HINTS ${nvcc_folder}/../include ENV CUDA_HOME
      PATHS /usr/local/cuda/include PATH_SUFFIXES include NO_CMAKE_SYSTEM_PATH)
  endif()
  set(nvcc_version "none")
  if(LACUNA_NVCC AND LACUNA_CUDA_INCLUDE)
    execute_process(COMMAND ${LACUNA_NVCC} --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET)
    if(nvcc_says MATCHES "release ([0-9]+[.][0-9]+)")
      set(nvcc_version ${CMAKE_MATCH_1})
    endif()
  endif()
  # The first to know sm_120; Debian 12's own (11.8) does not know C++20 either.
  if(nvcc_version VERSION_GREATER_EQUAL 12.8)
    set(LACUNA_HAS_CUDA ON)
  elseif(LACUNA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LACUNA_CUDA=ON: nvcc and cuda.h of version ${nvcc_version}, expected a CUDA toolkit from 12.8 on (13.0 is what we test)")
  elseif(LACUNA_NVCC)
    message(STATUS "nvcc and cuda.h of version ${nvcc_version}, expected 12.8 or later: not used")
  endif()
endif()
message(STATUS "CUDA kernels: ${LACUNA_HAS_CUDA}")

# CMake 3.25 does not know C++20 for nvcc and `-arch=sm_90a` fails, so nvcc is called by hand with every
# flag spelt out. One cubin per source and architecture: cubins are what scripts/cuda-gate can read.
set(LACUNA_NVCC_FLAGS -std=c++20 -O3 -I${CMAKE_SOURCE_DIR} -Xptxas -v,-warn-spills)

# lacuna_cuda_module(library source arch): compiles inst/<source>.cu and puts the cubin into the library
# as `lacuna_module_<source>_sm<arch>`.
function(lacuna_cuda_module library source arch)
  set(name ${source}_sm${arch})
  set(file ${CMAKE_SOURCE_DIR}/lacuna/backend/cuda/inst/${source}.cu)
  set(module ${CMAKE_BINARY_DIR}/cuda/${name}.cubin)
  # Of the plain headers, those that kernels include: what the host hands over, and kernel lists.
  file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/lacuna/backend/cuda/*.cuh
    ${CMAKE_SOURCE_DIR}/lacuna/backend/cuda/inst/*.cuh
    ${CMAKE_SOURCE_DIR}/lacuna/backend/cuda/*_args.h ${CMAKE_SOURCE_DIR}/lacuna/backend/cuda/*_kernels.h)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cuda)
  # ptxas reports registers and spills on stderr: kept for scripts/cuda-gate.
  add_custom_command(OUTPUT ${module}
    COMMAND sh -c "\"$@\" 2> \"$0\" || { cat \"$0\"; exit 1; }" ${module}.log
            ${LACUNA_NVCC} ${LACUNA_NVCC_FLAGS} -gencode=arch=compute_${arch},code=sm_${arch}
            -cubin ${file} -o ${module}
    DEPENDS ${file} ${headers} ${CMAKE_SOURCE_DIR}/lacuna/backend/cuda/launch.h
            ${CMAKE_SOURCE_DIR}/lacuna/backend/attend_params.h ${CMAKE_SOURCE_DIR}/lacuna/core/visit_order.h
    COMMENT "nvcc ${name}" VERBATIM)
  set_property(GLOBAL APPEND PROPERTY LACUNA_CUDA_MODULES ${module})
  set(embedded ${CMAKE_BINARY_DIR}/cuda/${name}.cc)
  file(CONFIGURE OUTPUT ${embedded} CONTENT [[
asm(".section .rodata\n.balign 64\n.global lacuna_module_@name@\nlacuna_module_@name@:\n"
    ".incbin \"@module@\"\n.previous\n");
]] @ONLY)
  set_source_files_properties(${embedded} PROPERTIES OBJECT_DEPENDS ${module} SKIP_UNITY_BUILD_INCLUSION ON)
  target_sources(${library} PRIVATE ${embedded})
endfunction()

file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/lacuna/backend/cuda/*.cc)
foreach(choice absent driver cublaslt cublaslt_absent)
  list(REMOVE_ITEM cuda_sources ${CMAKE_SOURCE_DIR}/lacuna/backend/cuda/${choice}.cc)
endforeach()
add_library(lacuna_backend_cuda STATIC ${cuda_sources})
target_link_libraries(lacuna_backend_cuda PUBLIC lacuna_core ${CMAKE_DL_LIBS})
if(LACUNA_HAS_CUDA)
  target_sources(lacuna_backend_cuda PRIVATE lacuna/backend/cuda/driver.cc)
  set_source_files_properties(lacuna/backend/cuda/driver.cc PROPERTIES
    COMPILE_OPTIONS "-isystem;${LACUNA_CUDA_INCLUDE}")
  # Types of cuBLASLt, which is opened at run time too. Toolkits cut down to nvcc lack its header.
  find_path(LACUNA_CUBLASLT_INCLUDE cublasLt.h HINTS ${LACUNA_CUDA_INCLUDE} NO_CMAKE_SYSTEM_PATH)
  if(LACUNA_CUBLASLT_INCLUDE)
    target_sources(lacuna_backend_cuda PRIVATE lacuna/backend/cuda/cublaslt.cc)
    set_source_files_properties(lacuna/backend/cuda/cublaslt.cc PROPERTIES
      COMPILE_OPTIONS "-isystem;${LACUNA_CUDA_INCLUDE};-isystem;${LACUNA_CUBLASLT_INCLUDE}")
  else()
    message(STATUS "cublasLt.h not found: matrix products on CUDA by own kernels")
    target_sources(lacuna_backend_cuda PRIVATE lacuna/backend/cuda/cublaslt_absent.cc)
  endif()
  foreach(dtype bf16 f16)
    lacuna_cuda_module(lacuna_backend_cuda attend_sm80_${dtype} 80)  # runs on all of 8.x
    lacuna_cuda_module(lacuna_backend_cuda attend_sm80_${dtype} 120)
    lacuna_cuda_module(lacuna_backend_cuda attend_sm90_${dtype} 90a)
  endforeach()
  foreach(module attend_any decode network plan select)  # general kernels, as in modules.h
    foreach(arch 80 90a 120)
      lacuna_cuda_module(lacuna_backend_cuda ${module} ${arch})
    endforeach()
  endforeach()
  # scripts/cuda-gate reads all of the folder: what an earlier state of the sources left there goes.
  file(GLOB stale ${CMAKE_BINARY_DIR}/cuda/*.cubin)
  get_property(modules GLOBAL PROPERTY LACUNA_CUDA_MODULES)
  list(REMOVE_ITEM stale ${modules})
  if(stale)
    file(REMOVE ${stale})
  endif()
else()
  target_sources(lacuna_backend_cuda PRIVATE lacuna/backend/cuda/absent.cc)
endif()

# The emulator, for tests. Its fibers are not what sanitizers expect, so their builds leave it out.
function(lacuna_cuda_tests)
  if(NOT LACUNA_SANITIZE)
    lacuna_library(cuda_emulator lacuna/backend/cuda/emulator LIBS lacuna_backend_cuda)
    target_compile_options(lacuna_cuda_emulator PRIVATE -O3)
    set_target_properties(lacuna_cuda_emulator PROPERTIES UNITY_BUILD OFF)  # several kernels define the same names
    lacuna_test(cuda tests/backend/cuda LIBS lacuna_cuda_emulator lacuna_engine)
    lacuna_test(cuda_models tests/models/cuda LIBS lacuna_cuda_emulator lacuna_pipeline lacuna_calibrate)
    # Contracts of every backend, here on the CUDA backend (backends_test.cc).
    target_sources(test_cuda PRIVATE tests/backend/contract_check_test.cc tests/backend/contract_nn_test.cc
      tests/backend/contract_select_test.cc tests/methods/contract_backends_test.cc tests/engine/compensate_test.cc)
  endif()
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(LACUNA_HAS_CUDA AND Python3_FOUND)
    add_test(NAME cuda_gate COMMAND Python3::Interpreter ${CMAKE_SOURCE_DIR}/scripts/cuda-gate
      ${CMAKE_BINARY_DIR}/cuda)
  else()
    add_test(NAME cuda_gate_without_nvcc COMMAND ${CMAKE_COMMAND} -E echo "no nvcc: kernels are not compiled")
    set_tests_properties(cuda_gate_without_nvcc PROPERTIES SKIP_REGULAR_EXPRESSION "no nvcc")
  endif()
endfunction()
