# SPDX-License-Identifier: MIT OR Apache-2.0
# libmemslots: `make help` says what there is.

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DESTDIR ?=
CARGO ?= cargo
CC ?= cc
INSTALL ?= install

# The library's own build directory, whatever the caller's CARGO_TARGET_DIR: `make lib` promises the place.
TARGET := target
export CARGO_TARGET_DIR := $(CURDIR)/$(TARGET)

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
MAJOR := $(firstword $(subst ., ,$(VERSION)))
MINOR := $(word 2,$(subst ., ,$(VERSION)))
# As build.rs has it: below 1.0 each minor version has a soname of its own.
SONAME := libmemslots.so.$(if $(filter 0,$(MAJOR)),0.$(MINOR),$(MAJOR))
SO := $(TARGET)/release/libmemslots.so

# Pinned: the committed header is compared with what this one makes.
CBINDGEN_VERSION := 0.29.4
CBINDGEN := $(TARGET)/tools/bin/cbindgen

.DEFAULT_GOAL := help
.PHONY: help lib install uninstall header check-header test test-rust test-oracle test-c check check-tools \
	check-format check-lint check-installed check-miri run bench bench-quick sanitize fuzz clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lib: ## The library: target/release/libmemslots.{so,a}; its header is include/memslots.h
	$(CARGO) build --release --locked -p memslots
	@rm -f $(TARGET)/release/libmemslots.so.* # an older version's name must not lead to this one
	@ln -s libmemslots.so $(TARGET)/release/$(SONAME)

install: lib ## Install under PREFIX (default /usr/local) below DESTDIR, with a pkg-config file
	$(INSTALL) -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)
	$(INSTALL) -m 755 $(SO) $(DESTDIR)$(LIBDIR)/libmemslots.so.$(VERSION)
	ln -sf libmemslots.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libmemslots.so
	$(INSTALL) -m 644 $(TARGET)/release/libmemslots.a $(DESTDIR)$(LIBDIR)/libmemslots.a
	$(INSTALL) -m 644 include/memslots.h $(DESTDIR)$(INCLUDEDIR)/memslots.h
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|' \
		-e 's|@INCLUDEDIR@|$(INCLUDEDIR)|; s|@VERSION@|$(VERSION)|' \
		memslots.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/memslots.pc
	chmod 644 $(DESTDIR)$(LIBDIR)/pkgconfig/memslots.pc

uninstall: ## Remove what install has installed
	rm -f $(DESTDIR)$(LIBDIR)/libmemslots.so $(DESTDIR)$(LIBDIR)/$(SONAME) \
		$(DESTDIR)$(LIBDIR)/libmemslots.so.$(VERSION) $(DESTDIR)$(LIBDIR)/libmemslots.a \
		$(DESTDIR)$(INCLUDEDIR)/memslots.h $(DESTDIR)$(LIBDIR)/pkgconfig/memslots.pc

$(CBINDGEN):
	$(CARGO) install --quiet --locked --root $(TARGET)/tools --version $(CBINDGEN_VERSION) cbindgen

header: $(CBINDGEN) ## Make include/memslots.h anew from src/capi/
	scripts/header $(CBINDGEN) $(VERSION) > $(TARGET)/memslots.h
	mv $(TARGET)/memslots.h include/memslots.h

check-header: $(CBINDGEN)
	@scripts/header $(CBINDGEN) $(VERSION) > $(TARGET)/memslots.h
	diff -u include/memslots.h $(TARGET)/memslots.h

test: test-rust test-oracle test-c ## All tests that need gcc, make and cargo alone; what is skipped is named

test-rust: # Unit and property tests of the library, its models, and the tests of the benchmarks
	$(CARGO) test --locked -p memslots
	$(CARGO) test --locked -p memslots-models
	$(CARGO) test --locked -p memslots-bench

test-oracle: # The library against a naive model and a real VM
	$(CARGO) test --locked -p memslots-oracle

test-c: lib # The C tests against the library in the build tree
	C_TESTS_VALGRIND=0 c-tests/run --tree

check: check-tools check-format check-lint check-header test check-installed check-miri ## All; installs what it lacks

check-tools:
	scripts/deps

check-format:
	$(CARGO) fmt --all --check
	clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h' '*.cc' | grep -v '^include/')

check-lint:
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked -p memslots-oracle --all-targets -- -D warnings
	$(CARGO) clippy --locked -p memslots-bench -p memslots-models --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps -p memslots

check-installed: ## The C tests against what was installed into a prefix, plain and under valgrind
	rm -rf $(TARGET)/stage
	$(MAKE) --no-print-directory install PREFIX=$(CURDIR)/$(TARGET)/stage
	PKG_CONFIG_PATH=$(CURDIR)/$(TARGET)/stage/lib/pkgconfig c-tests/run --installed
	scripts/check-readme $(CURDIR)/$(TARGET)/stage

check-miri: ## Unit tests and a few cases of each property under Miri, with both of its models of borrowing
	scripts/miri

sanitize: ## Rust tests with the address sanitizer, every object its own allocation
	RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=address --cfg memslots_no_pool' $(CARGO) test --locked \
		--target $$(rustc -vV | sed -n 's/^host: //p') -p memslots --lib --tests

run: lib ## The example: a small VMM over hundreds of slots (needs /dev/kvm; simulates where there is none)
	@mkdir -p $(TARGET)/examples
	$(MAKE) --no-print-directory -C examples/minivmm BUILD=$(CURDIR)/$(TARGET)/examples \
		MEMSLOTS_CFLAGS=-I$(CURDIR)/include \
		MEMSLOTS_LIBS='-L$(CURDIR)/$(TARGET)/release -lmemslots -Wl,-rpath,$(CURDIR)/$(TARGET)/release' run

# Where the benchmarks leave results.json and the plots.
BENCH_OUT ?= bench
# More for the benchmarks: BENCH_FLAGS=--kvm, '--compare old.json', ...
BENCH_FLAGS ?=

bench: lib ## All benchmarks, some minutes: bench/results.json, results.md and plots
	@mkdir -p $(BENCH_OUT)
	$(CARGO) run --release --locked -p memslots-bench -- --out $(BENCH_OUT)/results.json $(BENCH_FLAGS)
	$(if $(filter bench,$(BENCH_OUT)),scripts/readme-figures)

bench-quick: lib ## The same in about a minute, with wider spread
	@mkdir -p $(BENCH_OUT)
	$(CARGO) run --release --locked -p memslots-bench -- --quick --out $(BENCH_OUT)/results.json $(BENCH_FLAGS)

fuzz: ## Fuzz the library against the model for FUZZ_SECONDS (default 60)
	fuzz/run $(or $(FUZZ_SECONDS),60)

clean: ## Remove target/
	rm -rf $(TARGET)
