"""Decoders, and bytes that nobody wrote: valid ones, damaged by rules that know where formats break.

    mutations   the damage: bits, lengths, cuts, splices, and all of it from a seed
    trial       one decoder and its samples; what must hold for every damaged one
    memory      nothing may be allocated that is out of proportion to the input
    stores      a schema with every kind of log, states of it, and questions that reach them
    rounds      how often

A file per place where bytes come from: requests and replies (`test_wire`), the journal (`test_journal`), the
row store (`test_store`), rows and the sequencer's tables (`test_state`), the plan (`test_plan`), event files
(`test_files`). Texts that people write are tried where their readers are tested: schema/test_schema_file.py,
schema/test_where.py. `.ci/checked sanitize` runs them on a build in which every read and write is checked.

To see a failure again: its message names the sample, the round, and the damage in order; the damage depends
on nothing else. Under a sanitizer, which ends the process, FEATURESTORE_FUZZ_LAST names the file that has the
last bytes tried.
"""
