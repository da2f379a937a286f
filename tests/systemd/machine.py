"""A throw-away Debian under systemd-nspawn: made by debootstrap, booted, and spoken to from outside."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
# curl speaks to the agent and to the sandbox from inside: the machine has a network of its own.
PACKAGES = "systemd-sysv,dbus,redis-server,curl,ca-certificates"
# Far longer than anything takes: only a fault reaches it.
DEADLINE = 120


class Failed(Exception):
    """A check that did not hold."""


def until(what, condition, deadline=DEADLINE):
    """Polls until `condition` gives something; fails with `what` when it does not in time."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"never came true: {what}")
        time.sleep(0.1)


def fresh_root(folder):
    """A Debian's root as debootstrap makes it. The one in `folder`/base is made once and copied."""
    base, root = folder / "base", folder / "root"
    stamp = folder / "base.stamp"
    wanted = f"{SUITE} {PACKAGES}\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        for old in (stamp, base):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        print("making a minimal Debian (once)", flush=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(base), MIRROR],
            check=True, stdout=subprocess.DEVNULL)
        stamp.write_text(wanted)
    if root.exists():
        shutil.rmtree(root)
    subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
    return root


class Machine:
    """A root that is booted, and shut down."""

    def __init__(self, root):
        self.root = root
        self.nspawn = None
        self.init = None

    def path(self, path):
        """A file of the machine, seen from outside."""
        return self.root / path.lstrip("/")

    def boot(self):
        """Boots it, and waits until everything that is enabled has been started."""
        log = (self.root.parent / "nspawn.log").open("a")
        self.init = None
        self.nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--directory", str(self.root), "--boot", "--register=no", "--keep-unit",
             "--private-network", "--console=passive"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        self.init = until("systemd-nspawn has started an init", self._find_init)
        return until("the machine is up", self._is_up)

    def _find_init(self):
        """The child that is process 1 of a namespace of its own; the first one only prepares that, and goes."""
        if self.nspawn.poll() is not None:
            raise Failed(f"systemd-nspawn ended with {self.nspawn.returncode}; target/systemd/nspawn.log says why")
        for child in Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text().split():
            try:
                status = Path(f"/proc/{child}/status").read_text()
            except OSError:
                continue  # It has gone.
            if any(line.split()[:1] == ["NSpid:"] and line.split()[2:] == ["1"] for line in status.splitlines()):
                return int(child)
        return None

    def _is_up(self):
        if self.nspawn.poll() is not None:
            raise Failed(f"systemd-nspawn ended with {self.nspawn.returncode}; target/systemd/nspawn.log says why")
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state if state in ("running", "degraded") else None

    def run(self, *command, check=True, stdin=None):
        """A command in the machine."""
        inside = ["nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
                  "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"]
        done = subprocess.run([*inside, *command], capture_output=True, text=True, input=stdin, timeout=DEADLINE)
        if check and done.returncode != 0:
            raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def show(self, unit, name):
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def files(self):
        """All its files but those of the kernel, of what runs, and of logs and package lists."""
        left_out = [part for path in ("proc", "sys", "dev", "run", "tmp", "var/tmp", "var/log", "var/cache", "var/lib/dpkg",
                                      "var/lib/redis") for part in ("-path", f"./{path}", "-prune", "-o")]
        found = subprocess.run(["find", ".", *left_out, "!", "-type", "d", "-print"], cwd=self.root, check=True,
                               capture_output=True, text=True)
        return {line[1:] for line in found.stdout.splitlines()}

    def shut_down(self):
        """Powers it off, as a person would."""
        self.run("systemctl", "poweroff", check=False)
        self.nspawn.wait(timeout=DEADLINE)

    def end(self):
        """Ends it, whatever its state is."""
        if self.nspawn and self.nspawn.poll() is None:
            # Its init, with which everything in it ends; systemd-nspawn follows, and would not take it along.
            os.kill(self.init or self.nspawn.pid, signal.SIGKILL)
            self.nspawn.wait(timeout=DEADLINE)
