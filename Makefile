# What takes too long for .ci/run, on the build in .venv: the drills, kills, power cuts and damaged inputs in full.
.PHONY: nightly
nightly:
	FEATURESTORE_DRILLS=full FEATURESTORE_CRASH_ROUNDS=200 FEATURESTORE_FUZZ_ROUNDS=5000 \
		.venv/bin/python -m pytest tests/drills tests/crash tests/fuzz
