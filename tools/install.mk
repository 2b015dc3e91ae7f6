# SPDX-License-Identifier: GPL-2.0-or-later
# make, make install and make uninstall. What one installs, the other removes: tests/integration/test_install.py compares.
#
# make builds everything below build/, as an ordinary user; make install only copies, and needs neither network nor pip.
#
# The Python part is one directory of its own, PREFIX/lib/vmmswap, with the compiled engine and those dependencies that
# the distribution's packages do not have when make runs. It is run by the distribution's Python, which finds nothing that
# pip has installed before what is there: the sandbox, in which home directories do not exist, needs nothing from one.

# Programs and documentation, wherever PREFIX says.
BINDIR := $(PREFIX)/bin
LIBDIR := $(PREFIX)/lib/vmmswap
LIBEXECDIR := $(PREFIX)/libexec/vmmswap
DOCDIR := $(PREFIX)/share/doc/vmmswap
MANDIR := $(PREFIX)/share/man

# What systemd, the bus, polkit and udev read is always below /usr: of /usr/local they read only a part, of other
# prefixes nothing.
UNITDIR := /usr/lib/systemd/system
CATALOGDIR := /usr/lib/systemd/catalog
SYSUSERSDIR := /usr/lib/sysusers.d
TMPFILESDIR := /usr/lib/tmpfiles.d
UDEVRULESDIR := /usr/lib/udev/rules.d
DBUSDIR := /usr/share/dbus-1
POLKITDIR := /usr/share/polkit-1/actions

PROGRAM_vmmswap-monitor := vmmswap.monitor.main
PROGRAM_vmmswapd := vmmswap.host.main
PROGRAM_vmmswapctl := vmmswap.ctl.main
PROGRAMS := vmmswap-monitor vmmswapd vmmswapctl

UNITS := vmmswap@.socket vmmswap@.service vmmswapd.service vmmswap.slice
PRESERVE := $(UNITDIR)/vmmswap@.service.d/10-fd-store-preserve.conf
SYSTEMD_VERSION ?= $(shell systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')

# With their folders, so that links between them lead somewhere.
DOCUMENTS := README.md NEWS.md CONTRIBUTING.md LICENSE systemd/vmmswap.conf \
	$(wildcard docs/*.md docs/examples/* dbus/*.xml) engine/src/README.md vmmswap/README.md \
	engine/planted/mover_thread.c engine/planted/mover_thread.h engine/src/linux/mailbox.h
MANPAGES := $(MANDIR)/man1/vmmswapctl.1 $(MANDIR)/man5/vmmswap.conf.5 \
	$(MANDIR)/man8/vmmswap-monitor.8 $(MANDIR)/man8/vmmswapd.8

# Where the distribution's Python packages are; empty: use none of them.
PYTHON_PACKAGES ?= /usr/lib/python3/dist-packages

# Where Python looks for modules of this PREFIX, if it does: a link there makes vmmswap.handoff.client importable.
SITEDIR := $(shell $(PYTHON) tools/site-directory $(PREFIX))
SITELINK := $(SITEDIR:%=%/vmmswap)

# The files and directories that are ours alone; directories shared with others are left.
INSTALLED := $(PROGRAMS:%=$(BINDIR)/%) $(LIBDIR) $(LIBEXECDIR) $(DOCDIR) $(MANPAGES) $(SITELINK) \
	$(UNITS:%=$(UNITDIR)/%) $(PRESERVE) \
	$(CATALOGDIR)/vmmswap.catalog $(SYSUSERSDIR)/vmmswap.conf $(TMPFILESDIR)/vmmswap.conf \
	$(UDEVRULESDIR)/60-vmmswap.rules \
	$(DBUSDIR)/interfaces/org.vmmswap.Manager.xml $(DBUSDIR)/interfaces/org.vmmswap.Host.xml \
	$(DBUSDIR)/system.d/org.vmmswap.conf $(DBUSDIR)/system-services/org.vmmswap.service \
	$(POLKITDIR)/org.vmmswap.policy

# Without DESTDIR the running system is told, if systemd runs it.
LIVE := $(if $(DESTDIR),,$(wildcard /run/systemd/system))

# --- the build

# An environment of its own, in which the distribution's setuptools, wheel and cffi are used if they are there.
BUILD_VENV ?= build/venv
BUILD_PIP := $(BUILD_VENV)/bin/python -m pip --quiet --disable-pip-version-check --no-input
BUILD_TOOLS := 'setuptools>=66' wheel 'cffi>=1.15'

# Named after what it depends on, not by time: a wheelhouse may be another tree's (WHEELHOUSE=).
DEPENDENCIES := $(WHEELHOUSE)/dependencies-$(firstword $(shell sha256sum pyproject.toml)).stamp
# Where pip takes from what the distribution does not have. Looked at when it is needed: `make wheelhouse` may come first.
SOURCE = $(if $(wildcard $(DEPENDENCIES)),--no-index --find-links $(WHEELHOUSE))

ifneq ($(BUILD_VENV),$(VENV))
$(BUILD_VENV)/.build-tools: | $(STAMPS)/apt-base
	$(PYTHON) -m venv --system-site-packages $(BUILD_VENV)
	$(BUILD_PIP) install $(SOURCE) $(BUILD_TOOLS)
	@touch $@
endif

# All that pip could want, for a machine of the same release without network.
$(DEPENDENCIES): | $(VENV)/.build-tools
	@mkdir -p build
	tools/missing-dependencies '' >build/wheelhouse.txt
	$(PIP) wheel --no-build-isolation --wheel-dir $(WHEELHOUSE) --requirement build/wheelhouse.txt $(BUILD_TOOLS)
	touch $@

wheelhouse: $(DEPENDENCIES)

# From scratch: setuptools would take what an earlier build left in build/lib along.
$(STAMPS)/wheel: $(ENGINE) $(shell find vmmswap -name '*.py' -o -name '*.pyi') pyproject.toml \
		| $(BUILD_VENV)/.build-tools
	rm -rf build/lib build/lib.* build/bdist.* build/wheel
	VMMSWAP_MODULES=release $(BUILD_PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	@mkdir -p $(@D); touch $@

# Looked at each time, and newer only if a package has come or gone.
build/requirements.txt: always
	@mkdir -p $(@D)
	@tools/missing-dependencies '$(PYTHON_PACKAGES)' >$@.new
	@if cmp --quiet $@.new $@; then rm $@.new; else mv $@.new $@; fi

# The directory PREFIX/lib/vmmswap, as it will be. Compiled later, where its name is known.
$(STAMPS)/library: $(STAMPS)/wheel build/requirements.txt
	rm -rf build/library
	if [[ -s build/requirements.txt ]]; then \
		$(BUILD_PIP) install $(SOURCE) --no-build-isolation --no-compile --no-warn-conflicts --ignore-installed \
			--target build/library --requirement build/requirements.txt; fi
	$(BUILD_PIP) install --no-index --no-deps --no-compile --no-warn-conflicts --upgrade --target build/library \
		build/wheel/vmmswap-*.whl
	rm -rf build/library/bin build/library/*.dist-info/direct_url.json
	@touch $@

$(STAMPS)/manpages: $(STAMPS)/library tools/manpages
	PYTHONPATH=build/library $(PYTHON) -B tools/manpages build/man
	@touch $@

.PHONY: always build install uninstall
build: $(STAMPS)/library $(STAMPS)/manpages $(GUEST_PROGRAM)

# --- copying

install: build
	rm -rf '$(DESTDIR)$(LIBDIR)' '$(DESTDIR)$(DOCDIR)'
	install -d '$(DESTDIR)$(LIBDIR)'
	cp --recursive --preserve=timestamps build/library/. '$(DESTDIR)$(LIBDIR)'
	chmod -R u=rwX,go=rX '$(DESTDIR)$(LIBDIR)'
	$(PYTHON) -m compileall -q -s '$(DESTDIR)' '$(DESTDIR)$(LIBDIR)'
	$(foreach program,$(PROGRAMS),$(call install_launcher,$(program)))
	install -D -m 755 $(GUEST_PROGRAM) '$(DESTDIR)$(LIBEXECDIR)/vmmswap-guest'
	$(foreach unit,$(UNITS),$(call install_unit,$(unit)))
	if [[ $(or $(SYSTEMD_VERSION),0) -ge 254 ]]; then \
		install -D -m 644 systemd/fd-store-preserve.conf '$(DESTDIR)$(PRESERVE)'; fi
	install -D -m 644 systemd/vmmswap.catalog '$(DESTDIR)$(CATALOGDIR)/vmmswap.catalog'
	install -D -m 644 systemd/vmmswap.sysusers.conf '$(DESTDIR)$(SYSUSERSDIR)/vmmswap.conf'
	install -D -m 644 systemd/vmmswap.tmpfiles.conf '$(DESTDIR)$(TMPFILESDIR)/vmmswap.conf'
	install -D -m 644 -t '$(DESTDIR)$(UDEVRULESDIR)' systemd/60-vmmswap.rules
	install -D -m 644 -t '$(DESTDIR)$(DBUSDIR)/interfaces' dbus/org.vmmswap.Manager.xml dbus/org.vmmswap.Host.xml
	install -D -m 644 -t '$(DESTDIR)$(DBUSDIR)/system.d' dbus/org.vmmswap.conf
	install -D -m 644 -t '$(DESTDIR)$(DBUSDIR)/system-services' dbus/org.vmmswap.service
	install -D -m 644 -t '$(DESTDIR)$(POLKITDIR)' dbus/org.vmmswap.policy
	install -d '$(DESTDIR)$(DOCDIR)'
	cp --parents --preserve=timestamps $(DOCUMENTS) '$(DESTDIR)$(DOCDIR)'
	chmod -R u=rwX,go=rX '$(DESTDIR)$(DOCDIR)'
	for page in $(MANPAGES); do install -D -m 644 "build/man/$${page##*/}" "$(DESTDIR)$$page"; done
	for link in $(SITELINK); do install -d "$(DESTDIR)$${link%/*}" && ln -sfn $(LIBDIR)/vmmswap "$(DESTDIR)$$link"; done
	test -e '$(DESTDIR)$(SYSCONFDIR)/vmmswap.conf' || \
		install -D -m 644 systemd/vmmswap.conf '$(DESTDIR)$(SYSCONFDIR)/vmmswap.conf'
	$(if $(LIVE),tools/live installed)

uninstall:
	$(if $(LIVE),tools/live removing)
	if cmp --quiet '$(DESTDIR)$(DOCDIR)/systemd/vmmswap.conf' '$(DESTDIR)$(SYSCONFDIR)/vmmswap.conf'; then \
		rm '$(DESTDIR)$(SYSCONFDIR)/vmmswap.conf'; \
	elif [[ -e '$(DESTDIR)$(SYSCONFDIR)/vmmswap.conf' ]]; then \
		echo 'Left $(DESTDIR)$(SYSCONFDIR)/vmmswap.conf, because it was changed.'; fi
	rm -rf $(INSTALLED:%='$(DESTDIR)%')
	rmdir --ignore-fail-on-non-empty '$(DESTDIR)$(dir $(PRESERVE))' 2>/dev/null || true
	$(if $(LIVE),tools/live removed)

define install_launcher
	install -d '$(DESTDIR)$(BINDIR)'
	sed 's|@PYTHON@|$(PYTHON)|; s|@LIBDIR@|$(LIBDIR)|; s|@PACKAGES@|$(PYTHON_PACKAGES)|; s|@PROGRAM@|$(1)|; \
		s|@MODULE@|$(PROGRAM_$(1))|' tools/launcher.in >'$(DESTDIR)$(BINDIR)/$(1)'
	chmod 755 '$(DESTDIR)$(BINDIR)/$(1)'

endef

define install_unit
	install -d '$(DESTDIR)$(UNITDIR)'
	sed 's|/usr/bin/|$(BINDIR)/|; s|/usr/share/doc/vmmswap|$(DOCDIR)|' 'systemd/$(1)' >'$(DESTDIR)$(UNITDIR)/$(1)'
	chmod 644 '$(DESTDIR)$(UNITDIR)/$(1)'

endef
