"""Six hundred samples in flight from one process of the SDK: none is lost, and each is what its seed gives when nobody else asks."""

import pytest
import tinker
from sdk import end, floats, sampling, text, tokens_of

COUNT = 600
CLIENTS = 2  # one sampling client keeps at most 512 in flight (client/config)
ALONE_EVERY = 20


@pytest.fixture(params=["one poll a session", "one poll a sample"])
def busy_service(request, stack, first_account):
    """With and without the session's poll: the second has 600 long polls open at once."""
    if request.param == "one poll a session":
        it = stack.service(first_account[1])
        yield it
        end(it)
        return
    with stack.another_gateway(session_polls=0) as url:
        it = tinker.ServiceClient(base_url=url, api_key=first_account[1])
        yield it
        end(it)


def ask(sampler, i):
    return sampler.sample(text(tokens_of(i, 3 + i % 13)), 1, sampling(max_tokens=4, seed=i, stop=[]))


def bits(answer):
    [sequence] = answer.sequences
    return list(sequence.tokens), floats(sequence.logprobs)


def test_600_concurrent_samples_are_answered_each_as_if_alone(stack, busy_service):
    samplers = [busy_service.create_sampling_client(base_model=stack.model).result() for _ in range(CLIENTS)]
    asked = [ask(samplers[i % CLIENTS], i) for i in range(COUNT)]
    together = [bits(it.result(timeout=300)) for it in asked]
    assert len({tokens for tokens in map(str, together)}) > COUNT // 2  # they are not all one answer
    for i in range(0, COUNT, ALONE_EVERY):
        assert bits(ask(samplers[(i + 1) % CLIENTS], i).result(timeout=300)) == together[i], i
    again = [ask(samplers[(i + 1) % CLIENTS], i) for i in reversed(range(COUNT))]  # in another company
    assert [bits(it.result(timeout=300)) for it in reversed(again)] == together
