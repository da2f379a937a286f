#!/usr/bin/env -S python3 -B
"""The package on a real systemd: installed, started, broken, upgraded and purged in a throw-away Debian.

    tests/systemd/run.py PACKAGE.deb      (as root; `make test-systemd` builds the package first)

The machine has a redis-server, and the sandbox for a ControlPlane. Everything is kept under target/systemd.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from machine import Failed, Machine, fresh_root, until

UNIT = "dataplane-agent"
FOLDER = Path(__file__).resolve().parents[2] / "target/systemd"
SETTINGS = "/etc/default/dataplane-agent"
DROP_IN = f"/etc/systemd/system/{UNIT}.service.d/test.conf"
STATE = "/var/lib/private/dataplane-agent"
KEY, NEXT_KEY = "the-first-key", "a-second-key."
SANDBOX = "/usr/local/bin/control-plane"
WATCHDOG_SECONDS = 5


def check(condition, what):
    if not condition:
        raise Failed(what)


def equal(found, expected, what):
    check(found == expected, f"{what}: expected {expected!r}, found {found!r}")


class Trial:
    """The machine, and what was pushed in it so far."""

    def __init__(self, package):
        self.package = package
        self.machine = Machine(fresh_root(FOLDER))
        self.pushed = 0
        self.sandboxes = 0
        self.before = set()

    # --- what is asked of the machine ---

    def systemctl(self, *words, check=True):
        return self.machine.run("systemctl", *words, check=check)

    def status(self):
        return self.systemctl("status", "--no-pager", UNIT, check=False).stdout

    def pid(self):
        return int(self.machine.show(UNIT, "MainPID"))

    def is_active(self):
        return self.systemctl("is-active", UNIT, check=False).stdout.strip()

    def restarts(self):
        return int(self.machine.show(UNIT, "NRestarts"))

    def journal(self, since=None):
        words = ["journalctl", "--no-pager", "--output=cat", f"--unit={UNIT}"]
        return self.machine.run(*words, *([f"--since={since}"] if since else [])).stdout

    def now(self):
        return self.machine.run("date", "+%Y-%m-%d %H:%M:%S.%6N").stdout.strip()

    def get(self, url):
        done = self.machine.run("curl", "--silent", "--max-time", "10", url, check=False)
        try:
            return json.loads(done.stdout)
        except ValueError:
            return None

    def metrics(self):
        return self.machine.run("curl", "--silent", "--max-time", "10", "http://127.0.0.1:8010/metrics", check=False).stdout

    def depth(self):
        health = self.get("http://127.0.0.1:8010/health")
        return health and health["outbox"]["depth"]

    def processed(self):
        kinds = self.get("http://127.0.0.1:9091/sandbox/accounts")["kinds"]
        check(all(kind["duplicates_different"] == 0 for kind in kinds.values()), "a repetition had another key or body")
        return sum(kind["processed"] for kind in kinds.values())

    # --- what is done to it ---

    def install(self, package):
        inside = "/root/package.deb"
        shutil.copy(package, self.machine.path(inside))
        return self.machine.run("dpkg", "--install", inside).stdout

    def weather(self, **weather):
        self.machine.run("curl", "--silent", "--fail", "--request", "PUT", "--header", "Content-Type: application/json",
                         "--data", json.dumps(weather), "http://127.0.0.1:9091/sandbox/weather")

    def sandbox(self, key):
        """A ControlPlane that insists on `key`."""
        if self.sandboxes:
            self.systemctl("stop", f"control-plane-{self.sandboxes}", check=False)
        self.sandboxes += 1
        self.machine.run("systemd-run", "--quiet", "--collect", f"--unit=control-plane-{self.sandboxes}", SANDBOX, "sandbox", "--listen=127.0.0.1:9090",
                         "--control-listen=127.0.0.1:9091", f"--api-key={key}")
        until("the sandbox answers", lambda: self.get("http://127.0.0.1:9091/sandbox/accounts"))

    def push(self, count):
        """Pushes usage records to Redis."""
        lines = []
        for number in range(self.pushed, self.pushed + count):
            record = {"transaction_id": f"usage-{number}", "api_session_id": f"session-{number % 20}",
                      "customer_id": "customer-1", "connection_duration_seconds": 1.5, "data_bytes_processed": 48000,
                      "audio_duration_seconds": 1.25, "request_timestamp": "2026-01-01T00:00:01Z",
                      "response_timestamp": "2026-01-01T00:00:02Z"}
            lines.append(f"LPUSH queue:usage_records '{json.dumps(record)}'\n")
        self.machine.run("redis-cli", stdin="".join(lines))
        self.pushed += count

    def backlog(self, count):
        """Records that wait in the outbox, with the ControlPlane away. Gives how many there are."""
        self.weather(down=True)
        before = self.depth()
        self.push(count)
        until("the records are in the outbox", lambda: self.depth() == before + count)
        return before + count

    def all_delivered(self):
        self.weather()
        until("the backlog is delivered", lambda: self.depth() == 0)
        equal(self.processed(), self.pushed, "records that the ControlPlane has")

    def restarted_by_systemd(self, before):
        until("systemd starts it again", lambda: self.restarts() > before and self.is_active() == "active")

    # --- the story ---

    def installs_without_settings(self):
        """the package is installed and enabled; without settings it is not started, and nothing has failed"""
        self.before = self.machine.files()
        equal(self.machine.boot(), "running", "the state of a fresh machine")
        check("not configured yet" in self.install(self.package), "it does not say what is to be done next")
        equal(self.systemctl("is-enabled", UNIT).stdout.strip(), "enabled", "the unit")
        equal(self.is_active(), "inactive", "the agent")
        equal(self.systemctl("is-system-running", check=False).stdout.strip(), "running", "the machine afterwards")
        equal(self.systemctl("start", UNIT, check=False).returncode, 1, "starting it nevertheless")
        equal(self.machine.show(UNIT, "ExecMainStatus"), "78", "its exit code then")
        equal(self.restarts(), 0, "how often that was tried again")

    def is_active_only_when_ready(self):
        """while it starts the unit is `activating`, and `active` when it says READY"""
        # The sandbox outlives upgrades and removals.
        shutil.copy(self.machine.path("/usr/bin/dataplane-agent"), self.machine.path(SANDBOX))
        self.sandbox(KEY)
        settings = {"SERVER_ID": "edge-1", "SERVER_REGION": "eu-central", "DATAPLANE_HOST": "10.0.0.1",
                    "CONTROL_PLANE_URL": "http://127.0.0.1:9090", "CONTROL_PLANE_INITIAL_ERROR_DELAY": "0.1",
                    "CONTROL_PLANE_MAX_BACKOFF": "1"}
        self.machine.path(SETTINGS).write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        # A start that lasts until somebody writes to a pipe: the shell becomes the agent, whose word systemd waits for.
        pipe = self.machine.path("/var/lib/go")
        os.mkfifo(pipe)
        pipe.chmod(0o644)
        drop_in = self.machine.path(DROP_IN)
        drop_in.parent.mkdir(parents=True)
        drop_in.write_text(
            f"[Service]\nEnvironment=CONTROL_PLANE_API_KEY={KEY}\nExecStart=\n"
            "ExecStart=/bin/sh -c 'read go </var/lib/go && exec /usr/bin/dataplane-agent run'\n")
        self.systemctl("daemon-reload")
        self.systemctl("start", "--no-block", UNIT)
        # Opening for writing waits for the reader: from then on the process runs, and is not ready.
        with pipe.open("w") as go:
            check(self.pid() > 0, "there is a process")
            equal(self.is_active(), "activating", "the unit before READY")
            go.write("go\n")
        until("it is active", lambda: self.is_active() == "active")
        check(self.get("http://127.0.0.1:8010/health"), "an active agent answers")
        self.systemctl("stop", UNIT)
        drop_in.unlink()
        pipe.unlink()

    def credentials_arrive(self):
        """the API key comes as a credential, the service's user cannot read its file, and the ControlPlane takes it"""
        file = self.machine.path("/etc/dataplane-agent/control_plane_api_key")
        file.parent.mkdir(mode=0o700)
        file.write_text(KEY)
        file.chmod(0o600)
        self.machine.path(DROP_IN).write_text(
            "[Service]\nLoadCredential=control_plane_api_key:/etc/dataplane-agent/control_plane_api_key\n"
            f"WatchdogSec={WATCHDOG_SECONDS}\n")
        self.systemctl("daemon-reload")
        self.systemctl("start", UNIT)
        self.push(20)
        self.all_delivered()

    def status_names_depth_and_link(self):
        """`systemctl status` shows how much waits and how the link is"""
        until("the status of a quiet agent", lambda: 'Status: "0 records wait; link up"' in self.status())
        depth = self.backlog(50)
        status = f'Status: "{depth} records wait; link down: unreachable"'
        until("the status in an outage", lambda: status in self.status())
        self.all_delivered()
        until("the status afterwards", lambda: 'Status: "0 records wait; link up"' in self.status())

    def owns_its_state_directory(self):
        """the process runs as a user of its own, to whom its state directory belongs, and who is not root"""
        uid = Path(f"/proc/{self.seen_from_outside(self.pid())}").stat().st_uid
        check(61184 <= uid <= 65519, f"a user that systemd made: {uid}")
        owner = self.machine.path(STATE).stat()
        equal((owner.st_uid, oct(owner.st_mode & 0o777)), (uid, "0o700"), "owner and mode of the state directory")
        equal(os.readlink(self.machine.path("/var/lib/dataplane-agent")), "private/dataplane-agent", "the link to it")
        check(self.machine.path(f"{STATE}/outbox/format.json").exists(), "the outbox is in it")

    def seen_from_outside(self, pid):
        """The number that a process of the machine has here."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                numbers = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:")).split()[1:]
                root = os.stat(f"/proc/{numbers[0]}/ns/pid")
            except (OSError, StopIteration):
                continue
            if numbers[-1] == str(pid) and root.st_ino == os.stat(f"/proc/{self.machine.init}/ns/pid").st_ino:
                return int(numbers[0])
        raise Failed(f"no process {pid}")

    def survives_a_kill(self):
        """SIGKILL: systemd starts it again, and nothing is lost"""
        depth, restarts = self.backlog(300), self.restarts()
        self.systemctl("kill", "--kill-who=main", "--signal=KILL", UNIT)
        self.restarted_by_systemd(restarts)
        equal(self.depth(), depth, "what waits after the kill")
        self.all_delivered()

    def outage_is_no_hang(self):
        """an outage of twice the watchdog's time restarts nothing"""
        restarts, pid = self.restarts(), self.pid()
        self.backlog(10)
        self.systemctl("stop", "redis-server")
        # Time is what this is about: a ping that does not come is noticed only when it is over.
        time.sleep(2 * WATCHDOG_SECONDS)
        equal((self.restarts(), self.pid()), (restarts, pid), "restarts, and the process")
        self.systemctl("start", "redis-server")
        self.all_delivered()

    def watchdog_restarts_a_frozen_one(self):
        """a process that is frozen (SIGSTOP) is ended by the watchdog and started again, and nothing is lost"""
        depth, restarts, since = self.backlog(100), self.restarts(), self.now()
        self.systemctl("kill", "--kill-who=main", "--signal=STOP", UNIT)
        self.restarted_by_systemd(restarts)
        check("Watchdog timeout" in self.journal(since), "the journal says that it was the watchdog")
        equal(self.depth(), depth, "what waits afterwards")
        self.all_delivered()

    def reload_applies(self):
        """`systemctl reload` takes in a new key: the same process, and the ControlPlane takes it again"""
        file = self.machine.path("/var/lib/key")
        file.write_text(KEY)
        self.machine.path(DROP_IN).write_text("[Service]\nEnvironment=CONTROL_PLANE_API_KEY_FILE=/var/lib/key\n"
                                              f"WatchdogSec={WATCHDOG_SECONDS}\n")
        self.systemctl("daemon-reload")
        self.systemctl("restart", UNIT)
        self.sandbox(NEXT_KEY)
        self.push(20)
        until("the old key is refused", lambda: "link down: credentials" in self.status())
        equal(len(NEXT_KEY), len(KEY), "the length, which the agent looks at by itself")
        stamp = file.stat()
        file.write_text(NEXT_KEY)
        # As old as before: the agent does not notice by itself, and only the reload makes it look.
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        pid, since = self.pid(), self.now()
        self.systemctl("reload", UNIT)
        until("the new key is taken", lambda: self.depth() == 0)
        # The sandbox is another one, whose account began with what was pushed to it.
        equal(self.processed(), 20, "records that the ControlPlane has")
        equal(self.pid(), pid, "the process")
        settings = self.machine.path(SETTINGS)
        kept = settings.read_text()
        check("dataplane_drain_rate_limit 0" in self.metrics(), "no limit yet")
        settings.write_text(kept + "\nDRAIN_RATE_LIMIT=77\nSERVER_REGION=elsewhere\n")
        self.systemctl("reload", UNIT)
        until("the new limit applies", lambda: "dataplane_drain_rate_limit 77" in self.metrics())
        check("SERVER_REGION" in self.journal(since), "the journal names what takes a restart")
        settings.write_text(kept)
        self.systemctl("reload", UNIT)
        until("the limit is gone", lambda: "dataplane_drain_rate_limit 0" in self.metrics())
        equal(self.pid(), pid, "the process")
        for word in ("Reloading ", "Reloaded "):
            check(word in self.journal(since), f"the journal has {word!r}")
        until("it is active", lambda: self.is_active() == "active")

    def stops_cleanly(self):
        """`systemctl stop` ends it with 0 and within its time; the ControlPlane has been told"""
        until("it is registered", lambda: self.get("http://127.0.0.1:8010/health")["server_registered"])
        begun = time.monotonic()
        self.systemctl("stop", UNIT)
        took = time.monotonic() - begun
        check(took < 30, f"it took {took:.0f} s")
        equal(self.machine.show(UNIT, "Result"), "success", "the result")
        equal(self.machine.show(UNIT, "ExecMainStatus"), "0", "the exit code")
        requests = self.get("http://127.0.0.1:9091/sandbox/accounts")["requests"]
        equal(requests.get("shutdown", {}).get("200"), 1, "shutdown notices")
        self.systemctl("start", UNIT)

    def upgrade_keeps_the_backlog(self):
        """a newer package over a running agent: restarted, configured as before, and the backlog is there"""
        depth, pid = self.backlog(200), self.pid()
        settings = self.machine.path(SETTINGS).read_bytes()
        self.install(self.newer_package())
        until("it is active", lambda: self.is_active() == "active")
        check(self.pid() != pid, "it is another process")
        equal(self.machine.show(UNIT, "Result"), "success", "how the one before ended")
        equal(self.machine.path(SETTINGS).read_bytes(), settings, "the settings")
        equal(self.depth(), depth, "what waits")

    def newer_package(self):
        """The same one with a later version."""
        unpacked, newer = FOLDER / "newer", FOLDER / "newer.deb"
        shutil.rmtree(unpacked, ignore_errors=True)
        subprocess.run(["dpkg-deb", "--raw-extract", self.package, unpacked], check=True)
        control = unpacked / "DEBIAN/control"
        lines = [f"{line}+newer" if line.startswith("Version:") else line for line in control.read_text().splitlines()]
        control.write_text("\n".join(lines) + "\n")
        subprocess.run(["dpkg-deb", "-Znone", "--build", unpacked, newer], check=True, stdout=subprocess.DEVNULL)
        return newer

    def runs_again_after_a_reboot(self):
        """after the machine is booted again it runs, and the backlog is delivered"""
        depth = self.depth()
        check(depth > 0, "there is a backlog")
        self.machine.shut_down()
        self.machine.boot()
        until("it is active", lambda: self.is_active() == "active")
        until("it has its backlog", lambda: self.depth() == depth)
        # A sandbox that starts anew knows no records: all that it gets is what waited.
        self.sandbox(NEXT_KEY)
        until("the backlog is delivered", lambda: self.depth() == 0)
        equal(self.processed(), depth, "records that the ControlPlane has")

    def purge_leaves_the_outbox_unless_asked(self):
        """a purge leaves the outbox and nothing else; with PURGE_OUTBOX=yes that neither"""
        self.machine.run("dpkg", "--purge", UNIT)
        equal(self.is_active(), "inactive", "the agent")
        outbox = {file for file in self.left() if file.startswith(f"{STATE}/outbox/")}
        check(outbox, "the outbox stays")
        equal(self.left() - outbox, {"/var/lib/dataplane-agent"}, "what else stays")
        self.install(self.package)
        self.machine.run("env", "PURGE_OUTBOX=yes", "dpkg", "--purge", UNIT)
        equal(self.left(), set(), "what stays then")
        equal(self.systemctl("is-system-running", check=False).stdout.strip(), "running", "the machine afterwards")

    def left(self):
        """Files that were not there before the package was, but for this test's own and those of the boot itself."""
        new = self.machine.files() - self.before
        return {file for file in new if "dataplane" in file and not file.startswith(str(Path(DROP_IN).parent))}


STORY = [
    Trial.installs_without_settings,
    Trial.is_active_only_when_ready,
    Trial.credentials_arrive,
    Trial.status_names_depth_and_link,
    Trial.owns_its_state_directory,
    Trial.survives_a_kill,
    Trial.outage_is_no_hang,
    Trial.watchdog_restarts_a_frozen_one,
    Trial.reload_applies,
    Trial.stops_cleanly,
    Trial.upgrade_keeps_the_backlog,
    Trial.runs_again_after_a_reboot,
    Trial.purge_leaves_the_outbox_unless_asked,
]


def main():
    if len(sys.argv) != 2 or os.geteuid() != 0:
        sys.exit(__doc__)
    trial = Trial(Path(sys.argv[1]).resolve())
    try:
        for chapter in STORY:
            begun = time.monotonic()
            chapter(trial)
            print(f"ok    {time.monotonic() - begun:5.1f} s  {chapter.__doc__}", flush=True)
    except Exception as error:  # whatever it is: with the machine's own words
        print(f"FAILED         {chapter.__doc__}\n{error if isinstance(error, Failed) else repr(error)}", flush=True)
        for name, words in (("status", trial.status), ("journal", trial.journal)):
            try:
                print(f"--- {name} ---\n{words()}", flush=True)
            except Exception as again:  # a machine that is gone says nothing
                print(f"--- no {name}: {again} ---")
        return 1
    finally:
        trial.machine.end()
    print(f"test-systemd: {len(STORY)} checks hold for {trial.package.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
