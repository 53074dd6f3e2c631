# What takes too long for .ci/run, on the build in .venv: the drills, kills, power cuts, damaged inputs and histories
# in full. Each target stands alone; `make -j2 -O nightly` runs two at a time.
NIGHT = FEATURESTORE_DRILLS=full FEATURESTORE_CRASH_ROUNDS=200 FEATURESTORE_FUZZ_ROUNDS=5000 .venv/bin/python -m pytest

.PHONY: nightly night-drills night-crash night-fuzz night-histories
nightly: night-drills night-crash night-fuzz night-histories
night-drills:
	$(NIGHT) tests/drills
night-crash:
	$(NIGHT) tests/crash
night-fuzz:
	$(NIGHT) tests/fuzz
night-histories:
	$(NIGHT) tests/test_state_machine.py tests/server/test_service_state_machine.py
