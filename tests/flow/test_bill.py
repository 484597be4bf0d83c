"""The bill of a run is what an independent count says, to the token, and failed work costs nothing."""

import csv
import io
import json

import pytest
import tinker
from sdk import ADAM, datum, end, lora, sampling, text, tokens_of
from waiting import wait_for

PICO = {"prefill": 70_000, "sample": 220_000, "train": 220_000}  # the first price list, pico-dollars a token


@pytest.fixture(scope="module")
def bill(stack):
    """A scripted run of a customer of its own, and what it must cost by our own count."""
    account, key = stack.account("bill")
    [(before,)] = stack.sql("select balance_pico from balances where account_id = %s", account)
    service = stack.service(key)
    client = lora(service, stack.model)
    tokens = {"prefill": 0, "sample": 0, "train": 0}

    for step in range(4):
        lengths = [5, 64, 65, 130 + step]  # around the engine's block of 64
        client.forward_backward([datum(tokens_of(step + n, n + 1)) for n in lengths], "cross_entropy")
        client.optim_step(ADAM).result()
        tokens["train"] += sum(lengths)
    client.forward([datum(tokens_of(1, 41))], "cross_entropy").result()
    tokens["prefill"] += 40

    with pytest.raises(tinker.RequestFailedError):  # id 5000 is not in the vocabulary
        client.forward_backward([datum([5, 6, 5000, 7])], "cross_entropy").result()
    client.save_state("billed").result()

    sampler = client.save_weights_and_get_sampling_client().result()
    for n in (1, 17, 70):
        stop = [3, 4, 5, 6, 7] if n == 17 else []
        response = sampler.sample(text(tokens_of(n, n)), 3, sampling(max_tokens=20, stop=stop)).result()
        tokens["prefill"] += n  # once, although three samples share it
        tokens["sample"] += sum(len(s.tokens) for s in response.sequences)
    with pytest.raises(tinker.RequestFailedError):
        sampler.sample(text([5000]), 1, sampling()).result()
    run_id = client.model_id
    end(service)

    def settled():
        [(jobs,)] = stack.sql("select count(*) from job_outcomes where account_id = %s", account)
        return jobs >= 17  # create, 4 x 2, forward, failed, save, save for the sampler, 3 samples, failed

    wait_for(settled, "the bill of the scripted run")
    return {"account": account, "run": run_id, "tokens": tokens, "before": before}


def amount(tokens):
    return sum(PICO[kind] * count for kind, count in tokens.items())


def test_the_outcomes_add_up_to_the_count(stack, bill):
    [row] = stack.sql(
        "select sum(prefill_tokens), sum(sample_tokens), sum(train_tokens), sum(amount_pico)"
        " from job_outcomes where account_id = %s",
        bill["account"],
    )
    tokens = bill["tokens"]
    assert row == (tokens["prefill"], tokens["sample"], tokens["train"], amount(tokens))


def test_failed_jobs_are_there_and_cost_nothing(stack, bill):
    rows = stack.sql(
        "select kind, prefill_tokens + sample_tokens + train_tokens, amount_pico from job_outcomes"
        " where account_id = %s and status = 'failed' order by kind",
        bill["account"],
    )
    assert rows == [("forward_backward", 0, 0), ("sample", 0, 0)]


def test_the_ledger_balances_and_the_customer_owes_that_amount(stack, bill):
    assert stack.sql("select tx from ledger_entries group by tx having sum(amount_pico) <> 0") == []
    [(now,)] = stack.sql("select balance_pico from balances where account_id = %s", bill["account"])
    assert bill["before"] - now == amount(bill["tokens"])
    [(hours,)] = stack.sql("select sum(amount_pico) from usage_hours where account_id = %s", bill["account"])
    assert hours == amount(bill["tokens"])


def usage(stack, bill, *words):
    return stack.tinworks("usage", "--account", bill["account"], *words).stdout


def test_usage_prints_the_same_figures_in_every_form(stack, bill):
    tokens = bill["tokens"]
    rows = json.loads(usage(stack, bill, "--by", "kind", "--format", "json"))
    assert {row["kind"]: int(row["tokens"]) for row in rows} == tokens
    lines = list(csv.DictReader(io.StringIO(usage(stack, bill, "--by", "kind", "--format", "csv"))))
    assert {line["kind"]: int(line["tokens"]) for line in lines} == tokens
    table = usage(stack, bill, "--by", "kind")
    assert all(str(count) in table for count in tokens.values())


def test_the_audit_finds_no_difference_between_ledger_and_log(stack, bill):
    assert stack.tinworks("audit", check=False).returncode == 0
