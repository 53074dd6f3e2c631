"""Tests of featurestore.storage; `journal_v1` is a second implementation of the journal's format."""
