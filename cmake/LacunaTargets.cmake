# lacuna_library(name folder LIBS ...): a static library of the .cc files directly in `folder`.
# Sources are globbed so that a new method or kernel needs no build edit.
function(lacuna_library name folder)
  cmake_parse_arguments(ARG "" "" "LIBS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.cc)
  if(sources)
    add_library(lacuna_${name} STATIC ${sources})
    target_link_libraries(lacuna_${name} PUBLIC ${ARG_LIBS})
  else()
    add_library(lacuna_${name} INTERFACE)
    target_link_libraries(lacuna_${name} INTERFACE ${ARG_LIBS})
  endif()
endfunction()

# lacuna_kernel_flags(library suffix flags...): compile the library's *<suffix>.cc with these flags.
# Such files include attend_params.h-like plain headers and intrinsics only: an inline function of a
# standard header compiled with wider flags could be picked by the linker for everyone.
function(lacuna_kernel_flags library suffix)
  get_target_property(sources lacuna_${library} SOURCES)
  foreach(source ${sources})
    if(source MATCHES "${suffix}\\.cc$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${ARGN}")
    endif()
  endforeach()
endfunction()

# Tests run side by side: threads that spin while they wait would take the cores from each other.
set(LACUNA_TEST_ENVIRONMENT OMP_WAIT_POLICY=passive)

# lacuna_test(name folder LIBS ...): one GoogleTest binary per layer folder, labelled with its name.
function(lacuna_test name folder)
  cmake_parse_arguments(ARG "" "" "LIBS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*_test.cc)
  if(NOT sources)
    return()
  endif()
  add_executable(test_${name} ${sources})
  set_target_properties(test_${name} PROPERTIES UNITY_BUILD OFF)  # helpers of different tests share names
  target_link_libraries(test_${name} PRIVATE ${ARG_LIBS} lacuna_test_support GTest::gtest GTest::gmock GTest::gtest_main)
  include(GoogleTest)
  gtest_discover_tests(test_${name} DISCOVERY_MODE PRE_TEST
    PROPERTIES LABELS ${name} TIMEOUT 300 ENVIRONMENT ${LACUNA_TEST_ENVIRONMENT})
endfunction()

# lacuna_embed_text(library file symbol): `std::string_view lacuna::symbol()` returns the file's text.
function(lacuna_embed_text library file symbol)
  set(out ${CMAKE_BINARY_DIR}/embedded/${symbol}.cc)
  add_custom_command(OUTPUT ${out} DEPENDS ${CMAKE_SOURCE_DIR}/${file}
    COMMAND ${CMAKE_COMMAND} -DIN=${CMAKE_SOURCE_DIR}/${file} -DOUT=${out} -DSYMBOL=${symbol}
            -P ${CMAKE_SOURCE_DIR}/cmake/embed_text.cmake)
  set_source_files_properties(${out} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)  # made during the build
  target_sources(lacuna_${library} PRIVATE ${out})
endfunction()
