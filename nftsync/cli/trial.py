"""Tries the local chain's file before the daemon loads it.

The first trial is the daemon's own text in this network namespace, under another table name, without
the end that makes it take effect. So the kernel judges each rule with the real interfaces. It does
not judge the result as a whole: jumps in a circle, or statements that the hooks do not have. The
second trial does: it loads the rules into a new namespace. There are no interfaces, so these rules
name them (`iifname`), and complaints that come from nft alone do not count.
"""

from contextlib import closing

from nftsync.kernel.netns import Namespace
from nftsync.kernel.nft import Kernel
from nftsync.objects.nft import Nics
from nftsync.plan.snapshot import LocalChain
from nftsync.policy.public import PublicSide
from nftsync.ruleset.localchain import BY_KERNEL, Body, by_name, explain_complaint
from nftsync.ruleset.model import INET, LOCAL_CHAIN, NAME, Ruleset
from nftsync.ruleset.settings import Settings
from nftsync.ruleset.tables import tables
from nftsync.ruleset.text import Complaint, render


def refusal(chain: LocalChain) -> str:
    """The first complaint about a readable local chain, "" if there is none.

    Raises NftsyncError without root.
    """
    body = chain.body or ""
    complaints = Kernel().check_lines(_lines(body))
    if not complaints:
        with closing(Namespace()) as namespace:
            kernel = namespace.call(Kernel)
            loaded = kernel.apply_lines(_lines(by_name(body)))
        complaints = [complaint for complaint in loaded if complaint.message.startswith(BY_KERNEL)]
    return _explained(body, chain, complaints[0]) if complaints else ""


def _explained(body: str, chain: LocalChain, complaint: Complaint) -> str:
    first = _lines(body).index(f"\tchain {LOCAL_CHAIN} {{") + 1
    return explain_complaint(Body(body, chain.line, chain.column), complaint._replace(line=complaint.line - first))


def _lines(body: str) -> list[str]:
    """A ruleset with this local chain."""
    settings = Settings(PublicSide.unseen(Nics(("lo",))), enable_bgp=True, local_chain=body)
    return render(Ruleset({INET: tables(settings)[INET]}), f"{NAME}-check").split("\n")
