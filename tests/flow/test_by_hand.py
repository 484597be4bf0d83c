"""docs/protocol.md shows how any program publishes a job with kcat; what it says is what happens."""

import os
import re
import subprocess

from stack import ROOT
from waiting import wait_for


def test_the_documented_kcat_block_works_as_printed(stack):
    page = (ROOT / "docs" / "protocol.md").read_text()
    [block] = re.findall(r"^```sh kcat\n(.*?)^```", page, re.S | re.M)
    account, _ = stack.account("by hand")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        env={**os.environ, **stack.settings, "ACCOUNT": account},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for word in ("tw_status=ok", "tw_prefill=3", "tw_sample=8", f"tw_tenant={account}"):
        assert word in done.stdout

    def billed():
        return stack.sql(
            "select prefill_tokens, sample_tokens, status from job_outcomes where account_id = %s", account
        )

    assert wait_for(billed, "the bill of the job") == [(3, 8, "ok")]
