"""Send numbered packets as fast as one process can, and report which arrive.

Run it as a program in the client's namespace:

    traffic.py PAUSE LISTENER… DESTINATION…

PAUSE: seconds between two rounds of packets.  LISTENER: number of an inherited UDP socket.
DESTINATION: "address port".

Packets go to every destination in turn, until stdin ends. Each carries the destination's place in
the list and its own number. stdout gets the line "begun" at the start, and "through PLACE" after
the first packet has reached a destination. The last line is JSON. For each destination, it holds
the counts of sent and arrived packets, and the numbers of at most 20 missing packets:
[[N, N, [N, …]], …].
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

_OURS = b"numbered"  # others send something there, too
_NUMBER = struct.Struct("!8sIQ")
_ROUND = 32  # packets to each destination between two reads


def main(arguments: Sequence[str]) -> None:
    pause, *arguments = arguments
    listeners = [socket.socket(fileno=int(each)) for each in arguments if " " not in each]
    senders = [_sender(*each.split(" ")) for each in arguments if " " in each]
    print("begun", flush=True)  # every destination could be reached; from now on that may change
    arrived: list[set[int]] = [set() for _ in senders]
    sent = 0
    while not select.select([sys.stdin], [], [], float(pause))[0]:
        for number in range(sent, sent + _ROUND):
            for place, sender in enumerate(senders):
                with suppress(OSError):  # an error that an earlier packet brought back; or there is no way just now
                    sender.send(_NUMBER.pack(_OURS, place, number))
        sent += _ROUND
        for place, number in _received(listeners):
            if not arrived[place]:
                print("through", place, flush=True)
            arrived[place].add(number)
    missing = [sorted(set(range(sent)) - numbers)[:20] for numbers in arrived]
    print(json.dumps([[sent, len(numbers), lost] for numbers, lost in zip(arrived, missing, strict=True)]), flush=True)


def _sender(address: str, port: str) -> socket.socket:
    sender = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect((address, int(port)))
    return sender


def _received(listeners: Sequence[socket.socket]) -> Iterator[tuple[int, int]]:
    for listener in listeners:
        with suppress(BlockingIOError):
            while True:
                content = listener.recv(64)
                if len(content) == _NUMBER.size and content.startswith(_OURS):
                    yield _NUMBER.unpack(content)[1:]


if __name__ == "__main__":
    main(sys.argv[1:])
