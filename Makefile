# Every target works on a fresh Debian 12 or 13, as root. It installs missing packages with apt and pip.

PYTHON := /usr/bin/python3
RUNTIME := nftables python3-nftables python3-kubernetes python3-pyroute2 python3-tenacity python3-prometheus-client \
	python3-systemd python3-yaml python3-venv python3-setuptools python3-wheel iproute2 netbase
BUILDING := systemd debhelper dh-python pybuild-plugin-pyproject lintian apt-utils gnupg bash-completion mandoc zsh
TESTING := etcd-server openssl prometheus frr frr-pythontools $(BUILDING)
BOOTING := debootstrap systemd-container
NEWEST_SERVER := 1.37.2
CALLING := tests/apiserver tests/cluster tests/cli tests/exporter tests/kernel tests/report tests/daemon/test_daemon.py \
	tests/daemon/test_limits_in_force.py tests/daemon/test_public_names.py tests/daemon/test_public_side.py
DEB = dist/nftsync_$(shell sed -n '1s/.*(\(.*\)).*/\1/p' packaging/debian/changelog)_all.deb
PARALLEL := --numprocesses 4 --dist loadfile  # on two cores, too: tests wait for half of the time
# Build with the distribution's setuptools, so that everything from PyPI is pinned.
EDITABLE := pip install --quiet --no-deps --no-build-isolation --editable .
PINNED := pip install --quiet --require-hashes
# Resolve for the oldest supported Python, with markers for later ones: the same on every machine.
PIN := uv --quiet pip compile --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command "make pins"

# Only the distribution's python3-nftables matches its libnftables, so use its Python too.
.venv/bin/nftsync: pyproject.toml
	@packages='$(RUNTIME)'; $(install)
	$(PYTHON) -m venv --system-site-packages .venv
	.venv/bin/$(EDITABLE)
	@touch $@

.venv/dev: .venv/bin/nftsync requirements/dev.txt
	@packages='$(TESTING)'; $(install)
	.venv/bin/$(PINNED) --requirement requirements/dev.txt
	@touch $@

# The newest libraries from PyPI in place of the distribution's older ones. They are pinned, so a new
# release cannot break a change of ours. `make pins` raises them.
.venv-newest/dev: pyproject.toml requirements/dev.txt requirements/newest.txt .venv/dev
	$(PYTHON) -m venv --system-site-packages .venv-newest
	.venv-newest/bin/$(PINNED) --requirement requirements/dev.txt --requirement requirements/newest.txt
	.venv-newest/bin/$(EDITABLE)
	@touch $@

define install
missing=$$(for name in $$packages; do dpkg -s $$name 2>/dev/null | grep -q '^Status: install ok installed' || echo $$name; done); \
if [ -n "$$missing" ]; then \
	echo "installing" $$missing; \
	apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing >/dev/null; \
fi
endef

.PHONY: demo test test-newest test-long programs lint pins bench chaos topologies deb test-deb test-boots apt-repo clean

demo: .venv/bin/nftsync
	.venv/bin/python -m tests.lab

test: lint programs
	.venv/bin/pytest $(PARALLEL)

# The newest libraries, in the tests of what calls them: the cluster's client, netlink, the exporter and the daemon.
test-newest: .venv-newest/dev programs
	.venv-newest/bin/pytest $(PARALLEL) --server $(NEWEST_SERVER) $(CALLING)

# What takes hours: all tests with the newest libraries too, and a long churn of a cluster with MetalLB.
test-long: test .venv-newest/dev
	.venv-newest/bin/pytest $(PARALLEL)
	CHANGES=20000 RETURNS=40 .venv/bin/pytest tests/metallb/test_churn.py tests/apiserver/test_outages.py

# Build two Kubernetes and three MetalLBs into the cache folder of tests/programs/build. This takes twenty minutes once.
# It runs before the tests, because a compiler beside them would slow them down.
programs: .venv/dev
	.venv/bin/python -m tests.programs

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy
	.venv/bin/lint-imports

# Raise every version of requirements/*.txt to the newest on PyPI. Run `make test test-newest` before you commit them.
pins:
	@packages='$(RUNTIME)'; $(install)
	$(PYTHON) -m venv .venv-pins
	.venv-pins/bin/pip install --quiet --upgrade uv
	.venv-pins/bin/$(PIN) requirements/dev.in --output-file requirements/dev.txt
	.venv-pins/bin/$(PIN) pyproject.toml requirements/newest.in --output-file requirements/newest.txt

bench: .venv/dev
	.venv/bin/python -m tests.bench

# Draw a thousand faults, in a few minutes. Another seed draws others: make chaos SEED=7
# Kill the daemon at 300 instants, in nine minutes: make chaos FAULTS=0 KILLS=300
chaos: .venv/dev
	.venv/bin/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(KILLS),--kills $(KILLS))

# Build and change random links on a router: a hundred topologies, in five minutes. Two of them: make topologies SEEDS="7 8"
topologies: .venv/dev
	.venv/bin/python -m tests.topologies --seeds 100 $(SEEDS)

# Build dist/nftsync_VERSION_all.deb, with the same bytes every time. lintian must find no fault.
deb:
	@packages='$(BUILDING)'; $(install)
	packaging/build-deb dist
	lintian --fail-on error,warning $(DEB)

# Test the package on Debian 12 and 13, booted with systemd in containers, with a real API server.
# Then boot each ten times on a busy machine. This takes two minutes each, and one more minute the
# first time, to make the root file system in the cache folder of tests/programs/build.
test-deb: .venv/dev deb programs
	@packages='$(BOOTING)'; $(install)
	PYTHON=.venv/bin/python packaging/debian/tests/systems $(DEB)

# Only boot, sixty times on Debian 12. Other numbers: make test-boots BOOTS=100 SUITE=trixie
BOOTS = 60
SUITE = bookworm
test-boots: .venv/dev deb programs
	@packages='$(BOOTING)'; $(install)
	PYTHON=.venv/bin/python packaging/debian/tests/systems $(DEB) --suite $(SUITE) --only-boots $(BOOTS)

# Make dist/apt, a folder for a web server or a router. Sign it: make apt-repo KEY=you@example.org
apt-repo: deb
	packaging/build-apt-repo $(DEB) dist/apt $(KEY)

clean:
	rm -rf .venv .venv-newest .venv-pins build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
