# SPDX-License-Identifier: GPL-2.0-or-later
#
#   make demo       install what is missing, then swap a real guest's memory out and in, every byte checked
#                   GUEST=qemu: an unmodified QEMU with the distribution's kernel, attached to while it runs
#   make test       install what is missing, then run the whole test suite
#   make chaos      only the tests that kill and starve things
#   make test-libvirt   a domain of a real libvirt, in a container of its own (not in make test: it takes minutes)
#   make test-kernels   the suite on Debian's 6.1 and 6.12, booted under QEMU (make test runs a part of it);
#                   KERNELS_TESTS= a part of it, as pytest's -k: "[6.1-engine-log", "monitor"
#   make format     C and Python as .clang-format and ruff have them; no line of docs above 120 columns
#   make transcript docs/transcript.md: types docs/first-hour.md into a booted system
#   make generate   files that follow from tables in the code: dbus/*.xml, parts of docs/
#   make soak       each test SOAK_ROUNDS=100 times beside busy processors; SOAK_TESTS= a pattern of names
#   make bench      the figures of docs/performance.md on this machine
#   make            everything that is installed, below build/; as an ordinary user
#   make install    PREFIX=/usr DESTDIR=   copies it and needs no network; as root without DESTDIR
#   make uninstall  PREFIX=/usr DESTDIR=   the opposite; stops what runs, which brings swapped memory in first
#   make wheelhouse what make would download, into WHEELHOUSE=build/wheelhouse, for a machine without network
#   make clean      everything built; .venv and what was installed stay
#
# PREFIX is for programs and documentation. What systemd, the bus, polkit and udev read is below /usr always.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:

PREFIX ?= /usr
SYSCONFDIR ?= /etc
DESTDIR ?=
PYTHON ?= /usr/bin/python3
VENV ?= .venv
WHEELHOUSE ?= build/wheelhouse

STAMPS := build/stamps
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check --no-input
export PIP_ROOT_USER_ACTION := ignore

ENGINE := $(wildcard engine/src/*.[ch] engine/src/*/*.[ch] engine/planted/*.[ch] engine/planted/code/*) \
	engine/build_cffi.py engine/build_planted.py setup.py
GUEST_PROGRAM := build/vmmswap-guest

.PHONY: all help bootstrap demo test chaos test-kernels test-libvirt soak bench format generate transcript clean wheelhouse
all: build

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

# --- what is needed to build and run from this tree

$(STAMPS)/apt-%: tools/apt-packages tools/install-packages
	tools/install-packages $*
	@mkdir -p $(@D); touch $@

# Inside the environment, so that a make in another tree can use it too (VENV=).
$(VENV)/.build-tools: | $(STAMPS)/apt-base
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'setuptools>=66' wheel 'cffi>=1.15'
	@touch $@

$(STAMPS)/package: pyproject.toml setup.py | $(VENV)/.build-tools
	VMMSWAP_MODULES= $(PIP) install --no-build-isolation --editable '.[dev]'
	@mkdir -p $(@D); touch $@

# Not --parallel: both modules compile the same sources, one with failpoints, into the same object files.
$(STAMPS)/engine: $(ENGINE) $(STAMPS)/package
	$(VENV)/bin/python -W ignore setup.py --quiet build_ext --inplace --force --build-temp build/extension
	@touch $@

bootstrap: $(STAMPS)/apt-base $(STAMPS)/engine

.PHONY: $(GUEST_PROGRAM)
$(GUEST_PROGRAM): | $(STAMPS)/apt-base
	$(MAKE) --no-print-directory -C guest

# --- what one does with it

ifeq ($(GUEST),qemu)
demo: bootstrap $(STAMPS)/apt-test
	$(VENV)/bin/python -m tests.guests.demo
else
demo: bootstrap $(GUEST_PROGRAM)
	$(VENV)/bin/vmmswapctl demo
endif

test: bootstrap $(STAMPS)/apt-debian $(STAMPS)/apt-test $(GUEST_PROGRAM) wheelhouse
	tools/run-tests $(VENV)

chaos: bootstrap $(STAMPS)/apt-test $(GUEST_PROGRAM)
	CHAOS_MONITOR_KILLS=100 CHAOS_SERVICE_KILLS=60 $(VENV)/bin/pytest -p no:cacheprovider -s tests/chaos
	CHAOS_KILLS=2000 $(MAKE) --no-print-directory -C engine check VARIANTS=gcc TESTS=chaos

soak: bootstrap $(STAMPS)/apt-debian $(STAMPS)/apt-test $(GUEST_PROGRAM) wheelhouse
	tools/soak $(VENV)

test-kernels: bootstrap $(STAMPS)/apt-test $(GUEST_PROGRAM)
	KERNELS=whole $(VENV)/bin/pytest -p no:cacheprovider -s -v tests/kernels $(if $(KERNELS_TESTS),-k '$(KERNELS_TESTS)')

test-libvirt: bootstrap $(STAMPS)/apt-debian $(STAMPS)/apt-test $(GUEST_PROGRAM) wheelhouse
	LIBVIRT=1 $(VENV)/bin/pytest -p no:cacheprovider -s tests/guests/test_libvirt.py

bench: bootstrap $(GUEST_PROGRAM)
	$(VENV)/bin/python -m benchmarks

transcript: bootstrap $(STAMPS)/apt-debian $(STAMPS)/apt-test $(GUEST_PROGRAM)
	$(VENV)/bin/python tools/transcript
	tools/wrap-docs docs/transcript.md

generate: bootstrap
	$(VENV)/bin/python tools/generate

format: bootstrap
	tools/check-format $(VENV) --write
	$(VENV)/bin/ruff format --quiet .
	tools/wrap-docs

clean:
	rm -rf build vmmswap.egg-info vmmswap/_engine*.so vmmswap/_engine*.[co]
	$(MAKE) --no-print-directory -C engine clean
	$(MAKE) --no-print-directory -C guest clean
	find vmmswap tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# --- installation

include tools/install.mk
