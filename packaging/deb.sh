#!/bin/sh
# Makes the Debian package of a binary that has been built: packaging/deb.sh PROFILE [OPTION OF cargo-deb]...
# PROFILE is release, or dev for tests. The manual pages and completions are what that binary prints.
set -eu
cd "$(dirname "$0")/.."

profile=$1 && shift
case $profile in dev) folder=debug ;; *) folder=$profile ;; esac
binary=${CARGO_TARGET_DIR:-target}/$folder/dataplane-agent
made=target/package

rm -rf "$made" && mkdir -p "$made/man"
"$binary" man --dir "$made/man"
for shell in bash zsh fish; do "$binary" completions $shell >"$made/completions.$shell"; done

# Debian's changelog has the packaging's story; the program's is CHANGELOG.md.
release=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
when=$(date -R -d "$(git log -1 --format=%cI 2>/dev/null || date -Iseconds)")
printf 'dataplane-agent (%s-1) unstable; urgency=medium\n\n  * This release; see CHANGELOG.md.\n\n -- %s  %s\n' \
	"$release" "$maintainer" "$when" >"$made/changelog"

# The example, but with nothing set: an agent that is installed must not start as somebody else's.
required=$(sed -n 's/^\([A-Z_]*\)=.*/\1/p' data/agent.env.example | paste -sd, | sed 's/,/, /g')
{
	echo "# Settings of dataplane-agent. These have to be filled in: $required."
	echo "# After a change: systemctl restart dataplane-agent"
	echo "#"
	sed -e '1s/.*/# Every variable; where nothing is said to be required, its default is shown./' \
		-e 's/^\([A-Z_]*=\)/#\1/' data/agent.env.example
} >"$made/default"

cargo deb --quiet --no-build --profile "$profile" "$@"
