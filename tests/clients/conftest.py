"""What several files of client tests begin with: a run that has trained a little, and a sampler of it."""

import pytest
from sdk import end, lora, train


@pytest.fixture(scope="module")
def run(stack, first_account):
    service = stack.service(first_account[1])
    client = lora(service, stack.model)
    train(client, 4)
    yield client
    end(service)


@pytest.fixture(scope="module")
def sampler(run):
    return run.save_weights_and_get_sampling_client().result()
