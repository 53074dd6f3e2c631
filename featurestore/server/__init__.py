"""The only place that knows gRPC and protobuf.

serve           open, listen, wait, drain, close
  heaviest      the most frequent values of a key, on request
  admin         what an operator may do, on a listener of its own
  registry      what the store serves, by name
  metrics       the counters, for Prometheus
    scrape      how it gets them: a listener that nobody holds
  transport     which of the two carries the public port
  native_front  our own: threads, and Python's handlers beside the hot methods
    loop        sockets, epoll, time
    host        what its connections share: words, errands to Python
    tls         certificates, handshakes and records, by OpenSSL
    connection  gRPC over HTTP/2, bytes in and bytes out
    nghttp2     HTTP/2 itself, by the library
    grpc_text   timeouts, content types, messages
    errands     what a loop has others do
    shares      who holds how much of what is limited
  grpc_front    grpcio: threads, streams, deadlines
  handlers      what Python answers on either: messages that cannot be read, errors that nobody raised
    health      the server's health over it
  listener      addresses → ports: TLS, Unix sockets
  descriptors   as many as there are, and the store's kept
dispatcher      request bytes → reply bytes, now or when durable; what every transport calls
  codec         request bytes → C structs; what a request may and may not say
  replies       results → reply bytes
    names       names of the plan → indexes; what can be wrong, in codes and in words
    eventtime   times in their declared unit → milliseconds
    cursor      the wire format, read so that nothing past the end is ever touched
    memory      a request's arena, a reply's buffer
status          our errors → gRPC status: the one table
log             at most so many lines a minute from one place
"""
