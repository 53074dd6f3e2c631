"""The only place that knows gRPC and protobuf.

codec       request bytes → C structs, results → reply bytes, without the GIL or libprotobuf
  cursor    the wire format, read so that nothing past the end is ever touched
"""
