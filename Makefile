# Everything here works on a fresh Debian 12 or 13 as root; what is missing is installed with apt and pip.

PYTHON := /usr/bin/python3
RUNTIME := nftables python3-nftables python3-kubernetes python3-pyroute2 python3-tenacity python3-prometheus-client \
	python3-systemd python3-yaml python3-venv python3-setuptools python3-wheel iproute2 netbase
BUILDING := systemd debhelper dh-python pybuild-plugin-pyproject lintian apt-utils gnupg bash-completion mandoc zsh
TESTING := etcd-server openssl prometheus $(BUILDING)
BOOTING := debootstrap systemd-container
DEB = dist/nftsync_$(shell sed -n '1s/.*(\(.*\)).*/\1/p' packaging/debian/changelog)_all.deb
PARALLEL := --numprocesses 2 --dist loadfile
# The distribution's setuptools builds: nothing comes from PyPI that is not pinned.
EDITABLE := pip install --quiet --no-deps --no-build-isolation --editable .
PINNED := pip install --quiet --require-hashes
# For the oldest Python that is supported, and with markers for later ones: the same on every machine.
PIN := uv --quiet pip compile --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command "make pins"

# The distribution's python3-nftables is the one that matches its libnftables: no other Python, no other copy.
.venv/bin/nftsync: pyproject.toml
	@packages='$(RUNTIME)'; $(install)
	$(PYTHON) -m venv --system-site-packages .venv
	.venv/bin/$(EDITABLE)
	@touch $@

.venv/dev: .venv/bin/nftsync requirements/dev.txt
	@packages='$(TESTING)'; $(install)
	.venv/bin/$(PINNED) --requirement requirements/dev.txt
	@touch $@

# The newest versions from PyPI of the libraries that the distribution has older: pinned, so that no release of somebody else's
# decides whether a change lands. `make pins` raises them.
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

.PHONY: demo test test-newest programs lint pins bench chaos deb test-deb test-boots apt-repo clean

demo: .venv/bin/nftsync
	.venv/bin/python -m tests.lab

test: lint programs
	.venv/bin/pytest $(PARALLEL)

test-newest: .venv-newest/dev programs
	.venv-newest/bin/pytest $(PARALLEL)

# The API server, kept in the cache folder of tests/apiserver/build: eight minutes once, and no test runs beside its compiler.
programs: .venv/dev
	.venv/bin/python -m tests.apiserver

lint: .venv/dev
	.venv/bin/ruff check .
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

# A thousand faults, a few minutes; another seed draws others: make chaos SEED=7
# SIGKILL at 300 instants, nine minutes: make chaos FAULTS=0 KILLS=300
chaos: .venv/dev
	.venv/bin/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(KILLS),--kills $(KILLS))

# dist/nftsync_VERSION_all.deb, the same bytes every time; lintian has nothing to say against it.
deb:
	@packages='$(BUILDING)'; $(install)
	packaging/build-deb dist
	lintian --fail-on error,warning $(DEB)

# The package on Debian 12 and 13, booted with systemd in containers, with a real API server, and then ten boots in a row on a busy
# machine: two minutes for each, and once a minute more to make its root file system, which is kept in the cache folder of
# tests/apiserver/build.
test-deb: .venv/dev deb programs
	@packages='$(BOOTING)'; $(install)
	PYTHON=.venv/bin/python packaging/debian/tests/systems $(DEB)

# Only the boots, sixty in a row on Debian 12: make test-boots BOOTS=100 SUITE=trixie
BOOTS = 60
SUITE = bookworm
test-boots: .venv/dev deb programs
	@packages='$(BOOTING)'; $(install)
	PYTHON=.venv/bin/python packaging/debian/tests/systems $(DEB) --suite $(SUITE) --only-boots $(BOOTS)

# dist/apt: a folder to copy to a web server, or to a router. Signed by a key of yours: make apt-repo KEY=you@example.org
apt-repo: deb
	packaging/build-apt-repo $(DEB) dist/apt $(KEY)

clean:
	rm -rf .venv .venv-newest .venv-pins build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
