"""The embedded default: a generated pricing task (`text`), and its small base (`pretrain`)."""
