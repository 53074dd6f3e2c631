"""What only time and strangers show: months of keys that come and go, volumes that fill, clients that take
all.

Each drill runs small in the test suite and in full by `make nightly` (FEATURESTORE_DRILLS=full).
"""
