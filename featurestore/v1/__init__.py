"""The wire's messages and services, generated from proto/featurestore/v1 by proto/generate.py: never edited."""
