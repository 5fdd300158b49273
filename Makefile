# make demo   runs the main job on a real image
# make test   runs every check: ruff, mypy and the tests, three at a time
# make test-benchmarks  runs the tests of the benchmarks
# make bench-model  measures the image that serves a model, which takes half an hour to build first
# make soak   reads real images for ten minutes while everything fails (SOAK_S says how long)
# make death  kills the fetcher every 2 s for 5 minutes of reads, then supervisor and fetcher at once 50 times; by each device
# make test-kernels  tries each device on Debian's kernels, in guests; DEPTH=full also its suite, run and containerd
# make test-vm  boots a guest whose root disk is an image in a registry
# make fuzz   feeds damaged bytes to every parser for FUZZ_S seconds
# Each installs its requirements (Debian packages as root, Python packages in .venv).

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
APT := attr acl busybox-static ca-certificates chromium containerd crun curl runc debootstrap docker-registry e2fsprogs erofs-utils fuse3 \
       iproute2 libarchive-tools libnbd-bin make mount procps python3-venv qemu-utils skopeo uidmap umoci util-linux zstd

.DEFAULT_GOAL := help
.PHONY: help setup packages demo test test-benchmarks test-go test-kernels test-vm fuzz soak death lint format lock bench bench-model clean

help:
	@sed -n 's/^# //p' Makefile

setup: .venv/.done

.venv/.done: requirements.lock pyproject.toml tools/protos.py $(wildcard src/firstread/*/*.proto)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

packages:
	@tools/packages.sh $(APT)

demo: packages setup
	@$(BIN)/python -m benchmarks.demo

test: packages setup
	$(BIN)/python tools/check.py

test-benchmarks: packages setup
	$(BIN)/pytest -m benchmarks

# make test-go  runs containerd's own suite of snapshotters, if Go is installed
test-go: setup
	@command -v go >/dev/null || { echo "skipped: there is no Go"; exit 0; }; \
	    cd tests/go && FIRSTREAD=$(CURDIR)/$(BIN)/firstread go test -count=1 -parallel 2 ./...

test-kernels: packages setup
	@tools/packages.sh qemu-system-x86 kmod
	@$(BIN)/python -m tests.kernels $(DEPTH) $(addprefix --kernel=,$(KERNELS)) $(addprefix --device=,$(DEVICES)) --docs

test-vm: packages setup
	@tools/packages.sh qemu-system-x86 qemu-utils kmod
	@$(BIN)/python -m tests.kernels.rootdisk --docs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: setup
	@$(BIN)/python -m tests.fuzz $(or $(FUZZ_S),300)

bench: packages setup
	$(BIN)/python -m benchmarks

bench-model: packages setup
	$(BIN)/python -m benchmarks.images model
	$(BIN)/python -m benchmarks.model --docs
	$(BIN)/python -m benchmarks.suite --images model --links 1Gbit/1ms --runs 3 --whole-runs 1 --docs \
	    --modes overlayfs,classic,run-lazy,lazy,run-hot,hot,run-local,local --name suite-model
	$(BIN)/python -m benchmarks.suite --images model --links none --runs 3 --whole-runs 1 --docs \
	    --modes classic,run-lazy,run-hot --name suite-model-loopback

soak: packages setup
	$(BIN)/python -m benchmarks.soak --docs

death: packages setup
	$(BIN)/python -m benchmarks.kills --docs
	$(BIN)/python -m benchmarks.death --docs
	$(BIN)/python -m benchmarks.death --docs --device fuse

lock:
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --extra dev --extra build --extra plots --extra dask \
	    --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
