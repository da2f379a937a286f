#!/bin/bash
# Installs the package PACKAGE.deb into an empty folder as dpkg would into a machine, runs what is in it, installs it again over
# changed settings, and purges it: tests/package/install.sh PACKAGE.deb. Needs root (dpkg gives files to root).
set -euo pipefail

package=$(realpath "$1")
name=dataplane-agent
work=$(mktemp -d)
root=$work/root
agent=
finish() {
	[ -z "$agent" ] || kill -KILL "$agent" 2>/dev/null || true
	rm -rf "$work"
}
trap finish EXIT

fail() { echo "package: FAILED: $*" >&2; exit 1; }
check() { local what=$1; shift; "$@" || fail "$what"; }
equal() { [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"; }
# dpkg, with the maintainer scripts run from outside: there is no shell in the folder.
into_root() {
	dpkg --root="$root" --force-script-chrootless --force-depends --force-confold "$@" >"$work/dpkg.log" 2>&1 ||
		{ cat "$work/dpkg.log" >&2; fail "dpkg $*"; }
}
files() { find "$root" ! -type d ! -path "$root/var/lib/dpkg/*" ! -path "$root/var/log/*" -printf '/%P\n' | sort; }
# Polls a command until it succeeds.
until_true() {
	local what=$1 deadline=$((SECONDS + 60)); shift
	until "$@"; do [ $SECONDS -lt $deadline ] || fail "never came true: $what"; sleep 0.1; done
}

mkdir -p "$root/var/lib/dpkg/updates" "$root/var/lib/dpkg/info" && touch "$root/var/lib/dpkg/status"

# Installed, with nothing configured.
into_root --install "$package"
grep -q 'not configured yet' "$work/dpkg.log" || fail "the installation does not say what is to be done next"
settings=$root/etc/default/$name
equal "who may read the settings" "600 root" "$(stat -c '%a %U' "$settings")"
if grep -E '^[^#]' "$settings"; then fail "something is set in the settings of a new installation"; fi
for variable in SERVER_ID SERVER_REGION DATAPLANE_HOST CONTROL_PLANE_URL CONTROL_PLANE_API_KEY; do
	check "$variable is offered" grep -q "^#$variable=" "$settings"
	check "$variable is named as required" grep -q "filled in: .*$variable" "$settings"
done
check "the unit is enabled" test -L "$root/etc/systemd/system/multi-user.target.wants/$name.service"
check "the unit is there" test -f "$root/usr/lib/systemd/system/$name.service"
page=$(gzip -dc "$root/usr/share/man/man1/$name.1.gz")
for word in SERVER_ID outbox 'dead.\?letters'; do check "the manual page has $word" grep -q -- "$word" <<<"$page"; done
offered=$(bash -c 'source "$1"; COMP_WORDS=(dataplane-agent outb) COMP_CWORD=1; _dataplane__agent dataplane-agent outb dataplane-agent; echo "${COMPREPLY[*]}"' - \
	"$root/usr/share/bash-completion/completions/$name")
equal "what bash completes" outbox "$offered"
for file in README.md CHANGELOG.md copyright install.md operating.md upgrading.md monitoring.md runbook.md redis.md; do
	check "$file is there" test -s "$root/usr/share/doc/$name/$file"
done
for file in prometheus/alerts.yml grafana/dashboard.json; do
	check "$file is there" test -s "$root/usr/share/$name/$file"
done
if readelf --sections "$root/usr/bin/$name" | grep -q '\.debug_info'; then fail "the program is not stripped"; fi

# What was installed runs.
binary=$root/usr/bin/$name
version=$(dpkg-deb --field "$package" Version)
equal "the version" "$name ${version%-*}" "$("$binary" --version)"
code=0; (cd "$work" && env -i "$binary" run >"$work/run.log" 2>&1) || code=$?
equal "the exit code without settings" 78 "$code"
check "it says what is missing" grep -q SERVER_ID "$work/run.log"

state=$root/var/lib/private/$name
mkdir -p "$state" && ln -s "private/$name" "$root/var/lib/$name"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
sed -i -e "s/^#SERVER_ID=.*/SERVER_ID=edge-7/" -e "s/^#\(SERVER_REGION\|DATAPLANE_HOST\|CONTROL_PLANE_API_KEY\)=.*/\1=x/" \
	-e "s/^#CONTROL_PLANE_URL=.*/CONTROL_PLANE_URL=http:\/\/127.0.0.1:1/" -e "s/^#SERVER_PORT=.*/SERVER_PORT=$port/" \
	-e "s/^#REDIS_PORT=.*/REDIS_PORT=1/" "$settings"
cat >"$work/start" <<-'END'
	set -a && . "$1" && cd "$2" && export STATE_DIRECTORY=$2 && exec "$3" run
END
env -i PATH="$PATH" sh "$work/start" "$settings" "$state" "$binary" >"$work/run.log" 2>&1 &
agent=$!
health() { python3 -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$port/health', timeout=5)" 2>/dev/null; }
until_true "the installed agent answers" health
kill -TERM "$agent"
code=0; wait "$agent" || code=$?; agent=
equal "the exit code when it is stopped" 0 "$code"
check "the outbox is in the state directory" test -f "$state/outbox/format.json"

# Installed over: settings that were changed stay. Removed: they stay too.
before=$(sha256sum <"$settings")
into_root --install "$package"
equal "changed settings after an upgrade" "$before" "$(sha256sum <"$settings")"
into_root --remove $name
equal "changed settings after a removal" "$before" "$(sha256sum <"$settings")"
check "the program is removed" test ! -e "$binary"

# Purged: the outbox stays, and nothing else; that too goes when it is asked for.
into_root --install "$package"
mkdir -p "$root/etc/dataplane-agent" && echo secret >"$root/etc/dataplane-agent/control_plane_api_key"
into_root --purge $name
grep -q 'the outbox stays' "$work/dpkg.log" || fail "purging does not say that the outbox stays"
check "the outbox is kept" test -f "$state/outbox/format.json"
equal "what a purge leaves beside the outbox" "/var/lib/$name" "$(files | grep -v "^/var/lib/private/$name/outbox/")"
into_root --install "$package"
PURGE_OUTBOX=yes into_root --purge $name
equal "what a purge leaves with PURGE_OUTBOX=yes" "" "$(files)"
echo "package: installs, runs, keeps settings, is purged: $(basename "$package") $version"
