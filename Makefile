# csi-host on a Debian machine. Both commands install what is missing, and nothing twice:
#   make run  [ONCE=1] [FILESYSTEM=xfs|ext4]   a one-node Ceph, csi-host --driver rbd, a volume's whole life; Ctrl-C ends it
#   make test [ARGS="-k name"]                 lint, types, layers, and every test against a real Ceph
#   make test-root SUITE=trixie|sid [ARGS=...] the controller's tests with that Debian's Python and Ceph

SHELL := /bin/bash
# mkfs, losetup and blkid are in sbin, which is not on the path of an ordinary user, and sudo is told to keep the path.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

# Mounts, loop devices and Debian packages need root.
ROOT := $(if $(filter-out 0,$(shell id -u)),sudo)
AS_ROOT := $(if $(ROOT),$(ROOT) env PATH="$$PATH" CI="$${CI:-}" PYTHONDONTWRITEBYTECODE=1)

# Debian's own interpreter: the Ceph bindings are built for it, and another python3 may come first on PATH.
DEBIAN_PYTHON := /usr/bin/python3
PYTHON := .venv/bin/python
INSTALL := $(PYTHON) -m pip --disable-pip-version-check --no-input install --quiet
# Stamps live in .venv: whoever removes it gets a new one, and one that was interrupted is made again.
MADE := .venv/.made
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev

PACKAGES_PYTHON := python3 python3-venv python3-rados python3-rbd python3-cephfs
PACKAGES_CEPH := ceph-mon ceph-mgr ceph-osd ceph-common
# qemu-storage-daemon is in qemu-system-common, its rbd driver in qemu-block-extra.
PACKAGES_QEMU := qemu-system-common qemu-block-extra qemu-utils fuse3
PACKAGES_NODE := mount util-linux kmod e2fsprogs xfsprogs btrfs-progs rbd-nbd cryptsetup-bin
# A real CephFS for the stub's quota tests.
PACKAGES_TEST := ceph-mds ceph-fuse
# The virtual machine of tests/kernel; its kernel is never booted on this machine itself unless somebody restarts it.
PACKAGES_TEST += qemu-system-x86 linux-image-amd64 busybox-static nftables iproute2
PACKAGES := $(PACKAGES_PYTHON) $(PACKAGES_CEPH) $(PACKAGES_QEMU) $(PACKAGES_NODE)
test test-kernel setup kernel-shell: PACKAGES += $(PACKAGES_TEST)

.PHONY: help run test test-kernel test-kills test-root kernel-shell bench report-volumes report-memory lint setup packages proto wheel clean

help:
	@sed -n '1,/^$$/s/^# \?//p' Makefile
	echo '  make setup | lint | proto | wheel | clean  (CONTRIBUTING.md)'
	echo '  make test-kernel   the kernel tests in full (tests/kernel/README.md)'
	echo '  make kernel-shell  a shell in the virtual machine of the kernel tests (tests/kernel/README.md)'
	echo '  make bench | report-volumes | report-memory  (tests/bench/README.md)'

run: $(INSTALLED)
	@export PYTHONPATH=examples
	exec $(if $(ROOT),$(AS_ROOT) PYTHONPATH=examples) $(PYTHON) -m rbd_walk $(if $(filter 1 yes true,$(ONCE)),--once) \
	    $(if $(FILESYSTEM),--filesystem $(FILESYSTEM))

test: lint
	@exec $(AS_ROOT) $(PYTHON) -m pytest --numprocesses=3 --dist=loadscope --no-loadscope-reorder $(ARGS)

# None of these is a part of the tests: they take minutes, and what they say depends on the machine.
bench report-volumes report-memory: $(INSTALLED_DEV)
	@exec $(if $(ROOT),$(AS_ROOT),env) PYTHONPATH=tests/bench $(PYTHON) -m csi_host_bench $(@:report-%=%) $(ARGS)

# tests/roots/README.md
test-root: PACKAGES := debootstrap
test-root: packages
	@mkdir -p build
	exec $(AS_ROOT) env $(if $(ROOTS),ROOTS='$(ROOTS)') $(if $(MIRROR),MIRROR='$(MIRROR)') \
	    PACKAGES='$(PACKAGES_PYTHON) $(PACKAGES_CEPH)' tests/roots/run '$(SUITE)' $(ARGS)

# tests/kernel/README.md
test-kernel: $(INSTALLED_DEV)
	@exec $(AS_ROOT) env NODE_THOROUGH=1 NODE_OUTAGE_SECONDS=$${NODE_OUTAGE_SECONDS:-60} \
	    NODE_VOLUMES=$${NODE_VOLUMES:-20} NODE_ROUNDS=$${NODE_ROUNDS:-10} NODE_KILLS_SHARE=$${NODE_KILLS_SHARE:-1} \
	    VM_TEST_SECONDS=$${VM_TEST_SECONDS:-7200} VM_SESSION_SECONDS=$${VM_SESSION_SECONDS:-21600} \
	    $(PYTHON) -m pytest $(if $(ARGS),$(ARGS),tests/kernel)

kernel-shell: $(INSTALLED_DEV)
	@exec $(if $(ROOT),$(AS_ROOT),env) PYTHONPATH=tests/kernel $(PYTHON) -m csi_host_vm $(ARGS)

# csi-host killed 300 times while 16 callers work; SEED=number repeats a run.
test-kills: export KILLS ?= 300
test-kills: export SEED ?= 7
test-kills: $(INSTALLED_DEV)
	@exec $(AS_ROOT) $(if $(ROOT),KILLS=$(KILLS) SEED=$(SEED)) $(PYTHON) -m pytest tests/crash/test_random_kills.py $(ARGS)

lint: $(INSTALLED_DEV)
	@.venv/bin/ruff check --quiet
	.venv/bin/ruff format --check --quiet
	.venv/bin/mypy --no-error-summary
	mkdir -p build
	.venv/bin/lint-imports >build/lint-imports.txt || { cat build/lint-imports.txt; exit 1; }

setup: $(INSTALLED_DEV)

proto: $(INSTALLED_DEV)
	@$(PYTHON) -m csi_host.proto.regenerate

wheel: $(INSTALLED_DEV)
	@$(PYTHON) -m build --wheel --outdir dist

clean:
	@# A root in build may have /dev bound into it; `run` does that where nobody else sees it, a person may not.
	if grep -F " $$PWD/build/" /proc/self/mountinfo; then
	  echo "These are mounted below build: unmount them first" >&2
	  exit 1
	fi
	$(ROOT) rm -rf --one-file-system build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	$(ROOT) find . -name __pycache__ -type d -prune -exec rm -rf {} +

packages:
	@command -v apt-get dpkg-query >/dev/null || {
	  echo 'This is set up with Debian packages, and there is no apt-get here. Needed: $(PACKAGES)' >&2
	  exit 1
	}
	missing=$$(comm -13 \
	  <(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(PACKAGES) 2>/dev/null | sed -n 's/^installed //p' | sort -u) \
	  <(printf '%s\n' $(PACKAGES) | sort -u))
	[ -n "$$missing" ] || exit 0
	if [ -n '$(ROOT)' ] && ! command -v sudo >/dev/null; then
	  echo "Debian packages are missing; run this as root, or install sudo. Missing:" $$missing >&2
	  exit 1
	fi
	echo "Installing Debian packages:" $$missing
	apt="$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get -qq"
	log=$$(mktemp)
	trap 'rm -f "$$log"' EXIT
	if ! { $$apt update && $$apt install --yes --no-install-recommends $$missing </dev/null; } >"$$log" 2>&1; then
	  cat "$$log" >&2
	  echo "These Debian packages could not be installed (see above):" $$missing >&2
	  exit 1
	fi

$(MADE): | packages
	@$(DEBIAN_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	  echo "$(DEBIAN_PYTHON) is older than Python 3.11: Debian 12 (bookworm) or newer is needed" >&2
	  exit 1
	}
	echo "Making the virtual environment .venv"
	$(DEBIAN_PYTHON) -m venv --system-site-packages .venv
	$(INSTALL) --upgrade pip
	touch $@

$(INSTALLED): pyproject.toml $(MADE) | packages
	@$(call install,-e .)
	touch $@

# The developers' installation is the users' with tools, so it counts as both.
$(INSTALLED_DEV): pyproject.toml $(MADE) | packages
	@$(call install,-e '.[dev]')
	touch $(INSTALLED) $@

define install
echo "Installing csi-host and the Python packages it needs into .venv"
$(INSTALL) $(1) || { echo "pip could not install the project (see above)" >&2; exit 1; }
$(PYTHON) -c 'import rados, rbd, cephfs' || {
  echo ".venv does not see Debian's Ceph bindings: remove it (make clean) and run this again" >&2
  exit 1
}
endef

.ONESHELL:
