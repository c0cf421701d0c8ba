"""The report: a cache as one HTML page that opens without a network.

This room imports ``inspection`` and below; matplotlib and jinja2 are imported only when a report is written.

In reading order:

- ``command``: ``logitcask report``.
- ``data``: everything the report shows, as data.
- ``figures``: the figures, as SVG.
- ``html``: the page; ``templates/`` holds its template and style.
"""
