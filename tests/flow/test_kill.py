"""kill -9 of any process, ours or a server, in the middle of a run; ./tinworks up again; the run ends with the same bits and the
same bill, and the client never learns of it."""

import pytest
from sdk import ADAM, batch_of, bits, datum, end, floats, lora, sampling, text, tokens_of
from stack import OURS

STEPS = 10
PROMPT = tokens_of(3, 10)


def batch(step):
    return batch_of(step, count=12, length=64)


def loop(stack, key, kill=None):
    """SFT, then a sampler and a copy.  The second half of the steps is sent at once; kill is called while they are
    under way."""
    service = stack.service(key)
    client = lora(service, stack.model)
    seen, parents, sent = [], [client.model_id], []
    for step in range(STEPS):
        sent.append((client.forward_backward(batch(step), "cross_entropy"), client.optim_step(ADAM)))
        if step < STEPS // 2:
            sent[-1][1].result()
    if kill:
        kill()
    seen += [(bits(gradient.result()), update.result().metrics) for gradient, update in sent]
    sampler = client.save_weights_and_get_sampling_client().result()
    response = sampler.sample(text(PROMPT), 2, sampling(max_tokens=6, stop=[])).result()
    seen.append([(tuple(s.tokens), floats(s.logprobs)) for s in response.sequences])
    path = client.save_state("end").result().path
    copy = service.create_training_client_from_state_with_optimizer(path).result()
    seen.append(bits(copy.forward([datum(PROMPT)], "cross_entropy").result()))
    parents.append(copy.model_id)
    end(service)
    return seen, parents


@pytest.fixture(scope="module")
def undisturbed(stack, first_account):
    return loop(stack, first_account[1])


def bill(stack, parents):
    # create, STEPS x 2, save for the sampler, save; create and forward of the copy
    rows = stack.billed(parents, 1 + 2 * STEPS + 2 + 2)
    return sorted((kind, status, seq, *tokens) for kind, status, *tokens, seq, _ in rows)


@pytest.mark.parametrize("name", [*OURS, "redis", "postgres", "kafka"])
def test_a_killed_process_changes_no_bit_and_no_token(stack, first_account, undisturbed, name):
    pid = stack.pid(name)

    def kill():
        stack.kill(name)
        stack.up()
        assert stack.pid(name) != pid

    seen, parents = loop(stack, first_account[1], kill)
    expected, expected_parents = undisturbed
    assert seen == expected
    assert bill(stack, parents) == bill(stack, expected_parents)
    # A worker that takes over recomputes effects that were decided before, and compares.
    assert stack.counters("worker:0")["digest_mismatches"] == 0


def test_a_worker_killed_between_gradient_and_step_loses_neither(stack, first_account):
    """The first gradient is answered, then the worker dies before the step is even sent."""
    results = []
    for killed in (False, True):
        service = stack.service(first_account[1])
        client = lora(service, stack.model)
        one = bits(client.forward_backward(batch_of(1), "cross_entropy").result())
        if killed:
            stack.kill("worker")
            stack.up()
        two = bits(client.forward_backward(batch_of(2), "cross_entropy").result())
        step = client.optim_step(ADAM).result().metrics
        results.append((one, two, step, bits(client.forward(batch_of(3), "cross_entropy").result())))
        end(service)
    assert results[0] == results[1]


def test_down_and_up_lose_nothing(stack, first_account):
    """A full stop, Kafka, Redis and Postgres included; the client waits it out."""
    service = stack.service(first_account[1])
    client = lora(service, stack.model)
    reference = lora(service, stack.model)
    first = [bits(c.forward_backward(batch_of(1), "cross_entropy").result()) for c in (client, reference)]
    step = reference.optim_step(ADAM).result().metrics
    after = bits(reference.forward(batch_of(2), "cross_entropy").result())
    stack.down()
    stack.up()
    assert first[0] == first[1]
    assert client.optim_step(ADAM).result().metrics == step
    assert bits(client.forward(batch_of(2), "cross_entropy").result()) == after
    end(service)
