# Lacuna. `make demo` and `make test` are all a newcomer needs; both install what is missing.
JOBS ?= $(shell nproc)

.PHONY: build test demo asan python check fuzz format clean deps

deps:
	@scripts/bootstrap

build: deps
	cmake --preset release > /dev/null
	cmake --build --preset release -j $(JOBS) --target lacuna_cli

test: build
	@scripts/bootstrap --test
	cmake --build --preset release -j $(JOBS)
	ctest --preset release -j $(JOBS)
	scripts/check

# The layers' own tests; whole generations, report pages and the command line take too long with sanitizers, and guarded
# runs only repeat plain ones.
ASAN_LAYERS = core backend methods engine calibrate models wan mochi hunyuan vae text scheduler video bench corpus
asan: deps
	cmake --preset asan > /dev/null
	cmake --build --preset asan -j $(JOBS) --target $(ASAN_LAYERS:%=test_%)
	ctest --preset asan -j $(JOBS) -L "^($$(echo $(ASAN_LAYERS) | tr ' ' '|'))$$" -E Guarded

# The Python package in a venv of its own, and its tests; those of torch and diffusers run where the venv has them.
# pip takes nanobind, scikit-build-core, numpy and pytest from its index. The compiler's name is CMake's, not that of
# the Python, so that a compiler cache knows the objects of `make build`.
python:
	@scripts/bootstrap --python
	python3 -m venv build/python
	CXX="$${CXX:-c++}" build/python/bin/pip install --quiet --disable-pip-version-check ".[test]"
	build/python/bin/python -m pytest --quiet -rs

demo: build
	scripts/demo

check:
	scripts/check

fuzz: deps
	scripts/fuzz

format:
	scripts/check --formatted | xargs clang-format-14 -i

clean:  # keeps out/: training checkpoints and measurements lie there
	rm -rf build
