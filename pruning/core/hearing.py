"""Warnings that are worth one hearing, where the same is done several times over to choose what comes of it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heard_once(*loggers: logging.Logger) -> Iterator[None]:
    """Within the context, let these loggers say each sentence once.

    >>> import sys
    >>> logger, shown = logging.getLogger("told"), logging.StreamHandler(sys.stdout)
    >>> logger.addHandler(shown)
    >>> with heard_once(logger):
    ...     logger.warning("cut")
    ...     logger.warning("cut")
    cut
    >>> logger.removeHandler(shown)
    """
    said: set[str] = set()

    def first(record: logging.LogRecord) -> bool:
        sentence = record.getMessage()
        known = sentence in said
        said.add(sentence)
        return not known

    for logger in loggers:
        logger.addFilter(first)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(first)
