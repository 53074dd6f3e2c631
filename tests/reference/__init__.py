"""Independent truth: a store so plain that reading it checks it, and the adapter to the real one.

naive    what the store must answer, in pure Python, importing nothing from featurestore
engine   the compiled engine behind the same few calls, the only place here that knows its API
compare  what "the engine agrees with the truth" means, value by value
"""
