from typing import final

from featurestore.core.state import State

@final
class IdReader:
    def serve(self, state: State) -> None: ...
