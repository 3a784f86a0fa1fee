"""The database: autotune's tables next to Optuna's. Only this package and Optuna touch SQL."""
