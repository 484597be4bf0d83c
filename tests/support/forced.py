"""Faults at named moments: which failpoint of which process, and in what order they are armed."""

import dataclasses
import threading

from waiting import NotStaged


@dataclasses.dataclass
class Fault:
    """A failpoint of one process, to fire once."""

    process: str
    point: str
    action: str = "kill"
    nth: int = 1
    match: str | None = None
    ms: int | None = None

    def __str__(self):
        return f"{self.process} {self.point} {self.action} nth={self.nth}" + (f" match={self.match}" if self.match else "")


class Plan:
    """Faults at different points are armed at once, those at the same point one after the other."""

    def __init__(self, world, faults):
        self.world, self.waiting, self.fired = world, list(faults), []
        self.armed = {}
        self.over = threading.Event()
        self.arm_next()
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def arm_next(self):
        for place, fault in list(self.armed.items()):
            if self.world[fault.process].fired(fault.point):
                self.fired.append(fault)
                del self.armed[place]
        for fault in list(self.waiting):
            place = fault.process, fault.point
            if place not in self.armed:
                self.waiting.remove(fault)
                self.armed[place] = fault
                self.world[fault.process].arm(fault.point, fault.action, fault.nth, fault.match, fault.ms)

    def follow(self):
        while not self.over.wait(0.02):
            self.arm_next()

    def complete(self):
        return not self.armed and not self.waiting

    def stop(self):
        self.over.set()
        self.thread.join()

    def end(self):
        self.stop()
        self.arm_next()
        if not self.complete():
            raise NotStaged(f"never reached: {', '.join(map(str, [*self.armed.values(), *self.waiting]))}")
