"""Waiting for what a test needs before it can look at anything."""

import time

PATIENCE_S = 240  # for a condition, on a machine that others use too


class NotStaged(AssertionError):
    """A test's circumstances did not come about in time.  Unlike a wrong answer this is tried once more (pytest.ini), and
    the summary counts it: a busy machine does this, but so does a process that hangs, and then it happens twice."""


def wait_for(condition, what, seconds=PATIENCE_S, every=0.02):
    """The first true value of condition(); fails naming what was waited for."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise NotStaged(f"waited {seconds} s in vain for {what}")
        time.sleep(every)
    return value


def staged(condition, what):
    """For what a test needs and can only look at afterwards, in the log say: it was so, or the test tries once more."""
    if not condition:
        raise NotStaged(f"not staged: {what}")
