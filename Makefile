# make demo   runs the main job on a real image
# make test   runs every check: ruff, mypy and the tests, four at a time
# make test-benchmarks  runs the tests of the benchmarks
# make bench-model  measures the image that serves a model, which takes half an hour to build first
# make soak   reads real images for ten minutes while everything fails (SOAK_S says how long)
# make death  kills the fetcher every 2 s for 5 minutes of reads, then supervisor and fetcher at once 50 times; by each device
# make test-kernels  tries each device on Debian's kernels, in guests; DEPTH=full also its suite, run and containerd
# make dist   builds wheel and sdist; make deb a Debian package (ARCH=arm64 for that); make image the node's image
# make test-deb  installs, upgrades and removes the package in clean roots of Debian, by SUITES
# make test-image  imports the node's image into containerd and starts a pod of it
# make test-arm64  runs the image and the unit tests of formats as arm64, under qemu
# make test-docker  runs a dockerd on our snapshotter, if there is one in PATH
# make test-kubelet  runs pods of a kubelet, if there is one in PATH
# make test-kubectl  has a Kubernetes API server try the manifests, if there is one in PATH (CRDS=DIR: those of operators)
# make test-vm  boots a guest whose root disk is an image in a registry
# make fuzz   feeds damaged bytes to every parser for FUZZ_S seconds
# Each installs its requirements (Debian packages as root, Python packages in .venv).

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
APT := attr acl busybox-static ca-certificates chromium containerd crun curl runc debootstrap docker-registry e2fsprogs erofs-utils fuse3 \
       iproute2 libarchive-tools libnbd-bin make mount procps prometheus python3-venv qemu-utils skopeo uidmap umoci util-linux zstd

ARCH ?= amd64
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DEB = dist/firstread_$(VERSION)_$(ARCH).deb
# The date of everything that is built; an unpacked sdist has it in its files.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat --format=%Y pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help setup packages demo test test-benchmarks test-go test-kernels test-kubelet test-kubectl test-docker test-vm test-deb test-image test-arm64 dist deb image fuzz soak death lint format lock bench bench-model clean

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

test-kubelet: packages setup
	$(BIN)/pytest -m kubelet -rPs tests/kubelet

test-kubectl: setup
	FIRSTREAD_CRDS=$(CRDS) $(BIN)/pytest -m kubectl -rPs tests/kubectl

test-kernels: packages setup
	@tools/packages.sh qemu-system-x86 kmod
	@$(BIN)/python -m tests.kernels $(DEPTH) $(addprefix --kernel=,$(KERNELS)) $(addprefix --device=,$(DEVICES)) --docs

test-docker: packages setup
	$(BIN)/pytest -m docker tests/privileged/test_docker.py

test-vm: packages setup
	@tools/packages.sh qemu-system-x86 qemu-utils kmod
	@$(BIN)/python -m tests.kernels.rootdisk --docs

dist: setup
	@rm -f dist/firstread-$(VERSION)*
	$(BIN)/hatchling build --target wheel --target sdist --directory dist

# pip and Debian's mirror are asked only for what build/ lacks.
deb: dist
	@tools/packages.sh elfutils
	@$(BIN)/python -m tools.release.debpackage --arch $(ARCH) dist/firstread-$(VERSION)-py3-none-any.whl

image: deb
	@tools/packages.sh dpkg-dev mmdebstrap $(if $(filter arm64,$(ARCH)),qemu-user-static)
	@$(BIN)/python -m tools.release.nodeimage $(DEB)

test-deb: packages deb
	@$(BIN)/python -m tests.packages $(DEB) $(addprefix --suite=,$(SUITES))

test-image: packages image
	@$(BIN)/python -m tests.packages.imported dist/firstread-node_$(VERSION)_$(ARCH).oci.tar

test-arm64: ARCH := arm64
test-arm64: image
	@$(BIN)/python -m tests.packages.arm64 dist/firstread-node_$(VERSION)_arm64.oci.tar

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
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --extra dev --extra build --extra dask --extra otel --extra plots \
	    --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --extra dask --extra kubernetes --extra otel --constraint requirements.lock \
	    --output-file packaging/requirements.lock pyproject.toml

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
