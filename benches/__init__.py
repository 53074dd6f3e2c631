"""Benchmarks: one file per question, each named for it. README-worthy numbers come from `--headline`.

    pytest benches                                   seconds: the test suite runs it
    pytest benches/bench_observe.py --headline       the published numbers: minutes, gigabytes

    load/        the load generator: gRPC and Redis, closed and open loop (python -m benches.load --help)
    peers/       servers that do nothing, and Redis: what the store is measured against
    native       builds these two when they are first needed
    process      servers and clients in processes of their own
    checkout     another checkout's part, where two are compared (bench_against)
    workload, requests    the events that are fed, and messages made of them

Rules. What is compared runs in one process on one machine in one run, interleaved (A B A B), and the median
of the ratios of neighbouring rounds is what counts: a machine that is busy with something else slows both.
Every bench prints a checksum of the work it timed, which is the same for the same parameters everywhere,
and says in its head what it measures and what it does not. No bench asserts a time: `tests/test_benches.py`
runs them all and must not fail on a slow machine.
"""
