# Lacuna. `make demo` and `make test` are all a newcomer needs; both install what is missing.
JOBS ?= $(shell nproc)

.PHONY: build test demo asan check fuzz format clean deps

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
ASAN_LAYERS = core backend methods engine calibrate models wan vae text scheduler video bench corpus
asan: deps
	cmake --preset asan > /dev/null
	cmake --build --preset asan -j $(JOBS) --target $(ASAN_LAYERS:%=test_%)
	ctest --preset asan -j $(JOBS) -L "^($$(echo $(ASAN_LAYERS) | tr ' ' '|'))$$" -E Guarded

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
