"""What has outlived its time is removed, with its files, and nothing else."""

import pytest
import tinker
from sdk import end, lora, sampling, text, train
from waiting import wait_for


@pytest.fixture
def made(stack, service):
    client = lora(service, stack.model)
    train(client, 1)
    for name in ("old", "kept"):
        client.save_state(name).result()
    return client


def folders(stack, run):
    rows = stack.sql("select name, seq, dir, deleted_at is null from checkpoints where run_id = %s order by seq", run)
    return {(name, seq): (stack.home / "data" / folder).exists() for name, seq, folder, _ in rows}


def dispatcher(stack, **settings):
    return stack.another("dispatcher", rb"dispatcher\.ready", dispatcher_number=9, **settings)


def test_an_expired_checkpoint_goes_and_its_neighbour_stays(stack, first_account, made):
    stack.sql(
        "update checkpoints set expires_at = now() - interval '1 second' where run_id = %s and name = 'old' returning 1",
        made.model_id,
    )
    wait_for(lambda: not folders(stack, made.model_id)[("old", 3)], "the expired checkpoint to be removed")
    assert folders(stack, made.model_id)[("kept", 4)]
    admin = tinker.AdminClient(base_url=stack.base_url, api_key=first_account[1])
    events = {e.tinker_path: e.event for e in admin.get_audit_log().result().entries}
    assert events[f"tinker://{made.model_id}/weights/old"] == "checkpoint.expired"
    assert len(train(made, 1, first=2)) == 1


def test_what_a_crash_left_behind_is_removed_later(stack, made):
    [(folder,)] = stack.sql("select dir from checkpoints where run_id = %s and name = 'old'", made.model_id)
    stack.sql(
        "update checkpoints set deleted_at = now() - interval '1 minute' where run_id = %s and name = 'old' returning 1",
        made.model_id,
    )
    wait_for(lambda: not (stack.home / "data" / folder).exists(), "the files to be removed")


def test_an_overwritten_version_goes_when_nobody_can_name_it_any_more(stack, made):
    made.save_state("old", overwrite=True).result()
    assert set(folders(stack, made.model_id).values()) == {True}
    stack.sql(
        "update checkpoints set created_at = created_at - interval '2 hours' where run_id = %s returning 1", made.model_id
    )
    with dispatcher(stack, keep_s=3600):
        wait_for(lambda: not folders(stack, made.model_id)[("old", 3)], "the older version to be removed")
    assert folders(stack, made.model_id) == {("old", 3): False, ("kept", 4): True, ("old", 5): True}


def test_a_samplers_own_checkpoint_goes_after_its_session(stack, first_account):
    service = stack.service(first_account[1])
    client = lora(service, stack.model)
    sampler = client.save_weights_and_get_sampling_client().result()
    assert len(sampler.sample(text([5, 6]), 1, sampling()).result().sequences) == 1
    session = client.model_id.split(":")[0]
    with dispatcher(stack, keep_s=3600, sweep_s=1):
        end(service)
        assert folders(stack, client.model_id) == {(None, 1): True}
    stack.sql("update sessions set finished_at = now() - interval '2 hours' where id = %s returning 1", session)
    with dispatcher(stack, keep_s=3600):
        wait_for(lambda: not folders(stack, client.model_id)[(None, 1)], "the sampler's checkpoint to be removed")


def test_a_session_without_a_sign_of_life_is_over(stack, first_account):
    service = stack.service(first_account[1])
    client = lora(service, stack.model)
    session = client.model_id.split(":")[0]
    with dispatcher(stack, session_silent_s=3600, sweep_s=1):
        [(finished,)] = stack.sql("select finished_at from sessions where id = %s", session)
        assert finished is None

        def over():
            # The client's own heartbeat may still come in between, so the clock is set back each time.
            stack.sql("update runs set last_request_at = now() - interval '2 hours' where session_id = %s returning 1", session)
            stack.sql("update sessions set heartbeat_at = now() - interval '2 hours' where id = %s returning 1", session)
            return stack.sql("select finish_reason from sessions where id = %s and finished_at is not null", session)

        [(reason,)] = wait_for(over, "the silent session to end")
    assert reason.startswith("expired")
    assert len(train(client, 1)) == 1  # its runs go on all the same
    end(service)


def test_what_a_save_was_told_goes_when_its_job_has_left_the_log(stack, made):
    def told():
        return [seq for seq, in stack.sql("select seq from save_decisions where run_id = %s order by seq", made.model_id)]

    assert told() == [3, 4]
    old = "update save_decisions set created_at = now() - interval '9 days' where run_id = %s and seq = 3 returning 1"
    assert stack.sql(old, made.model_id) == [(1,)]
    with dispatcher(stack):
        wait_for(lambda: told() == [4], "the older one to be removed")
