"""The only place that knows gRPC and protobuf.

codec         request bytes → C structs; what a request may and may not say
replies       results → reply bytes
  names       names of the plan → indexes; what can be wrong, in codes and in words
  eventtime   times in their declared unit → milliseconds
  cursor      the wire format, read so that nothing past the end is ever touched
  memory      a request's arena, a reply's buffer
"""
