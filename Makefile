# The tasks of people and of CI. Each does its own set-up; all that is assumed is a Rust toolchain and a C compiler.

.DEFAULT_GOAL := help
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# What `--version` and the metric build_info tell.
COMMIT = $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
# Incremental builds make a target folder large and a cold build slower.
export CARGO_INCREMENTAL := 0
# Most tests wait for servers and deadlines, and leave the processors idle.
export RUST_TEST_THREADS ?= $(shell expr 4 \* $$(nproc))
# Where all tests run, optimising the agent a little saves more time than it takes; a single test is not worth it.
OPTIMISED := $(foreach crate,dataplane-agent simulation,--config profile.dev.package.$(crate).opt-level=1)

.PHONY: help build demo test test-outbox format lint units count docs book bench bench-wan bench-report redis test-tools

help:            ## Says what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

build:           ## Builds the agent: target/release/dataplane-agent
	DATAPLANE_COMMIT=$(COMMIT) cargo build --release --locked

demo: redis build ## Plays the main job with outages and a crash, about a minute; settles the account
	@target/release/dataplane-agent demo

# Every step runs, whatever failed before it. cargo-deb takes minutes to compile: it is not installed for this alone.
STEPS := format lint units simulation campaigns docs check-unit check-package check-alerts
test:            ## Everything that CI checks, then what failed and how long each step took
	@mkdir -p target; failed=; times=; \
	for step in $(STEPS); do \
	  if [ $$step = check-package ] && ! command -v cargo-deb >/dev/null; then \
	    echo "check-package: NOT CHECKED: there is no cargo-deb here (make check-package installs it)"; continue; fi; \
	  begun=$$(date +%s); \
	  rm -f target/test-$$step.passed; \
	  { $(MAKE) --no-print-directory $$step && : >target/test-$$step.passed; } 2>&1 | tee target/test-$$step.log; \
	  [ -e target/test-$$step.passed ] || failed="$$failed $$step"; \
	  times="$$times, $$step $$(($$(date +%s) - begun)) s"; \
	done; \
	for step in $$failed; do echo "test: $$step failed:"; awk "$$FAILURES" target/test-$$step.log | tail -n 100; \
	  grep -qE '^error|panicked at|FAILED' target/test-$$step.log || tail -n 30 target/test-$$step.log; done; \
	echo "test:$${times#,}"; \
	if [ -n "$$failed" ]; then echo "test: FAILED:$$failed" >&2; exit 1; fi; echo "test: passed"

# The lines of a step's log that say why it failed: panics with their messages, and errors of compilers.
export FAILURES := /^thread .* panicked at|^error|^make.*\*\*\*/ { left = 12 } /^(--- the agent|stack backtrace)/ { left = 0 } /FAILED/ || left-- > 0

format:
	cargo fmt --all --check

# The agent and the sandbox first, without the features `fuzzing` and `simulation`.
lint:
	cargo clippy --all-targets --locked -p dataplane-agent -p sandbox -- -D warnings
	cargo clippy --test browser --locked -- -D warnings
	cargo clippy --all-targets --locked -p campaigns -p fuzzing -p simulation -- -D warnings

units: test-tools prometheus
	cargo test $(OPTIMISED) --locked --no-fail-fast -p dataplane-agent -p sandbox

# --- the whole agent in virtual time, everything from a seed: docs/proof.md ---

.PHONY: simulation simulate fleet
SEEDS ?= 300
FIRST ?= 1

simulation: redis ## Runs 300 seeds of the simulation, one of them twice, finds each planted bug, and replays the fuzzers' seeds
	cargo test $(OPTIMISED) --locked --no-fail-fast -p simulation -p fuzzing

# A seed that fails is made smaller and printed as a command. FLAGS=--all goes on behind it.
simulate:        ## Runs SEEDS seeds of the simulation from FIRST on
	CARGO_INCREMENTAL=1 cargo run --quiet --locked --profile simulation -p simulation --bin simulate -- --seeds $(SEEDS) --first $(FIRST) $(FLAGS)

# FLAGS=--alone leaves out the other strategies; FLAGS=--help has the rest.
fleet:           ## Plays 10,000 agents that meet a ControlPlane of fixed capacity, beside other ways to retry; some minutes
	CARGO_INCREMENTAL=1 cargo run --quiet --locked --profile simulation -p simulation --bin fleet -- $(FLAGS)

# --- campaigns against the real agent, by the thousand: docs/proof.md ---

.PHONY: campaigns campaign campaign-tools campaign-kill campaign-power campaign-disk campaign-redis campaign-soak
CAMPAIGN := target/release/campaign
# The length of all runs together, of this run, and the first seed of a campaign that begins.
CAMPAIGN_FLAGS = $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) --first $(FIRST) $(FLAGS)

# With the agent that the tests have built anyway.
campaigns: redis campaign-tools ## Plays a few rounds of each campaign, and finds each planted failure
	cargo test $(OPTIMISED) --quiet --locked --no-run --test it
	cargo test $(OPTIMISED) --locked -p campaigns
	cargo run $(OPTIMISED) --quiet --locked -p campaigns -- self-test --agent target/debug/dataplane-agent

campaign: redis build
	cargo build --release --locked -p campaigns

campaign-kill: campaign ## Kills the agent under load until there are ROUNDS (10,000) kills, or for SECONDS
	$(CAMPAIGN) kill $(CAMPAIGN_FLAGS)

# Each with a state of its own. One that cannot be made is named; that none can be made is an error.
FILE_SYSTEMS ?= ext4 xfs btrfs
campaign-power: campaign campaign-tools ## Cuts the power 1,000 times on each of FILE_SYSTEMS (root)
	@tried=; for system in $(FILE_SYSTEMS); do \
	  command -v mkfs.$$system >/dev/null || { echo "campaign-power: NOT RUN: there is no mkfs.$$system here" >&2; continue; }; \
	  tried=1; $(CAMPAIGN) power --file-system $$system $(CAMPAIGN_FLAGS) || exit 1; \
	done; [ -n "$$tried" ]

campaign-disk: campaign campaign-tools ## Has the disk fail 1,000 times: EIO, ENOSPC, short writes, syncs, read-only (root)
	$(CAMPAIGN) disk $(CAMPAIGN_FLAGS)

campaign-redis: campaign ## Kills, restarts and fails over Redis 1,000 times
	$(CAMPAIGN) redis $(CAMPAIGN_FLAGS)

campaign-soak: campaign ## Six hours at 1,000 records a second in changing weather: memory, descriptors and disk stay flat
	$(CAMPAIGN) soak $(CAMPAIGN_FLAGS)

campaign-tools:
	@$(call install,mkfs.ext4,e2fsprogs)
	@$(call install,mkfs.xfs,xfsprogs)
	@$(call install,mkfs.btrfs,btrfs-progs)
	@$(call install,findmnt,util-linux)

test-outbox: test-tools ## The outbox's tests at full length: 100 kills, 300 damages, a disk of 200 MiB filled five times, ...
	OUTBOX_TESTS=all cargo test --locked outbox

# A module of tests is at the end of its file.
count:           ## Counts the lines of code without tests, blank lines and comments, by room
	@for room in src/* crates/*; do \
	  find "$$room" -name '*.rs' -not -path '*/tests/*' -not -name tests.rs | sort | xargs awk -v room="$$room" ' \
	    FNR == 1 { ends = 0 } \
	    ends { next } \
	    is_test && /^mod .*\{$$/ { ends = 1; next } \
	    { is_test = /^#\[cfg\(test\)\]/ } \
	    !/^[[:space:]]*(\/\/.*)?$$/ && !is_test { lines++ } \
	    END { printf "%7d  %s\n", lines, room }'; \
	done | awk '{ total += $$1; print } END { printf "%7d\n", total }'

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --locked -p dataplane-agent -p sandbox

# Reads as plain Markdown, too; that its links lead somewhere is checked by `make units`.
MDBOOK := 0.5.4
book:            ## Builds the book of docs/: target/book/index.html
	@command -v mdbook >/dev/null || cargo install mdbook@$(MDBOOK) --locked --no-default-features --features search
	mdbook build

bench: redis     ## Prints what the main job costs, as figures and as ratios within the run
	cargo bench --locked

bench-wan: redis ## Prints what the main job does over long, narrow and (as root) lossy links, beside each link's limit
	@$(call install,ip,iproute2)
	@$(call install,unshare,util-linux)
	cargo bench --locked -- wan

# syslog-ng, to compare with, is measured where it is installed: docs/benchmarks.md.
bench-report: redis ## Measures BENCH_RUNS (5) times, about an hour, and writes the figures of docs/benchmarks.md and README
	@$(call install,ip,iproute2)
	@$(call install,unshare,util-linux)
	cargo bench --locked -- report

# redis-server for the tests and the demonstration; the tests also cut the power of a file system in an image (as root:
# mkfs.ext4, and python3 for the ioctl that does it), and watch `top` in tmux's terminal.
redis:
	@$(call install,redis-server,redis-server)

test-tools: redis
	@$(call install,python3,python3)
	@$(call install,mkfs.ext4,e2fsprogs)
	@$(call install,mkfs.xfs,xfsprogs)
	@$(call install,mkfs.btrfs,btrfs-progs)
	@$(call install,tmux,tmux)

# A program, and Debian's package that has it.
install = command -v $(1) >/dev/null || { \
	  if command -v apt-get >/dev/null; then \
	    $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(2); \
	  else \
	    echo "$(1) is needed: install it with your system's package manager" >&2; exit 1; \
	  fi; }

# --- mutation testing ---

.PHONY: mutants
# A file or folder of src, without its ending; its unit tests are those of the room that it is in.
ROOM ?= drain/verdict

mutants: redis   ## Changes each function of ROOM, one at a time, and lists what no unit test of its room notices: target/mutants.out
	@command -v cargo-mutants >/dev/null || cargo install cargo-mutants --locked
	CARGO_INCREMENTAL=1 cargo mutants --package dataplane-agent --output target --file 'src/$(ROOM).rs' --file 'src/$(ROOM)/**' $(FLAGS) \
	  -- --lib $(firstword $(subst /, ,$(ROOM)))::

# --- the pages in a real browser ---

.PHONY: test-browser

test-browser: redis ## Tries the status page and the documentation in a headless Chromium
	@$(call install,chromium,chromium)
	@$(call install,chromedriver,chromium-driver)
	cargo test --locked --test browser -- --test-threads=1

# --- what is packed with the agent: its dependencies, its unit, its package ---

.PHONY: audit check-unit check-package deb release alerts static aarch64 cargo-deb package-tools test-systemd

# Licences, bans and sources always; advisories where their database can be fetched.
audit:           ## Checks the licences, origins and known faults of all dependencies
	command -v cargo-deny >/dev/null || cargo install cargo-deny --locked
	cargo deny --locked check licenses bans sources
	@if cargo deny --locked fetch db; then cargo deny --locked check advisories; \
	else echo "audit: NOT CHECKED: advisories, because their database cannot be reached from here"; fi

# The unit names a binary that is not installed here; all else in it is checked as it stands. What systemd only warns of
# (a setting that it does not know) is an error here, where it is about this unit. 15 is an exposure of 1.5.
check-unit:      ## Verifies the systemd unit, and how exposed it is
	@if ! command -v systemd-analyze >/dev/null; then \
		echo "check-unit: SKIPPED, there is no systemd-analyze here"; exit 0; fi; \
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && unit="$$folder/dataplane-agent.service" && \
	sed 's|^ExecStart=/usr/bin/dataplane-agent|ExecStart=/bin/true|' systemd/dataplane-agent.service >"$$unit" && \
	{ systemd-analyze verify --man=no "$$unit" 2>"$$folder/verify" || { cat "$$folder/verify"; exit 1; }; } && \
	if grep -F "$$unit" "$$folder/verify"; then exit 1; fi && \
	{ systemd-analyze security --no-pager --offline=true --threshold=15 "$$unit" >"$$folder/security" || \
		{ cat "$$folder/security"; exit 1; }; } && tail -n 1 "$$folder/security"

deb: package-tools build ## Builds the Debian package and, beside it, that of its debug symbols: target/debian/*
	packaging/deb.sh release --dbgsym --compress-debug-symbols=zlib
	@ls -l target/debian/*deb

# The packages, what is in them, and their checksums. A bill is written beside each Cargo.toml of the workspace, with the path
# of this folder in it.
release: deb     ## Builds what is published: packages, a bill of materials (CycloneDX), SHA256SUMS: target/release-files
	@command -v cargo-cyclonedx >/dev/null || cargo install cargo-cyclonedx --locked
	rm -rf target/release-files && mkdir -p target/release-files
	cargo cyclonedx --quiet --format json --spec-version 1.5 --target x86_64-unknown-linux-gnu --override-filename bill-of-materials
	sed 's|path+file://$(CURDIR)|path+file:///dataplane-agent|g' bill-of-materials.json >target/release-files/bill-of-materials.json
	rm bill-of-materials.json crates/*/bill-of-materials.json
	cp target/debian/*deb target/release-files/
	@$(call install,lintian,lintian)
	lintian --fail-on error,warning target/debian/*.deb
	target/release/dataplane-agent --version | grep -qF '($(COMMIT))'
	cd target/release-files && sha256sum * >SHA256SUMS && cat SHA256SUMS

# RUNBOOK_URL is where docs/runbook.md is published.
alerts:          ## Writes target/alerts.yml, whose runbook links lead to RUNBOOK_URL
	@[ -n "$(RUNBOOK_URL)" ] || { echo "alerts: set RUNBOOK_URL to where docs/runbook.md is published" >&2; exit 1; }
	@mkdir -p target && sed 's|runbook_url: docs/runbook.md|runbook_url: $(RUNBOOK_URL)|' data/prometheus/alerts.yml >target/alerts.yml
	@ls target/alerts.yml

# The package of the binary that the tests have built anyway: what is tried is the packing, not the program.
check-package: ## Installs the package into a scratch root, runs it from there, purges it
	@if ! command -v dpkg-deb >/dev/null; then \
		echo "check-package: SKIPPED, this is no Debian"; exit 0; fi; \
	$(MAKE) --no-print-directory package-tools && \
	cargo test $(OPTIMISED) --quiet --locked --no-run --test it && \
	packaging/deb.sh dev --strip --fast --output target/package/test.deb && \
	$(SUDO) tests/package/install.sh target/package/test.deb

package-tools: cargo-deb
	@$(call install,dpkg-shlibdeps,dpkg-dev)
	@$(call install,python3,python3)

cargo-deb:
	@command -v cargo-deb >/dev/null || cargo install cargo-deb --locked

# PACKAGE=path tries that one, and not what `make deb` makes.
test-systemd:    ## Boots a throw-away Debian with the package under a real systemd (root; some minutes)
	@$(call install,debootstrap,debootstrap)
	@$(call install,systemd-nspawn,systemd-container)
	@$(call install,python3,python3)
	@[ -n "$(PACKAGE)" ] || $(MAKE) --no-print-directory deb
	@package="$(PACKAGE)" && \
	  $(SUDO) tests/systemd/run.py "$${package:-$$(ls -t target/debian/dataplane-agent_*.deb | head -n 1)}"

# One file that runs on any x86-64 Linux, whatever its libc.
STATIC := x86_64-unknown-linux-musl
static:          ## Builds a static binary: target/x86_64-unknown-linux-musl/release/dataplane-agent
	@[ -d "$$(rustc --print sysroot)/lib/rustlib/$(STATIC)" ] || { \
	  echo "static: NOT BUILT: the target is missing (rustup target add $(STATIC))" >&2; exit 1; }
	@$(call install,musl-gcc,musl-tools)
	DATAPLANE_COMMIT=$(COMMIT) cargo build --release --locked --target $(STATIC)

# Cross-compiled: the C libraries among the dependencies by Debian's compiler for Arm.
ARM := aarch64-unknown-linux-gnu
aarch64:         ## Builds the agent for 64-bit Arm: target/aarch64-unknown-linux-gnu/release/dataplane-agent
	@[ -d "$$(rustc --print sysroot)/lib/rustlib/$(ARM)" ] || { \
	  echo "aarch64: NOT BUILT: the target is missing (rustup target add $(ARM))" >&2; exit 1; }
	@$(call install,aarch64-linux-gnu-gcc,gcc-aarch64-linux-gnu)
	CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
	  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	  DATAPLANE_COMMIT=$(COMMIT) cargo build --release --locked --target $(ARM)

# --- fuzzing: `make test` replays fuzz/corpus and fuzz/findings, this looks for more ---

.PHONY: fuzz
FUZZ_SECONDS ?= 60

# What it learns stays in fuzz/target. A finding goes to fuzz/findings by hand: minimised, with its fix.
fuzz:            ## Fuzzes each target for a minute (FUZZ_SECONDS), on the nightly toolchain
	@rustup toolchain list 2>/dev/null | grep -q '^nightly' || { \
	  echo "fuzz: NOTHING WAS FUZZED: there is no nightly toolchain here (rustup toolchain install nightly)" >&2; exit 1; }
	@command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked
	cargo +nightly fuzz build --dev
	@failed=; for target in $$(cargo +nightly fuzz list); do \
	  echo "fuzz: $$target"; mkdir -p fuzz/target/corpus/$$target; \
	  cargo +nightly fuzz run --dev $$target fuzz/target/corpus/$$target \
	    $$(ls -d fuzz/corpus/$$target fuzz/findings/$$target data/samples/*/$$target 2>/dev/null) \
	    -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 || failed="$$failed $$target"; \
	done; if [ -n "$$failed" ]; then echo "fuzz: FAILED:$$failed" >&2; exit 1; fi

# --- alerts and dashboard ---

.PHONY: check-alerts test-prometheus prometheus

# Debian's package is only unpacked: nothing of it is installed, and no service of it is started.
PROMETHEUS_DIR := target/prometheus
PROMTOOL = $(or $(shell command -v promtool),$(PROMETHEUS_DIR)/usr/bin/promtool)

prometheus:
	@{ command -v promtool && command -v prometheus; } >/dev/null || [ -x $(PROMETHEUS_DIR)/usr/bin/prometheus ] || { \
	  command -v apt-get >/dev/null || { \
	    echo "prometheus and promtool are needed: install them with your system's package manager" >&2; exit 1; }; \
	  folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cd "$$folder" && \
	  download() { apt-get download -qq -o APT::Sandbox::User=root prometheus; } && \
	  { download 2>/dev/null || { $(SUDO) apt-get update -qq && download; }; } && \
	  mkdir -p "$(CURDIR)/$(PROMETHEUS_DIR)" && dpkg -x prometheus_*.deb "$(CURDIR)/$(PROMETHEUS_DIR)"; }

# Whether the queries fit what an agent exports is asked of a running one, by `make units`.
check-alerts: prometheus ## Checks the alerts, their tests and the dashboard's queries
	@$(call install,python3,python3)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	python3 tests/prometheus/dashboard_rules.py data/grafana/dashboard.json "$$folder/dashboard.yml" && \
	$(PROMTOOL) check rules data/prometheus/alerts.yml "$$folder/dashboard.yml" && \
	$(PROMTOOL) test rules tests/prometheus/alerts_test.yml

test-prometheus: redis prometheus ## Has a real Prometheus scrape an agent through an outage
	cargo test --locked --test it -- --nocapture a_real_prometheus

# --- the documentation pages' readers: others' work, kept here as it is published, compressed ---

.PHONY: vendor-pages
SWAGGER_UI := 5.35.0
REDOC := 2.5.4
VENDORED := src/http/vendored

# Redoc's footer loads its logo from its makers' server: nothing here is fetched from elsewhere, so that an empty picture
# takes its place.
vendor-pages:    ## Fetches Swagger UI and Redoc anew, in the versions that the Makefile names
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	npm pack --silent --pack-destination "$$folder" swagger-ui-dist@$(SWAGGER_UI) redoc@$(REDOC) >/dev/null; \
	for archive in "$$folder"/*.tgz; do mkdir "$${archive%.tgz}"; tar -xzf "$$archive" -C "$${archive%.tgz}" --strip-components 1; done; \
	swagger="$$folder/swagger-ui-dist-$(SWAGGER_UI)"; redoc="$$folder/redoc-$(REDOC)"; \
	sed -i 's|https://cdn.redoc.ly/redoc/logo-mini.svg|data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==|' "$$redoc/bundles/redoc.standalone.js"; \
	! grep -q 'cdn\.redoc\.ly' "$$redoc/bundles/redoc.standalone.js"; \
	mkdir -p $(VENDORED)/swagger-ui $(VENDORED)/redoc; \
	for file in swagger-ui.css swagger-ui-bundle.js; do gzip -9nc "$$swagger/$$file" >$(VENDORED)/swagger-ui/$$file.gz; done; \
	gzip -9nc "$$redoc/bundles/redoc.standalone.js" >$(VENDORED)/redoc/redoc.standalone.js.gz; \
	cp "$$swagger/LICENSE" "$$swagger/NOTICE" "$$swagger/swagger-ui-bundle.js.LICENSE.txt" $(VENDORED)/swagger-ui/; \
	cp "$$redoc/LICENSE" "$$redoc/bundles/redoc.standalone.js.LICENSE.txt" $(VENDORED)/redoc/; \
	printf 'swagger-ui-dist %s\nredoc %s\n' $(SWAGGER_UI) $(REDOC) >$(VENDORED)/VERSIONS
