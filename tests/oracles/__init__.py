"""Whole files of real events through the engine, beside published answers and independent SQL.

sql        windows in arrival order, as one DuckDB query
test_*     one file of data each
"""
