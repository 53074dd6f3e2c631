"""The only place that knows gRPC and protobuf.

serve           open, listen, wait, drain, close
  heaviest      the most frequent values of a key, on request
  admin         what an operator may do, on a listener of its own
  registry      what the store serves, by name
  metrics       the counters, for Prometheus
  grpc_front    the hot methods on grpcio: threads, streams, deadlines
  listener      addresses → ports: TLS, Unix sockets
dispatcher      request bytes → reply bytes, now or when durable; what every transport calls
  codec         request bytes → C structs; what a request may and may not say
  replies       results → reply bytes
    names       names of the plan → indexes; what can be wrong, in codes and in words
    eventtime   times in their declared unit → milliseconds
    cursor      the wire format, read so that nothing past the end is ever touched
    memory      a request's arena, a reply's buffer
status          our errors → gRPC status: the one table
"""
