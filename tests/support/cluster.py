"""Three brokers that replicate, beside the one of the other fault tests; about 0.3 GB of memory each."""

import os
import secrets
import signal
import subprocess

import confluent_kafka
from confluent_kafka.admin import AdminClient
from waiting import wait_for
from world import ROOT, free_port

COUNT = 3
LIBS = ROOT / ".tinworks" / "kafka" / "libs"
LOG4J = f"-Dlog4j.configuration=file:{ROOT}/compose/kafka/log4j.properties"


class Cluster:
    def __init__(self, servers):
        self.home = servers.home / "cluster"
        self.ports = [free_port() for _ in range(COUNT)]
        self.controllers = [free_port() for _ in range(COUNT)]
        self.brokers = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.id = secrets.token_urlsafe(16)[:22].replace("-", "a").replace("_", "b")
        self.children = {}

    def java(self, *words, **more):
        return ["java", LOG4J, "-cp", f"{LIBS}/*", *words]

    def up(self):
        voters = ",".join(f"{i + 1}@127.0.0.1:{port}" for i, port in enumerate(self.controllers))
        common = (ROOT / "compose" / "kafka" / "server.properties").read_text()
        for i in range(COUNT):
            folder = self.home / str(i)
            folder.mkdir(parents=True)
            (folder / "server.properties").write_text(
                f"""{common}
process.roles=broker,controller
node.id={i + 1}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{self.ports[i]},CONTROLLER://127.0.0.1:{self.controllers[i]}
advertised.listeners=PLAINTEXT://127.0.0.1:{self.ports[i]}
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/data
replica.lag.time.max.ms=5000
"""
            )
            words = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", self.id]
            subprocess.run(
                self.java("-XX:TieredStopAtLevel=1", *words, "-c", folder / "server.properties"),
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip
        for i in range(COUNT):
            self.start(i)
        self.wait()

    def start(self, i):
        folder = self.home / str(i)
        with (folder / "log").open("ab") as log:
            self.children[i] = subprocess.Popen(
                self.java("-Xms256m", "-Xmx256m", "kafka.Kafka", folder / "server.properties"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self, i):
        child = self.children.pop(i)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()

    def wait(self):
        """Until all brokers are there and every partition has all its replicas in sync."""

        def whole():
            try:
                known = AdminClient({"bootstrap.servers": self.brokers}).list_topics(timeout=5)
            except confluent_kafka.KafkaException:
                return False
            parts = [p for t in known.topics.values() for p in t.partitions.values()]
            return len(known.brokers) == COUNT and all(len(p.isrs) == len(p.replicas) for p in parts)

        wait_for(whole, "three brokers in sync", every=0.5)

    def down(self):
        for i in list(self.children):
            self.kill(i)
