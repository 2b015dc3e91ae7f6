# SPDX-License-Identifier: GPL-2.0-or-later
# make install and make uninstall. What one installs, the other removes: tests/integration/test_install.py compares.
#
# The Python part is one directory of its own, PREFIX/lib/vmmswap, with all its dependencies and the compiled engine,
# run by Debian's Python: what pip or a distribution does to other packages cannot break a monitor, and the sandbox,
# in which home directories do not exist, needs nothing from one.

BINDIR := $(PREFIX)/bin
LIBDIR := $(PREFIX)/lib/vmmswap
LIBEXECDIR := $(PREFIX)/libexec/vmmswap
DOCDIR := $(PREFIX)/share/doc/vmmswap
UNITDIR := $(PREFIX)/lib/systemd/system
CATALOGDIR := $(PREFIX)/lib/systemd/catalog
SYSUSERSDIR := $(PREFIX)/lib/sysusers.d
TMPFILESDIR := $(PREFIX)/lib/tmpfiles.d
UDEVRULESDIR := $(PREFIX)/lib/udev/rules.d
DBUSDIR := $(PREFIX)/share/dbus-1
POLKITDIR := $(PREFIX)/share/polkit-1/actions

PROGRAM_vmmswap-monitor := vmmswap.monitor.main
PROGRAM_vmmswapd := vmmswap.host.main
PROGRAM_vmmswapctl := vmmswap.ctl.main
PROGRAMS := vmmswap-monitor vmmswapd vmmswapctl

UNITS := vmmswap@.socket vmmswap@.service vmmswapd.service vmmswap.slice
PRESERVE := $(UNITDIR)/vmmswap@.service.d/10-fd-store-preserve.conf
SYSTEMD_VERSION ?= $(shell systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')

CATALOG := $(wildcard systemd/vmmswap.catalog)

# The files and directories that are ours alone; directories shared with others are left.
INSTALLED := $(PROGRAMS:%=$(BINDIR)/%) $(LIBDIR) $(LIBEXECDIR) $(DOCDIR) $(UNITS:%=$(UNITDIR)/%) $(PRESERVE) \
	$(CATALOGDIR)/vmmswap.catalog $(SYSUSERSDIR)/vmmswap.conf $(TMPFILESDIR)/vmmswap.conf \
	$(UDEVRULESDIR)/60-vmmswap.rules \
	$(DBUSDIR)/interfaces/org.vmmswap.Manager.xml $(DBUSDIR)/interfaces/org.vmmswap.Host.xml \
	$(DBUSDIR)/system.d/org.vmmswap.conf $(DBUSDIR)/system-services/org.vmmswap.service \
	$(POLKITDIR)/org.vmmswap.policy

# Without DESTDIR the running system is told, if systemd runs it.
LIVE := $(if $(DESTDIR),,$(wildcard /run/systemd/system))

# Named after what it depends on, not by time: a wheelhouse may be another tree's (WHEELHOUSE=).
DEPENDENCIES := $(WHEELHOUSE)/dependencies-$(firstword $(shell sha256sum pyproject.toml)).stamp

$(DEPENDENCIES): | $(VENV)/.build-tools
	@mkdir -p build
	$(VENV)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
		>build/requirements.txt
	$(PIP) wheel --no-build-isolation --wheel-dir $(WHEELHOUSE) --requirement build/requirements.txt
	touch $@

# So that an installation needs no network.
wheelhouse: $(DEPENDENCIES)

# From scratch: setuptools would take what an earlier build left in build/lib along.
$(STAMPS)/wheel: $(ENGINE) $(shell find vmmswap -name '*.py' -o -name '*.pyi') pyproject.toml | $(VENV)/.build-tools
	rm -rf build/lib build/lib.* build/bdist.* build/wheel
	VMMSWAP_MODULES=release $(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	@mkdir -p $(@D); touch $@

.PHONY: build install uninstall
build: $(DEPENDENCIES) $(STAMPS)/wheel $(GUEST_PROGRAM)

install: build
	rm -rf $(DESTDIR)$(LIBDIR)
	$(PIP) install --no-index --find-links $(WHEELHOUSE) --no-compile --no-warn-conflicts \
		--target $(DESTDIR)$(LIBDIR) build/wheel/vmmswap-*.whl
	rm -rf $(DESTDIR)$(LIBDIR)/bin
	$(PYTHON) -m compileall -q -s '$(DESTDIR)' $(DESTDIR)$(LIBDIR)
	$(foreach program,$(PROGRAMS),$(call install_launcher,$(program)))
	install -D -m 755 $(GUEST_PROGRAM) $(DESTDIR)$(LIBEXECDIR)/vmmswap-guest
	$(foreach unit,$(UNITS),$(call install_unit,$(unit)))
	if [[ $(or $(SYSTEMD_VERSION),0) -ge 254 ]]; then \
		install -D -m 644 systemd/fd-store-preserve.conf '$(DESTDIR)$(PRESERVE)'; fi
	$(if $(CATALOG),install -D -m 644 $(CATALOG) $(DESTDIR)$(CATALOGDIR)/vmmswap.catalog)
	install -D -m 644 systemd/vmmswap.sysusers.conf $(DESTDIR)$(SYSUSERSDIR)/vmmswap.conf
	install -D -m 644 systemd/vmmswap.tmpfiles.conf $(DESTDIR)$(TMPFILESDIR)/vmmswap.conf
	install -D -m 644 -t $(DESTDIR)$(UDEVRULESDIR) systemd/60-vmmswap.rules
	install -D -m 644 -t $(DESTDIR)$(DBUSDIR)/interfaces dbus/org.vmmswap.Manager.xml dbus/org.vmmswap.Host.xml
	install -D -m 644 -t $(DESTDIR)$(DBUSDIR)/system.d dbus/org.vmmswap.conf
	install -D -m 644 -t $(DESTDIR)$(DBUSDIR)/system-services dbus/org.vmmswap.service
	install -D -m 644 -t $(DESTDIR)$(POLKITDIR) dbus/org.vmmswap.policy
	install -D -m 644 -t $(DESTDIR)$(DOCDIR) LICENSE systemd/vmmswap.conf $(wildcard README.md docs/*.md)
	test -e $(DESTDIR)$(SYSCONFDIR)/vmmswap.conf || \
		install -D -m 644 systemd/vmmswap.conf $(DESTDIR)$(SYSCONFDIR)/vmmswap.conf
	$(if $(LIVE),tools/live installed)

uninstall:
	$(if $(LIVE),tools/live removing)
	if cmp --quiet $(DESTDIR)$(DOCDIR)/vmmswap.conf $(DESTDIR)$(SYSCONFDIR)/vmmswap.conf; then \
		rm $(DESTDIR)$(SYSCONFDIR)/vmmswap.conf; \
	elif [[ -e $(DESTDIR)$(SYSCONFDIR)/vmmswap.conf ]]; then \
		echo 'Left $(DESTDIR)$(SYSCONFDIR)/vmmswap.conf, because it was changed.'; fi
	rm -rf $(INSTALLED:%='$(DESTDIR)%')
	rmdir --ignore-fail-on-non-empty '$(DESTDIR)$(dir $(PRESERVE))' 2>/dev/null || true
	$(if $(LIVE),tools/live removed)

define install_launcher
	install -d $(DESTDIR)$(BINDIR)
	sed 's|@PYTHON@|$(PYTHON)|; s|@LIBDIR@|$(LIBDIR)|; s|@MODULE@|$(PROGRAM_$(1))|' tools/launcher.in \
		>$(DESTDIR)$(BINDIR)/$(1)
	chmod 755 $(DESTDIR)$(BINDIR)/$(1)

endef

define install_unit
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|/usr/bin/|$(BINDIR)/|; s|/usr/share/doc/vmmswap|$(DOCDIR)|' 'systemd/$(1)' >'$(DESTDIR)$(UNITDIR)/$(1)'
	chmod 644 '$(DESTDIR)$(UNITDIR)/$(1)'

endef
