"""Two customers at once share batches, and neither can tell."""

import concurrent.futures

from sdk import datum, end, lora, tokens_of, train
from waiting import NotStaged, wait_for


def batches_of(customer):
    def make(step):
        return [datum(tokens_of(100 * customer + 10 * step + i, 20 + 7 * customer + i)) for i in range(3)]

    return make


def run(stack, key, customer, steps=15):
    service = stack.service(key)
    client = lora(service, stack.model, seed=customer, rank=8 * (customer + 1))
    result = train(client, steps, make=batches_of(customer))
    end(service)
    return result


def test_two_accounts_share_batches_and_get_the_bits_they_get_alone(stack):
    keys = [stack.account(f"neighbour {i}")[1] for i in range(2)]
    alone = [run(stack, key, i) for i, key in enumerate(keys)]
    before = stack.counters("worker:0")["batches_multi_run"]

    def shared():  # whether they meet in a batch is chance, and more so on a busy machine
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            together = list(pool.map(run, [stack] * 2, keys, range(2)))
        assert together == alone
        try:
            return wait_for(lambda: stack.counters("worker:0")["batches_multi_run"] > before, "the counter", 5)
        except NotStaged:
            return False

    wait_for(shared, "a batch with both runs")
