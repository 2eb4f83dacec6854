"""What can go wrong in the demo, in words for whoever runs it."""


class DemoFailed(Exception):
    """The walk cannot go on: what happened, and what to do."""

    def __init__(self, what: str, repair: str) -> None:
        super().__init__(what)
        self.what, self.repair = what, repair
