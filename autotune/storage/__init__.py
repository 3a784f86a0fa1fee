"""The database: autotune's tables next to Optuna's. Only this package and Optuna touch SQL.

:class:`autotune.storage.store.Store` is one open database; its attributes ``launches``,
``requests`` and ``load_maps`` read and write the tables of :mod:`autotune.storage.schema`.
"""
