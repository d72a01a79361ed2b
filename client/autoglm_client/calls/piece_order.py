"""The pieces of one answer carry numbers, 0, 1, 2, ...; an answer that lost one or has two in turn is no answer."""

from __future__ import annotations

import struct

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.exceptions import PieceOrderError, ProtocolError

SEQUENCE_NUMBER = "sequence_number"  # INT32 [1, 1]
_INT32 = struct.Struct("<i")


class PieceOrder:
    """Of one request. Servers from before there were numbers send none, and are believed."""

    def __init__(self) -> None:
        self._next = 0

    def check(self, response: pb.ModelInferResponse) -> None:
        """To be called with each response, in the order of arrival. Raises PieceOrderError where this is not the
        next."""
        number = sequence_number(response)
        if number is None:
            return
        if number != self._next:
            raise PieceOrderError(
                f"the server's response {number} to this request came where response {self._next} was due: "
                "a part of the answer is missing or out of order",
                request_id=response.id,
            )
        self._next += 1


def sequence_number(response: pb.ModelInferResponse) -> int | None:
    """None where the response carries none. Raises ProtocolError for one that cannot be read."""
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.name == SEQUENCE_NUMBER:
            try:
                return int(_INT32.unpack(raw)[0])
            except struct.error as error:
                raise ProtocolError(f"the server's response cannot be read: {error}", request_id=response.id) from None
    return None
