"""A TCP proxy between a server and NATS that counts messages and can cut every connection."""

from __future__ import annotations

from tests.support.relay import Relay

#: the NATS protocol's commands that carry a payload, and how many of their last arguments are sizes
PAYLOAD_SIZES = {b"PUB": 1, b"HPUB": 2, b"MSG": 1, b"HMSG": 2}


class Message:
    """One message as it crossed the wire: direction, subject, whether an answer was asked for."""

    def __init__(self, *, sent: bool, subject: str, reply: str, data: bytes) -> None:
        self.sent = sent
        self.subject = subject
        self.reply = reply
        self.data = data

    @property
    def is_delivery(self) -> bool:
        """Whether it hands a work message to a pull."""
        return not self.sent and self.reply.startswith("$JS.ACK.OJS.")

    def __repr__(self) -> str:
        return f"{'>' if self.sent else '<'} {self.subject}{' ?' if self.reply else ''}"


class Proxy(Relay):
    """Passes bytes between one NATS server and its clients; `messages` has what crossed since `clear`."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.messages: list[Message] = []
        #: break the connection instead of handing over the next work message
        self.cuts_next_delivery = False

    def clear(self) -> None:
        """Forget what crossed so far."""
        self.messages.clear()

    def crossed(self) -> list[str]:
        """What crossed, in order: `record`, and `record ok` when its answer came; `delivery` of a work message."""
        asked: dict[str, str] = {}
        told: list[str] = []
        for message in self.messages:
            if message.sent:
                kind = kind_of(message)
                if message.reply:
                    asked[message.reply] = kind
            elif message.is_delivery:
                kind = "delivery"
            else:
                kind = f"{asking} ok" if (asking := asked.get(message.subject)) else ""
            if kind:
                told.append(kind)
        return told

    def _see(self, data: bytes, *, is_sent: bool) -> bytes:
        seen = len(self.messages)
        rest = self._scan(data, sent=is_sent)
        if self.cuts_next_delivery and any(one.is_delivery for one in self.messages[seen:]):
            self.cuts_next_delivery = False
            self.cut()
        return rest

    def _scan(self, data: bytes, *, sent: bool) -> bytes:
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            words = data[at:end].split()
            verb = words[0].upper() if words else b""
            if verb not in PAYLOAD_SIZES:
                at = end + 2
                continue
            after = end + 2 + int(words[-1]) + 2
            if after > len(data):
                break
            arguments = [word.decode() for word in words[1 : -PAYLOAD_SIZES[verb]]]
            subject = arguments[0]
            # PUB subject [reply], MSG subject sid [reply]
            reply = arguments[-1] if len(arguments) > (1 if sent else 2) else ""
            self.messages.append(Message(sent=sent, subject=subject, reply=reply, data=data[end + 2 : after - 2]))
            at = after
        return data[at:]


def kind_of(message: Message) -> str:
    """Name a message to NATS by what it is for, "" for the housekeeping that no operation causes."""
    subject = message.subject
    if subject.startswith("$JS.ACK.OJS."):
        return message.data.decode()
    return next((kind for prefix, kind in _KINDS.items() if subject.startswith(prefix)), subject)


_KINDS = {
    "$KV.ojs-jobs.": "record",
    "ojs.queue.": "work message",
    "ojs.events.": "event",
    "$JS.API.CONSUMER.MSG.NEXT.OJS.": "pull",
    "$KV.ojs-retry.": "retry index",
    "$KV.ojs-stats.": "counts",
    "$KV.ojs-nodes.": "",
    "$KV.ojs-workers.": "",
    "$JS.API.DIRECT.GET.KV_ojs-workflows": "",  # the leader's look every second; no test here has a workflow
    "$JS.FC.": "",
    "$JS.ACK.": "",
}
