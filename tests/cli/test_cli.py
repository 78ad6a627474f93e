"""The command line: exit statuses, one clear line for every mistake, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync import __version__
from nftsync.cli.main import main
from nftsync.cli.output import FAILED, WRONG
from nftsync.daemon.control import Server
from nftsync.kernel.interfaces import LinkError
from nftsync.objects.address import Local
from nftsync.report.traffic import Reading
from tests.objects.test_ratelimit import near_misses
from tests.support import ROOT

EXAMPLES = str(ROOT / "examples")
COMMANDS = (
    "run",
    "boot",
    "render",
    "ratelimit",
    "pools",
    "status",
    "explain",
    "confirm",
    "top",
    "diff",
    "check",
    "flush",
)


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """A configuration that does not depend on the machine."""
    file = tmp_path / "plain.toml"
    file.write_text(
        f'kubeconfig = "{tmp_path}/absent"\npaths.local_chain = "{tmp_path}/absent.nft"\n'
        f'paths.state = "{tmp_path}/state"\n'
        f'paths.runtime = "{tmp_path}/run"\n'
    )
    return str(file)


def nftsync(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nftsync", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def status(*arguments: str) -> int:
    """The exit status, in this process."""
    try:
        return main(arguments)
    except SystemExit as ended:  # argparse's way to say that the words were wrong
        return int(ended.code or 0)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"    {command}" in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(command, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: nftsync {command}")
    said = "Exit status: 0 no difference" if command == "diff" else "Exit status: 0 success, 1 failure, 2 wrong usage."
    assert said in " ".join(shown.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--version") == 0
    assert capsys.readouterr().out == f"nftsync {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        (), ("rendr",), ("render", "--nonsense"), ("render", "--manifests"), ("ratelimit",),
        ("ratelimit", "--nonsense"),
        ("--log-level",), ("render", "--log-level", "loud"), ("run", "now"), ("flush", "--force"),
        ("check", "--config"), ("",),
    ],
)  # fmt: skip
def test_words_that_are_not_understood_end_with_status_2_and_the_usage(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*words) == WRONG
    assert "usage: nftsync" in capsys.readouterr().err


# --- render --------------------------------------------------------------------------------------------


def test_render_prints_the_ruleset_of_the_examples_and_nothing_else(
    plain: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("render", "--config", plain, "--manifests", EXAMPLES, "--strict") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.count("172.30.254.") == 24, "five pinholes, three limited ones in six sets, a pool"


def test_render_takes_several_paths(plain: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [f"{EXAMPLES}/{name}.yaml" for name in ("metallb", "nft", "services")]
    status("render", "--config", plain, "--manifests", EXAMPLES)
    shown = capsys.readouterr().out
    assert status("render", "--config", plain, "--manifests", *paths) == 0
    assert capsys.readouterr().out == shown
    assert status("render", "--config", plain, "--manifests", *paths[:2], "--manifests", paths[2]) == 0
    assert capsys.readouterr().out == shown, "the option may come twice"


def test_render_needs_no_kernel_no_cluster_and_no_root(plain: str) -> None:
    code = (
        "import sys\n"
        "for name in ('nftables', 'kubernetes', 'pyroute2', 'prometheus_client', 'urllib3'): sys.modules[name] = None\n"
        "from nftsync.cli.main import main\n"
        f"sys.exit(main(['render', '--config', {plain!r}, '--manifests', {EXAMPLES!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


WRONG_INPUT = {
    "no manifests": (["render"], "render needs --manifests PATH…"),
    "a path that is not there": (
        ["render", "--manifests", "{tmp}/absent"],
        "{tmp}/absent: there is no such file or folder",
    ),
    "a name that is too long": (["render", "--manifests", "x" * 300], "File name too long"),
    "a configuration that is not there": (
        ["render", "--config", "{tmp}/absent.toml", "--manifests", "{tmp}"], "{tmp}/absent.toml: there is no such file",
    ),
    "a configuration that is a folder": (
        ["render", "--config", "{tmp}", "--manifests", "{tmp}"],
        "{tmp}: Is a directory",
    ),
    "a configuration with an unknown key": (
        ["render", "--config", "{tmp}/bad.toml", "--manifests", "{tmp}"],
        "{tmp}/bad.toml: kubeconfg = 'x': there is no such key",
    ),
    "flush with a bad configuration": (["flush", "--config", "{tmp}/bad.toml"], "{tmp}/bad.toml: kubeconfg = 'x'"),
    "run with a bad configuration": (["run", "--config", "{tmp}/bad.toml"], "{tmp}/bad.toml: kubeconfg = 'x'"),
    "run with manifests that are not there": (
        ["run", "--once", "--config", "{tmp}/plain.toml", "--manifests", "{tmp}/absent"],
        "{tmp}/absent: there is no such file or folder",
    ),
    "a limit that is none": (["ratelimit", "fast"], "'fast' is not a rate limit"),
    "a limit that starts with a dash": (["ratelimit", "--", "-5/second"], "'-5/second' has a negative number"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG_INPUT)
def test_a_mistake_is_one_clear_line_and_status_2(
    mistake: str, plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain
    (tmp_path / "bad.toml").write_text("kubeconfg = 'x'")
    words, line = WRONG_INPUT[mistake]
    assert status(*(word.replace("{tmp}", str(tmp_path)) for word in words)) == WRONG
    shown = capsys.readouterr()
    assert shown.out == ""
    assert line.replace("{tmp}", str(tmp_path)) in shown.err
    assert shown.err.startswith("nftsync: ")
    assert shown.err.count("\n") == 1


def test_a_configuration_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "nftsync.toml"
    file.write_text("")
    file.chmod(0)
    tmp_path.chmod(0o755)
    code = "import os\nos.setuid(65534)\nfrom nftsync.cli.main import main\n"
    code += f"main(['render', '--config', {str(file)!r}, '--manifests', '.'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("nftsync: ")
    assert done.stderr.endswith(": Permission denied\n")


def test_run_without_a_kubeconfig_is_one_line_and_status_1(plain: str, tmp_path: Path) -> None:
    done = nftsync("run", "--once", "--config", plain)
    assert done.returncode == FAILED
    assert done.stderr.startswith("nftsync: ")
    assert f"{tmp_path}/absent" in done.stderr
    assert done.stderr.count("\n") == 1


def test_unreadable_yaml_is_a_rejection_and_the_rest_is_rendered(
    plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "bad.yaml").write_text("a: [\n")
    (folder / "good.yaml").write_text((ROOT / "examples/services.yaml").read_text())
    (folder / "nft.yaml").write_text((ROOT / "examples/nft.yaml").read_text())
    for options, expected in (((), 0), (("--strict",), FAILED)):
        assert status("render", "--config", plain, "--manifests", str(folder), *options) == expected
        shown = capsys.readouterr()
        assert "172.30.254.5 . tcp . 5201" in shown.out
        assert shown.err.startswith(f"File {folder}/bad.yaml: unreadable: line 2: ")
        assert shown.err.count("\n") == 1


def test_a_local_chain_that_can_not_be_read_is_a_rejection(
    plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "absent.nft").write_bytes(b"\xff")
    assert status("render", "--config", plain, "--manifests", EXAMPLES) == 0
    assert capsys.readouterr().err.startswith(f"File {tmp_path}/absent.nft: invalid_local_chain: ")


def test_a_reader_that_has_seen_enough_is_no_reason_for_a_traceback(plain: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = nftsync("render", "--config", plain, "--manifests", EXAMPLES, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (FAILED, "")


def test_a_full_disk_is_one_line(plain: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = nftsync("render", "--config", plain, "--manifests", EXAMPLES, stdout=full.fileno())
    assert done.returncode == FAILED
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_terminal_that_knows_only_ascii_is_no_reason_for_a_traceback(plain: str, tmp_path: Path) -> None:
    (tmp_path / "absent.nft").write_text('chain local-chain {\n\taccept comment "Überwachung"\n}\n', encoding="utf-8")
    command = [sys.executable, "-m", "nftsync", "render", "--config", plain, "--manifests", EXAMPLES]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0
    assert 'comment "Überwachung"'.encode() in done.stdout, "what nft is to load is UTF-8 everywhere"


# --- ratelimit -----------------------------------------------------------------------------------------


def test_ratelimit_prints_the_normalised_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("ratelimit", "2048 kbytes / second burst 512 kbytes") == 0
    assert capsys.readouterr() == ("2 mbytes/second burst 512 kbytes\n", "")


def test_ratelimit_names_a_better_limit_than_one_in_packets(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("ratelimit", "50/second") == 0
    said = capsys.readouterr()
    assert said.out == "50/second burst 5 packets\n"
    assert "GRO" in said.err
    assert "limit in bytes" in said.err
    assert status("ratelimit", "50 kbytes/second") == 0
    assert capsys.readouterr().err == ""


def test_ratelimit_takes_bytes_that_are_no_text_for_what_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nftsync", "ratelimit", b"\xff/second"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == WRONG
    assert done.stderr.startswith(rb"nftsync: '\udcff/second' is not a rate limit; write e.g.")


@given(st.text() | near_misses)
def test_whatever_is_asked_about_a_limit_is_answered_on_a_line(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        found = status("ratelimit", "--", text)
    assert found in (0, WRONG)
    assert len(lines) == 1 + ("note: " in lines[-1])
    assert all(line.isprintable() for line in lines)


# --- pools ---------------------------------------------------------------------------------------------

POOLS = """
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: services, namespace: metallb-system}
spec: {addresses: ["2001:db8:1::10 - 2001:db8:1::1f", 192.0.2.0/24, 198.51.100.9-198.51.100.12]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: flat, namespace: metallb-system}
spec: {addresses: [203.0.113.7/32]}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: services, namespace: metallb-system}
spec: {ipAddressPools: [services]}
"""
SERVICES = {
    "name": "services",
    "source": "IPAddressPool metallb-system/services",
    "ranges": ["192.0.2.0-192.0.2.255", "198.51.100.9-198.51.100.12", "2001:db8:1::10-2001:db8:1::1f"],
}
FLAT = {"name": "flat", "source": "IPAddressPool metallb-system/flat", "ranges": ["203.0.113.7-203.0.113.7"]}
BROKEN = POOLS.replace("203.0.113.7/32", "203.0.113.7")
BROKEN_MESSAGE = (
    "'203.0.113.7' is neither a CIDR nor a range of addresses: for one address write 203.0.113.7/32"
    "; no pools are known"
)
CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: config, namespace: metallb-system}
data:
  config: |
    address-pools: [{name: "\\e[31m", protocol: bgp, addresses: [192.0.2.0/24]}]
"""


class Asked:
    """`nftsync pools --manifests` with these manifests and this configuration."""

    def __init__(self, plain: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._plain = Path(plain)
        self._folder = folder
        self._capsys = capsys

    def __call__(self, text: str, *options: str, lines: str = "") -> tuple[str, str]:
        """What is printed, and what is said on stderr."""
        file, chosen = self._folder / "metallb.yaml", self._folder / "chosen.toml"
        file.write_text(text)
        chosen.write_text(f"{lines}\n{self._plain.read_text()}")
        assert status("pools", "--config", str(chosen), "--manifests", str(file), *options) == 0
        shown = self._capsys.readouterr()
        return shown.out, shown.err

    def json(self, text: str, lines: str = "") -> object:
        shown, told = self(text, "--json", lines=lines)
        assert told == ""
        return json.loads(shown)


@pytest.fixture
def pools(plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Asked:
    return Asked(plain, tmp_path, capsys)


def test_pools_prints_the_legal_addresses_and_which_object_says_so(pools: Asked) -> None:
    assert pools(POOLS) == (
        "POOL      SOURCE                                 ADDRESSES\n"
        "flat      IPAddressPool metallb-system/flat      203.0.113.7\n"
        "services  IPAddressPool metallb-system/services  192.0.2.0/24, 198.51.100.9-198.51.100.12, "
        "2001:db8:1::10/124\n",
        "",
    )


def test_pools_prints_for_programs_exactly_pools_and_rejections(pools: Asked) -> None:
    assert pools.json(POOLS) == {"pools": [FLAT, SERVICES], "rejections": []}


def test_pools_cuts_what_is_not_allowed_and_leaves_out_what_is_not_advertised(pools: Asked) -> None:
    allowed = 'allowed_prefixes = ["192.0.2.0/31", "198.51.100.8/30", "2001:db8::/32"]'
    assert pools.json(POOLS, allowed) == {
        "pools": [
            FLAT | {"ranges": []},
            SERVICES
            | {"ranges": ["192.0.2.0-192.0.2.1", "198.51.100.9-198.51.100.11", "2001:db8:1::10-2001:db8:1::1f"]},
        ],
        "rejections": [],
    }  # fmt: skip
    assert pools(POOLS, lines=allowed)[0].splitlines()[1].endswith("  none (allowed_prefixes)")
    assert pools.json(POOLS, "advertised_pools_only = true") == {"pools": [SERVICES], "rejections": []}


def test_pools_says_that_every_address_is_legal_where_no_pool_counts(pools: Asked) -> None:
    assert pools("") == ('every address is legal: nftsync uses no pool (pools = "auto")\n', "")
    assert pools(POOLS, lines='pools = "ignored"') == (
        'every address is legal: nftsync uses no pool (pools = "ignored")\n',
        "",
    )
    assert pools.json("") == {"pools": [], "rejections": []}


def test_pools_says_that_no_address_is_legal_where_pools_are_required_and_there_is_none(pools: Asked) -> None:
    assert pools("", lines='pools = "required"') == ("no address is legal: there is no pool\n", "")
    assert pools.json("", 'pools = "required"') == {"pools": [], "rejections": []}
    assert pools.json(POOLS, 'pools = "required"') == {"pools": [FLAT, SERVICES], "rejections": []}


def test_pools_says_what_is_invalid(pools: Asked) -> None:
    assert pools(BROKEN) == (
        'every address is legal: nftsync uses no pool (pools = "auto")\n',
        f"IPAddressPool metallb-system/flat: invalid_pools: {BROKEN_MESSAGE}\n",
    )
    assert pools.json(BROKEN) == {
        "pools": [],
        "rejections": [
            {"object": "IPAddressPool metallb-system/flat", "reason": "invalid_pools", "message": BROKEN_MESSAGE}
        ],
    }
    assert pools(BROKEN, lines='pools = "ignored"')[1] == "", "what is not read is not wrong"


def test_pools_says_which_file_can_not_be_read(pools: Asked, tmp_path: Path) -> None:
    said = pools("a: [\n")[1]
    assert said.startswith(f"File {tmp_path}/metallb.yaml: unreadable: line 2: ")
    assert said.count("\n") == 1


def test_pools_prints_no_control_characters_that_a_config_map_holds(pools: Asked) -> None:
    shown, said = pools(CONFIG_MAP)
    assert shown.splitlines()[1:] == ["\\x1b[31m  ConfigMap metallb-system/config  192.0.2.0/24"]
    assert said == ""


def test_pools_says_nothing_of_services(pools: Asked) -> None:
    service = (
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: LoadBalancer, ports: [{port: 80}]}\n"
        "status: {loadBalancer: {ingress: [{ip: 10.0.0.1}]}}\n"
    )
    assert pools.json(POOLS + service) == {"pools": [FLAT, SERVICES], "rejections": []}


def test_pools_of_a_path_that_is_not_there_is_one_line_and_status_2(
    plain: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("pools", "--config", plain, "--manifests", "/absent") == WRONG
    assert capsys.readouterr() == ("", "nftsync: /absent: there is no such file or folder\n")


def test_pools_of_a_cluster_that_can_not_be_asked_is_one_line_and_status_1(
    plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("pools", "--config", plain) == FAILED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("nftsync: ")
    assert f"{tmp_path}/absent" in shown.err
    assert shown.err.count("\n") == 1


def test_pools_needs_no_kernel_no_cluster_and_no_root_for_manifests(plain: str) -> None:
    code = (
        "import sys\n"
        "for name in ('nftables', 'pyroute2', 'prometheus_client'): sys.modules[name] = None\n"
        "from nftsync.cli.main import main\n"
        f"sys.exit(main(['pools', '--config', {plain!r}, '--manifests', {EXAMPLES!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["services  IPAddressPool metallb-system/services  172.30.254.0/24"]


# --- explain and diff ---------------------------------------------------------------------------------

TARGET = "172.30.254.1:80"


@pytest.mark.parametrize(
    "words",
    [
        ("--manifests", "examples", TARGET),
        ("--manifests", "examples", "examples", TARGET),
        ("--manifests", "examples", "198.51.100.9", TARGET),
        ("198.51.100.9", TARGET, "--manifests", "examples"),
        (TARGET, "--manifests", "examples", "examples"),
        ("--manifests", "examples", "--", TARGET),
        ("--manifests", "examples/services.yaml", "--manifests", "examples/metallb.yaml", "examples/nft.yaml", TARGET),
    ],
)
def test_what_is_to_be_explained_may_stand_before_the_paths_or_after_them(
    words: tuple[str, ...], plain: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("explain", "--config", plain, *words) == 0
    assert capsys.readouterr().out.startswith(
        "passes: Service default/hello-kubernetes-1 opens 172.30.254.1 tcp 80 to everybody\n"
    )


def test_a_service_may_be_explained_after_the_paths(plain: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("explain", "--config", plain, "--manifests", "examples", "default/hello-kubernetes-1") == 0
    assert "pairs of address and port are open" in capsys.readouterr().out


def test_explain_knows_the_addresses_of_the_machine_that_it_runs_on(
    plain: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ip_address(TARGET.partition(":")[0])
    monkeypatch.setattr("nftsync.kernel.interfaces.local_now", lambda: Local(frozenset({own})))
    assert status("explain", TARGET, "--manifests", "examples", "--config", plain) == 0
    assert f"{own} is the router's own address" in capsys.readouterr().out


def test_explain_does_without_the_addresses_that_the_kernel_does_not_tell(
    plain: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> Local:
        raise LinkError("the kernel refused to list addresses: no")

    monkeypatch.setattr("nftsync.kernel.interfaces.local_now", refuse)
    assert status("explain", TARGET, "--manifests", "examples", "--config", plain) == 0
    assert capsys.readouterr().out.startswith("passes: ")


def test_diff_that_can_not_be_told_is_trouble_and_no_difference(
    plain: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("diff", "--config", plain) == WRONG
    assert "the daemon does not run" in capsys.readouterr().err

    def full(_: str) -> str:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("nftsync.cli.diff.differences", full)
    assert status("diff", "--manifests", "examples", "--config", plain) == WRONG
    assert capsys.readouterr().err.splitlines()[-1] == "nftsync: [Errno 24] Too many open files"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_diff_needs_root_and_says_so(plain: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code = "import os\nfrom nftsync.cli.main import main\nos.setuid(65534)\n"
    code += f"raise SystemExit(main({['diff', '--manifests', EXAMPLES]}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (WRONG, "")
    assert done.stderr.splitlines()[-1] == "nftsync: only root can read the kernel's ruleset: run this as root"


@pytest.mark.parametrize("reader", ["a full disk", "nobody"])
def test_a_difference_that_can_not_be_printed_is_trouble_and_not_the_answer_1(plain: str, reader: str) -> None:
    code = (
        "import sys\nimport nftsync.cli.diff\nfrom nftsync.cli.main import main\n"
        "nftsync.cli.diff.differences = lambda _: '-a\\n'\n"
        f"sys.exit(main(['diff', '--config', {plain!r}, '--manifests', {EXAMPLES!r}]))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("w") as full, os.fdopen(writing, "w") as pipe:
        out = full if reader == "a full disk" else pipe
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == WRONG
    assert "Traceback" not in done.stderr


# --- top ----------------------------------------------------------------------------------------------


def test_top_ends_with_a_sentence_when_the_daemon_goes_away(
    plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, readings = Server(tmp_path / "run", lambda _: {"owners": {}}), []

    def read() -> Reading:
        readings.append(Reading({}, {}, {}))
        if len(readings) == 2:
            server.close()
        return readings[-1]

    monkeypatch.setattr("nftsync.kernel.counters.read", read)
    try:
        assert status("top", "--seconds", "0.1", "--config", plain) == FAILED
    finally:
        server.close()
    shown = capsys.readouterr()
    assert shown.out.startswith("KBYTES/S"), "what was measured before is shown"
    assert (
        shown.err
        == f"nftsync: {tmp_path}/run/control.sock: the daemon does not run: start it with `systemctl start nftsync`\n"
    )


def test_top_that_is_interrupted_ends_with_130_and_without_a_word(
    plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> Reading:
        raise KeyboardInterrupt

    monkeypatch.setattr("nftsync.kernel.counters.read", interrupt)
    server = Server(tmp_path / "run", lambda _: {"owners": {}})
    try:
        assert status("top", "--config", plain) == 130
    finally:
        server.close()
    assert capsys.readouterr() == ("", "")


def test_bootstrap_prints_its_objects_without_a_home(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert main(["bootstrap", "--print"]) == 0
    assert "kind: ClusterRole" in capsys.readouterr().out
