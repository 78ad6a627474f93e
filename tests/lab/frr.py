"""FRR's zebra and bgpd in a network namespace, with files of their own.

Needs Debian's packages frr and frr-pythontools.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.lab.namespace import Namespace

# FRR's paths are fixed: /etc/frr and /run/frr. Each instance sees its own folders there.
_OWN_FILES = """set -e
mkdir -p /run/frr
mount --bind "$0/run" /run/frr
mount --bind "$0/etc" /etc/frr
"""
_DAEMONS = f"""{_OWN_FILES}
for each in zebra bgpd; do /usr/lib/frr/$each -d -F traditional -A 127.0.0.1 --log "file:/run/frr/$each.log"; done
vtysh -b
exec sleep infinity
"""


class Frr:
    """One router's FRR. configuration: what vtysh reads at the start. It ends at the latest with its namespace."""

    def __init__(self, namespace: Namespace, folder: Path, configuration: str) -> None:
        self._namespace, self._folder = namespace, folder
        for name in ("run", "etc"):
            (folder / name).mkdir(parents=True)
        (folder / "etc" / "frr.conf").write_text(configuration, encoding="utf-8")
        (folder / "etc" / "vtysh.conf").touch()
        for path in (folder / "run", folder / "etc", *(folder / "etc").iterdir()):
            shutil.chown(path, "frr", "frr")
        with (folder / "log").open("wb") as log:
            # A PID namespace: when its first process is killed, so are the daemons that have left for the background.
            apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _DAEMONS, str(folder)]
            self._process = namespace.popen(apart, stdout=log, stderr=log)

    def close(self) -> None:
        """End it. Nothing less than SIGKILL ends the first process of a PID namespace."""
        self._process.kill()
        self._process.wait()

    def vtysh(self, *commands: str) -> str:
        """The output of commands; "" as long as FRR does not answer."""
        words = [word for command in commands for word in ("-c", command)]
        return self._namespace.run(self._with_own_files("vtysh", *words), check=False).stdout

    def routes(self, prefix: str) -> set[str]:
        """The addresses of the peers that announce a prefix to us over BGP."""
        family = "ipv6" if ":" in prefix else "ipv4"
        try:
            table = json.loads(self.vtysh(f"show bgp {family} unicast {prefix} json"))
        except ValueError:
            return set()
        return {path["peer"]["peerId"] for path in table.get("paths", ())}

    def reload(self, configuration: Path) -> None:
        """Change to another configuration, as MetalLB's reloader does."""
        program = ["/usr/lib/frr/frr-reload.py", "--reload", "--overwrite", "--stdout", "/etc/frr/new.conf"]
        shutil.copy(configuration, self._folder / "etc" / "new.conf")
        with (self._folder / "reload.log").open("a") as log:
            done = self._namespace.run(self._with_own_files(*program), check=False)
            log.write(done.stdout + done.stderr)

    def _with_own_files(self, *argv: str) -> list[str]:
        return ["unshare", "--mount", "sh", "-c", f'{_OWN_FILES}exec "$@"', str(self._folder), *argv]


class Reloader:
    """MetalLB's reloader: at a SIGHUP, FRR gets the configuration that the speaker has written.

    pid_file: has the number of the process to signal.
    """

    def __init__(self, frr: Frr, folder: Path) -> None:
        self.configuration, self.pid_file = folder / "frr.conf", folder / "reloader.pid"
        # The speaker signals a process, and this one shall not be signalled: a child tells of each signal by a line.
        tell = "trap 'echo' HUP; echo; while :; do sleep infinity & wait $!; kill $!; done"
        self._child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", tell], stdout=subprocess.PIPE, start_new_session=True
        )
        self._frr = frr
        assert self._child.stdout
        self._child.stdout.readline()  # from now on it survives a signal
        self.pid_file.write_text(str(self._child.pid), encoding="ascii")
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._thread.join()

    def _follow(self) -> None:
        assert self._child.stdout
        output = self._child.stdout.fileno()
        while os.read(output, 4096):
            while select.select([output], [], [], 0)[0]:  # several signals are one piece of news
                if not os.read(output, 4096):
                    return
            self._frr.reload(self.configuration)


def configuration(own_as: int, router_id: str, peers: Sequence[str], peer_as: int) -> str:
    """A router that takes every route of its peers, of both families. peers: their addresses."""
    neighbors = [f" neighbor {peer} remote-as {peer_as}" for peer in peers]
    active = [f"  neighbor {peer} activate" for peer in peers if ":" in peer]
    return "\n".join(
        [
            "frr defaults traditional",
            f"router bgp {own_as}",
            f" bgp router-id {router_id}",
            " no bgp ebgp-requires-policy",
            *neighbors,
            " address-family ipv6 unicast",
            *active,
            " exit-address-family",
            "",
        ]
    )
