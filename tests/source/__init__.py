"""What the source must keep to whatever it does, one question a file.

tree         every source file as its own parser sees it: imports of all, C functions and structs of Cython's
test_*       stubs, exception specs, Python under nogil, who imports whom, generated code, struct sizes
"""
