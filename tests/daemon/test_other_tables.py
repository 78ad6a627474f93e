"""Packets that nftsync accepts and another table drops: status, check and explain name that table."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.lab import PUBLIC, Lab
from tests.labtools import SERVICE4, SERVICE6, Daemon, Raw, eventually, needs_root, nft, service

pytestmark = needs_root

OLD_OPERATOR = """table inet filter {
    chain global {
        iifname "lo" accept
        iifname != "public0" ct state new accept
        ct state established,related accept
        ct state invalid drop
    }
    chain operator-cr { iifname "public0" tcp dport 22 accept
    }
    chain operator-svc { iifname "public0" ip daddr 172.30.254.99 tcp dport 80 accept
    }
    chain input {
        type filter hook input priority 0; policy drop;
        jump operator-cr
        jump global
    }
    chain forward {
        type filter hook forward priority 0; policy drop;
        jump operator-svc
        jump global
    }
}
"""
DOCKER = """table ip filter {
    chain DOCKER-USER { counter return
    }
    chain DOCKER {
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        oifname "docker0" ct state established,related counter accept
        oifname "docker0" counter jump DOCKER
    }
}
"""
FIREWALLD = """table inet firewalld {
    chain filter_IN_public {
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state established,related accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_IN_public
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state established,related accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
}
"""
UFW = "".join(
    f"""table {family} filter {{
    chain ufw-before-forward {{ ct state established,related counter accept
    }}
    chain FORWARD {{
        type filter hook forward priority filter; policy drop;
        jump ufw-before-forward
    }}
    chain INPUT {{
        type filter hook input priority filter; policy drop;
        tcp dport 22 counter accept
    }}
}}
"""
    for family in ("ip", "ip6")
)
CUSTOM = "table inet mine {\nchain forward {\ntype filter hook forward priority 5; policy drop;\n}\n}\n"
INGRESS = (
    "table netdev mine {\nchain in {\ntype filter hook ingress device public0 priority -5;\ntcp dport 80 drop\n}\n}\n"
)
V4, V6 = f"{SERVICE4}:80", f"[{SERVICE6}]:80"
ROUTER = f"{PUBLIC[0]}:22"
# The tables, and for each packet that they drop, the chain that explain names and its verdict.
TABLES = {
    "the old operator's": (OLD_OPERATOR, {V4: ("depends", "inet filter, chain forward (hook forward, priority filter)"),
                                          V6: ("depends", "inet filter, chain forward")}),
    "Docker's": (DOCKER, {V4: ("depends", "table ip filter, chain FORWARD (hook forward, priority filter)")}),
    "firewalld's": (FIREWALLD, {
        V4: ("passes", "table inet firewalld, chain filter_FORWARD (hook forward, priority filter + 10) has 2 rules"),
        V6: ("passes", "table inet firewalld, chain filter_FORWARD"),
        ROUTER: ("passes", "table inet firewalld, chain filter_INPUT (hook input, priority filter + 10) has 2 rules"),
    }),
    "ufw's": (UFW, {V4: ("depends", "table ip filter, chain FORWARD"), V6: ("depends", "table ip6 filter, chain F")}),
    "an administrator's own": (CUSTOM, {V4: ("depends", "inet mine, chain forward (hook forward, priority filter + 5)"),
                                        V6: ("depends", "inet mine, chain forward")}),
    "at the public NIC": (INGRESS, {V4: ("passes", "table netdev mine, chain in (hook ingress at public0"),
                                    V6: ("passes", "table netdev mine, chain in")}),
}  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Lab() as lab, Daemon(lab, tmp_path_factory.mktemp("router"), interval=600) as made:
        made.put(nft(), service("web", SERVICE4, SERVICE6), service("four", SERVICE4, ports=[("UDP", 53)]))
        yield made.start()


@pytest.fixture
def others(daemon: Daemon) -> Iterator[Daemon]:
    yield daemon
    for table in daemon.lab.router.nft("list tables").splitlines():
        if "nftsync" not in table:
            daemon.lab.router.nft(f"delete {table}")


def explain(daemon: Daemon, *words: str) -> Raw:
    done = daemon.command("explain", "--json", *words)
    assert done.returncode == 0, done.stderr
    answer: Raw = json.loads(done.stdout)
    return answer


def arrives(daemon: Daemon, packet: str) -> bool:
    address, _, port = packet.rpartition(":")
    return daemon.lab.arrives("tcp", address.strip("[]"), int(port))


@pytest.mark.parametrize("whose", TABLES)
def test_explain_names_the_table_that_drops_a_packet_which_nftsync_accepts(others: Daemon, whose: str) -> None:
    text, dropped = TABLES[whose]
    assert all(arrives(others, packet) for packet in (V4, V6, ROUTER))
    others.lab.router.nft(text)
    for packet in (V4, V6, ROUTER):
        answer = explain(others, packet)
        assert arrives(others, packet) is (packet not in dropped)
        if packet in dropped:
            verdict, chain = dropped[packet]
            assert answer["verdict"] == verdict
            assert "other_tables" in answer["also"]
            line = next(line for line in answer["lines"] if chain in line)
            assert line.startswith("nftsync lets it pass, but table ")
            assert "see `nft list table " in line
            assert (answer["lines"][0] == line) is (verdict == "depends")
    assert "other_tables" in explain(others, "default/web")["also"]
    status = others.command("status").stdout
    assert f"other tables: table {next(iter(dropped.values()))[1].removeprefix('table ')}" in status or whose == "ufw's"


@pytest.mark.parametrize("whose", TABLES)
def test_check_warns_of_each_chain_and_says_how_the_loss_is_seen(others: Daemon, whose: str) -> None:
    text, dropped = TABLES[whose]
    others.lab.router.nft(text)
    before = others.lab.router.nft("list ruleset")
    lines = others.command("check").stdout.splitlines()
    warned = [line for line in lines if line.startswith("warn  other tables: ")]
    for _, chain in dropped.values():
        assert any(chain in line and "perhaps also some that nftsync accepts" in line for line in warned)
    assert "nft monitor trace" in warned[-1]
    assert others.lab.router.nft("list ruleset") == before


def test_tables_that_drop_nothing_leave_every_answer_as_it_was(others: Daemon) -> None:
    before = explain(others, V4)
    others.lab.router.nft("table inet fine {\nchain f {\ntype filter hook forward priority 0;\naccept\n}\n}\n")
    assert explain(others, V4) == before
    assert "other_tables" not in before["also"]
    assert "other tables:" not in others.command("status").stdout
    assert "ok    other tables: no other chain drops packets" in others.command("check").stdout


def test_a_packet_that_nftsync_drops_is_explained_by_nftsync_alone(others: Daemon) -> None:
    others.lab.router.nft(OLD_OPERATOR)
    answer = explain(others, f"{SERVICE4}:81")
    assert answer["verdict"] == "dropped"
    assert "other_tables" not in answer["also"]


def test_a_table_of_one_family_is_no_news_for_a_service_of_the_other(others: Daemon) -> None:
    others.lab.router.nft(UFW.partition("table ip6")[2].join(["table ip6", ""]))
    assert "other_tables" not in explain(others, "default/four")["also"]
    assert "other_tables" in explain(others, "default/web")["also"]


def test_a_long_table_of_others_does_not_hold_up_the_daemon(others: Daemon) -> None:
    rules = "".join(f"ip saddr 10.{n >> 8 & 255}.{n & 255}.1 tcp dport 22 accept\n" for n in range(100_000))
    others.lab.router.nft(f"table inet long {{\nchain f {{\ntype filter hook forward priority 0;\n{rules}}}\n}}\n")
    answer = explain(others, V4)
    assert any("table inet long is too long" in line for line in answer["lines"])
    others.put(service("late", "172.30.254.9"))
    assert eventually(lambda: others.lab.arrives("tcp", "172.30.254.9", 80))
