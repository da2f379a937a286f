# --- what is packed with the agent: its dependencies, its unit ---

.PHONY: audit check-unit

# Licences, bans and sources always; advisories where their database can be fetched.
audit:
	command -v cargo-deny >/dev/null || cargo install cargo-deny --locked
	cargo deny --locked check licenses bans sources
	@if cargo deny --locked fetch db; then cargo deny --locked check advisories; \
	else echo "audit: NOT CHECKED: advisories, because their database cannot be reached from here"; fi

# The unit names a binary that is not installed here; all else in it is checked as it stands. What systemd only warns of
# (a setting that it does not know) is an error here, where it is about this unit. 15 is an exposure of 1.5.
check-unit:
	@if ! command -v systemd-analyze >/dev/null; then \
		echo "check-unit: SKIPPED, there is no systemd-analyze here"; exit 0; fi; \
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && unit="$$folder/dataplane-agent.service" && \
	sed 's|^ExecStart=/usr/bin/dataplane-agent|ExecStart=/bin/true|' systemd/dataplane-agent.service >"$$unit" && \
	{ systemd-analyze verify --man=no "$$unit" 2>"$$folder/verify" || { cat "$$folder/verify"; exit 1; }; } && \
	if grep -F "$$unit" "$$folder/verify"; then exit 1; fi && \
	{ systemd-analyze security --no-pager --offline=true --threshold=15 "$$unit" >"$$folder/security" || \
		{ cat "$$folder/security"; exit 1; }; } && tail -n 1 "$$folder/security"
