#!/bin/bash
# Runs the container's command as a container engine would, without one: in a root that holds the binary, its libraries and nothing
# else, read-only, as the image's user without capabilities, without a network. Asks the probes, runs the health check, stops it.
#
#   tests/container/trial.sh BINARY UID STATE COMMAND... -- HEALTH CHECK...
#
# Its environment is the container's. Needs root. It runs itself again in namespaces of its own, with which all of it ends.
set -euo pipefail

fail() { echo "container: FAILED: $*" >&2; sed 's/^/  agent: /' "$work/log" >&2; exit 1; }

if [ "${1:-}" != --inside ]; then
	exec unshare --net --mount --pid --fork --kill-child --propagation private -- "$0" --inside "$@"
fi
shift
binary=$(realpath "$1") user=$2 state=$3 && shift 3
command=() && while [ "$1" != -- ]; do command+=("$1"); shift; done
shift && health=("$@")

work=$(mktemp -d)
root=$work/root
trap 'umount -l "$root" 2>/dev/null || true; rm -rf "$work"' EXIT
: >"$work/log"

# The image: the binary where the command names it, the libraries that it asks for, the folder of its state. What a container
# engine adds to every one: /proc, /dev/null, the files of names.
install -D -m 755 "$binary" "$root${command[0]}"
ldd "$binary" | grep -o '/[^ ]*' | sort -u | while read -r library; do
	install -D "$library" "$root$library"
done
install -d "$root/proc" "$root/dev" "$root/etc" "$root$state" "$work/state"
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
: >"$root/dev/null"
install -d -m 0700 -o "$user" -g "$user" "$work/state"
mount --bind "$root" "$root"
mount --bind "$work/state" "$root$state"
mount --bind /dev/null "$root/dev/null"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
ip link set lo up

in_container() { exec chroot --userspec="$user:$user" --groups= "$root" "$@"; }
# What a path answers, as a status; nothing where nobody answers.
status() (
	exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/${SERVER_PORT:-8010}" || exit 0
	printf 'GET %s HTTP/1.0\r\nHost: probe\r\n\r\n' "$1" >&3
	read -r _ code _ <&3 && echo "$code"
)
until_true() {
	local what=$1 deadline=$((SECONDS + 60)); shift
	until "$@"; do [ $SECONDS -lt $deadline ] || fail "never came true: $what"; sleep 0.1; done
}
answers() { [ "$(status "$1")" = "$2" ]; }
is_healthy() { (in_container "${health[@]}") >"$work/health" 2>&1; }

if is_healthy; then fail "the health check passes without an agent"; fi
(in_container "${command[@]}") >"$work/log" 2>&1 &
agent=$!
until_true "/healthz is 200" answers /healthz 200
# Neither Redis nor the ControlPlane can be reached: alive, and not ready.
answers /readyz 503 || fail "/readyz is $(status /readyz) without a Redis"
is_healthy || fail "the health check says: $(cat "$work/health")"
[ "$(stat -c %u "$work/state/outbox/format.json")" = "$user" ] || fail "the outbox is not the user's under $state"
if touch "$root/usr/written" 2>/dev/null; then fail "the root file system can be written"; fi
kill -TERM "$agent"
code=0; wait "$agent" || code=$?
[ $code = 0 ] || fail "the exit code when it is stopped is $code"
echo "container: alive without a network, on a read-only root, as user $user; stops with 0"
