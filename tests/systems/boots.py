"""The state of the kernel before an interface is up, boot after boot.

The router has saved rules and no API server.

First many boots in a row on a busy machine, half of them after a power cut; then boots in which
something is broken on purpose.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.apiserver.harness import eventually
from tests.lab.probe import NODE
from tests.systems.machine import Machine
from tests.systems.proof import KUBECONFIG, OPEN, PACKAGE, PORT, RULE

BUSY = 6  # processes that never wait
MARK = "/run/nftsync-boot-failed"
_BOOT, _FALLBACK = "nftsync-boot.service", "nftsync-boot-fallback.service"
_UNITS = "/etc/systemd/system"
_DROP_IN = f"{_UNITS}/{_BOOT}.d/fault.conf"
_STATE, _DISK = "/var/lib/nftsync", "/srv/disk"
_NICS = ("lo", "public0", "cluster0")

_MANIFESTS = [
    {
        "apiVersion": "nft.acnodal.com/v1alpha1",
        "kind": "Nft",
        "metadata": {"name": "nft", "namespace": "arbf-operators"},
        "spec": {"public_nic": "public0"},
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "uid": "1"},
        "spec": {"type": "LoadBalancer", "ports": [{"protocol": "UDP", "port": PORT}]},
        "status": {"loadBalancer": {"ingress": [{"ip": OPEN}]}},
    },
]

_EARLY = (
    "[Unit]\nDefaultDependencies=no\n{order}\n[Service]\nType=oneshot\n{service}\n[Install]\nWantedBy=sysinit.target\n"
)
# No service gets a mount namespace. systemd 252 prepares a private /dev in /tmp, which
# systemd-tmpfiles of Debian 12 empties at boot; here /tmp is away, so that it always fails.
# systemd 257 uses a folder of its own.
_NO_NAMESPACES = {
    "no-namespaces": _EARLY.format(
        order="After=local-fs.target systemd-tmpfiles-setup.service\nBefore=witness.service nftsync-boot.service",
        service="ExecStart=-/bin/umount --lazy /tmp\nExecStart=/bin/mv /tmp /tmp.away\n"
        "ExecStart=-/bin/rmdir /run/systemd/mount-rootfs\nExecStart=/bin/touch /run/systemd/mount-rootfs",
    ),
    "witness": _EARLY.format(order="Before=namespaces.service", service="ExecStart=/bin/true\nPrivateDevices=yes"),
    "namespaces": _EARLY.format(
        order=f"After={_BOOT} {_FALLBACK}\nBefore=sysinit.target",
        service="ExecStart=/bin/mv /tmp.away /tmp\nExecStart=/bin/rm /run/systemd/mount-rootfs",
    ),
}
_MOUNT = "[Unit]\nDefaultDependencies=no\nBefore=local-fs.target\n[Mount]\nWhat={what}\nWhere={where}\n{how}\n"

# How the first try fails, and what systemd says of it.
_FAULTS = {
    "is killed": ("ExecStart=\nExecStart=/bin/sh -c 'kill -KILL $$$$'", "result=signal status=KILL"),
    "hangs": ("ExecStart=\nExecStart=/bin/sleep infinity\nTimeoutStartSec=1", "result=timeout status=TERM"),
    "has no user": ("User=absent", "result=exit-code status=217"),
    "has no mount namespace": ("PrivateDevices=yes", "result=exit-code status=226"),
}


class Boots:
    """A router that is switched off, on whose disk the package lies."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def the_router_gets_rules_and_loses_its_api_server(self) -> None:
        self.machine.write("/root/manifests/all.yaml", "\n---\n".join(map(json.dumps, _MANIFESTS)))
        self.start()
        self.machine.run("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", PACKAGE)
        self.machine.run("nftsync", "run", "--once", "--manifests", "/root/manifests")
        self.machine.write(KUBECONFIG, json.dumps({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": {"server": f"https://{NODE[0]}:6443"}}],
            "users": [{"name": "nftsync", "user": {"token": "none"}}],
            "contexts": [{"name": "nftsync", "context": {"cluster": "cluster", "user": "nftsync"}}],
            "current-context": "nftsync",
        }))  # fmt: skip
        self.machine.run("chown", "root:nftsync", KUBECONFIG)
        self.machine.run("chmod", "0640", KUBECONFIG)
        self.machine.run("systemctl", "start", "nftsync")

    def boots_in_a_row_on_a_busy_machine(self, number: int) -> None:
        failed: dict[int, str] = {}
        with busy(BUSY):
            for boot in range(number):
                self.again(power_cut=boot % 2 == 1)
                if open_at := self.interfaces_without(RULE):
                    failed[boot] = f"no rules before {open_at} were up: {self.machine.journal(_BOOT)}"
                elif (result := self.machine.show(_BOOT, "Result")) != "success" or self.mark():
                    failed[boot] = f"{result} {self.mark()} {self.machine.journal(_BOOT)}"
        assert not failed, f"{len(failed)} of {number} boots failed: {failed}"

    def faults(self) -> tuple[Callable[[], None], ...]:
        return (
            self.the_boot_unit_needs_no_mount_namespace,
            self.after_a_failure_the_second_try_loads_the_rules,
            self.rules_are_read_from_a_disk_that_cannot_be_written,
            self.without_the_disk_of_the_rules_the_base_is_loaded,
            self.without_python_the_base_is_loaded,
            self.if_nothing_can_be_loaded_this_is_told,
        )

    def the_boot_unit_needs_no_mount_namespace(self) -> None:
        with self.broken(_NO_NAMESPACES):
            assert self.machine.show("witness.service", "ExecMainStatus") == "226", "the fault was not there"
            assert self.interfaces_without(RULE) == []
            assert (self.machine.show(_BOOT, "Result"), self.mark()) == ("success", "")

    def after_a_failure_the_second_try_loads_the_rules(self) -> None:
        for fault, (settings, reason) in _FAULTS.items():
            with self.broken(_NO_NAMESPACES if "namespace" in fault else {}, settings):
                assert self.interfaces_without(RULE) == [], fault
                assert self.mark() == f"{reason} loaded=rules\n", fault
                assert self.machine.show(_BOOT, "ActiveState") == "failed"
                assert self.machine.show(_FALLBACK, "Result") == "success"
                self.says("the second try loaded the rules")

    def rules_are_read_from_a_disk_that_cannot_be_written(self) -> None:
        with self.disk(_DISK, "Options=bind,ro"):
            assert "ro" in self.machine.run("findmnt", "--noheadings", "--output=OPTIONS", _STATE).strip().split(",")
            assert self.interfaces_without(RULE) == []
            assert (self.machine.show(_BOOT, "Result"), self.mark()) == ("success", "")

    def without_the_disk_of_the_rules_the_base_is_loaded(self) -> None:
        with self.disk("/nowhere", "Type=ext4"):
            self.base_stands()
            assert self.mark().startswith("result=dependency ")

    def without_python_the_base_is_loaded(self) -> None:
        with self.broken({}, "", without=("/usr/bin/python3",)):
            self.base_stands()
            assert self.mark() == "result=exit-code status=203 loaded=base\n"
            self.says("the base is loaded, no Service is open")
            self.only_a_router_with_saved_rules_is_closed_later()

    def if_nothing_can_be_loaded_this_is_told(self) -> None:
        with self.broken({}, "", without=("/usr/bin/python3", "/usr/lib/nftsync/base.nft")):
            assert self.interfaces_without("nftsync") == list(_NICS)
            assert self.mark() == "result=exit-code status=203 loaded=nothing\n"
            assert self.machine.show(_FALLBACK, "ActiveState") == "failed"
            self.says("THIS ROUTER DOES NOT FILTER")

    def only_a_router_with_saved_rules_is_closed_later(self) -> None:
        """After the boot, on a router that forwards, and whose rules somebody has flushed."""
        self.machine.run("systemctl", "stop", "nftsync")
        self.machine.run("nft", "flush", "ruleset")
        self.machine.run("mv", _STATE, _DISK)
        self.machine.run("systemctl", "start", _FALLBACK)
        assert self.machine.run("nft", "list", "ruleset") == ""
        self.machine.run("mv", _DISK, _STATE)
        self.machine.run("systemctl", "start", _FALLBACK)
        assert "hook forward" in self.machine.run("nft", "list", "ruleset")

    # --- how ------------------------------------------------------------------------------------------------

    def again(self, *, power_cut: bool = False) -> None:
        self.stop(power_cut=power_cut)
        self.start()

    def stop(self, *, power_cut: bool = False) -> None:
        if power_cut:
            self.machine.pull_the_plug()
        else:
            self.machine.power_off()

    def start(self) -> None:
        self.machine.plug()
        self.machine.boot()

    @contextmanager
    def broken(self, units: dict[str, str], drop_in: str = "", without: tuple[str, ...] = ()) -> Iterator[None]:
        """Boot with units of the test's, with other settings of the boot unit, and without some files.

        Then boot as it was.
        """
        self.stop()
        wants = self.machine.root / f"{_UNITS}/sysinit.target.wants".lstrip("/")
        mended = ExitStack()  # not if the test fails: then its journal is read
        for name, text in units.items():
            unit = name if "." in name else f"{name}.service"
            self.machine.write(f"{_UNITS}/{unit}", text)
            mended.callback(self.machine.remove, f"{_UNITS}/{unit}")
            if unit.endswith(".service"):
                (wants / unit).symlink_to(f"../{unit}")
                mended.callback((wants / unit).unlink)
        if drop_in:
            self.machine.write(_DROP_IN, f"[Service]\n{drop_in}\n")
            mended.callback(self.machine.remove, _DROP_IN)
        for path in without:
            there, away = (self.machine.root / f"{path}{end}".lstrip("/") for end in ("", ".away"))
            there.rename(away)
            mended.callback(away.rename, there)
        self.start()
        yield
        self.stop()
        mended.close()
        self.start()

    @contextmanager
    def disk(self, what: str, how: str) -> Iterator[None]:
        """The saved rules on a disk of their own, which is to be mounted from somewhere."""
        self.machine.run("systemctl", "stop", "nftsync")
        self.machine.run("mv", _STATE, _DISK)
        self.machine.run("mkdir", _STATE)
        with self.broken({"var-lib-nftsync.mount": _MOUNT.format(what=what, where=_STATE, how=how)}):
            yield
        self.machine.run("systemctl", "stop", "nftsync")
        self.machine.run("rm", "-r", _STATE)
        self.machine.run("mv", _DISK, _STATE)

    def interfaces_without(self, text: str) -> list[str]:
        """Interfaces that came up when the kernel's ruleset had no such text."""
        return [nic for nic in _NICS if text not in self.machine.run("cat", f"/run/before-{nic}")]

    def base_stands(self) -> None:
        assert self.interfaces_without("hook forward") == []
        assert self.interfaces_without(RULE) == list(_NICS)

    def says(self, text: str) -> None:
        eventually(lambda: text in self.machine.journal(_FALLBACK), f"the journal does not say: {text}")

    def mark(self) -> str:
        return self.machine.try_run("cat", MARK).stdout


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Processes that take all the time they get; they end with us, however we end."""
    command = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", "while :; do :; done"]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
