"""Saving, going on from what was saved, and sampling from it."""

import pytest
import tinker
from sdk import ADAM, batch_of, bits, datum, floats, lora, sampling, text, tokens_of, train, values


@pytest.fixture
def trained(stack, service):
    client = lora(service, stack.model)
    train(client, 3)
    return client


def test_going_on_from_a_saved_state_with_optimizer_gives_the_same_bits(service, trained):
    path = trained.save_state("midway").result().path
    assert path == f"tinker://{trained.model_id}/weights/midway"
    expected = train(trained, 3, first=3)
    copy = service.create_training_client_from_state_with_optimizer(path).result()
    assert copy.model_id != trained.model_id
    assert train(copy, 3, first=3) == expected


def test_without_optimizer_the_weights_are_the_same_and_the_next_steps_are_not(service, trained):
    path = trained.save_state("weights-only").result().path
    copy = service.create_training_client_from_state(path).result()
    here, there = (c.forward(batch_of(8), "cross_entropy").result() for c in (trained, copy))
    assert bits(here) == bits(there)
    (loss_here, _), (loss_there, _) = train(trained, 1, first=3)[0], train(copy, 1, first=3)[0]
    assert loss_here == loss_there
    assert bits(trained.forward(batch_of(8), "cross_entropy").result()) != bits(
        copy.forward(batch_of(8), "cross_entropy").result()
    )


def test_loading_into_a_live_run_takes_it_back(trained):
    path = trained.save_state("back").result().path
    expected = train(trained, 2, first=3)
    with pytest.warns(FutureWarning, match="load_state"):  # the SDK announces its end, and still sends it
        trained.load_state_with_optimizer(path).result()
    assert train(trained, 2, first=3) == expected


def test_a_state_keeps_a_gradient_that_was_not_applied_yet_apart(service, trained):
    """What is saved between forward_backward and optim_step includes the pending gradient."""
    trained.forward_backward(batch_of(5), "cross_entropy")
    path = trained.save_state("pending").result().path
    expected = trained.optim_step(ADAM).result().metrics
    copy = service.create_training_client_from_state_with_optimizer(path).result()
    assert copy.optim_step(ADAM).result().metrics == expected


def test_a_checkpoint_does_not_change_when_the_run_goes_on(service, trained):
    path = trained.save_state("fixed").result().path
    before = bits(trained.forward(batch_of(8), "cross_entropy").result())
    train(trained, 2, first=3)
    copy = service.create_training_client_from_state(path).result()
    assert bits(copy.forward(batch_of(8), "cross_entropy").result()) == before


def test_a_sampler_of_saved_weights_answers_with_those_weights(service, trained):
    path = trained.save_weights_for_sampler("for-sampling").result().path
    assert path == f"tinker://{trained.model_id}/sampler_weights/for-sampling"
    sampler = service.create_sampling_client(model_path=path).result()
    prompt = tokens_of(77, 6)
    sequence = sampler.sample(text(prompt), 1, sampling(max_tokens=10, stop=[])).result().sequences[0]
    whole = prompt + list(sequence.tokens)
    scored = values(trained.forward([datum(whole)], "cross_entropy").result())[0]
    assert scored[len(prompt) - 1 :].tobytes() == floats(sequence.logprobs)


def test_an_unknown_checkpoint_is_the_users_error(service, trained):
    missing = f"tinker://{trained.model_id}/weights/never-saved"
    with pytest.raises((tinker.APIStatusError, tinker.RequestFailedError)) as caught:
        service.create_training_client_from_state(missing).result()
    assert "never-saved" in str(caught.value) or getattr(caught.value, "status_code", 0) == 404
