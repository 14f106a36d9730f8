"""Warnings of work that is planned before it is done are told once."""

import logging

from butterfly_sdm.progress import told_once


def test_a_warning_is_told_once_in_one_work_and_again_in_the_next(caplog):
    log = logging.getLogger("butterfly_sdm.mapping")
    for _ in range(2):
        with told_once("butterfly_sdm.mapping"):
            for _ in range(3):
                log.warning("The map takes %s.", "long")
                log.warning("The map is %s.", "coarse")
    told = [record.getMessage() for record in caplog.records]
    assert told == ["The map takes long.", "The map is coarse."] * 2
