"""A Kafka broker that asks who is there: TLS, SCRAM passwords, and lists of what each user may do."""

import os
import secrets
import subprocess

import confluent_kafka
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, AdminClient, ResourcePatternType, ResourceType
from waiting import wait_for
from world import ROOT, free_port

LIBS = ROOT / ".tinworks" / "kafka" / "libs"
LOG4J = f"-Dlog4j.configuration=file:{ROOT}/compose/kafka/log4j.properties"
USERS = ("admin", "gateway", "dispatcher", "worker", "billing")

# Who may do what with which topic of a model, as docs/operations.md says.  Who may read or write may describe.
JOBS, RESULTS, PLANS, DLQ = ("train.jobs", "sample.jobs"), ("train.results", "sample.results"), ("batches",), ("dlq",)
RIGHTS = {
    "gateway": {"WRITE": JOBS, "READ": RESULTS},
    "dispatcher": {"READ": JOBS + RESULTS, "WRITE": ("train.jobs",) + PLANS},
    "worker": {"READ": JOBS + RESULTS + PLANS, "WRITE": RESULTS + DLQ, "CREATE": JOBS + RESULTS + PLANS + DLQ},
    "billing": {"READ": RESULTS, "WRITE": DLQ, "CREATE": DLQ},
}


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


class GuardedBroker:
    def __init__(self, home):
        self.home = home
        home.mkdir(parents=True)
        guarded, self.open_port, controller = free_port(), free_port(), free_port()
        self.brokers, self.open_brokers = f"127.0.0.1:{guarded}", f"127.0.0.1:{self.open_port}"
        self.passwords = {user: secrets.token_urlsafe(16) for user in USERS}
        self.child = None
        self._certificates()
        (home / "server.properties").write_text(
            f"""{(ROOT / "compose" / "kafka" / "server.properties").read_text()}
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=GUARDED://127.0.0.1:{guarded},OPEN://127.0.0.1:{self.open_port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=GUARDED://127.0.0.1:{guarded},OPEN://127.0.0.1:{self.open_port}
inter.broker.listener.name=OPEN
listener.security.protocol.map=GUARDED:SASL_SSL,OPEN:PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.guarded.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={home}/broker.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
log.dirs={home}/data
"""
        )

    def _certificates(self):
        ca, key, request, cert = (str(self.home / name) for name in ("ca.pem", "key.pem", "request.pem", "cert.pem"))
        more = self.home / "more.cnf"
        more.write_text("subjectAltName=IP:127.0.0.1\n")
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *new, "-keyout", f"{ca}.key", "-out", ca, "-days", "2", "-subj", "/CN=test authority")
        openssl("req", *new, "-keyout", key, "-out", request, "-subj", "/CN=broker")
        openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", f"{ca}.key", "-CAcreateserial", "-out", cert,
                "-days", "2", "-extfile", str(more))  # fmt: skip
        pem = "".join((self.home / name).read_text() for name in ("key.pem", "cert.pem", "ca.pem"))
        (self.home / "broker.pem").write_text(pem)

    def java(self, *words):
        return ["java", LOG4J, "-cp", f"{LIBS}/*", *words]

    def up(self):
        scram = [f"--add-scram=SCRAM-SHA-256=[name={u},password={p}]" for u, p in self.passwords.items()]
        cluster = secrets.token_hex(16)[:22]
        conf = str(self.home / "server.properties")
        subprocess.run(
            self.java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", conf, *scram),
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        with (self.home / "log").open("ab") as log:
            self.child = subprocess.Popen(
                self.java("-Xms256m", "-Xmx256m", "kafka.Kafka", conf),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for(self._answers, "the guarded broker")

    def _answers(self):
        if self.child.poll() is not None:
            raise AssertionError("the guarded broker ended:\n" + (self.home / "log").read_text()[-3000:])
        try:
            return AdminClient({"bootstrap.servers": self.open_brokers, "log_level": 0}).list_topics(timeout=2).brokers
        except confluent_kafka.KafkaException:
            return False

    def down(self):
        if self.child:
            self.child.kill()
            self.child.wait()

    # ------------------------------------------------------------ users

    def client(self, user):
        """What a client of this user is configured with."""
        return {
            "bootstrap.servers": self.brokers,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": user,
            "sasl.password": self.passwords[user],
            "ssl.ca.location": str(self.home / "ca.pem"),
        }

    def file(self, name, **lines):
        """A properties file that only its owner may read."""
        path = self.home / f"{name}.properties"
        path.write_text("# how to get in\n\n" + "".join(f"{k} = {v}\n" for k, v in lines.items()))
        os.chmod(path, 0o600)
        return path

    def file_of(self, user):
        lines = {k: v for k, v in self.client(user).items() if k != "bootstrap.servers"}
        return self.file(user, **lines)

    def allow(self, topic_prefix, slug):
        """RIGHTS, for the topics of one model."""

        def name_of(part):
            return f"{topic_prefix}{part}" if part == "dlq" else f"{topic_prefix}{slug}.{part}"

        bindings = [
            AclBinding(ResourceType.TOPIC, name_of(part), ResourcePatternType.LITERAL, f"User:{user}", "*",
                       AclOperation[operation], AclPermissionType.ALLOW)
            for user, rights in RIGHTS.items()
            for operation, parts in rights.items()
            for part in parts
        ]  # fmt: skip
        admin = AdminClient(self.client("admin"))
        for done in admin.create_acls(bindings).values():
            done.result(30)
