"""What a client is told while its request waits, in its own SDK's words."""

import re

import httpx
import pytest
from sdk import end, lora
from waiting import wait_for

TINKER = {"User-Agent": "AsyncTinker/Python 0.38.0"}
HPCAI = {"User-Agent": "AsyncHpcAI/Python 0.1.5"}


@pytest.fixture
def impatient(stack):
    """A gateway that holds a poll for a moment only."""
    with stack.another_gateway(poll_hold_ms=300) as url:
        yield url


def test_the_reason_for_waiting_is_said(stack, first_account, service, impatient):
    client = lora(service, stack.model)
    with httpx.Client(base_url=f"{impatient}/api/v1", headers={"X-API-Key": first_account[1]}, timeout=60) as http:

        def submit(seq):
            body = {"model_id": client.model_id, "seq_id": seq, "adam_params": {"learning_rate": 1e-3}}
            return http.post("/optim_step", json=body).json()["request_id"]

        def poll(request, agent):
            answer = http.post("/retrieve_future", json={"request_id": request}, headers=agent)
            return answer.status_code, answer.json()

        stack.kill("worker")
        try:
            request, other = submit(1), submit(2)

            def without_a_worker():
                status, answer = poll(request, TINKER)
                return (status, answer) if answer.get("queue_state") == "paused_capacity" else None

            # As long as the dead worker's lease lasts, two requests are simply in line.
            status, answer = wait_for(without_a_worker, "a queue state")
            assert status == 408 and answer["type"] == "try_again" and answer["request_id"] == request
            wait_for(lambda: "no worker serves tinworks/tiny" in poll(request, TINKER)[1].get("queue_state_reason", ""), "the lease to end")
            status, answer = poll(other, HPCAI)
            assert (status, answer["queue_state"]) == (200, "in_queue")
            assert "waiting costs nothing" in answer["queue_state_reason"]
        finally:
            stack.tinworks("up")
        answers = [wait_for(lambda r=r: (a := poll(r, TINKER))[0] == 200 and a[1], "the step") for r in (request, other)]
        assert [a["metrics"]["step:max"] for a in answers] == [1, 2]


def test_others_in_line_are_counted(stack, first_account, service, impatient):
    client = lora(service, stack.model)
    with httpx.Client(base_url=f"{impatient}/api/v1", headers={"X-API-Key": first_account[1]}, timeout=60) as http:
        # Numbers 2 and 3 wait for number 1.
        step = {"model_id": client.model_id, "adam_params": {"learning_rate": 1e-3}}
        late = [http.post("/optim_step", json={**step, "seq_id": n}).json()["request_id"] for n in (2, 3)]

        def told():
            """The state and reason, when the count in it is the dispatcher's own (others may be waiting too)."""
            waiting = stack.counters("queue:tinworks/tiny").get("waiting", 0)
            answer = http.post("/retrieve_future", json={"request_id": late[0]}, headers=TINKER).json()
            counted = re.match(r"(\d+) other requests? for tinworks/tiny", answer.get("queue_state_reason", ""))
            seen.append((waiting, answer))
            return answer if counted and int(counted[1]) == waiting - 1 >= 1 else None

        seen = []
        try:
            assert wait_for(told, "the other one to be counted")["queue_state"] == "paused_capacity"
        except AssertionError as failure:
            raise AssertionError(f"{failure}; last: {seen[-1]}") from None
        assert http.post("/optim_step", json={**step, "seq_id": 1}).status_code == 200
        wait_for(
            lambda: http.post("/retrieve_future", json={"request_id": late[1]}, headers=TINKER).status_code == 200,
            "the third step",
        )


def test_without_credit_a_call_is_402_and_a_poll_is_not(stack):
    account, key = stack.account("no-credit", credit_usd=1)
    service = stack.service(key)
    client = lora(service, stack.model)
    with httpx.Client(base_url=f"{stack.base_url}/api/v1", headers={"X-API-Key": key}, timeout=60) as http:
        step = {"model_id": client.model_id, "seq_id": 1, "adam_params": {"learning_rate": 1e-3}}
        request = http.post("/optim_step", json=step).json()["request_id"]
        stack.tinworks("account", "credit", account, "--usd", "-2", "--reason", "test")
        sample = {
            "sampling_session_id": "none",
            "seq_id": 0,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5]}]},
            "sampling_params": {"max_tokens": 1},
        }
        wait_for(lambda: http.post("/asample", json=sample).status_code == 402, "the credit to be used up")
        assert http.post("/retrieve_future", json={"request_id": request}).status_code == 200
    end(service)
