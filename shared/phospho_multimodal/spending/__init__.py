"""The price, the spending limit, and the spending ledger in memory or in SQLite.

Everything above `settings` may import this folder.
"""
