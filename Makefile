# What takes too long for .ci/run, on the build in .venv: the drills, kills, power cuts, damaged inputs and histories
# in full.
.PHONY: nightly
nightly:
	FEATURESTORE_DRILLS=full FEATURESTORE_CRASH_ROUNDS=200 FEATURESTORE_FUZZ_ROUNDS=5000 \
		.venv/bin/python -m pytest tests/drills tests/crash tests/fuzz tests/test_state_machine.py \
		tests/server/test_service_state_machine.py
