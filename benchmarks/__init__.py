"""The measurements that the documentation quotes; each module prints a table, or with ``--json`` one object per row."""
