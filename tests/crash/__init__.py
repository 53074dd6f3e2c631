"""Crash and fault harness: what a store says after a power cut, a kill -9 or a failing disk.

README.md teaches it.

    shim.c, shim.py   a preloaded library: traces changes and syncs below one directory, injects faults
    image.py          from a trace, the directories a power cut could leave; checks each in its own process
    kill.py           starts, kills and restarts a program, and keeps what it acknowledged
    engine_program.py, engine_truth.py
                      work on a whole store, and what must be true of it afterwards
    rounds.py         how often all of this goes round
    toy.py            stores small enough to be right or wrong on purpose
    test_harness.py   proves that each wrong one is caught
"""
