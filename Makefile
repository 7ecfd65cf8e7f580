# Two commands for a fresh Debian 12 machine, each doing all its own set-up: `make demo` and `make test`.

VENV ?= .venv
PYTHON ?= /usr/bin/python3
BIN = $(VENV)/bin
PREFIX ?= /usr/local
# 1 on CI: a layer that cannot run here fails instead of being skipped.
export MACVM_REQUIRE_ALL ?= $(if $(CI),1,)

SYSTEM_PACKAGES = \
  gcc python3-dev python3-venv pkg-config libvirt-dev \
  libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients virtinst \
  qemu-system-x86 qemu-utils seabios \
  iproute2 iputils-ping dnsmasq-base openssl openssh-client tcpdump util-linux procps curl sqlite3 systemd \
  linux-image-amd64 busybox-static syslinux syslinux-common mtools dosfstools cpio zstd kmod \
  ovmf systemd-boot-efi binutils mmdebstrap e2fsprogs dhcpcd-base \
  apparmor nftables dbus python3-dbus python3-gi \
  debhelper dh-python python3-hatchling python3-pip python3-libvirt python3-lxml

.PHONY: help setup packages test check demo bench sweep install uninstall wheel deb clean

help:
	@echo 'make demo   build the tiny image, create a VM in a sandbox, and reach it'
	@echo 'make test   the whole test suite'
	@echo 'make check  formatting, lint and types alone'
	@echo 'make bench  benchmarks, as ratios'
	@echo 'make sweep  the counts that take hours; writes its figures to tests/sweep.md'
	@echo 'make install    [PREFIX=/usr/local] macvm with man pages and completion; again to upgrade'
	@echo 'make uninstall  [PURGE="--yes --keep-vms"] macvm purge, then what make install put there'
	@echo 'make wheel      dist/*.whl, for pip and pipx'
	@echo 'make deb        dist/*.deb, for Debian 12'

setup: packages $(BIN)/macvm

# apt is asked only where something is missing, so that an installed machine needs neither root nor network.
packages:
	@missing=""; for package in $(SYSTEM_PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get >/dev/null || { echo "these are missing here, under Debian's names:$$missing"; exit 0; }; \
	  [ "$$(id -u)" = 0 ] && sudo= || sudo=sudo; \
	  echo "installing:$$missing"; \
	  $$sudo env DEBIAN_FRONTEND=noninteractive sh -c "apt-get -q update && apt-get -q -y install --no-install-recommends $$missing" \
	    >.setup.log 2>&1 || { tail -n 20 .setup.log; exit 1; }; fi

$(BIN)/macvm: pyproject.toml
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -n 3 --dist loadfile tests/unit tests/golden tests/netns tests/sandbox tests/kernel

demo: setup
	@$(BIN)/macvm sandbox run -- sh templates/demo.sh

bench: setup
	$(BIN)/python -m tests.bench

sweep: setup
	$(BIN)/python -m tests.sweep

# Neither needs what `make setup` installs.
install uninstall:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: macvm needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make $@ PYTHON=/usr/bin/python3.11" % sys.version_info[:2])'
	@$(PYTHON) -IB packaging/install.py $@ --prefix '$(PREFIX)' --destdir '$(DESTDIR)' $(PURGE)

wheel: setup
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

deb:
	@sh packaging/deb.sh

clean:
	rm -rf $(VENV) dist build .setup.log .mypy_cache .ruff_cache .pytest_cache .hypothesis
