"""Event files in, training sets out: CSV, JSON lines and Parquet, in constant memory whatever is in them.

    rejects     the rows that were refused, to be corrected and fed again
    paths       which files a pattern, a folder or a list stands for
    reading     open_events, read_events: a file as chunks of exactly `batch_events` events
      csv_text    CSV: cells as text, then converted column by column
        quotes    where rows end, and quotes that stand where none may
      json_lines  JSON lines: one object a line
      parquet     Parquet: typed columns
        arrow_words  what an Arrow writer said of their types, where Arrow cannot read it
        footer    where the pages of its columns begin
        pages     what they need once they are decoded
        cells     text cells → numbers, texts, times, with the cells that could not be read
        chunk     some events of a file, and the columns they make
      stream      the bytes of a file or a pipe, decompressed, with how far we are
    writing     open_writer, open_table: tables, whole or not at all
    names       format from a file's name, and the nearest name to one that was not found
    tally       how many events became what

Arrows point down only. Nothing here knows the engine: `Chunk.event_columns` ends in the canonical columns of
`featurestore.columns`, and `open_writer` begins with Arrow's. Only this package imports pyarrow's readers and
writers of formats.
"""

from featurestore.files.reading import Chunk, EventReader, open_events, read_events
from featurestore.files.writing import TableWriter, open_writer

__all__ = ["Chunk", "EventReader", "TableWriter", "open_events", "open_writer", "read_events"]
